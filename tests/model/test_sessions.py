"""What libraries raise while they open a network: too little memory is told from a damaged file and a broken package."""

from __future__ import annotations

from typing import NoReturn

import pytest

from refdiff.model.difference import sessions
from refdiff.model.difference.sessions import GRAPH_FORMATS, GraphFormat, open_session
from refdiff.model.errors import NO_MEMORY, DamagedError, UnavailableError
from refdiff.model.files import outage

# as OpenVINO, ONNX Runtime, their threads and the loader of shared libraries said it where memory was limited
SHORT_OF_MEMORY = [
    RuntimeError("Resource temporarily unavailable"),
    RuntimeError("Exception from src/inference/src/cpp/core.cpp:117:\nstd::bad_alloc\n"),
    RuntimeError("Exception from src/inference/src/dev/plugin.cpp:54:\ncan't alloc\n"),
    RuntimeError("Check 'res.status == pugi::status_ok' failed at src/frontends/ir/src/input_model.cpp:219:\n"
                 "Could not allocate memory at offset 0\n"),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: "
                 "bfc_arena.cc:359 Failed to allocate memory for requested buffer of size 9437184"),
    RuntimeError("not enough memory: you tried to allocate 9437184 bytes"),
    RuntimeError("CUDA out of memory"),
    ImportError("libopenvino.so.2640: failed to map segment from shared object"),
    ImportError("std::bad_alloc"),
    MemoryError(),
]  # fmt: skip
FILES = {".xml": b"<net/>", ".bin": b"", ".onnx": b""}


@pytest.mark.parametrize("graphs", GRAPH_FORMATS)
@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=lambda e: f"{type(e).__name__} {e}"[:50])
def test_too_little_memory_is_no_damaged_network(
    graphs: GraphFormat, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(_: str) -> NoReturn:
        raise error

    monkeypatch.setattr(sessions, "import_module", short)
    with pytest.raises(UnavailableError) as told:
        open_session(graphs, FILES, "network", 1)
    assert str(told.value) == NO_MEMORY
    assert "tried again" not in NO_MEMORY, "which a command that ends does not do"


@pytest.mark.parametrize("graphs", GRAPH_FORMATS)
def test_damaged_network_and_broken_package_are_told_apart(
    graphs: GraphFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DamagedError, match="network cannot be read"):
        open_session(graphs, FILES, "network", 1)

    def broken(_: str) -> NoReturn:
        raise ImportError("libtbb.so.12: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(sessions, "import_module", broken)
    with pytest.raises(UnavailableError, match="install it again"):
        open_session(graphs, FILES, "network", 1)


def test_what_pillow_says_of_a_damaged_photo_is_no_shortage() -> None:
    assert outage(OSError("out of memory when reading image file")) is None
