"""Shared by all tests: markers that need something outside skip with the reason; nothing touches the user's folders."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import platformdirs
import pytest

# as the command line does; two test workers share the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# before any test sets its own: what `make install` built is used, not built anew
_CACHE = os.environ.get("REFDIFF_CACHE") or platformdirs.user_cache_dir("refdiff")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The language model's folder as `refdiff model build` makes it."""
    from refdiff.model.language.build import build_model
    from refdiff.model.settings import ModelSettings

    return build_model(ModelSettings(cache=Path(_CACHE)))


_PROGRAMS = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), os.environ.get("PATH", "")]
_INITDB = shutil.which("initdb", path=os.pathsep.join(_PROGRAMS))  # Debian keeps it out of the path
_NO_POSTGRES = None
if _INITDB is None:
    _NO_POSTGRES = "no Postgres server is installed (apt-get install postgresql)"
elif not all(map(find_spec, ("psycopg", "psycopg_pool"))):
    _NO_POSTGRES = "the extra `postgres` is not installed"


class Postgres:
    """A server of its own, reached through a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if self._user:
            shutil.chown(folder, self._user)
        self._folder, self._numbers = folder, itertools.count()
        self._emptied: str | None = None
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync", "-D", folder / "data")

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off -c max_wal_size=64MB"
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-l", self._folder / "log", "-o", options, "start")

    def stop(self) -> None:
        """As a power cut would."""
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """Its URL."""
        import psycopg

        name = f"records{next(self._numbers)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return self._url(name)

    def empty_database(self) -> str:
        """The URL of one whose tables are dropped each time: making a database takes longer, and 8 MB."""
        import psycopg

        self._emptied = self._emptied or self.new_database()
        with psycopg.connect(self._emptied, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid != pg_backend_pid()"
            )
            conn.execute("DROP SCHEMA public CASCADE")
            conn.execute("CREATE SCHEMA public")
        return self._emptied

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        assert _INITDB
        command = [Path(_INITDB).with_name(program), *arguments]
        subprocess.run(command, check=True, user=self._user, cwd="/", stdout=subprocess.DEVNULL)


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


_OF_THE_TESTS = ("REFDIFF_DATA", "REFDIFF_FUZZ_S")
if _NO_POSTGRES and os.environ.get("REFDIFF_TEST_POSTGRES"):
    raise RuntimeError(f"REFDIFF_TEST_POSTGRES is set, but {_NO_POSTGRES}")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for name in [n for n in os.environ if n.startswith("REFDIFF_") and n not in _OF_THE_TESTS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFDIFF_AUTO_FIT", "0")  # minutes of work in servers of tests that are about something else
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    if "qdrant_server" not in request.keywords:
        monkeypatch.delenv("QDRANT_URL", raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "browser": None if shutil.which("chromium") else "Chromium is not installed (apt-get install chromium)",
        "qdrant_server": None if os.environ.get("QDRANT_URL") else "QDRANT_URL is not set",
        "postgres": _NO_POSTGRES,
        "data": None if os.environ.get("REFDIFF_DATA") else "REFDIFF_DATA (folder of the research data) is not set",
        "long": None if os.environ.get("REFDIFF_LONG") else "takes minutes; `make test-long` runs it",
        "fuzzing": None if os.environ.get("REFDIFF_FUZZ_S") else "`make fuzz` runs it",
        "vllm": None if os.environ.get("REFDIFF_TEST_VLLM") else "needs vLLM (make test-vllm)",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
