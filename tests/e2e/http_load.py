"""Clients at once on one server for minutes, with kills if wanted: what was accepted must be filed, once.

    python tests/e2e/http_load.py --minutes 10 --clients 8 --kill-every 120

Makes its own home with rendered parts, starts `refdiff serve` on a free port, and prints one JSON document; exit 1 if an
accepted inspection is missing or filed twice, or an answer was a 5xx.
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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render

REFDIFF = Path(sys.executable).with_name("refdiff")
SIZE = (240, 320)
GOLDENS = 22


def photo(instance: int, bad: bool) -> bytes:
    defects = [DefectSpec("stain", size_px=40, contrast=1.0), DefectSpec("scratch", size_px=80, contrast=1.0)]
    return encode_png(
        render("circuit", 1, instance, size=SIZE, noise_seed=instance, defects=defects if bad else []).image
    )


class Server:
    """A `refdiff serve` process that can be killed and started again on the same port."""

    def __init__(self, environment: Mapping[str, str], log: Path, port: int = 0) -> None:
        self.environment, self.log, self._port = dict(environment), log, port
        self.kills = 0
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [REFDIFF, "serve", "--port", str(self._port), "--json"], env=self.environment, stdout=subprocess.PIPE,
                stderr=log, text=True,
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


class Client:
    """One line's program: inspects, follows, reads, asks, decides, as programs do; keeps what it was promised."""

    def __init__(self, number: int, server: Server, seed: int, until: float) -> None:
        self._server, self._until = server, until
        self._rng = random.Random(seed * 1000 + number)
        self._name = f"client-{number}"
        self.accepted: list[str] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.statuses: Counter[int] = Counter()
        self.lost_connections = 0
        self._n = 0
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while time.monotonic() < self._until:
            try:
                with httpx2.Client(base_url=self._server.url, headers=self._server.headers, timeout=120) as http:
                    while time.monotonic() < self._until:
                        self._turn(http)
            except httpx2.TransportError:
                self.lost_connections += 1
                time.sleep(0.5)

    def _turn(self, http: httpx2.Client) -> None:
        self._n += 1
        bad = self._rng.random() < 0.3
        files = {"image": ("part.png", photo(500 + self._rng.randrange(40), bad))}
        data = {"part_id": f"{self._name}-{self._n}", "product": "board"}
        made = self._call("POST inspections", http, "POST", "/v1/inspections", files=files, data=data)
        if made.status_code == 429:
            time.sleep(float(made.headers["retry-after"]))
            return
        if made.status_code != 202:
            return
        inspection_id = made.json()["inspection_id"]
        self.accepted.append(inspection_id)
        started = time.perf_counter()
        with http.stream("GET", f"/v1/inspections/{inspection_id}/events") as stream:
            last = [line for line in stream.iter_lines() if line.startswith("event: ")][-1]
        self.seconds["until filed"].append(time.perf_counter() - started)
        assert last in ("event: done", "event: failed"), last
        self._call("GET inspection", http, "GET", f"/v1/inspections/{inspection_id}")
        self._call("GET list", http, "GET", "/v1/inspections", params={"limit": 50})
        self._call("GET overlay", http, "GET", f"/v1/inspections/{inspection_id}/artefacts/overlay")
        if self._rng.random() < 0.3:
            decision = {"decision": self._rng.choice(["accept", "override"]), "reason": "load"}
            self._call("POST disposition", http, "POST", f"/v1/inspections/{inspection_id}/disposition", json=decision)

    def _call(self, name: str, http: httpx2.Client, method: str, path: str, **sent: Any) -> httpx2.Response:
        started = time.perf_counter()
        answer = http.request(method, path, **sent)
        self.seconds[name].append(time.perf_counter() - started)
        self.statuses[answer.status_code] += 1
        return answer


def prepare(root: Path, environment: Mapping[str, str]) -> None:
    photos = root / "photos"
    photos.mkdir()
    for i in range(GOLDENS):
        (photos / f"{i:02}.png").write_bytes(photo(i, bad=False))
    for command in (["enroll", "--product", "board", str(photos)], ["calibrate", "--product", "board"]):
        subprocess.run([REFDIFF, *command], env=dict(environment), check=True, capture_output=True)


def load(root: Path, clients: int, minutes: float, kill_every: float | None, seed: int, model: bool) -> dict[str, Any]:
    environment = {**os.environ, "REFDIFF_HOME": str(root / "home"), "REFDIFF_RATE_PER_MINUTE": "0"}
    if not model:
        environment["REFDIFF_LLM"] = "off"
    prepare(root, environment)
    server = Server(environment, root / "server.log")
    began = time.monotonic()
    until = began + 60 * minutes
    people = [Client(i, server, seed, until) for i in range(clients)]
    memory = [server.rss_mb()]
    for person in people:
        person.thread.start()
    next_kill = began + (kill_every or 1e9)
    while time.monotonic() < until:
        time.sleep(1)
        if time.monotonic() >= next_kill:
            server.kill()
            server.start()
            next_kill = time.monotonic() + (kill_every or 1e9)
        with suppress(OSError):
            memory.append(server.rss_mb())
    for person in people:
        person.thread.join(300)
    accepted = [i for person in people for i in person.accepted]
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as http:
        while http.get("/v1/inspections/queue").json()["items"]:
            time.sleep(0.5)
        listed: list[str] = []
        while True:
            page = http.get("/v1/inspections", params={"limit": 1000, "offset": len(listed)}).json()
            listed += [item["inspection_id"] for item in page["items"]]
            if len(listed) >= page["total"]:
                break
        failed = http.get("/v1/inspections/queue", params={"failed": True}).json()["items"]
    code = server.stop()
    counts = Counter(listed)
    seconds: dict[str, list[float]] = defaultdict(list)
    for person in people:
        for name, values in person.seconds.items():
            seconds[name] += values
    statuses = sum((person.statuses for person in people), Counter[int]())
    return {
        "clients": clients, "minutes": minutes, "seed": seed, "language_model": model, "kills": server.kills,
        "accepted": len(accepted), "filed": len(listed), "failed": len(failed),
        "missing": [i for i in accepted if counts[i] == 0], "filed_twice": [i for i, n in counts.items() if n > 1],
        # accepted, but the connection broke before the client had read so
        "filed_unasked": len(set(listed) - set(accepted)),
        "inspections_a_minute": round(len(listed) / minutes, 1), "statuses": dict(sorted(statuses.items())),
        "lost_connections": sum(p.lost_connections for p in people), "exit_code": code,
        "rss_mb": {"first": round(memory[0]), "most": round(max(memory)), "last": round(memory[-1])},
        "seconds": {name: _quantiles(values) for name, values in sorted(seconds.items())},
    }  # fmt: skip


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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = load(Path(folder), given.clients, given.minutes, given.kill_every, given.seed, given.model)
    print(json.dumps(found, indent=2))
    broken = found["missing"] or found["filed_twice"] or any(s >= 500 for s in found["statuses"])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
