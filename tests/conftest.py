"""Shared by all tests: markers that need something outside skip with the reason; nothing touches the user's folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import pytest
from own_postgres import MISSING, Postgres

if TYPE_CHECKING:  # most tests need neither
    from own_s3 import OwnS3
    from qdrant_contract import Contract

# as the command line does
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads of one would wait for those of the other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# before any test sets its own: what `make install` built is used, not built anew
_CACHE = os.environ.get("REFDIFF_CACHE") or platformdirs.user_cache_dir("refdiff")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The language model's folder as `refdiff model build` makes it."""
    from refdiff.model.language.build import build_model
    from refdiff.model.settings import ModelSettings

    return build_model(ModelSettings(cache=Path(_CACHE)))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # short: names of sockets are
        server = Postgres(Path(folder))
        server.start()
        yield server
        with contextlib.suppress(subprocess.CalledProcessError):  # if a test stopped it
            server.stop()


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """The URL of an empty database on a real server."""
    return postgres_server.empty_database()


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[OwnS3]:
    from own_s3 import OwnS3  # takes a second to import

    server = OwnS3()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: OwnS3, monkeypatch: pytest.MonkeyPatch) -> OwnS3:
    """A local S3 server; the environment has its address."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return _s3_server


_OF_THE_TESTS = ("REFDIFF_DATA", "REFDIFF_FUZZ_S")
if MISSING and os.environ.get("REFDIFF_TEST_POSTGRES"):
    raise RuntimeError(f"REFDIFF_TEST_POSTGRES is set, but {MISSING}")


@pytest.fixture(scope="session")
def contract_server() -> Iterator[Contract]:
    from qdrant_contract import Contract

    with Contract(api_key="the key of the tests") as server:
        yield server


@pytest.fixture
def contract(contract_server: Contract) -> Iterator[Contract]:
    """Qdrant's HTTP API, with Qdrant's engine behind it. A test that asks for what Qdrant's schema does not know fails."""
    yield contract_server
    contract_server.faults.clear()
    problems, contract_server.problems = contract_server.problems, []
    assert problems == []


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for name in [n for n in os.environ if n.startswith("REFDIFF_") and n not in _OF_THE_TESTS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REFDIFF_BLIND_SHARE", "0")  # drawn at random, it changes what a test sees in one run of many
    monkeypatch.setenv("REFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFDIFF_AUTO_FIT", "0")  # minutes of work in servers of tests that are about something else
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    if "qdrant_server" not in request.keywords:
        monkeypatch.delenv("QDRANT_URL", raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "browser": None if shutil.which("chromium") else "Chromium is not installed (apt-get install chromium)",
        "qdrant_server": None if os.environ.get("QDRANT_URL") else "QDRANT_URL is not set",
        "postgres": MISSING,
        "data": None if os.environ.get("REFDIFF_DATA") else "REFDIFF_DATA (folder of the research data) is not set",
        "long": None if os.environ.get("REFDIFF_LONG") else "takes minutes; `make test-long` runs it",
        "fuzzing": None if os.environ.get("REFDIFF_FUZZ_S") else "`make fuzz` runs it",
        "vllm": None if os.environ.get("REFDIFF_TEST_VLLM") else "needs vLLM (make test-vllm)",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
