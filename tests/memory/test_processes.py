"""Crashes, concurrency and full disks in real processes: acknowledged data stays, unacknowledged data is absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import BankBusyError, DuplicateError

from .conftest import GLOBAL_DIM, PATCH_DIM, make_golden, make_vectors

PRELUDE = f"""
import resource, sys
import numpy as np
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import StorageError
settings = MemorySettings(home=sys.argv[1], qdrant_url=None, bank_wait_s=20)
def open_bank(): return GoldenBank.open(settings, "f", {GLOBAL_DIM}, {PATCH_DIM})
def add(bank, i, n=6):
    sha = f"{{i:064x}}"
    return bank.add(Golden(make_golden_id("bracket", sha), "bracket", sha), np.ones({GLOBAL_DIM}, np.float32),
                    np.ones((n, {PATCH_DIM}), np.float32))
"""


def start(code: str, home: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(home)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def kill_after(process: subprocess.Popen[str], lines: int) -> list[str]:
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL
    return [line for line in acknowledged if line]


def test_kill_9_loses_no_acknowledged_golden(settings: MemorySettings) -> None:
    code = "bank = open_bank()\nfor i in range(100_000):\n    assert add(bank, i)\n    print(i)"
    acknowledged = kill_after(start(code, settings.home), 25)
    with GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM) as bank:
        kept = {int(g.sha256, 16) for g in bank.list("bracket")}
        assert {int(i) for i in acknowledged} <= kept
        assert len(kept) - len(acknowledged) <= 1  # the one in flight may be there or not, never half
        assert len(bank.nearest("bracket", *make_vectors(0), k=len(kept))) == len(kept)


def test_kill_9_loses_no_filed_inspection(settings: MemorySettings) -> None:
    code = """
stores = Stores.open(settings)
for i in range(100_000):
    sha = stores.images.put(str(i).encode() * 1000)
    capture = stores.captures.add(f"#{i}", "bracket", sha)
    assert stores.inspections.file(str(i), capture.part_id, "bracket", "PASS", "2026-01-01", {"i": i})
    print(i)
"""
    acknowledged = kill_after(start(code, settings.home), 25)
    with Stores.open(settings) as stores:
        for i in acknowledged:
            assert stores.inspections.get(i).report == {"i": int(i)}
            assert stores.images.get(stores.captures.latest(i).sha256) == i.encode() * 1000
        assert len(stores.inspections.list(limit=1000)) - len(acknowledged) in (0, 1)


def test_second_process_waits_for_the_bank_then_reports_it_busy(settings: MemorySettings) -> None:
    with GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM) as bank:
        bank.add(make_golden(1), *make_vectors(1))
        with pytest.raises(BankBusyError, match=r"(?s)refdiff serve.*QDRANT_URL"):  # same process: no deadlock
            GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM)
        busy = start("settings.bank_wait_s = 0.2\nopen_bank()", settings.home)
        _, err = busy.communicate(timeout=60)
        assert "BankBusyError" in err
        assert busy.returncode != 0
        patient = start("print('waiting'); print(open_bank().count())", settings.home)
        assert patient.stdout is not None
        assert patient.stdout.readline() == "waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            patient.wait(timeout=1.0)
    assert finish(patient) == "1\n"


def test_two_concurrent_processes_enrol_all_their_goldens(settings: MemorySettings) -> None:
    """Each opens and closes the bank for every golden, as two shells running `refdiff enroll` would."""
    code = "for i in range({0}, {0} + 12):\n    with open_bank() as bank: add(bank, i)"
    for process in [start(code.format(first), settings.home) for first in (0, 6)]:
        finish(process)
    with GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM) as bank:
        assert [int(g.sha256, 16) for g in sorted(bank.list(), key=lambda g: g.sha256)] == list(range(18))


def test_concurrent_processes_create_the_database_and_file_each_inspection_once(settings: MemorySettings) -> None:
    code = """
stores = Stores.open(settings)
filed = [stores.inspections.file(str(i), "7", "bracket", "REVIEW", "2026-01-01", {}) for i in range(50)]
print(filed.count(True))
"""
    filed = [int(finish(p)) for p in [start(code, settings.home) for _ in range(3)]]
    assert sum(filed) == 50


def test_concurrent_threads_share_bank_and_stores(settings: MemorySettings) -> None:
    barrier = threading.Barrier(4)
    with Stores.open(settings) as stores, GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM) as bank:
        stores.inspections.file("1", "7", "bracket", "REVIEW", "2026-01-01", {})

        def work(thread: int) -> bool:
            barrier.wait(timeout=30)
            for i in range(15):
                bank.add(make_golden(i), *make_vectors(i))
                assert bank.nearest("bracket", *make_vectors(i), k=1)[0].similarity == pytest.approx(1, abs=1e-5)
            try:
                stores.dispositions.add("1", "accept", f"thread {thread}", "looked at it")
            except DuplicateError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            winners = list(pool.map(work, range(4)))
        assert winners.count(True) == 1
        assert bank.count() == 15


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_full_disk_is_a_storage_error_and_damages_nothing(settings: MemorySettings) -> None:
    """No file may grow past 300 kB: writes then fail in the kernel as they do on a full disk."""
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
stores, bank = Stores.open(settings), open_bank()
stores.images.put(b"small")
def until_full(step):
    for i in range(100_000):
        try:
            step(i)
        except StorageError as e:
            print(i, e)
            return
def image(i):
    stores.images.put(bytes(150_000 + 20_000 * i))
until_full(image)
until_full(lambda i: add(bank, i, n=100))
until_full(lambda i: stores.inspections.file(str(i), "7", "bracket", "PASS", "2026-01-01", {"x": "y" * 5000}))
print(bank.count(), len(stores.inspections.list(limit=1000)), stores.images.get(stores.images.put(b"small")))
"""
    *failures, counts = finish(start(code, settings.home)).splitlines()
    assert len(failures) == 3, failures
    done = [int(line.split()[0]) for line in failures]
    assert all("the disk" in line for line in failures), failures
    assert counts.split()[:2] == [str(done[1]), str(done[2])]
    assert min(done) > 0
    # with space again, all goes on: nothing half-written anywhere
    with Stores.open(settings) as stores, GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM) as bank:
        assert (bank.count(), len(stores.inspections.list(limit=1000))) == (done[1], done[2])
        assert bank.add(make_golden(9999), *make_vectors(1))
        assert stores.inspections.file("next", "7", "bracket", "PASS", "2026-01-01", {})
        files = [p for p in stores.images.root.rglob("*") if p.is_file()]
        assert len(files) == done[0] + 1
        assert all(stores.images.get(p.name) for p in files)
