"""A torch network written as files that run without torch: OpenVINO IR or ONNX, for any batch and size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from refdiff.model.difference.compiled import converted
from refdiff.model.difference.sessions import GraphFormat, openvino_files
from refdiff.model.errors import InputError

_OPSET = 18  # of ONNX: all that these networks need, and old enough for every runtime of the last years


def graph_files(module: nn.Module, example: Sequence[Tensor], format: GraphFormat) -> dict[str, bytes]:
    """Suffix -> content. module: takes and returns tensors, by position. example: inputs of it; every axis but the channels
    may have another length later.

    Raises InputError where the package that writes the format is not installed.
    """
    if format == "openvino":
        return openvino_files(lambda _: converted(module, example))
    return {".onnx": _onnx_file(module, example)}


@torch.no_grad()
def _onnx_file(module: nn.Module, example: Sequence[Tensor]) -> bytes:
    if find_spec("onnx") is None:
        raise InputError("exporting to ONNX needs onnx; run: pip install onnx onnxruntime, or use --format openvino")
    export = import_module("torch.onnx").export
    names = [f"input_{i}" for i in range(len(example))]
    # pixels come as (B, H, W, 3), everything else as (B, C, H, W); sizes of one stride have one name
    free = {}
    for name, x in zip(names, example, strict=True):
        rows, columns = (1, 2) if x.dtype == torch.uint8 else (2, 3)
        free[name] = {0: "batch", rows: f"rows_{x.shape[rows]}", columns: f"columns_{x.shape[columns]}"}
    written = io.BytesIO()
    with warnings.catch_warnings(
        action="ignore"
    ):  # that sizes become part of the graph: only whether they are equal does
        export(
            module,
            tuple(x.clone() for x in example),
            written,
            input_names=names,
            dynamic_axes=free,
            opset_version=_OPSET,
            dynamo=False,
        )
    return written.getvalue()
