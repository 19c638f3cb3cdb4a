"""Everything that decides is in the audit chain: who changed it, before and after; no change is without its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refdiff.memory.artefacts import digests, inspection_folder
from refdiff.memory.audit_chain import append, canonical, using_key
from refdiff.memory.audit_export import verify_export, write_export
from refdiff.memory.audit_head import AuditHead
from refdiff.memory.audit_store import MAX_PROBLEMS
from refdiff.memory.changes import in_words, record_settings
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.journals.jobs import JobStore
from refdiff.memory.records.api_keys import KeyStore
from refdiff.memory.records.calibrations import Calibration
from refdiff.memory.records.products import Product
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, StorageError, TamperedError, UnknownRecordError

from .conftest import GLOBAL_DIM, PATCH_DIM, make_golden, make_vectors, tamper

EVERY_DATABASE = True

LENIENT = {"limits": [{"type": "any", "max_area_px": 1_000_000, "severity": "minor"}]}


@pytest.fixture
def bank(stores: Stores, settings: MemorySettings) -> Iterator[GoldenBank]:
    with GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM, stores.db) as opened:
        yield opened


@pytest.fixture
def keys(stores: Stores) -> KeyStore:
    return stores.keys


@pytest.fixture
def filed(stores: Stores) -> Stores:
    """Three inspections with files, i0..i2, after a specification was set (record 1): records 2 to 4."""
    product = stores.products.set_spec("board", {"limits": []}, by="ana")
    sha256 = [stores.images.put(f"photo {i}".encode()) for i in range(3)]
    for i in range(3):
        folder = inspection_folder(stores.settings.home, f"i{i}")
        folder.mkdir(parents=True)
        for name in ("report.html", "overlay.png"):
            (folder / name).write_text(f"FAIL {i} {name}")
        report = {
            "part_id": f"p{i}", "product": "board", "verdict": "FAIL", "query_sha256": sha256[i],
            "created_at": "2026-01-01T12:00:00+00:00", "specification": {"version": 1, "sha256": product.digest},
        }  # fmt: skip
        files = {"artefacts": digests(folder.iterdir())}
        stores.inspections.file(f"i{i}", f"p{i}", "board", "FAIL", "2026-01-01T12:00:00+00:00", report, facts=files)
    return stores


def _golden_change(status: Any) -> Callable[[Stores, GoldenBank, KeyStore], object]:
    return lambda s, bank, k: bank.set_status(make_golden(1).golden_id, status, "why", "ana")


def _with_job(stores: Stores, work: Callable[[JobStore], object]) -> None:
    stores.jobs.adopt("insp-1", {"part_id": "80"})
    work(stores.jobs)


CHANGES: list[tuple[str, str, Callable[[Stores, GoldenBank, KeyStore], object], str]] = [
    ("a specification", "product", lambda s, b, k: s.products.set_spec("board", LENIENT, 0.5, "ana"),
     'scale_mm_per_px: null -> 0.5; spec.limits: [{"max_area_px":1000000,"severity":"minor","type":"any"}]'),
    ("a component's name", "product",
     lambda s, b, k: (s.products.ensure("board"), s.products.name_component("board", "clip", {"rows": 0}, "ana")),
     'component_names: {"clip":"'),
    ("an intensity window", "product", lambda s, b, k: s.products.set_window_once("board", (1, 9), "ana"),
     "intensity_window: null -> [1.0,9.0]"),
    ("a calibration", "calibration",
     lambda s, b, k: s.calibrations.save(Calibration("board", "k" * 20, [0.1], 0.2, 1, 4, alpha=0.05), "ana"),
     "new: alpha: 0.05"),
    ("a product removed", "product",
     lambda s, b, k: (s.products.set_spec("x", LENIENT, 0.5, "ana"), s.products.remove("x", "ana")), "removed"),
    ("an enrolment", "golden", lambda s, b, k: b.add(make_golden(2, enrolled_by="ana"), *make_vectors(2)),
     "new: enrolled_at"),
    ("a flag", "golden", _golden_change("flagged"), 'note: "" -> "why"; status: "active" -> "flagged"'),
    ("a retirement", "golden", _golden_change("retired"), 'status: "active" -> "retired"'),
    ("a key", "key", lambda s, b, k: k.add("line 3", "viewer", "ana"), 'new: name: "line 3"; role: "viewer"'),
    ("a revocation", "key", lambda s, b, k: k.revoke(k.list()[0].key_id, "ana"), "revoked_at: null -> "),
    ("a photo forgotten", "capture",
     lambda s, b, k: (s.captures.add("80", "x", "a" * 64), s.captures.remove(part_id="80", by="ana")), "removed"),
    ("a cancelled inspection", "job", lambda s, b, k: _with_job(s, lambda jobs: jobs.cancel("insp-1", "ana")),
     'error: null -> "cancelled by ana"; state: "queued" -> "failed"'),
    ("an inspection tried again", "job",
     lambda s, b, k: _with_job(s, lambda jobs: (jobs.cancel("insp-1", "bob"), jobs.retry("insp-1", "ana"))),
     'error: "cancelled by bob" -> null; state: "failed" -> "queued"'),
    ("settings", "settings", lambda s, b, k: record_settings(s.db, {"alpha": 0.05}, "ana"), "new: alpha: 0.05"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "words"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_change_has_a_record_with_who_before_and_after(
    stores: Stores, bank: GoldenBank, keys: KeyStore, kind: str, change: Callable[..., object], words: str
) -> None:
    bank.add(make_golden(1, enrolled_by="bob"), *make_vectors(1))
    keys.add("old", "admin", "bob")
    before = stores.audit.head()[0]
    change(stores, bank, keys)
    assert stores.audit.head()[0] > before
    record = stores.audit.changes(limit=1)[0]
    assert (record.kind, record.by, record.inspection_id) == (kind, "ana", "")
    assert words in record.facts["change"]
    assert record.facts["before"] != record.facts["after"]
    assert stores.audit.verify_store().problems == []


def test_specification_that_was_put_back_shows_both_changes(stores: Stores) -> None:
    for spec in ({}, LENIENT, {}):
        stores.products.set_spec("board", spec, by="eve")
    first, changed, restored = stores.audit.changes("product", "board")
    assert changed.facts["before"] == restored.facts["after"] == first.facts["after"] == Product("board").digest
    assert changed.facts["after"] == restored.facts["before"] != first.facts["after"]
    assert [r.facts["spec_version"] for r in (first, changed, restored)] == [1, 2, 3]
    assert first.facts["change"] == "the same again"


def test_changes_are_found_by_how_their_subject_begins(stores: Stores, keys: KeyStore) -> None:
    for product in ("board", "board 2", "Board3", "a_b", "axb"):
        stores.products.set_spec(product, LENIENT, 0.5, "ana")
    keys.add('"subject":"board', "viewer", "ana")
    for about, found in (("board", ["board", "board 2"]), ("B", ["Board3"]), ("a_", ["a_b"]), ("oard", []), ('"', [])):
        assert [r.facts["subject"] for r in stores.audit.changes(subject=about)] == found, about
    assert [r.facts["subject"] for r in stores.audit.changes("product", "board", limit=1)] == ["board 2"]
    tamper(stores, "UPDATE audit SET facts = 'no JSON' WHERE facts LIKE '%Board3%'")
    assert len(stores.audit.changes(subject="board")) == 2, "others are not read"


def test_settings_are_recorded_only_when_they_differ(stores: Stores) -> None:
    for alpha in (0.01, 0.01, 0.05, 0.05, 0.01):
        record_settings(stores.db, {"alpha": alpha}, "ana")
    words = [r.facts["change"] for r in stores.audit.changes("settings")]
    tamper(stores, "UPDATE audit SET content = '{'")
    record_settings(stores.db, {"alpha": 0.01}, "ana")  # a chain that was tampered with stops no inspection
    assert words == ["new: alpha: 0.01", "alpha: 0.01 -> 0.05", "alpha: 0.05 -> 0.01"]


def test_change_that_fails_in_another_store_is_taken_back_in_the_chain(
    stores: Stores, bank: GoldenBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_before: list[int] = []

    def full(*args: object, **more: object) -> None:
        recorded_before.append(stores.audit.head()[0])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank._client, "upsert", full)
    with pytest.raises(StorageError):
        bank.add(make_golden(1), *make_vectors(1))
    assert recorded_before == [1]  # the record is on the disk before the bank is touched
    made, taken_back = stores.audit.changes("golden")
    assert (made.facts["after"], made.facts["before"]) == (taken_back.facts["before"], taken_back.facts["after"])
    assert "No space left" in taken_back.facts["failed"]


def test_change_of_a_key_moves_the_audit_head_as_every_record_does(stores: Stores, keys: KeyStore) -> None:
    keys.add("line 3", "inspector", "ana")
    assert AuditHead(stores.settings.home).read() == stores.audit.head()


def test_change_that_is_refused_leaves_no_record(stores: Stores, bank: GoldenBank, keys: KeyStore) -> None:
    bank.add(make_golden(1), *make_vectors(1))
    head = stores.audit.head()
    refused: list[Callable[[], object]] = [
        lambda: stores.products.set_spec("board", {"x": float("nan")}),
        lambda: bank.set_status("g-000000000000", "retired"),
        lambda: keys.revoke("k-00000000"),
        lambda: keys.add("", "viewer", "ana"),
        lambda: stores.captures.remove(part_id="80", by="ana"),
        lambda: _with_job(stores, lambda jobs: jobs.retry("insp-1", "ana")),
        lambda: _with_job(stores, lambda jobs: (jobs.begin("insp-1", False), jobs.cancel("insp-1", "ana"))),
    ]
    for change in refused:
        with pytest.raises(InputError):
            change()
    assert not bank.add(make_golden(1), *make_vectors(1))
    assert stores.audit.head() == head


def test_record_names_the_key_that_was_used(stores: Stores) -> None:
    with using_key("k-12345678"):
        stores.products.set_spec("board", {}, by="ana")
    stores.products.set_spec("board", {}, by="ana")
    assert [r.facts.get("by_key") for r in stores.audit.changes()] == ["k-12345678", None]


OTHER_MEANS: list[tuple[str, str, str]] = [
    ("a specification", "UPDATE products SET spec = '{}', window_lo = 0, window_hi = 9", "the specification of board"),
    ("a product removed", "DELETE FROM products", "the specification of board is not"),
    ("a product slipped in", "INSERT INTO products (name, scale_mm_per_px, updated_at) VALUES ('x', 2, '')",
     "specification of x"),
    ("a pixel limit", "UPDATE calibrations SET pixel_threshold = 9", "the calibration of board, kkkkkkkkkkkk is not"),
    ("scores", "UPDATE calibrations SET scores = '[9.0]'", "the calibration of board"),
    ("an alpha", "UPDATE calibrations SET extra = '{}'", "the calibration of board"),
    ("a calibration removed", "DELETE FROM calibrations", "the calibration of board"),
    ("a calibration slipped in", "INSERT INTO calibrations (product, key, scores, pixel_threshold, n, reference_count, "
     "created_at, seconds, extra) VALUES ('board', 'other', '[]', 9, 1, 1, '2026', 0, '{}')", "the calibration of board"),
    ("how much good parts differ as a whole",
     """UPDATE calibrations SET extra = replace(extra, '"alpha"', '"levels": [9], "alpha"')""",
     "the calibration of board"),
    ("when an inspection was filed", "UPDATE inspections SET created_at = '2025'", "the time it is listed with"),
    ("which photo was inspected", "UPDATE inspections SET photo = NULL", "the photo it is listed with"),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "named"), [t[1:] for t in OTHER_MEANS], ids=[t[0] for t in OTHER_MEANS])
def test_change_by_other_means_is_reported(filed: Stores, statements: str, named: str) -> None:
    filed.products.set_spec("board", LENIENT, by="ana")
    filed.calibrations.save(Calibration("board", "k" * 20, [0.1], 0.2, 1, 4, alpha=0.05))
    assert filed.audit.verify_store().problems == []
    tamper(filed, statements)
    assert any(named in str(p) for p in filed.audit.verify_store().problems)


@pytest.mark.parametrize(
    "statement", ["UPDATE keys SET role = 'admin'", "UPDATE keys SET revoked_at = NULL", "DELETE FROM keys"]
)
def test_key_changed_by_other_means_is_reported(stores: Stores, keys: KeyStore, statement: str) -> None:
    keys.revoke(keys.add("ana", "viewer", "bob")[0].key_id, "bob")
    assert stores.audit.verify_store().problems == []
    tamper(stores, statement)
    assert "is not the one that was recorded last" in str(stores.audit.verify_store().problem)


def test_verdict_by_a_specification_without_a_record_is_reported(filed: Stores) -> None:
    """Set and put back by other means, so that the table looks as it did."""
    other = replace(Product("board"), spec=LENIENT).digest
    report = {"product": "board", "specification": {"version": 1, "sha256": other}}
    filed.inspections.file("i9", "p9", "board", "PASS", "2026-01-01", report)
    assert "it was judged by a specification of product 'board' that no record tells of" in str(
        filed.audit.verify_store().problem
    )


def test_home_of_an_older_version_records_what_it_had_once(stores: Stores) -> None:
    tamper(stores, "INSERT INTO products VALUES ('board', 2, NULL, NULL, '{\"limits\": []}', 1, '2026', '{}', 'photo')")
    checked = stores.audit.verify_store()
    assert (checked.problems, len(checked.notes)) == ([], 1)
    product = stores.products.get("board")
    assert product
    report = {"product": "board", "specification": {"version": 1, "sha256": product.digest}}
    stores.inspections.file("i0", "p0", "board", "PASS", "2026-01-01", report)
    stores.products.set_spec("board", {}, by="ana")
    assert [r.kind for r in stores.audit.changes()] == ["present", "product"]
    assert stores.audit.changes("product")[0].facts["before"] == product.digest
    assert stores.audit.verify_store().problems == []


# -- files of reports


def _forge(folder: Path) -> None:
    (folder / "report.html").write_text("PASS")


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("forged", _forge, "report.html is not the file that was filed"),
    ("emptied", lambda f: (f / "overlay.png").write_bytes(b""), "overlay.png is not the file that was filed"),
    ("removed", lambda f: (f / "overlay.png").unlink(), "overlay.png is missing"),
    ("replaced by a folder", lambda f: ((f / "overlay.png").unlink(), (f / "overlay.png").mkdir()),
     "overlay.png cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_file_that_is_not_as_filed_is_reported(filed: Stores, damage: Callable[[Path], object], named: str) -> None:
    assert filed.audit.verify_store(artefacts=True).problems == []
    assert filed.audit.not_as_filed("i1") == {}
    damage(inspection_folder(filed.settings.home, "i1"))
    (problem,) = filed.audit.verify_store(artefacts=True).problems
    assert str(problem).startswith("record 3 (inspection i1): ")
    assert named in str(problem)
    assert named in " ".join((filed.audit.not_as_filed("i1") or {}).values())


def test_digest_that_was_changed_with_its_file_is_reported(filed: Stores) -> None:
    _forge(inspection_folder(filed.settings.home, "i1"))
    forged = digests([inspection_folder(filed.settings.home, "i1") / "report.html"])["report.html"]
    facts = filed.audit.filed("i1").facts
    facts["artefacts"]["report.html"] = forged
    tamper(filed, "UPDATE audit SET facts = ? WHERE seq = 3", canonical(facts))
    with pytest.raises(TamperedError, match="record 3"):
        filed.audit.not_as_filed("i1")
    with pytest.raises(UnknownRecordError):
        filed.audit.not_as_filed("i9")


def test_report_filed_before_files_had_digests_is_said_to_be_without(filed: Stores) -> None:
    filed.inspections.file("old", "p", "board", "PASS", "2026-01-01", {})
    assert filed.audit.not_as_filed("old") is None
    checked = filed.audit.verify_store(artefacts=True)
    assert checked.problems == []
    assert any(note.startswith("1 inspections were filed before their files had digests") for note in checked.notes)


def test_verification_goes_on_to_the_end_and_reports_every_problem(filed: Stores) -> None:
    for i in (0, 2):
        filed.images.path(filed.images.put(f"photo {i}".encode())).unlink()
    _forge(inspection_folder(filed.settings.home, "i1"))
    tamper(filed, "UPDATE audit SET by = 'eve' WHERE seq = 3")
    problems = [str(p) for p in filed.audit.verify_store(photos=True, artefacts=True).problems]
    assert [p.partition(":")[0] for p in problems] == [f"record {i + 2} (inspection i{i})" for i in (0, 1, 1, 2)]
    assert "its photo: image" in problems[0]
    assert "its photo: image" in problems[3]


def test_no_more_problems_are_kept_than_anybody_reads(filed: Stores) -> None:
    slipped_in = ", ".join(f"('x{i}', 'x', 'board', 'PASS', '2026', '{{}}')" for i in range(MAX_PROBLEMS + 5))
    columns = "inspection_id, part_id, product, verdict, created_at, report"
    tamper(filed, f"INSERT INTO inspections ({columns}) VALUES {slipped_in}")
    checked = filed.audit.verify_store()
    assert len(checked.problems) == MAX_PROBLEMS
    assert checked.notes[-1] == "and 5 more problems"


# -- clocks


@pytest.fixture
def dated(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """Records 1 to 7 with the clock put back by a day before record 4, and right again for 7."""
    days = ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-03", "2026-01-03", "2026-01-03", "2026-01-05"]
    for number, day in enumerate(days, start=1):
        monkeypatch.setattr(
            "refdiff.memory.audit_chain.utc_now", lambda d=day, n=number: f"{d}T0{n}:00:00.000000+00:00"
        )
        with stores.db.transaction() as conn:
            append(conn, "settings", "", "ana", {"n": number}, facts={"subject": "x", "after": None})
    return stores


def test_record_dated_before_its_predecessor_is_mentioned(dated: Stores) -> None:
    checked = dated.audit.verify_store()
    assert checked.problems == []
    (note,) = checked.notes
    assert note.startswith("record 4 is dated 2026-01-03T04:00:00.000000+00:00, earlier than the record before it")


@pytest.mark.parametrize(
    ("since", "first"),
    [
        ("2026-01-01", 1), ("2026-01-02T01:00", 1), ("2026-01-02T01:01", 2), ("2026-01-04", 3),
        ("2026-01-04T12:00", 4),  # 4 to 6 may be of any time between 3 and 7
        ("2026-01-05", 4), ("2026-01-05T08:00", 8),
    ],
)  # fmt: skip
def test_export_since_a_time_misses_no_record_with_the_clock_put_back(
    dated: Stores, tmp_path: Path, since: str, first: int
) -> None:
    write_export(tmp_path / "a.jsonl", dated.audit.export(since=since))
    checked = verify_export(dated.audit, tmp_path / "a.jsonl", against_store=True)
    assert (checked.problems, checked.records) == ([], 8 - first)


def test_change_in_words_is_short_however_long_the_values_are() -> None:
    words = in_words({"a": "x" * 10_000, "b": {"c": 1}}, {"a": "y" * 10_000, "b": {"c": 2}, "d": ["z" * 5000] * 99})
    assert len(words) < 1100
    assert in_words({"b": {"c": 1, "e": 2}}, {"b": {"c": 2, "e": 2}}) == "b.c: 1 -> 2"
    assert in_words({"a": 1}, None) == "removed"
