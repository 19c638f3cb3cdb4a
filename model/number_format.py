"""The number format that networks compute in on this CPU: bfloat16 where the CPU multiplies it faster, else float32.

CPUs with bfloat16 units (AVX512-BF16, AMX) are three to six times as fast with it; on others it is emulated and four to
eight times as slow. Flags of the CPU do not tell (libraries claim support that they emulate), so it is measured, once per
machine. Weights are bfloat16 or float32 in their files; both formats read both.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from refdiff.model.errors import StorageError
from refdiff.model.files import write_atomic
from refdiff.model.settings import ModelSettings

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ROUNDS = 5
_KEPT = "number-format.json"


def number_format(settings: ModelSettings | None = None) -> torch.dtype:
    """torch.float32 or torch.bfloat16: what the settings say, else the faster one on this machine.

    settings: default from the environment.
    """
    settings = settings or ModelSettings()
    return FORMATS.get(settings.number_format) or _faster(settings.cache)


def autocast() -> torch.autocast:
    """A context in which networks compute in `number_format()`; float32 weights stay as they are."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=number_format() is torch.bfloat16)


@lru_cache(maxsize=4)
def _faster(cache: Path) -> torch.dtype:
    """The measured choice; kept in `cache`, so that all processes of a machine compute alike."""
    if (kept := measured(cache)) is not None:
        return FORMATS[kept]
    seconds = {name: _seconds(dtype) for name, dtype in FORMATS.items()}
    name = min(seconds, key=lambda n: seconds[n])
    with contextlib.suppress(OSError, StorageError):  # a cache that cannot be written: measured again next time
        path = cache / _KEPT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(_machine() | {"format": name, "seconds": seconds}).encode(), private=False)
    return FORMATS[name]


def measured(cache: Path) -> str | None:
    """The faster of `FORMATS` as it was measured on this machine; None if it was not yet."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept, machine = json.loads((cache / _KEPT).read_text(encoding="utf-8")), _machine()
        if {name: kept[name] for name in machine} == machine and kept["format"] in FORMATS:
            return str(kept["format"])
    return None


def _machine() -> dict[str, str]:
    return {"cpu": _cpu(), "torch": torch.__version__}


def _cpu() -> str:
    """What the CPU can do, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):  # what it can do; names of virtual CPUs say little
                return line
    return f"{platform.machine()} {platform.processor()}"


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """What a small convolution takes in that format, the best of some rounds."""
    image: Tensor = torch.zeros(1, 64, 40, 40, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(64, 64, 3, 3, dtype=dtype)
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        F.conv2d(image, weight, padding=1)
        best = min(best, time.perf_counter() - started)
    return best
