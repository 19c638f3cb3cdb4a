"""How much memory a process may still take: of the machine, and of the control groups (containers, services) it is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# limit, what is used, and in `memory.stat` what of it is given back for the asking: of version 2, and of version 1
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(root: Path = Path("/")) -> int | None:
    """Available memory in bytes; None where the system does not say (it is not Linux). root: of the file system."""
    try:
        machine = int(_named(root / "proc/meminfo")["MemAvailable"]) << 10
    except (OSError, KeyError, ValueError):
        return None
    return min([machine, *_of_groups(root)])


def _of_groups(root: Path) -> Iterator[int]:
    """What the groups of this process that have a limit leave."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, names = (root / "sys/fs/cgroup/memory", _V1) if kinds else (root / "sys/fs/cgroup", _V2)
        inside = Path(path.lstrip("/"))
        for folder in dict.fromkeys([top / inside, *(top / p for p in inside.parents)]):
            limit, used, spare = names
            try:
                most = int((folder / limit).read_text())
                yield most - int((folder / used).read_text()) + int(_named(folder / "memory.stat").get(spare, 0))
            except (OSError, ValueError):  # no limit here ("max"), or a group of another container, out of sight
                continue


def _named(path: Path) -> dict[str, str]:
    """Lines of a name and a number."""
    fields = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {f[0]: f[1] for f in fields if len(f) > 1}
