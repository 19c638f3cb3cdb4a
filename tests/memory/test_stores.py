"""Settings, image store, products, captures, calibrations, inspections and dispositions."""

from __future__ import annotations

import contextlib
import hashlib
import random
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, func, insert, select, text

from refdiff.memory.audit_head import AuditHead
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import READERS, Database
from refdiff.memory.database.sqlite_file import SqliteFile
from refdiff.memory.photos.image_store import FolderImages
from refdiff.memory.records.calibrations import Calibration, MarksFound
from refdiff.memory.records.captures import normalise_part_id
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import (
    DamagedError,
    DuplicateError,
    InputError,
    RefDiffError,
    SpecError,
    StorageError,
    UnknownPartError,
    UnknownRecordError,
)

from .conftest import tamper

EVERY_DATABASE = True
A, B = "a" * 64, "b" * 64


# -- settings


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("REFDIFF_HOME", "home", Path("/srv/qa")),
        ("QDRANT_URL", "qdrant_url", "http://qdrant:6333"),
        ("REFDIFF_QDRANT_URL", "qdrant_url", "http://qdrant:6333"),
        ("REFDIFF_BANK_WAIT_S", "bank_wait_s", 2.5),
    ],
)
def test_settings_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, field: str, value: object
) -> None:
    monkeypatch.setenv(name, str(value))
    assert getattr(MemorySettings(), field) == value


@pytest.mark.parametrize("name", ["QDRANT_API_KEY", "REFDIFF_QDRANT_API_KEY"])
def test_qdrant_api_key_is_hidden_in_repr(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "hunter2")
    settings = MemorySettings()
    assert settings.qdrant_api_key is not None
    assert settings.qdrant_api_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)


def test_settings_argument_overrides_the_environment_and_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_URL", "http://elsewhere:6333")
    assert MemorySettings(qdrant_url="http://here:6333").qdrant_url == "http://here:6333"
    assert MemorySettings(qdrant_url=None).qdrant_url is None
    monkeypatch.setenv("QDRANT_URL", "")
    assert MemorySettings().qdrant_url is None


# -- images


def test_image_store_keeps_the_exact_bytes(tmp_path: Path) -> None:
    images = FolderImages(tmp_path / "images")
    sha256 = images.put(b"photo")
    assert sha256 == images.put(b"photo") == hashlib.sha256(b"photo").hexdigest()
    assert images.path(sha256).is_file()
    assert FolderImages(tmp_path / "images").get(sha256) == b"photo"
    assert [p.name for p in (tmp_path / "images").rglob("*") if p.is_file()] == [sha256]


def test_damaged_image_is_reported_and_repaired_by_storing_it_again(tmp_path: Path) -> None:
    images = FolderImages(tmp_path)
    sha256 = images.put(b"photo")
    images.path(sha256).write_bytes(b"phoot")
    with pytest.raises(DamagedError, match="damaged"):
        images.get(sha256)
    images.put(b"photo")
    assert images.get(sha256) == b"photo"


def test_missing_image_is_an_unknown_record(tmp_path: Path) -> None:
    assert not FolderImages(tmp_path).path(A).exists()
    with pytest.raises(UnknownRecordError, match="aaaa"):
        FolderImages(tmp_path).get(A)


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", A[:-1], A + "a", A.upper(), A[:-1] + "\n", "ä" * 64])
def test_image_id_that_is_no_sha256_is_refused(tmp_path: Path, sha256: str) -> None:
    for method in (FolderImages(tmp_path).path, FolderImages(tmp_path).get):
        with pytest.raises(InputError, match="64 hex"):
            method(sha256)


# -- database and folders


def test_home_folder_is_private(stores: Stores) -> None:
    assert stat.S_IMODE(stores.settings.home.stat().st_mode) == 0o700


def test_home_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        Stores.open(MemorySettings(home=tmp_path / "file" / "home"))


