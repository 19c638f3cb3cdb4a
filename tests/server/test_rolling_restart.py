"""A server and two workers, as processes on one database, are stopped and started again one after the other under load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from refdiff.memory.stores import Stores

from .conftest import good_photo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and shared locks")

COMMAND = [sys.executable, "-c", "from refdiff.server.cli.main import main; main()"]
BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
WAIT_S = 180


class Process:
    """A `refdiff` command that says with a JSON document that it works."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen([*COMMAND, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
        lines: list[str] = []
        assert self.process.stdout
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        self.said = json.loads("".join(lines))

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("database", BOTH, indirect=True)
def test_rolling_restart_under_load_loses_no_part_and_counts_no_crash(
    ready: Path, database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    monkeypatch.setenv("REFDIFF_THREADS", "1")
    server = ["serve", "--no-inspections", "--port"]
    running = [Process(*server, "0"), Process("worker"), Process("worker")]
    address, key = running[0].said["address"], running[0].said["api_key"]
    accepted: dict[str, str] = {}  # part -> inspection
    enough = threading.Event()

    def load(client: int) -> None:
        """Send one part after the other, each until it is accepted, as clients do that know of restarts."""
        headers = {"Authorization": f"Bearer {key}"}
        number = 0
        while not enough.is_set():
            part = f"{client}-{number}"
            with httpx2.Client(base_url=address, headers=headers | {"Idempotency-Key": part}, timeout=30) as http:
                files, data = (
                    {"image": ("p.png", good_photo(100 * client + number))},
                    {"part_id": part, "product": "board"},
                )
                try:
                    answer = http.post("/v1/inspections", files=files, data=data)
                except httpx2.TransportError:
                    time.sleep(0.1)
                    continue
                if answer.status_code not in (200, 202):
                    assert answer.status_code in (429, 503), answer.text
                    time.sleep(0.2)
                    continue
            accepted[part] = answer.json()["inspection_id"]
            number += 1
            time.sleep(0.5)

    clients = [threading.Thread(target=load, args=(client,)) for client in (1, 2)]
    try:
        for client in clients:
            client.start()
        for place, process in enumerate(list(running)):
            before = len(accepted)
            process.end()
            running[place] = Process(*server, address.rpartition(":")[2]) if place == 0 else Process("worker")
            deadline = time.monotonic() + WAIT_S
            while len(accepted) < before + 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        enough.set()
        for client in clients:
            client.join(WAIT_S)
        with Stores.open() as stores:
            deadline = time.monotonic() + WAIT_S
            while stores.jobs.count_open():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            filed = stores.inspections.list(limit=1000)
            jobs = [stores.jobs.get(i) for i in accepted.values()]
            assert len(accepted) >= 6
            assert Counter(r.inspection_id for r in filed) == Counter(accepted.values())
            assert {(j.state, j.crashes) for j in jobs} == {("done", 0)}
            assert stores.audit.verify_store(photos=True).problems == []
        for process in running:
            process.end()
    finally:
        enough.set()
        for process in running:
            process.kill()
