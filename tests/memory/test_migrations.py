"""Homes that earlier versions wrote, as they wrote them, and the move to Postgres."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from filelock import FileLock
from pydantic import SecretStr
from sqlalchemy import Connection, inspect, select, update

from refdiff.memory import schema
from refdiff.memory.audit_chain import GENESIS, content_digest, linked
from refdiff.memory.database import earlier
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database, DatabaseEngine
from refdiff.memory.database.postgres import PostgresServer
from refdiff.memory.database.sqlite_file import SqliteFile
from refdiff.memory.journals.chat_messages import ChatStore
from refdiff.memory.locks import hold_lock
from refdiff.memory.schema import MAIN, MIGRATIONS, MOVED, MOVING, NEWEST
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.upkeep.move import move_records
from refdiff.model.errors import InputError, StorageError, UnavailableError

from .conftest import all_rows

NOW = "2026-01-01T00:00:00.000000+00:00"
BOTH = pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
REPORT = {"part_id": "80", "product": "board", "verdict": "FAIL", "query_sha256": "a" * 64, "requested_by": "ana"}


def _made(path: Path, steps: Any, version: int) -> sqlite3.Connection:
    """A file as the version that had that schema made it."""
    path.parent.mkdir(exist_ok=True)
    conn = sqlite3.connect(path)
    for entry in steps[:version]:
        for step in entry:
            conn.execute(step)
    conn.execute(f"PRAGMA user_version={version}")
    return conn


def _record(
    seq: int, kind: str, inspection_id: str, facts: dict[str, Any], content: Any, before: str
) -> dict[str, Any]:
    """A record of the chain, by its definition alone."""
    bare = {"seq": seq, "kind": kind, "inspection_id": inspection_id, "at": NOW, "by": "ana", "facts": facts,
            "content_sha256": content_digest(content)}  # fmt: skip
    kept = None if kind == "filed" else json.dumps(content)
    return bare | {"facts": json.dumps(facts), "content": kept, "hash": linked(before, content_digest(bare))}


def _add(conn: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    conn.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])


@pytest.fixture(params=[2, earlier.newest() - 1, earlier.newest()], ids=["oldest with a chain", "last but one", "last"])
def old_home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With two inspections, of which the second is in the chain's end alone, a key, two jobs and a chat."""
    home = tmp_path / "home"
    filed = _record(1, "filed", "i1", {"part_id": "80", "product": "board", "verdict": "FAIL"}, REPORT, GENESIS)
    with contextlib.closing(_made(home / MAIN, earlier._MAIN, request.param)) as conn, conn:
        _add(conn, "products", {"name": "board", "updated_at": NOW})
        inspection = {"inspection_id": "i1", "part_id": "80", "product": "board", "verdict": "FAIL", "created_at": NOW}
        _add(conn, "inspections", inspection | {"report": json.dumps(REPORT)})
        _add(conn, "audit", filed)
        _add(
            conn,
            "audit",
            _record(2, "settings", "", {"subject": "settings", "after": "c" * 64}, {"after": {}}, filed["hash"]),
        )
    with contextlib.closing(_made(home / "keys.sqlite", earlier._KEYS, 1)) as conn, conn:
        _add(conn, "keys", {"key_id": "k-1", "name": "ana", "role": "admin", "sha256": "b" * 64, "created_at": NOW,
                            "created_by": "bob"})  # fmt: skip
    with contextlib.closing(_made(home / "jobs.sqlite", earlier._JOBS, 1)) as conn, conn:
        for seq, state in ((3, "done"), (7, "queued")):
            _add(conn, "jobs", {"seq": seq, "inspection_id": f"i{seq}", "request": "{}", "state": state,
                                "created_at": NOW, "updated_at": NOW})  # fmt: skip
    with contextlib.closing(_made(home / "chat.sqlite", earlier._CHAT, 2)) as conn, conn:
        for key, unsettled in (("m2", 1), ("m1", 0)):
            _add(conn, "messages", {"platform": "slack", "key": key, "request": "{}", "created_at": NOW, "thread": "th",
                                    "unsettled": unsettled})  # fmt: skip
        _add(conn, "threads", {"platform": "slack", "thread": "th", "inspection_id": "i1"})
    return home


