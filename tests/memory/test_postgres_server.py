"""What holds for records in a real Postgres alone."""

from __future__ import annotations

import contextlib
import time

import pytest
from pydantic import SecretStr
from sqlalchemy import delete

from refdiff.memory.database import postgres as engine
from refdiff.memory.database import tables as t
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import UnavailableError

pytestmark = [pytest.mark.postgres, pytest.mark.parametrize("database", ["postgres"], indirect=True)]


def test_writer_that_falls_silent_loses_its_turn(settings: MemorySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = engine._TURN
    with Stores.open(settings) as one, Stores.open(settings) as other:
        with one.db.transaction():
            monkeypatch.setattr(engine, "_TURN", turn.replace("lock_timeout = '30s'", "lock_timeout = '100ms'"))
            with pytest.raises(UnavailableError, match="other processes have been writing"), other.db.transaction():
                pass
        monkeypatch.setattr(engine, "_TURN", turn.replace("session_timeout = '60s'", "session_timeout = '100ms'"))
        with pytest.raises(UnavailableError, match="did nothing for 60 s"):
            _fall_silent(one)
        monkeypatch.setattr(engine, "_TURN", turn)
        other.products.ensure("bracket")
        assert [p.name for p in one.products.list()] == ["bracket"]


def _fall_silent(stores: Stores) -> None:
    with stores.db.transaction() as conn:
        time.sleep(1)
        conn.execute(delete(t.learned))


def test_no_setting_stays_on_a_connection(stores: Stores) -> None:
    stores.products.ensure("bracket")
    for pool in (stores.db._engine.writer, stores.db._engine.reader):
        with contextlib.closing(pool.raw_connection()) as raw:
            driver = raw.driver_connection
            assert driver
            kept = driver.execute("SELECT name FROM pg_settings WHERE source = 'session'").fetchall()
            assert {name for (name,) in kept} <= {"transaction_isolation", "transaction_read_only"}  # of this one


def test_options_of_the_url_come_first(settings: MemorySettings) -> None:
    url = SecretStr(f"{settings.database_url.get_secret_value()}&keepalives_idle=7" if settings.database_url else "")
    with Stores.open(settings.model_copy(update={"database_url": url})) as stores:
        with contextlib.closing(stores.db._engine.writer.raw_connection()) as raw:
            driver = raw.driver_connection
            assert driver
            used = driver.info.get_parameters()
        assert (used["keepalives_idle"], used["tcp_user_timeout"]) == ("7", "60000")