def test_damaged_database_is_a_storage_error(settings: MemorySettings) -> None:
    settings.home.mkdir()
    (settings.home / "refdiff.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match="damaged"):
        Stores.open(settings)


def test_database_of_a_newer_version_is_refused(stores: Stores) -> None:
    stores.close()
    tamper(stores, "UPDATE alembic_version SET version_num = 'r9999'")
    with pytest.raises(StorageError, match="newer refdiff"):
        Stores.open(stores.settings)


@pytest.mark.sqlite
def test_locked_database_is_a_storage_error_and_readers_are_not_blocked(stores: Stores) -> None:
    assert stores.db.path
    other = Database(SqliteFile(stores.db.path, busy_timeout_s=0.1), lambda db: None)
    with stores.db.transaction(), pytest.raises(StorageError, match="locked"), other.transaction():
        pass
    other.close()


def test_readers_see_what_was_committed_last_and_wait_for_no_writer(settings: MemorySettings) -> None:
    with Stores.open(settings) as one, Stores.open(settings) as two, one.db.transaction() as conn:
        conn.execute(insert(t.products).values(name="p", updated_at=""))
        assert [p.name for p in one.products.list()] == ["p"]
        assert two.products.list() == []


def test_readers_do_not_wait_for_a_writer_of_the_same_process(stores: Stores) -> None:
    stores.captures.add("1", "gear", A)
    read: list[int] = []
    with stores.db.transaction() as conn:
        conn.execute(delete(t.captures))
        assert stores.captures.history("1") == [], "a writer reads what it has written"
        reader = threading.Thread(target=lambda: read.append(len(stores.captures.history("1"))), daemon=True)
        reader.start()
        reader.join(5)
    assert read == [1], "others read what was committed last"
    assert stores.captures.history("1") == []


def test_many_readers_share_few_connections(stores: Stores) -> None:
    all_read, counted = threading.Barrier(READERS), threading.Lock()
    now, most = 0, 0

    def read() -> None:
        nonlocal now, most
        with stores.db.connection():
            with counted:
                now += 1
                most = max(most, now)
            time.sleep(0.1)  # one too many would read meanwhile
            all_read.wait(10)
            with counted:
                now -= 1

    with ThreadPoolExecutor(2 * READERS) as pool:
        reading = [pool.submit(read) for _ in range(2 * READERS)]
    assert [r.result() for r in reading] == [None] * len(reading), "so many read at once, and the others after them"
    assert most == READERS


def test_commit_needs_no_reader_and_stands_whatever_follows_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as readers:
        for _ in range(READERS):
            readers.enter_context(stores.db._engine.reader.connect())
        monkeypatch.setattr(stores.db._engine.reader.pool, "_timeout", 0.1)
        stores.inspections.file("i1", "1", "gear", "PASS", "2026-01-01", {})
        stores.inspections.file("i2", "1", "gear", "PASS", "2026-01-01", {})
    head = AuditHead(stores.settings.home).read()
    assert head == stores.audit.head()
    monkeypatch.setattr(stores.db, "_after_commit", lambda conn: conn.exec_driver_sql("SELECT x FROM nowhere"))
    stores.inspections.file("i3", "1", "gear", "PASS", "2026-01-01", {})
    assert stores.inspections.get("i3").part_id == "1"
    assert "the commit stands" in caplog.text


@pytest.mark.sqlite
def test_what_follows_a_commit_takes_no_turn_to_write(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stores.db.path
    other = Database(SqliteFile(stores.db.path, busy_timeout_s=0.1), lambda db: None)

    def follow(conn: Connection) -> None:
        assert conn.scalar(select(func.count()).select_from(t.products)) == 1
        with other.transaction():
            turns.append("other")

    turns: list[str] = []
    monkeypatch.setattr(stores.db, "_after_commit", follow)
    with stores.db.transaction() as conn:
        conn.execute(insert(t.products).values(name="p", updated_at=""))
    other.close()
    assert turns == ["other"]


def test_transaction_within_a_transaction_is_refused_at_once(stores: Stores) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match="within another"), stores.db.transaction(), stores.db.transaction():
        pass
    assert time.monotonic() - began < 5
    stores.captures.add("1", "gear", A)  # the turn was given back


def test_reading_connection_cannot_write(stores: Stores) -> None:
    with pytest.raises(StorageError), stores.db.connection() as conn:
        conn.execute(delete(t.captures))


def test_values_are_in_no_error(stores: Stores) -> None:
    with pytest.raises(StorageError) as failed, stores.db.connection() as conn:
        conn.execute(text("SELECT :value FROM nowhere"), {"value": "hunter2"})
    assert "nowhere" in str(failed.value.__cause__)
    assert "hunter2" not in str(failed.value.__cause__)


def test_failed_transaction_is_rolled_back(stores: Stores) -> None:
    with contextlib.suppress(KeyError), stores.db.transaction() as conn:
        conn.execute(insert(t.products).values(name="p", updated_at=""))
        raise KeyError
    assert stores.products.list() == []


@pytest.mark.sqlite
def test_commit_in_a_file_survives_a_power_cut(stores: Stores) -> None:
    with stores.db.transaction() as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert conn.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_closed_database_is_a_storage_error(stores: Stores) -> None:
    stores.close()
    with pytest.raises(StorageError, match="closed"):
        stores.products.list()


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_text_that_a_database_cannot_hold_is_an_input_error(stores: Stores, text: str) -> None:
    if "\0" in text and stores.db.path is not None:
        stores.captures.add("1", "gear", A, filename=text)  # SQLite can
        assert stores.captures.latest("1").filename == text
        return
    with pytest.raises(InputError, match="cannot be stored"):
        stores.captures.add("1", "gear", A, filename=text)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2026-01-01", "2026-01-01T00:00:00.000000+00:00"),
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00.000000+00:00"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+00:00"),
    ],
)
def test_times_are_stored_in_utc_with_microseconds(given: str, stored: str) -> None:
    assert to_utc(given) == stored


