"""Clients at once on one server for minutes, with kills if wanted: what was accepted must be filed, once.

    python tests/e2e/http_load.py --minutes 10 --clients 8 --kill-every 120
    python tests/e2e/http_load.py --minutes 5 --clients 8 --lines 2 --workers 3 --postgres --kill-every 10
    python tests/e2e/http_load.py --parts 2000 --small --lines 2 --workers 3 --postgres --s3 --backup --kill-every 20

Makes its own home with rendered parts, starts `refdiff serve` on a free port, and prints one JSON document; exit 1 if an
accepted inspection is missing or filed twice, an answer was a 5xx, the audit chain does not verify, or the photos of a line
were filed in another order than they were accepted. With --workers, `refdiff worker` processes inspect; with --postgres the
records are in a Postgres server of its own. Then workers, server and database are killed, one at a time, at random, and 503
is an answer while the database is down. With --s3 the photos are in a local S3 server, which is not killed.

With --parts it ends once so many were accepted; --small has small photos that are compared with one golden sample. With
--backup, `refdiff backup` runs once half of it is accepted, and what it wrote is restored into a new home, database and
bucket, and compared with the records row by row (see `restored.compare`); exit 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import logging
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
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from own_postgres import Postgres

sys.path.insert(0, str(Path(__file__).parent))
import restored

from refdiff.memory.database import tables as t
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import RefDiffError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.synthesis.render import DefectSpec, render

if TYPE_CHECKING:
    from own_s3 import OwnS3

REFDIFF = Path(sys.executable).with_name("refdiff")
SIZE = (240, 320)
SMALL = (120, 160)
SMALL_SETTINGS = {"REFDIFF_WORKING_PX": "160", "REFDIFF_TILES": "1", "REFDIFF_REFERENCES": "1"}
SHOWN = (*SMALL_SETTINGS, "REFDIFF_LEASE_S", "REFDIFF_THREADS")
GOLDENS = 22
LEASE_S = 10
LINE_PAUSE_S = 2.5  # between two photos of a line
DOWN_S = 3.0  # how long the database is down
PATIENCE_S = 240.0
TELL_S = 10.0  # between two lines of progress


@cache
def rendered(instance: int, bad: bool, size: tuple[int, int]) -> RgbImage:
    defects = [DefectSpec("stain", size_px=40, contrast=1.0), DefectSpec("scratch", size_px=80, contrast=1.0)]
    return render("circuit", 1, instance, size=size, noise_seed=instance, defects=defects if bad else []).image


def photo(instance: int, bad: bool, taken: int | None = None) -> bytes:
    """taken: the seed of noise of one grey level, which makes each photo of a part another one."""
    image = rendered(instance, bad, SIZE)
    if taken is not None:
        noise = np.random.default_rng(taken).integers(-1, 2, image.shape)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return encode_png(image)


class Goal:
    """How long parts are sent: for some minutes, or, if it comes first, until so many are accepted."""

    def __init__(self, minutes: float, parts: int | None) -> None:
        self._until, self._parts = time.monotonic() + 60 * minutes, parts
        self._sent, self._lock = 0, threading.Lock()

    def take(self) -> bool:
        """Whether another part is to be sent, which is counted then."""
        with self._lock:
            more = self.more
            self._sent += more
            return more

    def give_back(self) -> None:
        """It was refused."""
        with self._lock:
            self._sent -= 1

    @property
    def more(self) -> bool:
        return time.monotonic() < self._until and (self._parts is None or self._sent < self._parts)

    @property
    def patient(self) -> bool:
        """Whether what was sent and not answered is sent again."""
        return time.monotonic() < self._until + PATIENCE_S


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
                if process is self.process:  # one that could not start says why instead
                    self.name = json.loads(said).get("worker")
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

    def __init__(self, number: int, server: Server, seed: int, goal: Goal) -> None:
        self._server, self._goal = server, goal
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
        while self._goal.more or (self._sent and self._goal.patient):
            try:
                with httpx2.Client(base_url=self._server.url, headers=self._server.headers, timeout=120) as http:
                    while self._goal.more or self._sent:
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
            if not self._goal.take():
                return None
            self._n += 1
            part = f"{self._name}-{self._n:05}"
            image = photo(500 + self._rng.randrange(40), self._rng.random() < 0.3, self._rng.getrandbits(32))
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
            self._goal.give_back()
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
        for name in ("database_url", "objects_url"):
            if url := environment.get(f"REFDIFF_{name.upper()}"):
                settings[name] = url
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

    def counts(self) -> dict[str, int]:
        """How many inspections are filed, and how many jobs in each state."""
        jobs = t.jobs.c
        with self.stores.db.connection() as conn:
            of_states = dict(map(tuple, conn.execute(select(jobs.state, func.count()).group_by(jobs.state))))
            return {"filed": conn.scalar(select(func.count()).select_from(t.inspections)) or 0, **of_states}

    def costs(self) -> dict[str, float]:
        """Median ms of each step of an inspection."""
        steps: dict[str, list[float]] = defaultdict(list)
        with self.stores.db.connection() as conn:
            for report in conn.scalars(select(t.inspections.c.report)):
                for step, ms in json.loads(report)["timings_ms"].items():
                    steps[step].append(ms)
        return {step: round(statistics.median(ms), 1) for step, ms in sorted(steps.items())}

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
    s3: OwnS3 | None = None,
    parts: int | None = None,
    backup: bool = False,
) -> dict[str, Any]:
    """minutes: the longest, with parts. workers: 0: the server inspects. postgres, s3: running ones; s3's `environment` is
    set."""
    environment = {**os.environ, "REFDIFF_HOME": str(root / "home"), "REFDIFF_RATE_PER_MINUTE": "0"}
    if not model:
        environment["REFDIFF_LLM"] = "off"
    if postgres:
        environment["REFDIFF_DATABASE_URL"] = postgres.new_database()
    if s3:
        environment["REFDIFF_OBJECTS_URL"] = s3.new_bucket()
    if workers:
        environment |= {"REFDIFF_LEASE_S": str(LEASE_S), "REFDIFF_THREADS": "1", "REFDIFF_AUTO_FIT": "0"}
    prepare(root, environment)
    server = Server(environment, root / "server.log", options=["--no-inspections"] if workers else [])
    inspecting = [Worker(environment, root / f"worker-{i}.log") for i in range(workers)]
    journal = Journal(environment)
    rng, kills = random.Random(seed), Counter[str]()
    targets = ["server", *(["worker"] * 3 if workers else []), *(["database"] * 2 if postgres else [])]
    copy = restored.Backup(REFDIFF, environment, root / "backup.tar", journal.stores) if backup else None
    began = time.monotonic()
    goal = Goal(minutes, parts)
    people = [Client(i, server, seed, goal) for i in range(clients)]
    cameras = [Line(i, server, seed, goal) for i in range(lines)]
    memory = [server.rss_mb()]
    for person in [*people, *cameras]:
        person.thread.start()
    next_kill, next_word = began + (kill_every or 1e9), began
    while goal.more:
        time.sleep(1)
        sent = sum(len(person.accepted) for person in [*people, *cameras])
        if copy and copy.thread.ident is None and (
            2 * sent >= parts if parts else time.monotonic() >= began + 30 * minutes
        ):  # fmt: skip
            copy.thread.start()
        if time.monotonic() >= next_word:
            next_word = time.monotonic() + TELL_S
            _tell(began, sent, parts, kills, journal, copy)
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
    if copy and copy.thread.ident is not None:
        copy.thread.join()
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
    costs = journal.costs()
    compared = _restored(root, environment, copy, journal, postgres, s3) if copy else None
    journal.stores.close()
    counts = Counter(listed)
    seconds: dict[str, list[float]] = defaultdict(list)
    for person in [*people, *cameras]:
        for name, values in person.seconds.items():
            seconds[name] += values
    statuses = sum((person.statuses for person in [*people, *cameras]), Counter[int]())
    return {
        "clients": clients, "lines": lines, "workers": workers, "database": "postgres" if postgres else "sqlite",
        "photos": "s3" if s3 else "folder", "photo_px": [SIZE[1], SIZE[0]], "goldens": GOLDENS,
        "settings": {n: environment[n] for n in SHOWN if n in environment},
        "minutes": round((ended - began) / 60, 1), "seed": seed, "language_model": model,
        "kills": kills.total(), "killed": dict(kills),
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
        "step_ms": costs, "backup": compared,
    }  # fmt: skip


def _tell(
    began: float, sent: int, parts: int | None, kills: Counter[str], journal: Journal, copy: restored.Backup | None
) -> None:
    """One line on stderr."""
    try:
        counts = ", ".join(f"{n} {what}" for what, n in journal.counts().items())
    except RefDiffError:
        counts = "the database is down"
    minutes, of = (time.monotonic() - began) / 60, f" of {parts}" if parts else ""
    said = f"{minutes:5.1f} min: {sent}{of} accepted; {counts}; killed: {dict(kills) or 'nothing'}"
    if copy and copy.tries:
        said += f"; backup: {'done' if copy.after else f'try {copy.tries}'}"
    print(said, file=sys.stderr, flush=True)


def _restored(
    root: Path,
    environment: Mapping[str, str],
    copy: restored.Backup,
    journal: Journal,
    postgres: Postgres | None,
    s3: OwnS3 | None,
) -> dict[str, Any]:
    """What came of the backup, restored elsewhere."""
    found: dict[str, Any] = {"tries": copy.tries, "seconds": round(copy.seconds, 1)}
    if not copy.after:
        return found | {"wrong": [f"there is none: {copy.said}"]}
    elsewhere = {**environment, "REFDIFF_HOME": str(root / "restored")}
    if postgres:
        elsewhere["REFDIFF_DATABASE_URL"] = postgres.new_database()
    if s3:
        elsewhere["REFDIFF_OBJECTS_URL"] = s3.new_bucket()
    began = time.monotonic()
    command = [str(REFDIFF), "restore", str(copy.target), "--json"]
    done = subprocess.run(command, env=elsewhere, capture_output=True, text=True, check=False)
    found |= {"mb": round(copy.target.stat().st_size / 1e6, 1), "restored_s": round(time.monotonic() - began, 1)}
    if done.returncode != 0:
        return found | {"wrong": [f"restore: {done.stderr[-500:]}"]}
    again = Journal(elsewhere).stores
    try:
        found |= restored.compare(again, journal.stores, copy, (root / "restored", root / "home"))
    finally:
        again.close()
    doctor = subprocess.run([REFDIFF, "doctor", "--deep"], env=elsewhere, capture_output=True, text=True, check=False)
    if doctor.returncode != 0:
        found["wrong"].append(f"doctor: {doctor.stdout[-1000:]}")
    return found


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
    parser.add_argument("--minutes", type=float, help="default: 10; with --parts, the longest: 60")
    parser.add_argument("--parts", type=int, metavar="N", help="end once so many are accepted")
    parser.add_argument(
        "--small", action="store_true", help="small photos, each compared with one golden sample as a whole"
    )
    parser.add_argument("--kill-every", type=float, metavar="S", help="kill -9 the server so often, and start it again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", action="store_true", help="let the language model drive (else the script)")
    parser.add_argument("--lines", type=int, default=0, help="cameras besides, whose photos are inspected in order")
    parser.add_argument("--workers", type=int, default=0, help="processes that inspect, instead of the server")
    parser.add_argument("--postgres", action="store_true", help="keep the records in a Postgres server of its own")
    parser.add_argument("--s3", action="store_true", help="keep the photos in an S3 server of its own")
    parser.add_argument("--backup", action="store_true", help="back up in the midst of it, restore elsewhere, compare")
    given = parser.parse_args()
    if given.small:
        global SIZE
        SIZE = SMALL
        os.environ |= SMALL_SETTINGS
    with ExitStack() as opened:
        folder, postgres, s3 = opened.enter_context(tempfile.TemporaryDirectory()), None, None
        if given.s3:
            from own_s3 import OwnS3  # takes a second to import

            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request else
            s3 = OwnS3()
            opened.callback(s3.stop)
            os.environ |= s3.environment
        if given.postgres:
            postgres = Postgres(Path(opened.enter_context(tempfile.TemporaryDirectory())), durable=True)
            postgres.start()
            opened.callback(postgres.stop)
        found = load(
            Path(folder), given.clients, given.minutes or (60 if given.parts else 10), given.kill_every, given.seed,
            given.model, lines=given.lines, workers=given.workers, postgres=postgres, s3=s3, parts=given.parts,
            backup=given.backup,
        )  # fmt: skip
    print(json.dumps(found, indent=2))
    wrong = {s for s in found["statuses"] if s >= 500} - ({503} if given.postgres and given.kill_every else set())
    broken = found["missing"] or found["filed_twice"] or wrong or found["chain"] != "holds"
    broken = broken or found["failed"] or (found["backup"] and found["backup"]["wrong"])
    return 1 if broken or not all(found["line_order_kept"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
