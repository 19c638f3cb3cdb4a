from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr
from sqlalchemy import select

from refdiff.memory.database.tables import METADATA
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores

GLOBAL_DIM, PATCH_DIM = 24, 8
OpenBank = Callable[[], GoldenBank]
Vectors = NDArray[np.float32]


def make_golden(i: int, product: str = "bracket", **fields: object) -> Golden:
    sha256 = f"{i:064x}"
    return Golden(make_golden_id(product, sha256), product, sha256, filename=f"{i}.png", **fields)  # type: ignore[arg-type]


def make_vectors(seed: int, patches: int = 6) -> tuple[Vectors, Vectors]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(patches, PATCH_DIM)).astype(np.float32)
    vector = rng.normal(size=GLOBAL_DIM).astype(np.float32)
    return vector / np.linalg.norm(vector), rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module with `EVERY_DATABASE` run with SQLite and with Postgres, but for those marked `sqlite`."""
    every = getattr(metafunc.module, "EVERY_DATABASE", False) and not metafunc.definition.get_closest_marker("sqlite")
    if every and "database" in metafunc.fixturenames:
        postgres = pytest.param("postgres", marks=pytest.mark.postgres)
        metafunc.parametrize("database", ["sqlite", postgres], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str | None:
    """The URL of the records; None: SQLite in the home."""
    return request.getfixturevalue("postgres") if getattr(request, "param", "sqlite") == "postgres" else None


@pytest.fixture
def settings(tmp_path: Path, database: str | None) -> MemorySettings:
    return MemorySettings(home=tmp_path / "home", database_url=database, qdrant_url=None, bank_wait_s=0.3)


def tamper(stores: Stores, statements: str, *values: object) -> None:
    """Run SQL beside the product, as somebody who can reach the database. values: for one statement, where `?` stand."""
    url = stores.settings.database_url
    if url is None:
        with contextlib.closing(sqlite3.connect(stores.settings.home / "refdiff.sqlite")) as conn, conn:
            conn.execute(statements, values) if values else conn.executescript(statements)
        return
    import psycopg

    with psycopg.connect(url.get_secret_value()) as conn:
        conn.execute("SET session_replication_role = replica")  # no foreign keys, as in SQLite
        if values:
            conn.execute(statements.replace("?", "%s"), values)  # type: ignore[arg-type]
        else:
            conn.execute(statements)  # type: ignore[arg-type]


def all_rows(stores: Stores) -> dict[str, list[tuple[object, ...]]]:
    """Of each table of the records."""
    with stores.db.snapshot() as conn:
        return {
            table.name: sorted((tuple(row) for row in conn.execute(select(table))), key=repr)
            for table in METADATA.sorted_tables
        }


@pytest.fixture
def stores(settings: MemorySettings) -> Iterator[Stores]:
    with Stores.open(settings) as stores:
        yield stores


def on_server(settings: MemorySettings, contract: Any, **more: Any) -> MemorySettings:
    """The settings, with golden samples on that server."""
    fields = settings.model_dump(include=settings.model_fields_set)
    return MemorySettings(**fields | {"qdrant_url": contract.url, "qdrant_api_key": SecretStr(contract.api_key)} | more)


@pytest.fixture(params=["embedded", "contract", "by product", pytest.param("server", marks=pytest.mark.qdrant_server)])
def open_bank(request: pytest.FixtureRequest, settings: MemorySettings) -> Iterator[OpenBank]:
    """Opens the same bank again on every call: embedded, through Qdrant's HTTP API, with shards for each product, and on the
    server at QDRANT_URL if set."""
    fingerprint = f"test{uuid.uuid4().hex[:12]}"
    if request.param == "server":
        if not os.environ.get("QDRANT_URL"):
            pytest.skip("needs QDRANT_URL, the address of a Qdrant server")
        settings = MemorySettings(home=settings.home)
    elif request.param != "embedded":
        contract = request.getfixturevalue("contract")
        settings = on_server(settings, contract, qdrant_shard_by_product=request.param == "by product")

    def opener() -> GoldenBank:
        return GoldenBank.open(settings, fingerprint, GLOBAL_DIM, PATCH_DIM)

    yield opener
    if request.param != "embedded":
        with opener() as bank:
            bank._client.delete_collection(bank._name)