# -- products


@pytest.mark.parametrize("name", ["", " ", "-x", ".x", "a/b", "a\nb", "x" * 65, "größe", None])
def test_invalid_product_name_is_refused(stores: Stores, name: str) -> None:
    with pytest.raises(InputError, match="product"):
        stores.products.ensure(name)


def test_product_keeps_window_and_versions_its_specification(stores: Stores) -> None:
    products = stores.products
    assert products.get("M3 screw") is None
    assert products.ensure(" M3 screw ").spec == {}
    assert products.set_window_once("M3 screw", (10, 4000)).intensity_window == (10.0, 4000.0)
    assert products.set_window_once("M3 screw", (0, 1)).intensity_window == (10.0, 4000.0), "the first one stays"
    spec = {"scale_mm_per_px": 0.02, "limits": [{"type": "scratch", "max_length_mm": 1}]}
    assert products.set_spec("M3 screw", spec, scale_mm_per_px=0.02).spec_version == 1
    product = products.set_spec("M3 screw", spec, scale_mm_per_px=0.03)
    assert (product.spec, product.spec_version, product.scale_mm_per_px) == (spec, 2, 0.03)
    assert products.get("M3 screw") == product
    products.ensure("A")
    assert [p.name for p in products.list()] == ["A", "M3 screw"]


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_invalid_intensity_window_is_refused(stores: Stores, window: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="window"):
        stores.products.set_window_once("p", window)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_specification_that_is_not_plain_data_is_refused(stores: Stores, value: object) -> None:
    with pytest.raises(SpecError, match="'p'"):
        stores.products.set_spec("p", {"x": value})


# -- captures


@pytest.mark.parametrize("text", ["4412", "#4412", " #4412 ", "# 4412", "\t4412\n"])
def test_part_id_is_normalised(text: str) -> None:
    assert normalise_part_id(text) == "4412"


@pytest.mark.parametrize("text", ["", "#", " # ", "a\nb", "a\x00b", "a\u200bb", "x" * 129, None])
def test_invalid_part_id_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="part id"):
        normalise_part_id(text)


