"""What the load script says of a backup: nothing where all is there, and each thing that is not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from refdiff.memory.database import tables as t
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores

sys.path.insert(0, str(Path(__file__).parent))
import restored

REFDIFF = Path(sys.executable).with_name("refdiff")


def inspect(stores: Stores, number: int) -> None:
    stores.jobs.add(f"i{number}", {"part_id": str(number)}, None, 100)
    stores.captures.add(str(number), "board", stores.images.put(f"photo {number}".encode()))
    report = {"part_id": str(number), "verdict": "PASS", "requested_by": "ana"}
    stores.inspections.file(f"i{number}", str(number), "board", "PASS", "2026-01-01T00:00:00+00:00", report)
    stores.jobs.begin(f"i{number}", worker="w")
    stores.jobs.finish(f"i{number}")


def test_what_a_backup_lacks_or_has_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = tmp_path / "again", tmp_path / "home"
    with Stores.open(MemorySettings(home=homes[1])) as live:
        with closing(sqlite3.connect(homes[1] / "goldens.sqlite")) as bank:
            bank.execute("CREATE TABLE goldens (golden_id TEXT)")
        for number in range(3):
            inspect(live, number)
        made = restored.Backup(REFDIFF, os.environ, tmp_path / "backup", live)
        made.thread.start()
        made.thread.join()
        assert (made.tries, made.said) == (1, "")
        inspect(live, 3)  # after the backup's moment
        monkeypatch.setenv("REFDIFF_HOME", str(homes[0]))
        assert subprocess.run([REFDIFF, "restore", str(made.target)], check=False).returncode == 0
        with Stores.open(MemorySettings(home=homes[0])) as again:
            found = restored.compare(again, live, made, homes)
            assert (found["wrong"], found["photos"], found["audit_records"]) == ([], 3, 3)
            with again.db.transaction() as conn:
                conn.execute(update(t.inspections).where(t.inspections.c.seq == 1).values(report="{}"))
                conn.execute(delete(t.captures).where(t.captures.c.seq == 1))
                conn.execute(delete(t.jobs).where(t.jobs.c.seq == 3))
            lost = sha256(b"photo 1").hexdigest()
            (homes[0] / "images" / lost[:2] / lost).write_bytes(b"another")
            wrong = restored.compare(again, live, made, homes)["wrong"]
    said = "\n".join(wrong)
    assert "inspections (1,): differs" in said
    assert "captures (1,): missing" in said
    assert "jobs: ends with 2, not between 3 and 3" in said
    assert f"photo {lost}: " in said
    assert "audit chain: " in said
