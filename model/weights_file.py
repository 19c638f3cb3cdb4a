"""Trained weights on disk: half-precision safetensors beside a JSON card that pins their sha256; and full disks."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refdiff.model.errors import StorageError
from refdiff.model.files import atomic_path

WEIGHTS = Path(__file__).parent / "weights"  # what ships with the package

_WAY_OUT = "free some space or choose another folder; run the same command again to resume"


def read_weights(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors in float32, the card, and the sha256. kind: which network they must be of ("difference", "boards").

    Raises StorageError where file and card do not fit, or are of another network.
    """
    card = path.with_suffix(".json")
    try:
        about = json.loads(card.read_text(encoding="utf-8"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as e:
        raise StorageError(f"weights {path} and {card.name} cannot be read ({e}); reinstall or retrain") from e
    if digest != about.get("sha256"):
        raise StorageError(f"{path}: sha256 {digest} is not what {card.name} says; the file was changed or cut off")
    if about.get("kind") != kind:
        found = about.get("kind") or "unknown"
        raise StorageError(f"{path}: weights of a network of kind {found!r}, {kind!r} is needed here")
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}, about, digest


def write_weights(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write `path` and its card; the card also says kind, sha256, commit and time, and is returned."""
    save_tensors({k: v.half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}, path)
    card = {"kind": kind, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **about, "commit": _commit(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, all of it or nothing. Raises StorageError: disk full, not writable."""
    try:
        with atomic_path(path) as temporary:
            save_file(dict(tensors), temporary, metadata=metadata)
    except (OSError, SafetensorError) as e:
        raise StorageError(f"{path}: cannot be written ({e}); {_WAY_OUT}") from e


def need_space(folder: Path, size: int, what: str) -> None:
    """Raises StorageError if `size` bytes more do not fit where `folder` is. what: "a checkpoint takes"."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(f"{folder}: {free / 1e6:,.0f} MB free, {what} about {size / 1e6:,.0f} MB; {_WAY_OUT}")


def cache_folder(folder: Path, size: int, what: str) -> None:
    """Make a folder of the cache that `size` bytes more fit into. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        need_space(folder, size, what)
    except OSError as e:
        raise StorageError(f"{folder}: cannot be made ({e.strerror}); set REFDIFF_CACHE to a folder of yours") from e


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
