"""Alembic's revisions of the record database. One that was released is never changed; `schema.NEWEST` names the last."""
