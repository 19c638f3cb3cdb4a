"""Records of people's decisions: blind checks, judgements, consents, confirmed defects."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from refdiff.memory.audit_chain import using_key
from refdiff.memory.records.adoptions import Confirmed
from refdiff.memory.records.blind_checks import Waiting, is_drawn
from refdiff.memory.stores import Stores
from refdiff.model.errors import DuplicateError, InputError, UnavailableError, UnknownRecordError

from .conftest import tamper

EVERY_DATABASE = True

IDS = [f"insp-20260131-141500-{i:08x}" for i in range(20_000)]


def file(stores: Stores, inspection_id: str, verdict: Any = "FAIL", types: tuple[str, ...] = (), **more: Any) -> None:
    part = more.pop("part", inspection_id)
    findings = [{"type": t, "within_limits": t.isupper(), "location": {"region": "centre"}} for t in types]
    report = {"query_sha256": "a" * 64, "findings": findings, "requested_by": "ana", "verdict": verdict}
    product = more.pop("product", "board")
    stores.inspections.file(inspection_id, part, product, verdict, "2026-01-01", report, **more)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_blind_sample_has_the_requested_share(share: float) -> None:
    drawn = sum(is_drawn(i, share) for i in IDS)
    assert abs(drawn - share * len(IDS)) < 4 * (share * (1 - share) * len(IDS)) ** 0.5


def test_blind_sample_depends_on_the_inspection_id_only() -> None:
    few, many = ({i for i in IDS if is_drawn(i, share)} for share in (0.02, 0.1))
    assert few < many
    assert not any(is_drawn(i, 0) for i in IDS)
    assert all(is_drawn(i, 1) for i in IDS)


def test_waiting_blind_checks_are_the_drawn_ones_without_verdict(stores: Stores) -> None:
    for i in IDS[:300]:
        file(stores, i, blind_share=0.1)
    drawn = [i for i in IDS[:300] if is_drawn(i, 0.1)]
    assert [w.inspection_id for w in stores.blind_checks.waiting()] == drawn
    assert {f.name for f in dataclasses.fields(Waiting)} == {
        "inspection_id",
        "part_id",
        "product",
        "created_at",
        "sha256",
    }
    assert stores.blind_checks.count("board") == (300, len(drawn), len(drawn))
    assert stores.blind_checks.waiting("lid") == []


def test_second_blind_answer_is_rejected(stores: Stores) -> None:
    file(stores, "i1", blind_share=1.0)
    made = stores.blind_checks.answer("i1", "good", " bob ", "looks fine")
    assert (made.judged_by, made.judged) == ("bob", "good")
    assert stores.blind_checks.get("i1") == made
    assert stores.blind_checks.waiting() == []
    with pytest.raises(DuplicateError, match=r"bob at .*good"):
        stores.blind_checks.answer("i1", "bad", "eve")
    assert [r.kind for r in stores.audit.of("i1")] == ["filed", "blind_check"]
    tamper(stores, "UPDATE blind_checks SET judged = 'bad'")
    assert "record 2 (inspection i1)" in str(stores.audit.verify_store().problem)


@pytest.mark.parametrize(
    ("inspection", "judged", "by", "as_reference", "error"),
    [
        ("i1", "fine", "bob", False, InputError),
        ("i1", "good", " ", False, InputError),
        ("i1", "bad", "bob", True, InputError),
        ("i1", "good", "ana", False, InputError),  # who asked for the inspection
        ("i1", "good", "ＡＮＡ ", False, InputError),
        ("i1", "good", "eve", False, InputError),  # who decided about the verdict
        ("i1", "good", "Eve", False, InputError),
        ("i2", "good", "bob", False, UnknownRecordError),  # filed, not drawn
        ("i3", "good", "bob", False, UnknownRecordError),
    ],
)
def test_invalid_blind_answer_is_refused(
    stores: Stores, inspection: str, judged: Any, by: str, as_reference: bool, error: type[Exception]
) -> None:
    file(stores, "i1", blind_share=1.0)
    file(stores, "i2", blind_share=0.0)
    stores.dispositions.add("i1", "accept", "eve", "seen")
    with pytest.raises(error):
        stores.blind_checks.answer(inspection, judged, by, as_reference=as_reference)
    assert stores.blind_checks.answered() == []


@pytest.mark.parametrize(
    ("verdict", "decision", "said", "judged"),
    [
        ("FAIL", "accept", None, "bad"),
        ("FAIL", "override", None, "good"),
        ("PASS", "accept", None, "good"),
        ("PASS", "override", None, "bad"),
        ("PASS", "override", "bad", "bad"),
        ("REVIEW", "accept", None, None),
        ("REVIEW", "accept", "bad", "bad"),
        ("REVIEW", "override", "good", "good"),
        ("FAIL", "accept", "good", "refused"),
        ("PASS", "accept", "bad", "refused"),
    ],
)
def test_disposition_implies_whether_the_part_is_good(
    stores: Stores, verdict: str, decision: Any, said: Any, judged: str | None
) -> None:
    file(stores, "i1", verdict)
    if judged == "refused":
        with pytest.raises(InputError, match=r"correct one of them"):
            stores.dispositions.add("i1", decision, "bob", "because", said)
        return
    made = stores.dispositions.add("i1", decision, "bob", "because", said)
    assert made.judged == judged
    assert stores.dispositions.get("i1") == made
    assert stores.audit.verify_store().problem is None


def test_only_parts_judged_good_may_become_references(stores: Stores) -> None:
    for name, verdict in (("f", "FAIL"), ("r", "REVIEW"), ("g", "FAIL")):
        file(stores, name, verdict)
    with pytest.raises(InputError, match="only a part that you judge good"):
        stores.dispositions.add("f", "accept", "bob", "bad", as_reference=True)
    with pytest.raises(InputError, match="say that it is good"):
        stores.dispositions.add("r", "accept", "bob", "?", as_reference=True)
    stores.dispositions.add("g", "override", "bob", "dust", as_reference=True)
    assert stores.adoptions.consented() == []
    assert [w.inspection_id for w in stores.adoptions.waiting()] == ["g"]
    stores.adoptions.decide("g", True, "ann", admin=False)
    assert stores.adoptions.consented() == ["g"]
    assert stores.adoptions.waiting() == []
    first = stores.adoptions.add("g", "g-0123456789ab", "enrolled")
    assert stores.adoptions.add("g", None, "refused") == first
    assert stores.adoptions.consented() == []


@pytest.mark.parametrize(
    ("by", "admin", "approved", "allowed"),
    [
        ("bob", False, True, False),  # it is bob's own proposal
        (" BOB ", False, True, False),
        ("bob", False, False, True),  # who may take it back
        ("bob", True, True, True),
        ("eve", False, True, True),
        ("eve", False, False, True),
        ("", True, True, False),
    ],
)
def test_reference_needs_an_admin_or_a_second_person(
    stores: Stores, by: str, admin: bool, approved: bool, allowed: bool
) -> None:
    file(stores, "g", "FAIL")
    with pytest.raises(UnknownRecordError, match="nobody has proposed"):
        stores.adoptions.decide("g", approved, "ann", admin=True)
    stores.dispositions.add("g", "override", "bob", "dust", as_reference=True)
    [waiting] = stores.adoptions.waiting("g")
    assert (waiting.part_id, waiting.by, waiting.reason, waiting.source) == ("g", "bob", "dust", "disposition")
    if not allowed:
        with pytest.raises(InputError):
            stores.adoptions.decide("g", approved, by, admin=admin)
        assert stores.adoptions.waiting("g") == [waiting]
        return
    made = stores.adoptions.decide("g", approved, by, "looked at it", admin=admin)
    assert stores.adoptions.approval("g") == made
    assert stores.adoptions.consented() == (["g"] if approved else [])
    learned = stores.adoptions.get("g")
    assert (learned.outcome if learned else None) == (None if approved else f"refused by {by}: looked at it")
    with pytest.raises(DuplicateError):
        stores.adoptions.decide("g", not approved, "zoe", admin=True)
    assert [r.kind for r in stores.audit.of("g")][:3] == ["filed", "disposition", "approval"]
    assert stores.audit.verify_store().problem is None
    tamper(stores, "UPDATE approvals SET approved = NOT approved")
    assert "approvals" in str(stores.audit.verify_store().problem)


def test_approved_photo_whose_enrolment_hangs_comes_last_and_is_given_up_the_second_time(stores: Stores) -> None:
    for i in ("g", "h"):
        file(stores, i)
        stores.dispositions.add(i, "override", "ann", "dust", "good", as_reference=True)
        stores.adoptions.decide(i, True, "eve", admin=True)
    assert stores.adoptions.consented() == ["g", "h"]
    assert not stores.adoptions.hang("g", "it hung")
    assert stores.adoptions.consented() == ["h", "g"]
    assert stores.adoptions.hang("g", "it hung")
    assert stores.adoptions.consented() == ["h"]
    with pytest.raises(UnavailableError, match="--approve-reference"):
        stores.adoptions.add("g", "g-0123456789ab", "enrolled")
    assert stores.adoptions.get("g") is None
    enrolled = stores.adoptions.add("h", "g-0123456789ab", "enrolled")
    assert [stores.adoptions.hang("h", "it hung") for _ in range(2)] == [False, False]
    assert stores.adoptions.get("h") == enrolled
    assert [p.inspection_id for p in stores.adoptions.abandoned()] == ["g"]
    stores.adoptions.clear("g")
    assert stores.adoptions.abandoned() == []
    with pytest.raises(UnavailableError):  # it moved again, and may have left a golden sample only now
        stores.adoptions.add("g", "g-0123456789ab", "enrolled")
    assert [p.inspection_id for p in stores.adoptions.abandoned()] == ["g"]
    assert stores.audit.verify_store().problem is None


@pytest.mark.parametrize("approved", [True, False])
def test_photo_whose_enrolment_was_given_up_waits_for_people_again(stores: Stores, approved: bool) -> None:
    file(stores, "g", "FAIL")
    stores.dispositions.add("g", "override", "bob", "dust", as_reference=True)
    first = stores.adoptions.decide("g", True, "eve", admin=False)
    for _ in range(3):  # once more by a process that had begun before
        stores.adoptions.hang("g", "it hung")
    [waiting] = stores.adoptions.waiting()
    assert (waiting.inspection_id, waiting.by) == ("g", "bob")
    assert waiting.hung is True
    with pytest.raises(InputError, match="bob proposed"):
        stores.adoptions.decide("g", True, "bob", admin=False)
    made = stores.adoptions.decide("g", approved, "zoe", "mended", admin=False)
    assert (made.approved, made.by, made.note) == (approved, "zoe", "mended")
    assert stores.adoptions.waiting() == []
    assert stores.adoptions.approval("g") == first
    assert stores.adoptions.consented() == (["g"] if approved else [])
    learned = stores.adoptions.get("g")
    assert (learned.outcome if learned else None) == (None if approved else "refused by zoe: mended")
    assert [p.inspection_id for p in stores.adoptions.abandoned()] == ([] if approved else ["g"])
    with pytest.raises(DuplicateError):
        stores.adoptions.decide("g", True, "zoe", admin=True)
    said = [(r.kind, r.by) for r in stores.audit.of("g")][3:]
    assert said[:2] == [("enrolment_given_up", "refdiff"), ("decided_again", "zoe")]
    assert [kind for kind, _ in said[2:]] == ([] if approved else ["learned"])
    if approved:
        assert not stores.adoptions.hang("g", "it hung")
        assert stores.adoptions.add("g", "g-0123456789ab", "enrolled").golden_id == "g-0123456789ab"
    assert stores.audit.verify_store().problem is None


def test_two_people_who_propose_the_same_photo_approve_it(stores: Stores) -> None:
    file(stores, "g", "FAIL", blind_share=1.0)
    stores.dispositions.add("g", "override", "bob", "dust", as_reference=True)
    stores.blind_checks.answer("g", "good", "eve", as_reference=True)
    assert [w.by for w in stores.adoptions.waiting()] == ["bob"]
    assert stores.adoptions.decide("g", True, "eve", admin=False).approved


def test_audit_records_name_the_api_key_of_their_author(stores: Stores) -> None:
    with using_key("k-1a2b3c4d"):
        file(stores, "g", "FAIL")
    stores.dispositions.add("g", "override", "bob", "dust")
    assert [r.facts.get("by_key") for r in stores.audit.of("g")] == ["k-1a2b3c4d", None]
    assert stores.audit.verify_store().problem is None


def test_confirmed_defects_are_counted_once_per_part(stores: Stores) -> None:
    file(stores, "i1", types=("scratch", "scratch", "stain"), part="1")
    file(stores, "i2", types=("scratch",), part="2")
    file(stores, "i3", types=("scratch",), part="2")  # the same part again
    file(stores, "i4", types=("scratch",), part="4")  # overridden: good
    file(stores, "i5", types=("scratch",), part="5")  # nobody said anything
    file(stores, "i6", types=("scratch",), part="6", product="lid")
    file(stores, "i7", types=("DENT", "crack"), part="7", blind_share=1.0)  # DENT: within the limits
    for i in (1, 2, 3, 6):
        stores.dispositions.add(f"i{i}", "accept", "bob", "seen")
    stores.dispositions.add("i4", "override", "bob", "dust")
    stores.blind_checks.answer("i7", "bad", "eve")
    scratches, stain = {Confirmed("scratch", "centre", p) for p in "12"}, Confirmed("stain", "centre", "1")
    crack = Confirmed("crack", "centre", "7")
    assert stores.adoptions.confirmed("board") == {*scratches, stain, crack}
    assert stores.adoptions.confirmed("board", except_part="2") == {Confirmed("scratch", "centre", "1"), stain, crack}
    long_ago = "2020-01-01T00:00:00+00:00"
    tamper(stores, "UPDATE dispositions SET created_at = ? WHERE inspection_id = 'i1'", long_ago)
    assert stores.adoptions.confirmed("board") == {Confirmed("scratch", "centre", "2"), crack}
