"""What Alembic runs to bring a record database to the newest schema, when it is opened."""
