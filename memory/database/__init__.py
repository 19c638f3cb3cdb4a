"""Databases by SQLAlchemy: SQLite files, a Postgres server, the tables of the records, and their migrations."""
