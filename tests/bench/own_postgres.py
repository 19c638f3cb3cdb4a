"""A Postgres server of its own, for tests and measurements: made in a folder, reached through a socket there."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

_PROGRAMS = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), os.environ.get("PATH", "")]
_INITDB = shutil.which("initdb", path=os.pathsep.join(_PROGRAMS))  # Debian keeps it out of the path
MISSING = None  # why there can be none
if _INITDB is None:
    MISSING = "no Postgres server is installed (apt-get install postgresql)"
elif not all(map(find_spec, ("psycopg", "psycopg_pool"))):
    MISSING = "the extra `postgres` is not installed"


class Postgres:
    """folder: an empty one with a short path, as names of sockets are. durable: as in production, not as fast as can be."""

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if self._user:
            shutil.chown(folder, self._user)
        self._folder, self._numbers, self._durable = folder, itertools.count(), durable
        self._emptied: str | None = None
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync", "-D", folder / "data")

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder}"
        if not self._durable:
            options += " -c fsync=off -c max_wal_size=64MB"
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
