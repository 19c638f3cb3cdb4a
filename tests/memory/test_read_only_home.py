"""A home that may only be read: another account's, a backup, a read-only disk."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.memory.database import earlier
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of POSIX")
_DROP, _OVERRIDES = 24, (1, 2)  # PR_CAPBSET_DROP; the capabilities by which root ignores modes
RUN = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from refdiff.server.cli import main
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main.run([*command, "--json"])
    print(json.dumps([code, json.loads(out.getvalue() or "null"), err.getvalue()]))
"""


def _obey_modes() -> None:
    if os.geteuid() == 0:
        for capability in _OVERRIDES:
            ctypes.CDLL(None).prctl(_DROP, capability, 0, 0, 0)


def run(home: Path, *commands: list[str]) -> list[tuple[int, Any, str]]:
    """(exit code, JSON, stderr) of each command, as an account that modes hold back."""
    environment = os.environ | {"REFDIFF_HOME": str(home), "REFDIFF_CACHE": str(home.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], env=environment, capture_output=True, text=True,
        preexec_fn=_obey_modes, check=False, cwd=home.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """With one inspection that waits for a person, and one key."""
    home = tmp_path / "a home?"
    with Stores.open(MemorySettings(home=home)) as stores:
        report = {"query_sha256": stores.images.put(b"photo"), "findings": [], "requested_by": "ana"}
        stores.inspections.file("insp-1", "4412", "board", "REVIEW", "2026-01-01", report)
        stores.keys.add("line 3", "viewer", "ana")
    yield home
    for path in (home, *home.rglob("*")):
        path.chmod(0o700)


def freeze(home: Path) -> None:
    for path in sorted(home.rglob("*"), reverse=True):
        path.chmod(0o500 if path.is_dir() else 0o400)
    home.chmod(0o500)


def names(home: Path) -> set[str]:
    return {p.name for p in home.rglob("*")}


def test_reading_commands_work_on_a_read_only_home(home: Path) -> None:
    freeze(home)
    before = names(home)
    listed, review, keys, audit, export, rates, product, captured = run(
        home, ["inspections", "list"], ["review"], ["keys", "list"], ["audit", "verify", "--store", "--photos"],
        ["audit", "export", "--out", str(home.parent / "audit.jsonl")], ["rates"], ["product", "show", "--product", "none"],
        ["keys", "add", "x", "--role", "viewer"],
    )  # fmt: skip
    assert (listed[0], [i["part_id"] for i in listed[1]["inspections"]]) == (0, ["4412"])
    assert (review[0], len(review[1]["open_reviews"])) == (0, 1)
    assert (keys[0], [k["name"] for k in keys[1]["keys"]]) == (0, ["line 3"])
    assert (audit[0], audit[1]["intact"]) == (0, True)
    assert (export[0], export[1]["records"]) == (0, 2)  # the settings in force, and the report
    assert (rates[0], rates[1]["n_inspections"]) == (0, 1)
    assert product[0] in (64, 65)  # nothing is known of it
    assert (captured[0], "cannot be written" in captured[2]) == (69, True)
    assert names(home) == before


def test_golden_bank_of_a_read_only_home_is_read(home: Path) -> None:
    settings = MemorySettings(home=home)
    golden = Golden(make_golden_id("board", "a" * 64), "board", "a" * 64)
    with GoldenBank.open(settings, "e0", 2, 2) as bank:
        bank.add(golden, np.array([1, 0], np.float32), np.array([[1, 0]], np.float32))
    freeze(home)
    before = names(home)
    listing = (
        "from refdiff.memory.golden_bank.bank import GoldenBank\nfrom refdiff.memory.settings import MemorySettings\n"
        "with GoldenBank.open(MemorySettings(), 'e0', 2, 2) as bank:\n    print([g.golden_id for g in bank.list()])\n"
        "    bank.set_status(bank.list()[0].golden_id, 'retired', '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", listing], env=os.environ | {"REFDIFF_HOME": str(home)}, capture_output=True, text=True,
        preexec_fn=_obey_modes, check=False,
    )  # fmt: skip
    assert done.stdout == f"['{golden.golden_id}']\n", done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert names(home) == before


def test_read_only_home_with_unread_changes_says_so(home: Path) -> None:
    """After a crash: what was changed last is in the log, and a reader that left it out would be wrong."""
    file = home / "refdiff.sqlite"
    conn = sqlite3.connect(file, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("UPDATE inspections SET part_id = 'changed'")
    kept = home.parent / "kept-wal"
    shutil.copyfile(f"{file}-wal", kept)
    shutil.copyfile(file, home.parent / "kept")
    conn.close()
    shutil.copyfile(home.parent / "kept", file)
    shutil.copyfile(kept, f"{file}-wal")
    freeze(home)
    [(code, _, said)] = run(home, ["inspections", "list"])
    assert (code, "copy the home folder" in said) == (69, True)


@pytest.mark.parametrize(
    ("statements", "said_so"),
    [
        (f"DROP TABLE alembic_version; PRAGMA user_version={earlier.newest()}", "earlier refdiff"),
        ("UPDATE alembic_version SET version_num = 'r0001'", "earlier refdiff"),
        (f"DROP TABLE alembic_version; PRAGMA user_version={earlier.newest() + 1}", "newer refdiff"),
        ("UPDATE alembic_version SET version_num = 'r9999'", "newer refdiff"),
    ],
)
def test_read_only_home_of_another_version_says_so(home: Path, statements: str, said_so: str) -> None:
    conn = sqlite3.connect(home / "refdiff.sqlite", isolation_level=None)
    conn.executescript(statements)
    conn.close()
    freeze(home)
    [(code, _, said)] = run(home, ["inspections", "list"])
    assert (code, said_so in said) == (69, True)
