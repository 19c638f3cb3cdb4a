"""A camera drops photos while `refdiff watch` is killed (SIGKILL) on the way; at the end each photo has exactly one report.

python tests/e2e/line_kills.py --photos 2000 --kills 2 --out line-kills
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render

REFDIFF = Path(sys.executable).with_name("refdiff")
SECRET = "c2VjcmV0LW9mLXRoZS1saW5l"
SIZE = (96, 128)


@dataclass
class Outcome:
    """What the run left: counts that must all be `photos`, but for messages, which a kill may send twice."""

    photos: int
    kills: int
    reports: int
    distinct_parts: int
    lines: int
    lines_in_order: bool
    messages: int
    messages_twice: int
    moved: int
    left: int
    quarantined: int
    verdicts: dict[str, int]
    seconds: float


def photo(number: int) -> bytes:
    """Every tenth has a stain."""
    defects = [DefectSpec("stain", size_px=30, where=(64, 48), contrast=1.0)] if number % 10 == 9 else []
    return encode_png(render("circuit", 1, 1000 + number, size=SIZE, noise_seed=number, defects=defects).image)


def _camera(folder: Path, photos: int, pool: list[bytes], stop: threading.Event) -> None:
    """Drop photos, every other one written in place in two pieces as poor cameras do, the others by renaming."""
    for number in range(photos):
        if stop.is_set():
            return
        data = pool[number % len(pool)]
        path = folder / f"board_{number:05}.png"
        if number % 2:
            with open(path, "wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                time.sleep(0.01)
                file.write(data[len(data) // 2 :])
        else:
            path.with_suffix(".tmp").write_bytes(data)
            path.with_suffix(".tmp").rename(path)


class _Receiver(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.got: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Receiver

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.got[self.headers["webhook-id"]] += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def run(root: Path, photos: int, kills: int, timeout_s: float) -> Outcome:
    """Do it in an empty folder `root`; the environment's REFDIFF_HOME and REFDIFF_CACHE are used."""
    started = time.monotonic()
    camera, good, lines = root / "camera", root / "good", root / "lines.jsonl"
    camera.mkdir(parents=True)
    good.mkdir()
    for i in range(22):
        good.joinpath(f"{i:02}.png").write_bytes(encode_png(render("circuit", 1, i, size=SIZE, noise_seed=i).image))
    subprocess.run([REFDIFF, "enroll", "--product", "board", str(good)], check=True, stdout=subprocess.DEVNULL)
    pool = [photo(i) for i in range(min(photos, 60))]
    receiver, stop = _Receiver(), threading.Event()
    threads = [
        threading.Thread(target=receiver.serve_forever, daemon=True),
        threading.Thread(target=_camera, args=(camera, photos, pool, stop), daemon=True),
    ]
    for thread in threads:
        thread.start()
    command = [
        str(REFDIFF), "watch", str(camera), "--pattern", r"(?P<product>[a-z]+)_(?P<part>\d+)", "--judge", "never",
        "--lines", str(lines), "--webhook", f"http://127.0.0.1:{receiver.server_address[1]}/hook",
    ]  # fmt: skip
    environment = {**os.environ, "REFDIFF_WEBHOOK_SECRET": SECRET}
    goals = [photos * (i + 1) // (kills + 1) for i in range(kills)]
    try:
        for goal in [*goals, photos]:
            process = subprocess.Popen(command, env=environment)
            while _count(lines) < goal:
                if process.poll() is not None or time.monotonic() - started > timeout_s:
                    raise RuntimeError(f"watch ended with {process.poll()} at {_count(lines)} of {goal} lines")
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM if goal == photos else signal.SIGKILL)
            code = process.wait(60)
            if goal == photos and code != 0:
                raise RuntimeError(f"watch ended with {code}")
    finally:
        stop.set()
        receiver.shutdown()
        if process.poll() is None:
            process.kill()
    return _outcome(camera, lines, receiver, photos, kills, time.monotonic() - started)


def _count(lines: Path) -> int:
    return lines.read_bytes().count(b"\n") if lines.exists() else 0


def _outcome(camera: Path, lines: Path, receiver: _Receiver, photos: int, kills: int, seconds: float) -> Outcome:
    told = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    filed = [t["inspection_id"] for t in told if t["event"] == "filed"]
    with Stores.open(MemorySettings()) as stores:
        records = []
        while page := stores.inspections.list(limit=1000, offset=len(records)):
            records += page
    if {r.inspection_id for r in records} != set(filed):
        raise RuntimeError("the lines tell of other inspections than are filed")
    return Outcome(
        photos=photos,
        kills=kills,
        reports=len(records),
        distinct_parts=len({r.part_id for r in records}),
        lines=len(told),
        lines_in_order=[t["seq"] for t in told] == sorted(t["seq"] for t in told),
        messages=len(receiver.got),
        messages_twice=sum(n > 1 for n in receiver.got.values()),
        moved=len(list((camera / "done").iterdir())),
        left=len([p for p in camera.iterdir() if p.is_file()]),
        quarantined=len(list((camera / "quarantine").iterdir())),
        verdicts=dict(Counter(r.verdict for r in records)),
        seconds=round(seconds, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("line-kills"), help="folder to work in, made anew")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    os.environ.update(REFDIFF_HOME=str(args.out.absolute() / "home"), REFDIFF_CACHE=str(args.out.absolute() / "cache"),
                      REFDIFF_WORKING_PX="96")  # fmt: skip
    outcome = run(args.out, args.photos, args.kills, timeout_s=4 * 3600)
    print(json.dumps(asdict(outcome), indent=2))
    exact = (outcome.reports, outcome.distinct_parts, outcome.lines, outcome.messages, outcome.moved)
    sys.exit(0 if set(exact) == {args.photos} and outcome.left == outcome.quarantined == 0 else 1)


if __name__ == "__main__":
    main()
