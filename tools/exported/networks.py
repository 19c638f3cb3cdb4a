"""Encoder and difference network of an export, run by OpenVINO or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.model.arrays import Array, softmax
from refdiff.model.difference.comparing import (
    SHARED_POWER,
    NetworkDifference,
    NetworkInput,
    flat_input,
    network_input,
)
from refdiff.model.difference.features import Encoding
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.sessions import Run, open_session
from refdiff.tools.exported.archive import Export

GRAPHS = "graphs"


def graph_parts(name: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The parts of an export that hold a network. files: suffix -> content."""
    return {f"{GRAPHS}/{name}{suffix}": data for suffix, data in files.items()}


def open_network(export: Export, name: str, threads: int | None) -> Run:
    """A network of an export, ready to run. Raises DamagedError, UnavailableError."""
    start = f"{GRAPHS}/{name}"
    parts = [part for part in export.manifest.parts if part.startswith(f"{start}.")]
    files = {part.removeprefix(start): export.read(part) for part in parts}
    return open_session(export.manifest.graphs, files, f"{export.path}: {start}", threads)


def exported_encoder(run: Run, about: Mapping[str, Any], working_px: int) -> Encoding:
    """run: the network. about: digest and channels of the encoder."""
    channels = dict(sorted((int(s), int(c)) for s, c in about["channels"].items()))  # in the order of the results

    def maps(pixels: NDArray[np.uint8]) -> dict[int, Array]:
        # one by one: a batch is no faster on a CPU, and four tiles at once took 60 to 130 MB more
        each = [run(pixels[i : i + 1]) for i in range(len(pixels))]
        return {s: np.concatenate(found) for s, *found in zip(channels, *each, strict=True)}

    return Encoding(maps, lambda array: array, channels, str(about["digest"]), working_px)


class ExportedNetwork:
    """A difference network of an export. `sha256` names its weights, as they were trained."""

    power = SHARED_POWER

    def __init__(self, run: Run, sha256: str) -> None:
        self._run, self.sha256 = run, sha256

    def look(self, seen: NetworkInput) -> NetworkDifference:
        """What it makes of a query and its references."""
        logits, types = self._run(*flat_input(seen.matched, seen.pixels))
        return NetworkDifference(logits[0, 0], softmax(types[0], 0))

    def compare(self, picture: Array, maps: dict[int, Array], references: Sequence[ReferenceView]) -> NetworkDifference:
        """`network_input`, then `look`."""
        return self.look(network_input(picture, maps, references))
