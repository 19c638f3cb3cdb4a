"""`memory/upkeep/prune.py`: what goes, what stays, and what the audit says of it; in SQLite and in Postgres."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import select

from refdiff.agent.checkpoints import open_checkpoints
from refdiff.memory.audit_chain import REMOVED
from refdiff.memory.audit_export import verify_export, write_export
from refdiff.memory.changes import PRUNE
from refdiff.memory.database import tables as t
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.records.defect_names import Sight
from refdiff.memory.schema import NEWEST
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.upkeep.doctor import BankContents, examine
from refdiff.memory.upkeep.prune import Filter, GoldenPhotos, Pruned, prune
from refdiff.model.errors import BusyError, InputError, RemovedError, StorageError, UnavailableError

from .conftest import GLOBAL_DIM, PATCH_DIM, make_golden, make_vectors, tamper

EVERY_DATABASE = True
NO_GOLDENS = GoldenPhotos(set(), set())
CUTOFF, OLD, YOUNG = "2026-06-01", "2026-01-01", "2026-07-01"


def photo_of(name: str) -> bytes:
    return f"photo of {name}".encode() * 100


def file_inspection(
    stores: Stores, name: str, verdict: Any = "PASS", at: str = OLD, product: str = "board", share: float = 0.0,
    photo: bytes | None = None, captured: bool = True,
) -> str:  # fmt: skip
    """An inspection with a drawn page, a map and a picture that a model was shown; the sha256 of its photo."""
    sha256, shown = stores.images.put(photo or photo_of(name)), stores.images.put(f"crop of {name}".encode())
    if captured:
        stores.captures.add(f"part-{name}", product, sha256)
        _date_captures(stores, f"part-{name}", at)
    folder = stores.settings.home / "inspections" / name
    folder.mkdir(parents=True, mode=0o700)
    (folder / "report.html").write_text(f"page of {name}")
    report = {"part_id": f"part-{name}", "product": product, "verdict": verdict, "query_sha256": sha256, "created_at": at,
              "requested_by": "ann", "tool_trace": [{"tool": "zoom", "image": shown}],
              "findings": [{"id": "f1"}]}  # fmt: skip
    assert stores.inspections.file(
        name,
        f"part-{name}",
        product,
        verdict,
        at,
        report,
        share,
        {"artefacts": {}},
        difference=b"map of " + name.encode(),
    )
    return sha256


def _date_captures(stores: Stores, part_id: str, at: str) -> None:
    tamper(stores, "UPDATE captures SET created_at = ? WHERE part_id = ?", f"{at}T00:00:00.000000+00:00", part_id)


def age_photos(stores: Stores) -> None:
    """As if nobody had used one for a while."""
    for sha256 in stores.images.ids():
        os.utime(stores.images.path(sha256), (0, 0))


def pruned(stores: Stores, goldens: GoldenPhotos = NO_GOLDENS, **wanted: Any) -> Pruned:
    how = {name: wanted.pop(name) for name in ("dry_run", "waiting", "progress") if name in wanted}
    by = wanted.pop("by", "boss")
    return prune(
        stores,
        goldens,
        Filter(CUTOFF, **wanted),
        by,
        drawn=stores.settings.home.parent / "cache" / "reports",
        **how,
    )


def held(stores: Stores) -> set[str]:
    return {*stores.images.ids()}


def intact(stores: Stores) -> None:
    assert stores.audit.verify_store(photos=True, artefacts=True).problems == []
    found = examine(stores.settings, BankContents([], []))
    assert [f for f in found.findings if f.kind not in ("orphaned", "exposed")] == []


def test_old_inspections_go_with_their_files_and_the_audit_says_so(stores: Stores, tmp_path: Path) -> None:
    young = file_inspection(stores, "young", at=YOUNG)
    for i in range(3):
        file_inspection(stores, f"old{i}")
    crop = {stores.images.put(b"crop of young")}
    drawn = tmp_path / "cache" / "reports" / "old1"
    drawn.mkdir(parents=True)
    (drawn / "overlay.png").write_bytes(b"x" * 10)
    age_photos(stores)
    before = stores.audit.head()[0]
    foreseen = pruned(stores, dry_run=True)
    assert len(held(stores)) == 8
    assert stores.audit.head()[0] == before
    found = pruned(stores)
    assert (found.inspections, found.captures, found.photos, found.files, found.in_use) == (3, 3, 6, 4, 0)
    assert found.photo_bytes == sum(len(photo_of(f"old{i}")) + len(f"crop of old{i}") for i in range(3))
    assert found.file_bytes == 3 * len("page of old0") + 10
    assert found.record_bytes > 3 * len("map of old0")
    found.returned_bytes = found.free_bytes = 0
    assert foreseen == found
    assert held(stores) == {young} | crop
    assert not drawn.exists()
    assert [p.name for p in (stores.settings.home / "inspections").iterdir()] == ["young"]
    assert [c.part_id for c in stores.captures.list()] == ["part-young"]
    assert stores.inspections.difference("old0") is None
    assert stores.inspections.get("young").report["query_sha256"] == young

    [change] = stores.audit.changes(PRUNE)
    assert (change.by, change.facts["change"]) == ("boss", "removed 3: filed before 2026-06-01T00:00:00 UTC")
    kinds = [r.kind for r in stores.audit.of("old1")]
    assert kinds == ["filed", REMOVED]
    listed = {r.inspection_id: r for r in stores.inspections.list()}
    assert len(listed) == 4
    assert str(listed["old1"].removed_at)[:10] == f"{datetime.now(UTC):%Y-%m-%d}"
    assert listed["young"].removed_at is None
    assert {s.inspection_id for s in stores.inspections.search().items if s.removed_at} == {"old0", "old1", "old2"}
    with pytest.raises(
        RemovedError, match=r"old1 .part part-old1, PASS, filed on 2026-01-01. was removed on 20.* by prune"
    ):
        stores.inspections.get("old1")
    with pytest.raises(RemovedError):
        stores.dispositions.add("old1", "accept", "ann", "why")
    assert not stores.inspections.file("old1", "part-old1", "board", "PASS", OLD, {}), "its id stays taken"
    intact(stores)
    again = pruned(stores)
    assert (again.inspections, again.photos, again.files) == (0, 0, 0)
    assert stores.audit.changes(PRUNE) == [change]


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        ({"verdict": "PASS"}, {"a", "c"}),
        ({"product": "bolt"}, {"c", "d"}),
        ({"verdict": "FAIL", "product": "bolt"}, {"d"}),
        ({}, {"a", "b", "c", "d"}),
    ],
)
def test_filter_by_verdict_and_product(stores: Stores, wanted: dict[str, str], gone: set[str]) -> None:
    for name, verdict, product in (
        ("a", "PASS", "board"),
        ("b", "FAIL", "board"),
        ("c", "PASS", "bolt"),
        ("d", "FAIL", "bolt"),
    ):
        file_inspection(stores, name, verdict, product=product)
    age_photos(stores)
    assert pruned(stores, **wanted).inspections == len(gone)
    assert {r.inspection_id for r in stores.inspections.list() if r.removed_at} == gone
    intact(stores)


def test_what_waits_for_a_person_stays_unless_it_is_asked_for(stores: Stores) -> None:
    file_inspection(stores, "open", "REVIEW")
    file_inspection(stores, "decided", "REVIEW")
    file_inspection(stores, "blind", share=1.0)
    file_inspection(stores, "proposed", "FAIL")
    stores.dispositions.add("decided", "accept", "ann", "scratched", "bad")
    stores.dispositions.add("proposed", "override", "ann", "it is good", as_reference=True)
    age_photos(stores)
    found = pruned(stores)
    assert found.inspections == 1
    assert found.kept == {"open review": 1, "open blind check": 1, "its photo is proposed as a reference": 1}
    assert [r.inspection_id for r in stores.inspections.open_reviews()] == ["open"]
    intact(stores)
    assert pruned(stores, open_too=True).inspections == 2
    assert stores.inspections.open_reviews() == []
    assert stores.inspections.search(open_review=True).total == 0
    assert stores.inspections.get("proposed").report
    intact(stores)


def test_nobody_judges_what_was_removed(stores: Stores) -> None:
    for name in ("open", "answered", "proposed"):
        file_inspection(stores, name, share=1.0)
    file_inspection(stores, "young", at=YOUNG, share=1.0)
    stores.blind_checks.answer("answered", "good", "eve")
    assert pruned(stores, open_too=True).inspections == 3
    assert [w.inspection_id for w in stores.blind_checks.waiting()] == ["young"]
    assert stores.blind_checks.count("board") == (4, 4, 1)
    with pytest.raises(RemovedError):
        stores.blind_checks.answer("open", "good", "eve", as_reference=True)
    answered = stores.blind_checks.get("open")
    assert answered is not None
    assert answered.judged is None
    # as an earlier version took it
    tamper(stores, "UPDATE blind_checks SET judged = 'good', judged_by = 'eve', as_reference = true, judged_at = ? "
                   "WHERE inspection_id = 'proposed'", YOUNG)  # fmt: skip
    assert stores.adoptions.waiting() == []
    with pytest.raises(RemovedError):
        stores.adoptions.decide("proposed", True, "boss", admin=True)


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_removed_inspection_waited_with_is_forgotten_and_its_photo_goes(stores: Stores, killed: bool) -> None:
    """Also by the run after one that was killed between the records and that."""
    photo, other = file_inspection(stores, "open", "REVIEW"), file_inspection(stores, "young", "REVIEW", at=YOUNG)
    age_photos(stores)
    with open_checkpoints(stores.settings.home, None) as checkpoints:
        for inspection_id, sha256 in (("open", photo), ("young", other)):
            config: Any = {"configurable": {"thread_id": inspection_id, "checkpoint_ns": ""}}
            checkpoint = empty_checkpoint() | {"channel_values": {"photo": sha256}, "channel_versions": {"photo": 1}}
            checkpoints.saver.put(config, checkpoint, {}, {"photo": 1})  # type: ignore[arg-type]

        def kill(what: str, done: int, total: int, note: str = "") -> None:
            raise Killed

        if killed:
            with pytest.raises(Killed):
                pruned(stores, open_too=True, waiting=checkpoints, progress=kill)
            assert checkpoints.threads() == ["open", "young"]
        assert pruned(stores, open_too=True, waiting=checkpoints).inspections == (0 if killed else 1)
        assert checkpoints.threads() == ["young"]
    assert {photo, other} & held(stores) == {other}
    intact(stores)


def test_photos_that_others_need_stay(stores: Stores) -> None:
    golden, damaged = file_inspection(stores, "golden"), file_inspection(stores, "damaged-golden")
    shared = file_inspection(stores, "shared", photo=b"one photo")
    assert file_inspection(stores, "shares it", at=YOUNG, photo=b"one photo") == shared
    waits, named = file_inspection(stores, "waits"), file_inspection(stores, "named", "FAIL")
    uninspected = stores.images.put(b"never inspected")
    stores.captures.add("part-new", "board", uninspected)
    stores.captures.add("part-again", "board", file_inspection(stores, "again"), 0.1)  # captured after its inspection
    stores.jobs.add("next", {"part_id": "part-waits"}, None, 10)
    picture = stores.images.put(b"picture of a scratch")
    sight = Sight(named, golden, False, (1.0,) * 9, (0, 0, 1, 1), 1.0, 1.0, 1)
    stores.defect_names.name("named", "f1", "deep scratch", "ann", picture=picture, sight=sight, weights="w",
                             vector=np.ones(3, np.float32))  # fmt: skip
    age_photos(stores)
    found = pruned(stores, GoldenPhotos({golden}, {make_golden_id("board", damaged)}))
    assert found.kept == {"a finding has a name": 1}
    again = stores.captures.latest("part-again").sha256
    assert {golden, damaged, shared, waits, named, uninspected, picture, again} <= held(stores)
    assert {c.part_id for c in stores.captures.list()} == {
        "part-shares it",
        "part-named",
        "part-new",
        "part-waits",
        "part-again",
    }
    assert stores.captures.latest("part-waits").sha256 == waits
    intact(stores)
    stores.defect_names.forget("named", "f1", "ann")
    assert pruned(stores, GoldenPhotos({golden}, set())).inspections == 1
    assert not {named, picture} & held(stores)
    intact(stores)


def test_photo_of_a_device_goes_with_its_report_though_it_arrived_later(stores: Stores) -> None:
    stores.captures.add("part-device", "board", stores.images.put(photo_of("device")))  # dated when it arrived
    photo = file_inspection(stores, "device", captured=False)
    age_photos(stores)
    assert pruned(stores, dry_run=True).captures == 1
    assert pruned(stores).captures == 1
    assert (stores.captures.list(), photo in held(stores)) == ([], False)
    intact(stores)


def test_photo_of_a_golden_that_the_audit_trail_knows_stays_whatever_bank_was_read(stores: Stores) -> None:
    golden, other = file_inspection(stores, "golden"), file_inspection(stores, "other")
    with GoldenBank.open(stores.settings, "test", GLOBAL_DIM, PATCH_DIM, chain=stores.db) as bank:
        bank.add(Golden(make_golden_id("board", golden), "board", golden), *make_vectors(1))
    age_photos(stores)
    assert pruned(stores, dry_run=True).photos == 3  # two pictures that were shown, and one photo
    pruned(stores)
    assert {golden, other} & held(stores) == {golden}


def test_photo_in_use_stays_until_the_next_time(stores: Stores) -> None:
    old, used = file_inspection(stores, "old"), file_inspection(stores, "used")
    sent = file_inspection(stores, "sent", captured=False)
    age_photos(stores)
    assert stores.images.mark_used(used)  # as an inspection that is running does
    assert stores.images.put(photo_of("sent")) == sent  # as somebody who sends it again does
    found = pruned(stores)
    assert (found.inspections, found.in_use, found.captures) == (3, 1, 1)
    assert {old, used, sent} & held(stores) == {used, sent}
    assert stores.captures.latest("part-used").sha256 == used
    age_photos(stores)
    assert pruned(stores).photos == 1
    # its capture is there for whoever inspects the part again, and so is its photo
    assert {used, sent} & held(stores) == {used}
    intact(stores)


def test_nobody_waits_to_write_while_the_store_of_the_photos_is_asked(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = file_inspection(stores, "used")
    file_inspection(stores, "old")
    age_photos(stores)
    stores.images.mark_used(used)
    written, real = list[str](), type(stores.images).used_at

    def slow(images: Any, sha256: str) -> float | None:
        job = f"meanwhile-{len(written)}"
        writer = threading.Thread(target=lambda: (stores.jobs.add(job, {}, None, 100), written.append(job)))
        writer.start()
        writer.join(10)
        assert not writer.is_alive()
        return real(images, sha256)

    monkeypatch.setattr(type(stores.images), "used_at", slow)
    found = pruned(stores)
    assert (found.inspections, found.captures, len(written)) == (2, 1, 3)
    assert [c.sha256 for c in stores.captures.list()] == [used]


def test_capture_whose_photo_comes_into_use_once_it_was_asked_for_stays(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, old = file_inspection(stores, "begun"), file_inspection(stores, "old")
    age_photos(stores)
    real = type(stores.images).used_at

    def used_at(images: Any, sha256: str) -> float | None:
        found = real(images, sha256)
        if sha256 == begun:
            images.mark_used(sha256)  # as an inspection does that found the capture before
        return found

    before = [c for c in stores.captures.list() if c.sha256 == begun]
    monkeypatch.setattr(type(stores.images), "used_at", used_at)
    found = pruned(stores)
    assert (found.inspections, found.captures, found.in_use) == (2, 1, 0)
    assert stores.captures.list() == before
    assert {begun, old} & held(stores) == {begun}
    intact(stores)


@pytest.mark.parametrize("later_s", [0, 86_400])
def test_capture_whose_photo_came_into_use_is_put_back_though_the_run_ended_before(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, later_s: int
) -> None:
    begun, old = file_inspection(stores, "begun"), file_inspection(stores, "old")
    age_photos(stores)
    before = [c for c in stores.captures.list() if c.sha256 == begun]
    real, asked = type(stores.images).used_at, list[str]()

    def used_at(images: Any, sha256: str) -> float | None:
        if sha256 in asked:
            raise UnavailableError("the store does not answer any more")
        asked.append(sha256)
        found = real(images, sha256)
        if sha256 == begun:
            images.mark_used(sha256)
        return found

    with monkeypatch.context() as first:
        first.setattr(type(stores.images), "used_at", used_at)
        with pytest.raises(UnavailableError):
            pruned(stores)
    assert (stores.captures.list(), stores.audit.changes(PRUNE)) == ([], [])
    with monkeypatch.context() as later:
        now = time.time() + later_s
        later.setattr(time, "time", lambda: now)
        assert pruned(stores, by="another").inspections == 0
    assert stores.captures.list() == before
    assert {begun, old} & held(stores) == {begun}
    [change] = stores.audit.changes(PRUNE)
    assert change.facts["change"] == "removed 2: filed before 2026-06-01T00:00:00 UTC"
    assert change.by == "boss", "who asked for the removal"
    with stores.db.connection() as conn:
        said = json.loads(str(conn.scalar(select(t.audit.c.content).where(t.audit.c.seq == change.seq))))["before"]
    assert (said["inspections"], said["captures"]) == (2, 1)
    pruned(stores)
    assert stores.audit.changes(PRUNE) == [change]
    intact(stores)


def test_one_process_prunes_at_a_time(stores: Stores) -> None:
    file_inspection(stores, "old")
    with stores.db.lock("prune", BusyError("held")), pytest.raises(UnavailableError, match="another process prunes"):
        pruned(stores)
    assert pruned(stores).inspections == 1


def test_later_runs_do_not_ask_for_photos_that_are_gone(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    file_inspection(stores, "old")
    age_photos(stores)
    assert pruned(stores).photos == 2
    asked = list[str]()
    real = type(stores.images).remove_unused
    monkeypatch.setattr(
        type(stores.images),
        "remove_unused",
        lambda images, sha256, since: (asked.append(sha256), real(images, sha256, since))[1],
    )
    later = file_inspection(stores, "later")
    age_photos(stores)
    assert pruned(stores).photos == 2
    assert (len(asked), later in asked) == (2, True)


def test_photo_sent_again_while_it_is_removed_is_there(stores: Stores) -> None:
    """Many times, as the order of two threads decides."""
    for i in range(200):
        data = f"photo {i}".encode()
        sha256 = stores.images.put(data)
        os.utime(stores.images.path(sha256), (0, 0))
        together = threading.Barrier(2)

        def send(data: bytes = data, together: threading.Barrier = together) -> None:
            together.wait()
            stores.images.put(data)

        sender = threading.Thread(target=send)
        sender.start()
        together.wait()
        stores.images.remove_unused(sha256, time.time() - 60)
        sender.join()
        assert stores.images.get(sha256) == data
    assert not list(stores.images.root.rglob(".tmp-*"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", ["removing records", "removing photos"])
def test_killed_run_has_told_the_truth_and_is_repeated(stores: Stores, after: str) -> None:
    for i in range(5):
        file_inspection(stores, f"old{i}")
    age_photos(stores)

    def kill(what: str, done: int, total: int, note: str = "") -> None:
        if what == after:
            raise Killed

    with pytest.raises(Killed):
        pruned(stores, progress=kill)
    assert len(held(stores)) == (10 if after == "removing records" else 9)
    intact(stores)
    assert all(r.removed_at for r in stores.inspections.list())
    found = pruned(stores)
    assert (found.inspections, found.files) == (0, 5)
    assert held(stores) == set()
    assert not list((stores.settings.home / "inspections").iterdir())
    intact(stores)


def test_inspections_are_filed_meanwhile(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process of its own: with its own locks and connections."""
    monkeypatch.setattr("refdiff.memory.upkeep.prune.AT_ONCE", 7)
    for i in range(60):
        file_inspection(stores, f"old{i}")
    age_photos(stores)
    stop, filed = threading.Event(), list[str]()

    def line() -> None:
        with Stores.open(stores.settings) as other:
            while not stop.is_set() or not filed:
                i = len(filed)
                # every other part has a photo that is going to be removed
                file_inspection(other, f"new{i}", at=YOUNG, photo=photo_of(f"old{i}") if i % 2 else None)
                filed.append(f"new{i}")

    writer = threading.Thread(target=line)
    writer.start()
    try:
        assert pruned(stores).inspections == 60
    finally:
        stop.set()
        writer.join()
    for name in filed:
        report = stores.inspections.get(name).report
        assert {report["query_sha256"], report["tool_trace"][0]["image"]} <= held(stores)
    assert len(filed) > 2
    intact(stores)


