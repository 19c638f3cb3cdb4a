"""The newest export of each product, for devices to fetch: one file each, replaced as a whole."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from refdiff.memory.changes import EXPORT, State, recorded
from refdiff.memory.database.database import Database
from refdiff.memory.rows.products import check_product_name
from refdiff.model.errors import UnavailableError
from refdiff.model.files import TEMPORARY, atomic_path, make_folder, storage_error

_SUFFIX = ".refdiff"
_PUBLISHING_S = 60.0  # how long to wait for another process that publishes one of the same product


class PublishedExports:
    """Files below one folder of the home. What they say is checked by the caller."""

    def __init__(self, folder: Path, db: Database) -> None:
        self._folder, self._db = folder, db

    def path(self, product: str) -> Path:
        """Where the newest of a product is, if any was published. Raises InputError for what is no name."""
        return self._folder / f"{check_product_name(product)}{_SUFFIX}"

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Path]:
        """A path to write a new one to, on the disk where it will stay; removed at the end unless it was published."""
        path = make_folder(self._folder) / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def publishing(self, product: str) -> Iterator[None]:
        """Nobody else publishes one of the product meanwhile. Raises UnavailableError after a minute."""
        busy = UnavailableError(f"another process is publishing an export of product {product!r}; try again")
        with self._db.lock(f"publish {product}", busy, wait_s=_PUBLISHING_S):
            yield

    def replace(self, product: str, new: Path, before: State | None, after: State, by: str) -> None:
        """Make the file `new` the newest of the product, once its record is on the disk. before, after: what both are.

        Raises StorageError.
        """
        path = self.path(product)
        with recorded(self._db, EXPORT, product, by, before, after):
            try:
                with atomic_path(path) as temporary:
                    new.replace(temporary)
            except OSError as e:
                raise storage_error(path, e) from e