def test_latest_capture_is_the_newest_and_history_keeps_all(stores: Stores) -> None:
    first = stores.captures.add("#4412", "gear", A, 0.05, "one.png")
    assert stores.captures.add("4412", "gear", A, 0.05, "again.png") == first
    second = stores.captures.add("4412", "gear", B, 0.05)
    third = stores.captures.add("4412", "gear", A, 0.05)  # A is not the newest one now: a new capture
    fourth = stores.captures.add("4412", "gear", A, 0.06)
    assert stores.captures.latest("#4412") == fourth
    assert stores.captures.history("4412") == [fourth, third, second, first]
    assert stores.captures.get(first.capture_id) == first
    assert stores.products.get("gear") is not None


def test_latest_capture_is_the_one_taken_last_whenever_it_arrived(stores: Stores) -> None:
    taken = "2026-01-01T10:00:00+02:00"
    last = stores.captures.add("4412", "gear", B)
    late = stores.captures.add("4412", "gear", A, taken_at=taken)
    assert late.created_at == to_utc(taken)
    assert stores.captures.latest("4412") == last
    assert stores.captures.history("4412") == stores.captures.list("4412") == [last, late]
    ahead = stores.captures.add("4412", "gear", A, 0.1, taken_at="2099-01-01")
    assert ahead.created_at <= utc_now()
    tamper(stores, "UPDATE captures SET created_at = ? WHERE capture_id = ?", to_utc("2099-01-01"), last.capture_id)
    now = stores.captures.add("4412", "gear", A)  # the clock was set back meanwhile
    assert stores.captures.latest("4412") == now


def test_part_id_of_several_products_needs_the_product(stores: Stores) -> None:
    stores.captures.add("1", "gear", A)
    axle = stores.captures.add("1", "axle", B)
    with pytest.raises(InputError, match=r"axle, gear; say which product"):
        stores.captures.latest("1")
    assert stores.captures.latest("1", "axle") == axle
    with pytest.raises(UnknownPartError, match=r"product cam.*axle, gear"):
        stores.captures.latest("1", "cam")


def test_product_is_found_whatever_its_case(stores: Stores) -> None:
    stores.products.ensure("alien")
    assert stores.captures.add("80", "Alien", A).product == "alien"
    assert stores.captures.latest("80", "ALIEN").product == "alien"
    assert stores.products.set_spec("aLien", {}).name == "alien"
    assert [p.name for p in stores.products.list()] == ["alien"]


def test_products_that_an_old_home_has_in_two_cases_stay_apart(stores: Stores) -> None:
    with stores.db.transaction() as conn:
        for name in ("Alien", "alien"):
            conn.execute(insert(t.products).values(name=name, updated_at=to_utc("2026-01-01")))
    assert [stores.captures.add("80", name, A).product for name in ("Alien", "alien")] == ["Alien", "alien"]


def test_captures_and_empty_products_are_removed(stores: Stores) -> None:
    kept, wrong = stores.captures.add("80", "alien", A), stores.captures.add("80", "Alein", B)
    with pytest.raises(InputError, match="1 captured photo"):
        stores.products.remove("alein")
    assert stores.captures.remove(product="alein", by="ann") == [wrong]
    assert stores.products.remove("alein").name == "Alein"
    assert stores.captures.list() == [kept]
    assert stores.captures.latest("80") == kept
    for nothing in ({"part_id": "81"}, {"capture_id": wrong.capture_id}, {"product": "alein"}):
        with pytest.raises(UnknownRecordError):
            stores.captures.remove(**nothing, by="ann")
    with pytest.raises(InputError, match="name what to remove"):
        stores.captures.remove(by="ann")
    with pytest.raises(UnknownRecordError):
        stores.products.remove("alein")


def test_ids_of_captured_parts_are_looked_up(stores: Stores) -> None:
    for part in ("44 12", "Gehäuse-links"):
        stores.captures.add(part, "bracket", A)
    asked = [*(f"{i}" for i in range(1200)), "44 12", "Gehäuse-links", "gehäuse-links"]
    assert stores.captures.stored(asked) == {"44 12", "Gehäuse-links"}


