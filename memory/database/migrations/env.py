"""Alembic's entry: runs the revisions in the transaction that `schema.py` has opened."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
