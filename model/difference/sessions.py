"""Networks as files (OpenVINO IR or ONNX), run without torch: numpy arrays in, numpy arrays out, any batch and size.

Knows nothing about what a network is for, nor where its files lie.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from refdiff.model.errors import DamagedError, InputError, UnavailableError
from refdiff.model.files import outage

GraphFormat = Literal["openvino", "onnx"]
GRAPH_FORMATS: tuple[GraphFormat, ...] = get_args(GraphFormat)
_PACKAGES: Mapping[GraphFormat, str] = {"openvino": "openvino", "onnx": "onnxruntime"}

Run = Callable[..., list[NDArray[np.float32]]]  # arrays by position -> one for each result


def load_openvino() -> Any:
    """The package, kept from reporting its use."""
    # without this package, which says over the network that it was imported, OpenVINO reports nothing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")  # its own types are incomplete


def openvino_files(make: Callable[[Any], Any]) -> dict[str, bytes]:
    """A network as OpenVINO IR: suffix -> content. make: the package -> a model of it. Raises InputError where openvino is
    not installed."""
    if find_spec("openvino") is None:
        raise InputError("exporting to OpenVINO needs openvino; run: pip install openvino, or use --format onnx")
    openvino = load_openvino()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(make(openvino), path, compress_to_fp16=False)
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}


def cpu_plan(threads: int | None) -> dict[str, Any]:
    """How OpenVINO runs a network: in float32 on so many threads (None: as many as cores)."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads or cores(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two processes would pin themselves to the same cores
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(format: GraphFormat, files: Mapping[str, bytes], name: str, threads: int | None) -> Run:
    """The network whose files are `files` (suffix -> content: .xml and .bin, or .onnx), ready to run; threads may share it.

    name: what errors call it. Raises UnavailableError where the package that runs it is not installed or memory is short
    (the network, too), DamagedError where it cannot be read.
    """
    package = _PACKAGES[format]
    if find_spec(package) is None:
        raise UnavailableError(f"{name} is in the format {format}; run: pip install {package}")
    try:
        return (_openvino if format == "openvino" else _onnx)(files, threads)
    except Exception as e:  # each library has its own types
        if (lacking := outage(e)) is not None:
            raise lacking from e
        if isinstance(e, ImportError):
            raise UnavailableError(f"{package} cannot be loaded ({e}); install it again: pip install {package}") from e
        raise DamagedError(f"{name} cannot be read by {package} ({type(e).__name__}: {e}); export it again") from e


def _openvino(files: Mapping[str, bytes], threads: int | None) -> Run:
    core = load_openvino().Core()
    compiled = core.compile_model(core.read_model(files[".xml"], files[".bin"]), "CPU", cpu_plan(threads))
    local = threading.local()

    def run(*inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        return infer(local.request, [np.ascontiguousarray(x) for x in inputs])

    return run


def infer(request: Any, inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """The results of an inference request of OpenVINO. Raises UnavailableError where it lacks memory."""
    found = request.infer(inputs, share_inputs=True, share_outputs=True)
    results = [found[i].copy() for i in range(len(found))]  # the next call writes where this one's lie
    if not all(r.size for r in results):  # it raises nothing where it cannot allocate them
        raise UnavailableError("OpenVINO has not enough memory; close other programs or give it more")
    return results


def _onnx(files: Mapping[str, bytes], threads: int | None) -> Run:
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads need the cores
    session = onnxruntime.InferenceSession(files[".onnx"], options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        given = zip(names, inputs, strict=True)
        return list(session.run(None, {name: np.ascontiguousarray(x) for name, x in given}))

    return run
