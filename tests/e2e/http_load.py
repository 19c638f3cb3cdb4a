"""Clients at once on one server for minutes, with kills if wanted: what was accepted must be filed, once.

    python tests/e2e/http_load.py --minutes 10 --clients 8 --kill-every 120
    python tests/e2e/http_load.py --minutes 5 --clients 8 --lines 2 --workers 3 --postgres --kill-every 10

Makes its own home with rendered parts, starts `refdiff serve` on a free port, and prints one JSON document; exit 1 if an
accepted inspection is missing or filed twice, an answer was a 5xx, the audit chain does not verify, or the photos of a line
were filed in another order than they were accepted. With --workers, `refdiff worker` processes inspect; with --postgres the
records are in a Postgres server of its own. Then workers, server and database are killed, one at a time, at random, and 503
is an answer while the database is down.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import select

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from own_postgres import Postgres

from refdiff.memory.database import tables as t
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import RefDiffError
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render

REFDIFF = Path(sys.executable).with_name("refdiff")
SIZE = (240, 320)
GOLDENS = 22
LEASE_S = 10
LINE_PAUSE_S = 2.5  # between two photos of a line
DOWN_S = 3.0  # how long the database is down
PATIENCE_S = 240.0


def photo(instance: int, bad: bool) -> bytes:
    defects = [DefectSpec("stain", size_px=40, contrast=1.0), DefectSpec("scratch", size_px=80, contrast=1.0)]
    return encode_png(
        render("circuit", 1, instance, size=SIZE, noise_seed=instance, defects=defects if bad else []).image
    )


class Server:
    """A `refdiff serve` process that can be killed and started again on the same port."""

    def __init__(self, environment: Mapping[str, str], log: Path, port: int = 0, options: Sequence[str] = ()) -> None:
        self.environment, self.log, self._port, self._options = dict(environment), log, port, options
        self.kills = 0
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [REFDIFF, "serve", "--port", str(self._port), "--json", *self._options], env=self.environment,
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        text = ""
        while "}" not in text:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            text += line
        said = json.loads(text)
        self.url, self.headers = said["address"], {"Authorization": f"Bearer {said['api_key']}"}
        self._port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def rss_mb(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split("VmRSS:")
        return int(fields[1].split()[0]) / 1024 if len(fields) > 1 else 0.0


class Worker:
    """A `refdiff worker` process, started again whenever it ended, as a process manager does."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment, self._log = dict(environment), log
        self.name: str | None = None  # in the journal, once it takes jobs
        self._begin()

    def _begin(self) -> None:
        self.name = None
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [REFDIFF, "worker", "--json"], env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line == "}\n":
                self.name = json.loads(said)["worker"] if process is self.process else self.name
                return

    def look_after(self) -> None:
        if self.process.poll() is not None:
            self._begin()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Client:
    """One line's program: inspects, follows, reads, asks, decides, as programs do; keeps what it was promised."""

    def __init__(self, number: int, server: Server, seed: int, until: float) -> None:
        self._server, self._until = server, until
        self._rng = random.Random(f"{seed} {type(self).__name__} {number}")
        self._name = f"{type(self).__name__.lower()}-{number}"
        self.accepted: list[str] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.statuses: Counter[int] = Counter()
        self.lost_connections = 0
        self._n = 0
        self._sent: dict[str, Any] | None = None  # what was not answered yet, and is sent again
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while time.monotonic() < self._until or (self._sent and time.monotonic() < self._until + PATIENCE_S):
            try:
                with httpx2.Client(base_url=self._server.url, headers=self._server.headers, timeout=120) as http:
                    while time.monotonic() < self._until or self._sent:
                        self._turn(http)
            except httpx2.TransportError:
                self.lost_connections += 1
                time.sleep(0.5)

    def _turn(self, http: httpx2.Client) -> None:
        inspection_id = self._accepted(http, "/v1/inspections")
        if inspection_id is None:
            return
        started = time.perf_counter()
        with http.stream("GET", f"/v1/inspections/{inspection_id}/events") as stream:
            last = [line for line in stream.iter_lines() if line.startswith("event: ")][-1:]
        if last:
            self.seconds["until filed"].append(time.perf_counter() - started)
            assert last[0] in ("event: done", "event: failed"), last
        else:
            self.statuses[stream.status_code] += 1
        self._call("GET inspection", http, "GET", f"/v1/inspections/{inspection_id}")
        self._call("GET list", http, "GET", "/v1/inspections", params={"limit": 50})
        if last:
            self._call("GET overlay", http, "GET", f"/v1/inspections/{inspection_id}/artefacts/overlay")
        if self._rng.random() < 0.3:
            decision = {"decision": self._rng.choice(["accept", "override"]), "reason": "load"}
            self._call("POST disposition", http, "POST", f"/v1/inspections/{inspection_id}/disposition", json=decision)

    def _accepted(self, http: httpx2.Client, path: str) -> str | None:
        """The id of the next part's inspection; None if the server could not take it now."""
        if self._sent is None:
            self._n += 1
            part = f"{self._name}-{self._n:05}"
            image = photo(500 + self._rng.randrange(40), bad=self._rng.random() < 0.3)
            self._sent = {
                "files": {"image": (f"{part}.png", image)}, "data": {"part_id": part, "product": "board"},
                "headers": {"Idempotency-Key": part},
            }  # fmt: skip
        made = self._call(f"POST {path.rpartition('/')[2]}", http, "POST", path, **self._sent)
        if made.status_code in (429, 503):
            time.sleep(min(2.0, float(made.headers.get("retry-after", 1))))
            return None
        self._sent = None
        if made.status_code != 202:
            return None
        self.accepted.append(made.json()["inspection_id"])
        return self.accepted[-1]

    def _call(self, name: str, http: httpx2.Client, method: str, path: str, **sent: Any) -> httpx2.Response:
        started = time.perf_counter()
        answer = http.request(method, path, **sent)
        self.seconds[name].append(time.perf_counter() - started)
        self.statuses[answer.status_code] += 1
        return answer