def test_exports_verify_without_the_removed_reports(stores: Stores, tmp_path: Path) -> None:
    earlier, later, one = (tmp_path / f"{name}.jsonl" for name in ("earlier", "later", "one"))
    for i in range(3):
        file_inspection(stores, f"old{i}")
    write_export(earlier, stores.audit.export())
    age_photos(stores)
    pruned(stores)
    write_export(later, stores.audit.export())
    write_export(one, stores.audit.export("old1"))
    for path in (earlier, later, one):
        assert verify_export(stores.audit, path, against_store=True).problems == [], path.name
    lines = [json.loads(line) for line in later.read_text().splitlines()]
    assert [line["content"] for line in lines if line.get("kind") == "filed"] == [None] * 3

    def hidden(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for line in lines:
            if line.get("kind") == "filed":
                line |= {"content": None, "removed": True}
        return lines

    told = earlier.read_text().splitlines()
    changed = [json.dumps(line, sort_keys=True, separators=(",", ":")) for line in hidden([*map(json.loads, told)])]
    earlier.write_text("\n".join(changed) + "\n")
    problems = [str(p) for p in verify_export(stores.audit, earlier).problems]
    assert any("no record says that it was removed" in p for p in problems), problems


def _empty(stores: Stores) -> None:
    tamper(stores, "UPDATE inspections SET report = '{}' WHERE inspection_id = 'young'")


def _put_back(stores: Stores) -> None:
    tamper(stores, "UPDATE inspections SET report = ? WHERE inspection_id = 'old'", '{"verdict": "FAIL"}')


def _relist(stores: Stores) -> None:
    tamper(stores, "UPDATE inspections SET verdict = 'FAIL' WHERE inspection_id = 'old'")


def _unsay(stores: Stores) -> None:
    tamper(stores, "DELETE FROM audit WHERE kind = 'removed'")


@pytest.mark.parametrize("how", [_empty, _put_back, _relist, _unsay], ids=lambda f: f.__name__)
def test_removing_by_other_means_is_tampering(stores: Stores, how: Callable[[Stores], None]) -> None:
    file_inspection(stores, "old")
    file_inspection(stores, "young", at=YOUNG)
    age_photos(stores)
    pruned(stores)
    intact(stores)
    how(stores)
    assert stores.audit.verify_store().problems


def test_report_that_was_tampered_with_is_kept_as_evidence(stores: Stores) -> None:
    for name in ("forged", "old"):
        file_inspection(stores, name)
    tamper(stores, "UPDATE inspections SET report = ? WHERE inspection_id = 'forged'", '{"verdict": "PASS"}')
    age_photos(stores)
    words = "not as filed; run: refdiff audit verify --store"
    for dry_run in (True, False):
        found = pruned(stores, dry_run=dry_run)
        assert (found.inspections, found.kept) == (1, {words: 1})
    assert stores.inspections.list(part_id="part-forged")[0].report == {"verdict": "PASS"}


@pytest.mark.sqlite
def test_sqlite_file_gets_shorter(stores: Stores) -> None:
    for i in range(150):
        file_inspection(stores, f"old{i}")
        with stores.db.transaction() as conn:
            conn.exec_driver_sql(
                "UPDATE differences SET picture = zeroblob(20000) WHERE inspection_id = ?", (f"old{i}",)
            )
    age_photos(stores)
    tamper(stores, "UPDATE audit SET facts = facts")  # the sizes alone count here
    found = pruned(stores)
    assert found.record_bytes > 150 * 20_000
    assert found.returned_bytes > 2_500_000
    assert found.free_bytes == 0


@pytest.mark.sqlite
def test_goldens_are_read_beside_a_process_that_holds_the_bank(settings: MemorySettings) -> None:
    path = settings.home / "goldens.sqlite"
    assert GoldenPhotos.of_file(path) == NO_GOLDENS
    golden = make_golden(1)
    with GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM) as bank:
        bank.add(golden, *make_vectors(1))
        assert GoldenPhotos.of_file(path) == GoldenPhotos({golden.sha256}, {golden.golden_id})
    (settings.home / "qdrant").mkdir()
    path.unlink()
    with pytest.raises(StorageError, match="refdiff goldens list"):
        GoldenPhotos.of_file(path)


def test_filter_refuses_what_is_none() -> None:
    with pytest.raises(InputError):
        Filter("yesterday")
    with pytest.raises(InputError):
        Filter(CUTOFF, product="../x")


@pytest.mark.parametrize(("record", "quick"), [(1, False), (5, True)])
def test_quick_examination_follows_the_newest_records_alone(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, record: int, quick: bool
) -> None:
    monkeypatch.setattr("refdiff.memory.upkeep.doctor.NEWEST_RECORDS", 3)
    for i in range(5):
        file_inspection(stores, f"old{i}")

    def damaged(deep: bool) -> list[str]:
        found = examine(stores.settings, BankContents([], []), deep=deep)
        assert (found.audit_records, found.inspections, found.schema) == (5, 5, NEWEST)
        return [f.what for f in found.findings if f.kind == "damaged"]

    assert damaged(deep=False) == damaged(deep=True) == []
    tamper(stores, "UPDATE audit SET facts = '{}' WHERE seq = ?", record)
    assert bool(damaged(deep=False)) == quick
    assert damaged(deep=True) == ["the audit trail"]