def _check(stores: Stores) -> None:
    checked = stores.audit.verify_store()
    assert (checked.records, checked.problem) == (2, None)
    assert stores.inspections.get("i1").report == REPORT
    assert stores.adoptions.found_good("board", ["a" * 64]) == set()
    with stores.db.snapshot() as conn:
        assert conn.execute(select(t.inspections.c.photo)).scalars().all() == ["a" * 64]
    assert [(k.key_id, k.role) for k in stores.keys.list()] == [("k-1", "admin")]
    assert stores.keys.any_good()
    assert [(j.seq, j.inspection_id, j.crashes, j.state) for j in stores.jobs.list(("queued", "done"))] == [
        (3, "i3", 0, "done"),
        (7, "i7", 0, "queued"),
    ]
    chat = ChatStore(stores.db, "slack")
    assert [m.key for m in chat.open()] == ["m2", "m1"]
    assert (len(chat.unsettled("th", "")), chat.inspection_of("th")) == (1, "i1")


def _goes_on(stores: Stores) -> None:
    job, new = stores.jobs.add("i8", {}, None, 9)
    assert (job.seq > 7, new) == (True, True)
    assert stores.inspections.file("i2", "81", "board", "PASS", NOW, REPORT | {"part_id": "81", "verdict": "PASS"})
    assert stores.audit.head()[0] == 3
    assert stores.audit.verify_store().problem is None


def test_home_of_an_earlier_version_becomes_one_database(old_home: Path) -> None:
    settings = MemorySettings(home=old_home)
    for _ in range(2):
        with Stores.open(settings) as stores:
            _check(stores)
            assert [(p.component_names, p.kind) for p in stores.products.list()] == [({}, "photo")]
    assert {p.name for p in old_home.iterdir()} >= {f"{name}-old" for name in earlier.OTHERS}
    assert not any((old_home / name).exists() for name in earlier.OTHERS)
    with Stores.open(settings) as stores:
        _goes_on(stores)
    with contextlib.closing(sqlite3.connect(old_home / MAIN)) as conn:
        # what makes the versions before Alembic say that a newer one wrote it
        assert conn.execute("PRAGMA user_version").fetchone()[0] > earlier.newest()


