"""A torch network through OpenVINO, which multiplies on CPUs almost twice as fast; torch is the reference and the fallback.

A network is converted once per machine and kept in `REFDIFF_CACHE`, by the sha256 of its weights and code. Any batch and
size. Knows nothing about what a network is for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refdiff.model.difference.sessions import cpu_plan, infer, load_openvino
from refdiff.model.errors import InputError, StorageError
from refdiff.model.files import scratch_folder, write_atomic
from refdiff.model.settings import ModelSettings

log = logging.getLogger(__name__)

_CONVERTING = threading.Lock()  # torch traces one network at a time


def uses_openvino(settings: ModelSettings) -> bool:
    """Whether networks run through OpenVINO. Raises InputError where it is asked for and not installed."""
    installed = importlib.util.find_spec("openvino") is not None
    if settings.engine == "openvino" and not installed:
        raise InputError("REFDIFF_ENGINE is openvino, which is not installed; run: pip install openvino, or unset it")
    return installed and settings.engine != "torch"


def through_openvino(make: Callable[[], Compiled], settings: ModelSettings) -> Compiled | None:
    """What `make` compiles; None where torch is to run it: it is not asked for, or it does not work and nobody insists.

    Raises InputError where it is asked for and not installed.
    """
    if not uses_openvino(settings):
        return None
    try:
        return make()
    except Exception as e:  # another version, a library that does not load, a processor that it does not know
        if settings.engine == "openvino":
            raise
        log.warning("OpenVINO does not work here, so torch runs the networks (%s: %s)", type(e).__name__, e)
        return None


class Compiled:
    """Tensors in, tensors out: what `module` returns, within rounding. Threads may share it."""

    def __init__(self, module: nn.Module, example: Sequence[Tensor], settings: ModelSettings) -> None:
        """module: takes and returns float32 tensors, by position. example: inputs of it, of any size."""
        ov = load_openvino()
        core = ov.Core()
        path = settings.cache / "openvino" / f"{_digest(module, ov.__version__)}.xml"
        with _CONVERTING:
            try:
                model = core.read_model(path)
            except RuntimeError:  # not there, or damaged: a cache is rebuilt, never trusted
                model = converted(module, example)
                _keep(model, path)
        self._compiled = core.compile_model(model, "CPU", cpu_plan(settings.threads or torch.get_num_threads()))
        self._local = threading.local()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One result for each that the module returns. Raises UnavailableError where memory is short."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        return tuple(torch.from_numpy(r) for r in infer(self._local.request, [x.numpy(force=True) for x in inputs]))


def _digest(module: nn.Module, converter: str) -> str:
    """Of its weights, of the code that says what is computed with them, and of what converts it, hex."""
    digest = hashlib.sha256(converter.encode())
    parts = {sys.modules[type(m).__module__] for m in module.modules() if type(m).__module__.startswith("refdiff.")}
    for source in sorted(inspect.getsource(part) for part in parts):
        digest.update(source.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def converted(module: nn.Module, example: Sequence[Tensor]) -> Any:
    """An OpenVINO model of a network, for any batch and size."""
    load_openvino()
    frontend = import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    decoders = import_module("openvino.frontend.pytorch.ts_decoder")
    with warnings.catch_warnings(
        action="ignore"
    ):  # that sizes become part of the graph: only whether they are equal does
        decoder = decoders.TorchScriptPythonDecoder(module, example_input=tuple(x.clone() for x in example))
    return frontend.convert(frontend.load(decoder))


def _keep(model: Any, path: Path) -> None:
    """A cache that cannot be written only slows the next process down."""
    with contextlib.suppress(OSError, RuntimeError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent) as folder:
            written = folder / path.name
            import_module("openvino").save_model(model, written, compress_to_fp16=False)
            for suffix in (".bin", ".xml"):  # in this order: who finds the second finds the first
                write_atomic(path.with_suffix(suffix), written.with_suffix(suffix).read_bytes(), private=False)
