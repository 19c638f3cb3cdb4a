"""Names of findings over HTTP, and the reports that take them."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.memory.records.defect_names import NAMED
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render

from .conftest import Running

SIZE = (96, 128)  # of the photos that `server` is enrolled with
STAIN = DefectSpec("stain", size_px=26, contrast=1.0)


def part(server: Running, name: str, instance: int, *defects: DefectSpec) -> dict[str, Any]:
    """The report of a part with those defects, strongest finding first."""
    scene = render("circuit", 1, instance, size=SIZE, noise_seed=instance, defects=defects)
    server.photos[f"{name}.png"] = encode_png(scene.image)
    return dict(server.inspected(f"{name}.png", name)["report"])


def path(report: dict[str, Any]) -> str:
    return f"/v1/inspections/{report['inspection_id']}/findings/1/name"


def test_next_report_takes_the_name_that_people_gave_and_its_correction(server: Running) -> None:
    stained = [part(server, f"stain {i}", 201 + i, STAIN) for i in range(3)]
    first = stained[0]
    assert "names" not in first["timings_ms"]  # no names, no work
    assert "similar" not in {e["kind"] for e in first["evidence"]}
    for report in stained:
        assert [f["named"] for f in report["findings"]] == [None] * len(report["findings"])
        body = {"name": "dust", "note": "wipe it"}
        made = server.client.put(path(report), json=body, headers=server.key("inspector", "ana"))
        assert (made.status_code, made.json()["name"], made.json()["by"]) == (200, "dust", "ana")
    scratched = part(server, "scratch", 204, DefectSpec("scratch", size_px=50, contrast=1.0))
    assert scratched["findings"][0]["named"] is None  # a name by itself is not given
    server.client.put(path(scratched), json={"name": "scratch"})
    known = server.client.get("/v1/defect-names", params={"product": "board"}).json()
    assert [(n["name"], n["findings"], n["given"]) for n in known["names"]] == [
        ("dust", 3, True),
        ("scratch", 1, False),
    ]

    missing = part(server, "missing", 205, DefectSpec("missing_component", size_px=20))
    assert missing["findings"][0]["named"] is None  # nobody has named its kind
    second = part(server, "next", 206, STAIN)
    found = second["findings"][0]
    named, like = found["named"], found["named"]["like"]
    assert (named["name"], like["finding"], like["confirmed_by"]) == ("dust", "f1", "ana")
    assert like["inspection_id"] in {r["inspection_id"] for r in stained}
    record = next(e for e in second["evidence"] if e["id"] == named["evidence"])
    assert (record["kind"], record["numbers"]["name"]) == ("similar", "dust")
    assert record["numbers"]["strangeness"] <= record["numbers"]["limit"]
    assert named["evidence"] in found["evidence"]
    assert found["type"] == "unknown_anomaly"  # the network's own stays beside it
    said = f"like finding 1 of part {like['part_id']}, confirmed by ana"
    for file in ("html", "markdown"):
        assert said in server.client.get(second["artefacts"][file]).text
    question = {"question": "What kind of defect is finding 1?"}
    answer = server.client.post(f"/v1/inspections/{second['inspection_id']}/questions", json=question)
    assert said.removeprefix("like ") in answer.json()["answer"]

    for report in stained:
        server.client.put(path(report), json={"name": "oil spot"}, headers=server.key("inspector", "bob"))
    named = part(server, "third", 206, STAIN)["findings"][0]["named"]
    assert (named["name"], named["like"]["confirmed_by"]) == ("oil spot", "bob")
    view = server.client.get(f"/v1/inspections/{first['inspection_id']}").json()
    assert (view["names"]["f1"]["name"], view["names"]["f1"]["before"]) == ("oil spot", "dust")
    assert view["report"]["findings"] == first["findings"]  # what was filed stays
    gone = server.client.delete(path(first), params={"note": "unsure"})
    assert (gone.json()["before"], gone.json()["name"], gone.json()["by"]) == ("oil spot", None, "ann")
    body = {"product": "board", "name": "oil spot", "to": "oil"}
    assert len(server.client.post("/v1/defect-names/rename", json=body).json()["findings"]) == 2
    records = [r for r in server.service.stores.audit.of(first["inspection_id"]) if r.kind == NAMED]
    assert [(r.by, r.facts["before"], r.facts["name"]) for r in records] == [
        ("ana", None, "dust"), ("bob", "dust", "oil spot"), ("ann", "oil spot", None),
    ]  # fmt: skip
    assert records[0].facts["by_key"]
    assert server.service.stores.audit.verify_store().problems == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "x" * 49}, 422), ({"name": ""}, 422), ({"name": "<b>"}, 422), ({}, 422), ({"name": "a", "by": "eve"}, 422),
        ({"name": "a", "note": "n" * 2001}, 422), ({"name": "a"}, 404),
    ],
)  # fmt: skip
def test_wrong_names_are_refused(server: Running, body: dict[str, str], status: int) -> None:
    answer = server.client.put("/v1/inspections/none/findings/1/name", json=body)
    assert answer.status_code == status, answer.text
    assert server.client.delete("/v1/inspections/none/findings/1/name").status_code == 404
