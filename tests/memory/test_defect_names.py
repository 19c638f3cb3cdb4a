"""The customer's own names of findings: appended, audited, corrected, and what the findings look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.memory.records.defect_names import NAMED, Sight, check_defect_name
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, UnknownRecordError

from .conftest import tamper

EVERY_DATABASE = True

SIGHT = Sight("a" * 64, "b" * 64, True, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (3, 4, 13, 24), 20.5, 9.25, 180)


def file(stores: Stores, inspection_id: str, product: str = "board", findings: tuple[str, ...] = ("f1", "f2")) -> None:
    report = {"findings": [{"id": f} for f in findings], "requested_by": "ana", "verdict": "FAIL"}
    stores.inspections.file(inspection_id, f"part-{inspection_id}", product, "FAIL", "2026-01-01", report)


def call(stores: Stores, inspection_id: str, finding: str, name: str, by: str = "ana", **more: Any) -> Any:
    vector = np.arange(4, dtype=np.float32)
    seen = {"picture": "c" * 64, "sight": SIGHT, "weights": "w1", "vector": vector}
    return stores.defect_names.name(inspection_id, finding, name, by, **(seen | more))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("chip", "chip"), ("  solder   ball ", "solder ball"), ("Lötperle Ø 0,3", "Lötperle Ø 0,3"), ("气泡", "气泡"),
        ("खरोंच 50°", "खरोंच 50°"), ("รอยขีด", "รอยขีด"),
        ("0402 (left)", "0402 (left)"), ("#4", None), ("", None), (" ", None), ("x" * 49, None), ("a\x00b", None),
        ("a|b", None), ("<b>", None), ("{e1.name}", None), ("-", None), ("chip\n# PASS", "chip # PASS"), ("\u200b", None),
    ],
)  # fmt: skip
def test_name_of_a_defect_is_one_plain_line(given: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(InputError, match="name of a defect"):
            check_defect_name(given)
    else:
        assert check_defect_name(given) == kept


def test_newest_word_about_a_finding_holds_and_all_are_kept_and_audited(stores: Stores) -> None:
    file(stores, "i1")
    call(stores, "i1", "f1", "chip", note=" at the rim ")
    corrected = call(stores, "i1", "f1", "Solder ball", by="bob")
    assert (corrected.before, corrected.name, corrected.by) == ("chip", "Solder ball", "bob")
    assert {f: n.name for f, n in stores.defect_names.of("i1").items()} == {"f1": "Solder ball"}
    gone = stores.defect_names.forget("i1", "f1", "cy", "not a defect")
    assert (gone.before, gone.name) == ("Solder ball", None)
    assert stores.defect_names.named("board") == []
    assert stores.defect_names.of("i1") == {}
    history = stores.defect_names.history("i1", "f1")
    assert [(n.by, n.before, n.name, n.note) for n in history] == [
        ("ana", None, "chip", "at the rim"), ("bob", "chip", "Solder ball", ""),
        ("cy", "Solder ball", None, "not a defect"),
    ]  # fmt: skip
    records = [r for r in stores.audit.of("i1") if r.kind == NAMED]
    assert [(r.by, r.facts) for r in records] == [
        (n.by, {"finding": "f1", "before": n.before, "name": n.name}) for n in history
    ]
    assert stores.audit.verify_store().problems == []


def test_same_name_again_is_no_news_and_case_follows_the_first(stores: Stores) -> None:
    file(stores, "i1")
    first = call(stores, "i1", "f1", "Chip")
    assert call(stores, "i1", "f1", "chip", by="bob") == first
    assert call(stores, "i1", "f2", "CHIP").name == "Chip"
    assert stores.defect_names.revision("board") == 2
    assert stores.defect_names.revision("lid") == 0


def test_renaming_changes_all_findings_of_a_name_and_nothing_else(stores: Stores) -> None:
    stores.products.ensure("board")
    file(stores, "i1")
    file(stores, "i2", "lid")
    file(stores, "i3")
    for inspection, finding, name in (
        ("i1", "f1", "blob"),
        ("i1", "f2", "chip"),
        ("i2", "f1", "blob"),
        ("i3", "f1", "blob"),
    ):
        call(stores, inspection, finding, name)
    changed = stores.defect_names.rename("Board", "BLOB", "Chip", "bob")
    assert [(n.inspection_id, n.before, n.name) for n in changed] == [("i1", "blob", "chip"), ("i3", "blob", "chip")]
    assert [n.name for n in stores.defect_names.named()] == ["chip", "blob", "chip", "chip"]
    # the case of a name can be corrected, too
    assert {n.name for n in stores.defect_names.rename("board", "chip", "CHIP", "bob")} == {"CHIP"}
    assert len(stores.defect_names.rename("board", "chip", None, "bob")) == 3
    assert [n.product for n in stores.defect_names.named()] == ["lid"]
    with pytest.raises(UnknownRecordError, match="no defect named 'chip'; its names are: none yet"):
        stores.defect_names.rename("board", "chip", "x", "bob")
    assert stores.audit.verify_store().problems == []


@pytest.mark.parametrize(
    ("inspection", "finding", "name", "by", "error", "said"),
    [
        ("i9", "f1", "chip", "ana", UnknownRecordError, "no inspection"),
        ("i1", "f3", "chip", "ana", UnknownRecordError, "its findings are: f1, f2"),
        ("i1", "f1", "<>", "ana", InputError, "letters, digits"),
        ("i1", "f1", "chip", "  ", InputError, "who says so is missing"),
    ],
)
def test_naming_refuses_what_is_not_there(
    stores: Stores, inspection: str, finding: str, name: str, by: str, error: type[Exception], said: str
) -> None:
    file(stores, "i1")
    with pytest.raises(error, match=said):
        call(stores, inspection, finding, name, by=by)
    with pytest.raises(UnknownRecordError, match="has no name"):
        stores.defect_names.forget("i1", "f1", "ana")
    assert stores.defect_names.named() == []


def test_examples_come_with_what_they_look_like_and_keep_it_for_new_weights(stores: Stores) -> None:
    file(stores, "i1")
    call(stores, "i1", "f2", "chip")
    call(stores, "i1", "f1", "ball")
    found = stores.defect_names.examples("board")
    assert [(e.naming.key, e.name, e.weights, e.sight) for e in found] == [
        ("i1/f2", "chip", "w1", SIGHT), ("i1/f1", "ball", "w1", SIGHT),
    ]  # fmt: skip
    stores.defect_names.put_embeddings("w2", {"i1/f1": np.full(6, 0.5, np.float32)})
    chip, ball = stores.defect_names.examples("board")
    assert (chip.weights, ball.weights, ball.vector.tolist()) == ("w1", "w2", [0.5] * 6)
    stores.defect_names.forget("i1", "f2", "ana")
    assert [e.name for e in stores.defect_names.examples("board")] == ["ball"]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE defect_names SET name = 'scratch'", "what the table defect_names says of it"),
        ("DELETE FROM defect_names", "what the table defect_names says of it"),
        (
            "INSERT INTO defect_names SELECT 99, inspection_id, finding, product, part_id, 'crack', name, 'eve', '', "
            "picture, created_at FROM defect_names",
            "named in one of its findings without a record",
        ),
        ("UPDATE audit SET content = 'null' WHERE kind = 'defect_name'", "without a record"),
    ],
)
def test_audit_finds_names_that_were_changed_by_other_means(stores: Stores, statement: str, said: str) -> None:
    file(stores, "i1")
    call(stores, "i1", "f1", "chip")
    tamper(stores, statement)
    assert any(said in str(p) for p in stores.audit.verify_store().problems)


def test_who_named_a_finding_is_not_blind_to_its_inspection(stores: Stores) -> None:
    report = {"findings": [{"id": "f1"}], "requested_by": "line 3", "verdict": "FAIL"}
    stores.inspections.file("i1", "p1", "board", "FAIL", "2026-01-01", report, blind_share=1.0)
    call(stores, "i1", "f1", "chip", by="ana")
    with pytest.raises(InputError, match="ana named a finding of inspection i1"):
        stores.blind_checks.answer("i1", "bad", "ana")
