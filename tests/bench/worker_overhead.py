"""What does a worker of its own cost, beside a server that inspects itself? The same photos, in turns, in one run.

    python tests/bench/worker_overhead.py --parts 60 --rounds 3

Rendered boards of 640 x 480 px, 24 golden samples, four references, no language model; the records in a Postgres server of
its own that commits to the disk, or with --sqlite in a file. Counted is the time between the first and the last report that
was filed, so no process's start counts. Prints a JSON line per batch, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from own_postgres import Postgres
from serving_load import PRODUCT, home_with_parts

from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores

REFDIFF = str(Path(sys.executable).with_name("refdiff"))
SERVER = [REFDIFF, "serve", "--port", "0", "--without-keys", "--json"]
KINDS = {
    "server alone": [SERVER],
    "server and worker": [[*SERVER, "--no-inspections"], [REFDIFF, "worker", "--json"]],
}


@contextmanager
def running(commands: list[list[str]], log: Path) -> Iterator[None]:
    """Each has said that it is ready; all are told to end afterwards."""
    with ExitStack() as opened, log.open("a") as stderr:
        processes = []
        for command in commands:
            process = opened.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True))
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline(), f"{command} did not start; see {log}"
        try:
            yield
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def measure(kind: str, home: Path, parts: Path, count: int) -> dict[str, Any]:
    """Seconds of a batch, per part."""
    with running(KINDS[kind], home / "log"):
        subprocess.run([REFDIFF, "inspect-batch", parts, "--json", "--judge", "never"], check=True, capture_output=True)
    with Stores.open(MemorySettings()) as stores:
        ended = sorted(datetime.fromisoformat(j.updated_at) for j in stores.jobs.list(("done",), limit=-1))[-count:]
        verdicts = Counter(r.verdict for r in stores.inspections.list(limit=count))
    ms = (ended[-1] - ended[0]).total_seconds() / (count - 1) * 1000
    return {"kind": kind, "verdicts": verdicts, "ms_per_part": round(ms, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sqlite", action="store_true", help="records in a file, not in Postgres")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        home = Path(folder)
        if not given.sqlite:
            server = Postgres(Path(opened.enter_context(tempfile.TemporaryDirectory())), durable=True)
            server.start()
            opened.callback(server.stop)
            os.environ["REFDIFF_DATABASE_URL"] = server.new_database()
        with home_with_parts(home, given.parts, size=(480, 640)) as (_, names):
            listed = home / "parts.csv"
            listed.write_text("part,product\n" + "".join(f"{name},{PRODUCT}\n" for name in names))
        os.environ["REFDIFF_HOME"] = str(home / "home")
        subprocess.run([REFDIFF, "calibrate", "--product", PRODUCT, "--json"], check=True, capture_output=True)
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(given.rounds):
            for kind, values in taken.items():
                found = measure(kind, home, listed, given.parts)
                print(json.dumps(found), flush=True)
                values.append(found["ms_per_part"])
        alone, beside = (statistics.median(values) for values in taken.values())
        print(json.dumps({"medians_ms": [alone, beside], "worker_over_server": round(beside / alone, 3)}))


if __name__ == "__main__":
    main()
