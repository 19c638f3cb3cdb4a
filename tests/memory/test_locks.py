"""Locks between processes; two lock objects of one process keep each other out as processes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff.memory.locks import hold_lock
from refdiff.model.errors import BankBusyError, StorageError

BUSY = BankBusyError("taken; wait for it")


def test_taken_lock_raises_the_given_error(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "a.lock", BUSY):
        with pytest.raises(BankBusyError, match="taken; wait for it"), hold_lock(tmp_path / "a.lock", BUSY, wait_s=0.1):
            pass
        with hold_lock(tmp_path / "b.lock", BUSY):
            pass


@pytest.mark.parametrize("remove", [True, False])
def test_lock_is_free_after_an_error_in_the_block(tmp_path: Path, remove: bool) -> None:
    path = tmp_path / "locks" / "a.lock"
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), hold_lock(path, BUSY, remove=remove):
            raise ValueError("inside")
        assert path.exists() is not remove


def test_lock_file_that_cannot_be_created_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"a\.lock"), hold_lock(tmp_path / "file" / "a.lock", BUSY):
        pass
