"""What a process may still take is what machine, container and service leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff.model.free_memory import free_bytes

MEMINFO = {"proc/meminfo": "MemTotal:       8000000 kB\nMemAvailable:    2500000 kB\nHugePages_Total:       0\n"}
V2 = {"proc/self/cgroup": "0::/system.slice/refdiff.service\n"}
SERVICE = "sys/fs/cgroup/system.slice/refdiff.service"
CONTAINER = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": "2000000000\n",
    "sys/fs/cgroup/memory.current": "1500000000\n",
    "sys/fs/cgroup/memory.stat": "anon 900000000\ninactive_file 400000000\n",
}
V1 = "sys/fs/cgroup/memory/docker/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 1 kB\n"}, None),
        (MEMINFO, 2_560_000_000),
        (MEMINFO | CONTAINER, 900_000_000),
        (MEMINFO | CONTAINER | {"sys/fs/cgroup/memory.max": "max\n"}, 2_560_000_000),
        (MEMINFO | CONTAINER | {"sys/fs/cgroup/memory.max": "9000000000\n"}, 2_560_000_000),
        # as another container names it, out of sight
        (MEMINFO | CONTAINER | {"proc/self/cgroup": "0::/docker/1a2b\n"}, 900_000_000),
        (MEMINFO | V2 | {f"{SERVICE}/memory.max": "max", f"{SERVICE}/memory.current": "1"}, 2_560_000_000),
        (
            MEMINFO
            | V2
            | {
                f"{SERVICE}/memory.max": "max",
                "sys/fs/cgroup/system.slice/memory.max": "1000",
                "sys/fs/cgroup/system.slice/memory.current": "300",
                "sys/fs/cgroup/system.slice/memory.stat": "inactive_file 20",
            },
            720,
        ),
        (
            MEMINFO
            | {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker\n4:memory:/docker\n0::/\n",
                f"{V1}.limit_in_bytes": "1000",
                f"{V1}.usage_in_bytes": "400",
                f"{V1}.stat": "cache 5\ntotal_inactive_file 100",
            },
            700,
        ),
    ],
)
def test_free_memory_is_the_least_that_machine_and_groups_leave(
    tmp_path: Path, files: dict[str, str], free: int | None
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert free_bytes(tmp_path) == free


def test_free_memory_of_this_machine_is_known() -> None:
    found = free_bytes()
    assert found is None or 0 < found < 1 << 50
