"""Networks in int8: weights (one scale a channel) and activations of convolutions, from arrays that a network really takes.

ONNX Runtime's static quantisation; OpenVINO reads what it writes. Knows nothing about what a network is for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.model.errors import InputError

# with what follows a convolution: its result is rounded once, within the range that is left of it
_QUANTISED = ["Conv", "Clip", "Relu"]


def quantised(network: bytes, inputs: Sequence[Sequence[NDArray[Any]]], *, exact_start: bool = False) -> bytes:
    """An ONNX network in int8 (QDQ), which takes and returns float32 as before.

    inputs: what it was called with, one entry a call: the ranges of its activations are measured on them.
    exact_start: leave in float32 what the first result depends on. Raises InputError where onnx or onnxruntime is missing.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise InputError("int8 needs onnx and onnxruntime; run: pip install onnx onnxruntime")
    onnx, onnxruntime = import_module("onnx"), import_module("onnxruntime")
    tools, shapes = (
        import_module("onnxruntime.quantization"),
        import_module("onnxruntime.quantization.shape_inference"),
    )
    onnxruntime.set_default_logger_severity(3)  # it warns of every constant that it removes
    with tempfile.TemporaryDirectory() as folder:
        source, plain, done = (Path(folder) / f"{name}.onnx" for name in ("source", "plain", "done"))
        source.write_bytes(network)
        shapes.quant_pre_process(source, plain, skip_symbolic_shape=True)
        graph = onnx.load(plain).graph
        tools.quantize_static(
            plain,
            done,
            _Reader([i.name for i in graph.input], inputs),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            nodes_to_exclude=sorted(_needed_by(graph, graph.output[0].name)) if exact_start else [],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=tools.CalibrationMethod.MinMax,
        )
        return done.read_bytes()


class _Reader:
    """Gives ONNX Runtime one call after the other."""

    def __init__(self, names: Sequence[str], inputs: Sequence[Sequence[NDArray[Any]]]) -> None:
        self._left: Iterator[dict[str, NDArray[Any]]] = (
            {name: np.ascontiguousarray(x) for name, x in zip(names, call, strict=True)} for call in inputs
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._left, None)


def _needed_by(graph: Any, result: str) -> set[str]:
    """Names of the nodes that a result depends on."""
    made_by = {output: node for node in graph.node for output in node.output}
    waiting, found = [result], set[str]()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found