def test_unknown_part_error_suggests_a_similar_id(stores: Stores) -> None:
    with pytest.raises(UnknownPartError, match="refdiff capture --part 4421 --product P IMAGE"):
        stores.captures.latest("4421")
    stores.captures.add("4412", "gear", A)
    stores.captures.add("LOT-7", "gear", A)
    with pytest.raises(UnknownPartError, match=r"did you mean 4412\?"):
        stores.captures.latest("4421")
    with pytest.raises(UnknownPartError, match=r"no part id looks like it\. Record its photo with"):
        stores.captures.latest("zzzzzz")
    with pytest.raises(UnknownPartError, match=r"did you mean LOT-7\?"):
        stores.captures.latest("lot-7")
    assert stores.captures.history("4421") == []
    with pytest.raises(UnknownRecordError, match="c-none"):
        stores.captures.get("c-none")


@pytest.mark.sqlite  # whatever holds the ids
def test_unknown_part_among_many_long_ids_is_answered_quickly(stores: Stores) -> None:
    """Comparing 10,000 ids of 127 characters took 18 s, and nobody else reached the database."""
    draw = random.Random(1)
    ids = ["".join(draw.choices("0123456789ab", k=127)) for _ in range(5000)]
    with stores.db.transaction() as conn:
        conn.execute(insert(t.products).values(name="gear", updated_at="2026"))
        same = {"product": "gear", "sha256": A, "filename": "", "created_at": "2026"}
        conn.execute(insert(t.captures), [{"capture_id": f"c-{i}", "part_id": p} | same for i, p in enumerate(ids)])
    wanted = ids[-7]
    began = time.monotonic()
    with pytest.raises(UnknownPartError, match=rf"did you mean {wanted}"):
        stores.captures.latest(wanted[:50] + "x" + wanted[52:])
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "x"),
        ("scale_mm_per_px", 0),
        ("scale_mm_per_px", -1),
        ("scale_mm_per_px", float("nan")),
        ("product", "/"),
    ],
)
def test_capture_with_invalid_fields_is_refused(stores: Stores, field: str, value: object) -> None:
    with pytest.raises(InputError):
        stores.captures.add(**{"part_id": "1", "product": "p", "sha256": A, field: value})


# -- calibrations


def test_calibrations_are_stored_by_key_and_the_latest_is_found(stores: Stores) -> None:
    store = stores.calibrations
    assert store.latest("gear") is None
    one = Calibration("gear", "k1", [0.5, 1.25], 0.75, 2, 3, to_utc("2026-01-01"), 4.5, [0.1], [0.9], 0.01)
    two = replace(one, key="k2", scores=[9.0])
    store.save(one)
    store.save(two)
    assert (store.latest("gear"), store.get("gear", "k1"), store.get("gear", "k3")) == (two, one, None)
    assert store.latest("axle") is None
    again = replace(one, scores=[7.0], levels=[0.01, 0.02])
    store.save(again)
    assert store.latest("gear") == store.get("gear", "k1") == again
    with pytest.raises(RefDiffError, match="gear"):
        store.save(replace(one, scores=[float("nan")]))
    assert store.latest("gear") == again
    marked = replace(again, marks=[MarksFound("spot", 4, 4, 0.4, [3.0])])
    store.keep_marks(marked)
    assert store.latest("gear") == marked
    # as they were kept once, ranked: they are found out again
    tamper(stores, """UPDATE calibrations SET extra = replace(extra, '"scores": [3.0]', '"p_values": [0.1]')""")
    assert store.latest("gear") == again


def test_calibration_of_before_asks_for_the_rate_of_the_latest(stores: Stores) -> None:
    store = stores.calibrations
    one = Calibration("gear", "k1", [0.5], 0.75, 1, 3, to_utc("2026-01-01"), alpha=0.05)
    marked = replace(one, marks=[MarksFound("spot", 4, 4, 0.4, [3.0])])
    store.save(marked)
    store.save(replace(one, key="k2", alpha=0.01))
    assert store.get("gear", "k3") is None
    assert store.get("gear", "k2") == store.latest("gear")
    assert store.get("gear", "k1") == replace(marked, alpha=0.01)


# -- inspections and dispositions