def test_home_is_not_brought_up_to_date_while_a_server_uses_it(old_home: Path) -> None:
    server = FileLock(old_home / "serve.lock")
    with server, pytest.raises(UnavailableError, match="stop the server first"):
        Stores.open(MemorySettings(home=old_home))
    with contextlib.closing(sqlite3.connect(old_home / MAIN)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone()[0] <= earlier.newest()
    assert all((old_home / name).exists() for name in earlier.OTHERS)
    with hold_lock(old_home / "serve.lock", UnavailableError("")), Stores.open(MemorySettings(home=old_home)) as stores:
        _check(stores)  # who moves the records holds it itself
    with server:  # free again
        pass


def test_rows_written_after_the_upgrade_are_copied_before_their_file_is_set_aside(old_home: Path) -> None:
    settings = MemorySettings(home=old_home)
    with Stores.open(settings) as stores:
        number = stores.jobs.add("i8", {}, None, 9)[0].seq
    kept = (old_home / "jobs.sqlite-old").read_bytes()
    with contextlib.closing(_made(old_home / "jobs.sqlite", earlier._JOBS, 3)) as conn, conn:
        for seq, inspection_id in ((3, "i3"), (number, "late")):
            _add(conn, "jobs", {"seq": seq, "inspection_id": inspection_id, "request": "{}", "state": "queued",
                                "created_at": NOW, "updated_at": NOW})  # fmt: skip
    for _ in range(2):
        with Stores.open(settings) as stores:
            jobs = stores.jobs.list(("queued", "done"))
            assert [(j.inspection_id, j.state) for j in jobs] == [
                ("i3", "done"), ("i7", "queued"), ("i8", "queued"), ("late", "queued"),
            ]  # fmt: skip
            assert (jobs[2].seq, jobs[3].seq > number) == (number, True)
        assert not (old_home / "jobs.sqlite").exists()
    assert (old_home / "jobs.sqlite-old").read_bytes() == kept
    assert (old_home / "jobs.sqlite-old1").exists()


def test_file_that_somebody_has_open_is_not_set_aside(old_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(sqlite3.connect(old_home / "keys.sqlite")) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("SELECT * FROM keys").fetchall()
        with Stores.open(MemorySettings(home=old_home)) as stores:
            _check(stores)
        assert (old_home / "keys.sqlite").exists()
        assert "keys.sqlite" in caplog.text
        _add(other, "keys", {"key_id": "k-2", "name": "late", "role": "viewer", "sha256": "c" * 64, "created_at": NOW,
                             "created_by": "bob"})  # fmt: skip
        other.commit()
    with Stores.open(MemorySettings(home=old_home)) as stores:
        assert {k.key_id for k in stores.keys.list()} == {"k-1", "k-2"}
    assert not (old_home / "keys.sqlite").exists()


@pytest.fixture
def recorded_home(tmp_path: Path) -> Path:
    """A whole home that an earlier version wrote while it worked; `tests/e2e/snapshots/README.md` says which."""
    with tarfile.open(Path(__file__).parents[1] / "e2e" / "snapshots" / "old_home.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "refdiff-home" / "home"


def _reports_and_chain(home: Path) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(home / MAIN)) as conn:
        reports = {i: json.loads(r) for i, r in conn.execute("SELECT inspection_id, report FROM inspections")}
        return reports, conn.execute("SELECT seq, kind, inspection_id, hash FROM audit ORDER BY seq").fetchall()


@BOTH
def test_recorded_home_keeps_reports_and_chain(recorded_home: Path, kind: str, request: pytest.FixtureRequest) -> None:
    reports, chain = _reports_and_chain(recorded_home)
    with contextlib.closing(sqlite3.connect(recorded_home / "jobs.sqlite")) as conn:
        jobs = conn.execute("SELECT seq, inspection_id, state FROM jobs ORDER BY seq").fetchall()
    assert reports
    assert chain
    assert jobs
    settings = MemorySettings(home=recorded_home)
    if kind == "postgres":
        settings = settings.model_copy(update={"database_url": SecretStr(request.getfixturevalue("postgres"))})
        move_records(settings)
    with Stores.open(settings) as stores:
        assert {i: stores.inspections.get(i).report for i in reports} == reports
        assert stores.inspections.search().total == len(reports)
        with stores.db.snapshot() as conn:
            a, j = t.audit.c, t.jobs.c
            kept = conn.execute(select(a.seq, a.kind, a.inspection_id, a.hash).order_by(a.seq)).all()
            assert [tuple(row) for row in kept] == chain
            known = conn.execute(select(j.seq, j.inspection_id, j.state).order_by(j.seq)).all()
            assert [tuple(row) for row in known] == jobs
        assert stores.audit.verify_store(photos=True, artefacts=True).problems == []


@pytest.mark.parametrize("damaged", earlier.OTHERS)
def test_home_whose_migration_fails_stays_as_it_was(old_home: Path, damaged: str) -> None:
    (old_home / damaged).write_bytes(b"garbage" * 1000)
    with pytest.raises(StorageError, match=f"{damaged}: the file is damaged"):
        Stores.open(MemorySettings(home=old_home))
    with contextlib.closing(sqlite3.connect(old_home / MAIN)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone()[0] <= earlier.newest()
        assert conn.execute("SELECT name FROM sqlite_master WHERE name IN ('keys', 'alembic_version')").fetchall() == []
    assert all((old_home / name).exists() for name in earlier.OTHERS)


@BOTH
def test_new_home_has_the_schema_that_the_revisions_make(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    made = []
    for number, make in enumerate((schema._run_revisions, schema.make_schema)):
        engine: DatabaseEngine = SqliteFile(tmp_path / f"{number}.sqlite")
        if kind == "postgres":
            engine = PostgresServer(SecretStr(request.getfixturevalue("postgres_server").new_database()))
        with Database(engine, lambda db: None) as db, db.transaction() as conn:
            make(conn)
            made.append(_described(conn))
    revised, new = made
    assert revised == new
    assert {"products", "audit_end", "alembic_version"} <= new.keys()
    assert ScriptDirectory(MIGRATIONS).get_current_head() == NEWEST


def test_home_of_every_earlier_version_ends_with_the_schema_of_a_new_one(tmp_path: Path, recorded_home: Path) -> None:
    new = _schema(tmp_path / "new")
    assert "products" in new
    homes = {version: tmp_path / str(version) for version in range(1, earlier.newest() + 1)}
    for version, home in homes.items():
        _made(home / MAIN, earlier._MAIN, version).close()
    assert [version for version, home in homes.items() if _schema(home) != new] == []
    assert _schema(recorded_home) == new


def _schema(home: Path) -> dict[str, Any]:
    """The tables of a home, but for what versions before Alembic said otherwise to the same effect: types (REAL for DOUBLE),
    that a primary key is never null, and that the audit chain counts by itself."""
    with Stores.open(MemorySettings(home=home)) as stores, stores.db.connection() as conn:
        found = {}
        for name, (columns, others, counts, _) in _described(conn).items():
            plain = [(c["name"], (c["nullable"], c["primary_key"]) == ("True", "0"), c["default"]) for c in columns]
            found[name] = (plain, others, counts or name == "audit")
        return found


def _described(conn: Connection) -> dict[str, Any]:
    """All that the database says of each table, and its rows."""
    about = inspect(conn)
    kept = conn.exec_driver_sql("SELECT name, sql FROM sqlite_master") if conn.dialect.name == "sqlite" else []
    counting = {row[0] for row in kept if "AUTOINCREMENT" in str(row[1])}
    said = {}
    for name in about.get_table_names():
        columns = [{k: repr(v) for k, v in column.items()} for column in about.get_columns(name)]
        others = [about.get_pk_constraint(name), about.get_foreign_keys(name), about.get_unique_constraints(name),
                  about.get_check_constraints(name), about.get_indexes(name)]  # fmt: skip
        sorted_ = [sorted(map(repr, each)) if isinstance(each, list) else repr(each) for each in others]
        rows = conn.exec_driver_sql(f"SELECT * FROM {name}").fetchall()
        said[name] = (columns, sorted_, name in counting, [tuple(row) for row in rows])
    return said


@pytest.mark.postgres
def test_home_of_an_earlier_version_moves_to_postgres(old_home: Path, postgres: str) -> None:
    here, there = MemorySettings(home=old_home), MemorySettings(home=old_home, database_url=postgres)
    with Stores.open(here) as stores:
        head, rows = stores.audit.head(), all_rows(stores)
    with Stores.open(here), pytest.raises(UnavailableError, match="another program has it open"):
        move_records(there)
    with Stores.open(here) as stores, stores.db.transaction() as conn:
        conn.execute(update(t.chat_messages).values(request="a\0b"))
    with pytest.raises(InputError, match="chat_messages, seq 1: its request has a NUL character"):
        move_records(there)
    with Stores.open(here) as stores, stores.db.transaction() as conn:
        conn.execute(update(t.chat_messages).values(request="{}"))
    (old_home / MAIN).rename(old_home / MOVING)  # as one that was killed leaves it
    seen: list[str] = []

    def begin_meanwhile(what: str, done: int, total: int, note: str = "") -> None:
        for settings in (here, there):
            with pytest.raises(StorageError, match="are being moved") as refused:
                Stores.open(settings)
            seen.append(str(refused.value))

    copied = move_records(there, begin_meanwhile)
    assert seen
    assert copied["jobs"] == 2
    with Stores.open(there) as stores:
        assert (stores.audit.head(), all_rows(stores)) == (head, rows)
        _check(stores)
        _goes_on(stores)
    assert (old_home / MOVED).exists()
    with pytest.raises(StorageError, match="moved to a Postgres database; set REFDIFF_DATABASE_URL"):
        Stores.open(here)
    (old_home / MOVED).rename(old_home / MAIN)
    with pytest.raises(InputError, match="already has records"):
        move_records(there)
    with pytest.raises(StorageError, match="refdiff move-records"):
        Stores.open(there)


@pytest.mark.postgres
def test_database_of_a_newer_version_or_a_lost_one_is_refused(tmp_path: Path, postgres: str) -> None:
    settings = MemorySettings(home=tmp_path / "home", database_url=postgres)
    with Stores.open(settings) as stores, stores.db.transaction() as conn:
        stores.images.put(b"a photo")
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
    with pytest.raises(StorageError, match=f"newer refdiff .schema r9999, this one knows {NEWEST}"):
        Stores.open(settings)
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute("DROP SCHEMA public CASCADE")
        server.execute("CREATE SCHEMA public")
    with pytest.raises(StorageError, match=r"missing or empty.*it has images"):
        Stores.open(settings)


@BOTH
@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('ae1027a6acf')",
         "another program: its alembic_version says 'ae1027a6acf'"),
        ("CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('zz')", "says 'zz'"),
        ("CREATE TABLE alembic_version (version_num VARCHAR(32))", "another program: it has a table alembic_version"),
        ("CREATE TABLE products (id INTEGER)", "another program: it has a table products"),
    ],
)  # fmt: skip
def test_database_of_another_program_is_refused_and_stays_as_it_was(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, made: str, words: str
) -> None:
    url = request.getfixturevalue("postgres") if kind == "postgres" else None
    settings = MemorySettings(home=tmp_path / "home", database_url=url, qdrant_url=None)
    if url is None:
        settings.home.mkdir()
        with contextlib.closing(sqlite3.connect(settings.home / MAIN)) as conn:
            conn.executescript(made)
    else:
        import psycopg

        with psycopg.connect(url) as server:
            server.execute(made)
    with pytest.raises(StorageError, match=words):
        Stores.open(settings)
    if url is None:
        with contextlib.closing(sqlite3.connect(settings.home / MAIN)) as conn:
            assert conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone() == (1,)
    else:
        with psycopg.connect(url) as server:
            assert server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)