class Line(Client):
    """A camera: sends one photo after the other and listens to nothing."""

    def _turn(self, http: httpx2.Client) -> None:
        if self._accepted(http, f"/v1/lines/{self._name}/photos") is not None:
            time.sleep(LINE_PAUSE_S)

    @property
    def name(self) -> str:
        return self._name


class Journal:
    """The records, read beside the server."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        settings: dict[str, Any] = {"home": Path(environment["REFDIFF_HOME"])}
        if url := environment.get("REFDIFF_DATABASE_URL"):
            settings["database_url"] = url
        self.stores = Stores.open(MemorySettings(**settings))
        self.taken_over: list[float] = []  # seconds from a worker's death to the next beginning of what it ran

    def run_by(self, worker: str | None) -> dict[str, int]:
        """Inspection -> attempts."""
        jobs = t.jobs.c
        with self.stores.db.connection() as conn:
            rows = conn.execute(
                select(jobs.inspection_id, jobs.attempts).where(jobs.state == "running", jobs.worker == worker)
            )
            return dict(map(tuple, rows))

    def time_until_taken_over(self, inspection_id: str, attempts: int) -> None:
        died = time.monotonic()

        def look() -> None:
            while time.monotonic() < died + PATIENCE_S:
                with suppress(RefDiffError):  # the database is down
                    job = self.stores.jobs.get(inspection_id)
                    if job.attempts > attempts or not job.open:
                        self.taken_over.append(time.monotonic() - died)
                        return
                time.sleep(0.05)

        threading.Thread(target=look, daemon=True).start()

    def orders(self, lines: Sequence[Line]) -> dict[str, bool]:
        """Line -> whether its parts were filed in the order in which it had sent them."""
        with self.stores.db.connection() as conn:
            parts = list(conn.scalars(select(t.inspections.c.part_id).order_by(t.inspections.c.seq)))
        mine = {line.name: [p for p in parts if p.lower().startswith(line.name)] for line in lines}
        return {name: bool(of_line) and of_line == sorted(of_line) for name, of_line in mine.items()}


def prepare(root: Path, environment: Mapping[str, str]) -> None:
    photos = root / "photos"
    photos.mkdir()
    for i in range(GOLDENS):
        (photos / f"{i:02}.png").write_bytes(photo(i, bad=False))
    for command in (["enroll", "--product", "board", str(photos)], ["calibrate", "--product", "board"]):
        subprocess.run([REFDIFF, *command], env=dict(environment), check=True, capture_output=True)


def load(
    root: Path,
    clients: int,
    minutes: float,
    kill_every: float | None,
    seed: int,
    model: bool,
    *,
    lines: int = 0,
    workers: int = 0,
    postgres: Postgres | None = None,
) -> dict[str, Any]:
    """workers: 0: the server inspects. postgres: a running one."""
    environment = {**os.environ, "REFDIFF_HOME": str(root / "home"), "REFDIFF_RATE_PER_MINUTE": "0"}
    if not model:
        environment["REFDIFF_LLM"] = "off"
    if postgres:
        environment["REFDIFF_DATABASE_URL"] = postgres.new_database()
    if workers:
        environment |= {"REFDIFF_LEASE_S": str(LEASE_S), "REFDIFF_THREADS": "1", "REFDIFF_AUTO_FIT": "0"}
    prepare(root, environment)
    server = Server(environment, root / "server.log", options=["--no-inspections"] if workers else [])
    inspecting = [Worker(environment, root / f"worker-{i}.log") for i in range(workers)]
    journal = Journal(environment)
    rng, kills = random.Random(seed), Counter[str]()
    targets = ["server", *(["worker"] * 3 if workers else []), *(["database"] * 2 if postgres else [])]
    began = time.monotonic()
    until = began + 60 * minutes
    people = [Client(i, server, seed, until) for i in range(clients)]
    cameras = [Line(i, server, seed, until) for i in range(lines)]
    memory = [server.rss_mb()]
    for person in [*people, *cameras]:
        person.thread.start()
    next_kill = began + (kill_every or 1e9)
    while time.monotonic() < until:
        time.sleep(1)
        if time.monotonic() >= next_kill:
            ready = [worker for worker in inspecting if worker.name]
            kills[_kill(rng.choice(targets), server, rng.choice(ready) if ready else None, journal, postgres)] += 1
            next_kill = time.monotonic() + (kill_every or 1e9)
        for worker in inspecting:
            worker.look_after()
        with suppress(OSError):
            memory.append(server.rss_mb())
    for person in [*people, *cameras]:
        while person.thread.is_alive():
            person.thread.join(1)
            for worker in inspecting:
                worker.look_after()
    ended = time.monotonic()
    accepted = [i for person in [*people, *cameras] for i in person.accepted]
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as http:
        while http.get("/v1/inspections/queue").json()["items"] and time.monotonic() < ended + PATIENCE_S:
            time.sleep(0.5)
        drained_s = time.monotonic() - ended
        listed: list[str] = []
        while True:
            page = http.get("/v1/inspections", params={"limit": 1000, "offset": len(listed)}).json()
            listed += [item["inspection_id"] for item in page["items"]]
            if len(listed) >= page["total"]:
                break
        failed = http.get("/v1/inspections/queue", params={"failed": True}).json()["items"]
    codes = [server.stop(), *(worker.stop() for worker in inspecting)]
    checked, orders = journal.stores.audit.verify_store(photos=True), journal.orders(cameras)
    attempts = Counter(job.attempts for job in journal.stores.jobs.list(("done",), limit=-1))
    journal.stores.close()
    counts = Counter(listed)
    seconds: dict[str, list[float]] = defaultdict(list)
    for person in [*people, *cameras]:
        for name, values in person.seconds.items():
            seconds[name] += values
    statuses = sum((person.statuses for person in [*people, *cameras]), Counter[int]())
    return {
        "clients": clients, "lines": lines, "workers": workers, "database": "postgres" if postgres else "sqlite",
        "minutes": minutes, "seed": seed, "language_model": model, "kills": kills.total(), "killed": dict(kills),
        "accepted": len(accepted), "filed": len(listed), "failed": len(failed),
        "missing": [i for i in accepted if counts[i] == 0], "filed_twice": [i for i, n in counts.items() if n > 1],
        # accepted, but the connection broke before the client had read so, and it did not ask again
        "filed_unasked": len(set(listed) - set(accepted)),
        "chain": checked.problem or "holds", "records": checked.records, "line_order_kept": orders,
        "attempts": {str(n): jobs for n, jobs in sorted(attempts.items())},
        "taken_over_s": _quantiles(journal.taken_over) if journal.taken_over else None,
        "inspections_a_minute": round(60 * len(listed) / (ended - began + drained_s), 1),
        "drained_s": round(drained_s, 1), "statuses": dict(sorted(statuses.items())),
        "lost_connections": sum(p.lost_connections for p in [*people, *cameras]), "exit_codes": codes,
        "rss_mb": {"first": round(memory[0]), "most": round(max(memory)), "last": round(memory[-1])},
        "seconds": {name: _quantiles(values) for name, values in sorted(seconds.items())},
    }  # fmt: skip


def _kill(target: str, server: Server, worker: Worker | None, journal: Journal, postgres: Postgres | None) -> str:
    """Kill it as a power cut would; what was killed."""
    if target == "database" and postgres:
        postgres.stop()
        time.sleep(DOWN_S)
        postgres.start()
        return "database"
    if target == "worker":
        if worker is None:  # all of them are starting
            return "nobody"
        running = journal.run_by(worker.name)
        worker.kill()
        for inspection_id, attempts in running.items():
            journal.time_until_taken_over(inspection_id, attempts)
        return "worker"
    server.kill()
    server.start()
    return "server"


def _quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20) if len(values) > 1 else values * 19
    return {"n": len(values), "p50": round(cuts[9], 4), "p95": round(cuts[18], 4), "max": round(max(values), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kill-every", type=float, metavar="S", help="kill -9 the server so often, and start it again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", action="store_true", help="let the language model drive (else the script)")
    parser.add_argument("--lines", type=int, default=0, help="cameras besides, whose photos are inspected in order")
    parser.add_argument("--workers", type=int, default=0, help="processes that inspect, instead of the server")
    parser.add_argument("--postgres", action="store_true", help="keep the records in a Postgres server of its own")
    given = parser.parse_args()
    with ExitStack() as opened:
        folder, postgres = opened.enter_context(tempfile.TemporaryDirectory()), None
        if given.postgres:
            postgres = Postgres(Path(opened.enter_context(tempfile.TemporaryDirectory())), durable=True)
            postgres.start()
            opened.callback(postgres.stop)
        found = load(
            Path(folder), given.clients, given.minutes, given.kill_every, given.seed, given.model, lines=given.lines,
            workers=given.workers, postgres=postgres,
        )  # fmt: skip
    print(json.dumps(found, indent=2))
    wrong = {s for s in found["statuses"] if s >= 500} - ({503} if given.postgres and given.kill_every else set())
    broken = found["missing"] or found["filed_twice"] or wrong or found["chain"] != "holds"
    return 1 if broken or not all(found["line_order_kept"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
