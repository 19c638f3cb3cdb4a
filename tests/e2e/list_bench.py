"""How quick lists stay: files N copies of a real report into a fresh home, and times `GET /v1/inspections` over HTTP.

python tests/e2e/list_bench.py --home HOME-WITH-A-REPORT --n 10000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores

sys.path.insert(0, str(Path(__file__).parent))
from http_load import Server

QUERIES = {
    "first page of 50": {},
    "last page of 50": {"offset": "-50"},
    "page of 1000": {"limit": "1000"},
    "verdict FAIL": {"verdict": "FAIL"},
    "product and part": {"product": "board", "part_id": "part-77"},
    "open reviews": {"open_review": "true"},
    "one day": {"since": "2026-01-03", "until": "2026-01-04"},
}


def fill(home: Path, n: int) -> int:
    """n inspections, a third of each verdict, one a minute; the bytes of one report."""
    with Stores.open(MemorySettings(home=home)) as stores:
        [record] = stores.inspections.list(limit=1)
        begin = datetime(2026, 1, 1, tzinfo=UTC)
        with stores.db.transaction() as conn:
            for i in range(n):
                verdict, moment = ("PASS", "FAIL", "REVIEW")[i % 3], (begin + timedelta(minutes=i)).isoformat()
                report = record.report | {"inspection_id": f"insp-bench-{i}", "verdict": verdict}
                conn.exec_driver_sql(
                    "INSERT INTO inspections (inspection_id, part_id, product, verdict, created_at, report) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (f"insp-bench-{i}", f"part-{i % 500}", record.product, verdict, moment, json.dumps(report)),
                )
        return len(json.dumps(record.report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="a REFDIFF_HOME with at least one filed inspection")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        shutil.copytree(given.home, home, ignore=shutil.ignore_patterns("*.lock"))
        size = fill(home, given.n)
        environment = {**os.environ, "REFDIFF_HOME": str(home), "REFDIFF_RATE_PER_MINUTE": "0", "REFDIFF_LLM": "off"}
        server = Server(environment, Path(folder) / "log")
        found = {}
        with httpx2.Client(base_url=server.url, timeout=60) as http:
            for name, query in QUERIES.items():
                query = query | ({"offset": str(given.n - 50)} if "offset" in query else {})
                spent = []
                for _ in range(given.repeat):
                    started = time.perf_counter()
                    http.get("/v1/inspections", params=query).raise_for_status()
                    spent.append((time.perf_counter() - started) * 1000)
                found[name] = {"median_ms": round(statistics.median(spent), 1), "max_ms": round(max(spent), 1)}
        server.stop()
    print(json.dumps({"inspections": given.n, "report_bytes": size, "repeats": given.repeat, "ms": found}, indent=2))


if __name__ == "__main__":
    main()