def test_second_filing_of_an_inspection_is_ignored(stores: Stores) -> None:
    file = stores.inspections.file
    assert file("i1", "#7", "gear", "PASS", "2026-01-01", {"image_score": 1.5, "text": "größer"})
    assert not file("i1", "8", "axle", "FAIL", "2026-02-02", {})
    record = stores.inspections.get("i1")
    assert (record.part_id, record.product, record.verdict) == ("7", "gear", "PASS")
    assert record.report == {"image_score": 1.5, "text": "größer"}
    assert record.created_at == to_utc("2026-01-01")
    with pytest.raises(UnknownRecordError, match="i2"):
        stores.inspections.get("i2")
    for bad, error in (({"verdict": "MAYBE"}, InputError), ({"report": {"x": float("nan")}}, RefDiffError)):
        arguments = {"verdict": "PASS", "report": {}, **bad}
        with pytest.raises(error):
            file("i3", "7", "gear", created_at="2026-01-01", **arguments)
    assert len(stores.inspections.list()) == 1


def test_inspections_are_listed_newest_first(stores: Stores) -> None:
    days = {"a": "2026-01-03", "b": "2026-01-01", "c": "2026-01-02", "d": "2026-01-02"}
    for i, (name, day) in enumerate(days.items()):
        stores.inspections.file(name, str(i % 2), "gear" if name != "c" else "axle", "FAIL" if i else "PASS", day, {})
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "adcb"),
        ({"limit": 2}, "ad"),
        ({"limit": 2, "offset": 1}, "dc"),
        ({"offset": 9}, ""),
        ({"product": "gear"}, "adb"),
        ({"verdict": "FAIL"}, "dcb"),
        ({"part_id": "#1"}, "db"),
        ({"product": "axle", "verdict": "PASS"}, ""),
    ]
    for wanted, expected in cases:
        found = stores.inspections.list(**wanted)  # type: ignore[arg-type]
        assert "".join(r.inspection_id for r in found) == expected, wanted
    for wanted in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"verdict": "x"}):
        with pytest.raises(InputError):
            stores.inspections.list(**wanted)  # type: ignore[arg-type]


def test_second_disposition_of_an_inspection_is_rejected(stores: Stores) -> None:
    for name, verdict, day in (
        ("i1", "REVIEW", "2026-01-02"),
        ("i2", "PASS", "2026-01-01"),
        ("i3", "REVIEW", "2026-01-01"),
    ):
        stores.inspections.file(name, "7", "gear", verdict, day, {"v": verdict})  # type: ignore[arg-type]
    assert [r.inspection_id for r in stores.inspections.open_reviews()] == ["i3", "i1"], "longest waiting first"
    assert stores.dispositions.get("i1") is None
    disposition = stores.dispositions.add("i1", "accept", " ana ", "shadow of the clamp")
    assert stores.dispositions.get("i1") == disposition
    assert disposition.by == "ana"
    with pytest.raises(DuplicateError, match=rf"ana at {disposition.created_at[:19]}.*shadow of the clamp"):
        stores.dispositions.add("i1", "override", "bob", "no")
    assert stores.dispositions.get("i1") == disposition
    assert [r.inspection_id for r in stores.inspections.open_reviews()] == ["i3"]
    assert stores.inspections.get("i1").report == {"v": "REVIEW"}, "the filed report is never rewritten"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nobody", "accept", "ana", "why"), UnknownRecordError),
        (("i1", "maybe", "ana", "why"), InputError),
        (("i1", "accept", " ", "why"), InputError),
        (("i1", "accept", "ana", ""), InputError),
        (("i1", "accept", "ana", "\0"), InputError),
        (("i1", "accept", "ana", " \u200b\u2060\ufeff\u00ad "), InputError),
        (("i1", "accept", "ana", "\u3164\u2800"), InputError),
        (("i1", "accept", "\u200b", "why"), InputError),
    ],
)
def test_invalid_disposition_is_refused(stores: Stores, arguments: tuple[str, ...], error: type[Exception]) -> None:
    stores.inspections.file("i1", "7", "gear", "REVIEW", "2026-01-01", {})
    with pytest.raises(error):
        stores.dispositions.add(*arguments)  # type: ignore[arg-type]
    assert stores.dispositions.get("i1") is None
