"""A thermal product over HTTP, from files to a report, as a camera's program would do it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.server.thermal_parts import SPECIFICATION, rendered

from .conftest import Running


@pytest.fixture(scope="module")
def thermal(server: Running) -> Running:
    assert server.client.put("/v1/products/assembly/spec", json=SPECIFICATION).status_code == 200
    files = [("images", (f"{i}.tiff", rendered(i))) for i in range(21)]
    answer = server.client.post("/v1/goldens", files=files, data={"product": "assembly", "kind": "thermal"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["n_in_bank"] == 21, answer.text
    return server


def inspected(server: Running, part: str, data: bytes, **more: str) -> dict[str, Any]:
    form = {"part_id": part, "product": "assembly", **more}
    answer = server.client.post("/v1/inspections?wait_s=60", files={"image": ("p.tiff", data)}, data=form)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_hot_spot_fails_with_its_kelvins_and_a_good_part_in_warmer_surroundings_passes(thermal: Running) -> None:
    found = inspected(thermal, "hot", rendered(100, spot_k=12.0, spot_px=14.0), conditions="reflected_c=21")
    report = found["report"]
    finding = report["findings"][0]
    assert (report["verdict"], report["kind"], report["unit"]) == ("FAIL", "thermal", "K")
    assert finding["type"] == "hot_spot"
    delta = finding["quantities"][0]
    assert delta["name"] == "delta_k"
    assert abs(delta["value"] - 12) <= 1.5 * delta["uncertainty"]
    assert "K off its golden sample; the limit is 4 K" in report["verdict_reason"]
    assert [(c["name"], c["value"], c["source"]) for c in report["conditions"]] == [
        ("emissivity", 0.95, "product"), ("reflected_c", 21.0, "capture"),
    ]  # fmt: skip
    assert any("removed from all differences" in note for note in report["notes"])
    measured = next(e for e in report["evidence"] if e["kind"] == "measure")
    assert measured["numbers"]["delta_k"] == pytest.approx(delta["value"], rel=1e-3)
    assert not any(name.startswith(("moved", "outline")) for name in measured["numbers"])
    warm = inspected(thermal, "warm", rendered(101, ambient_k=5.0))["report"]
    assert warm["verdict"] in ("PASS", "REVIEW")
    assert warm["image_score"] < report["image_score"] / 3


def test_values_are_the_temperatures_of_the_photo_and_pictures_show_them(thermal: Running) -> None:
    data = rendered(102, spot_k=12.0, spot_px=14.0)
    found = inspected(thermal, "values", data)
    path = f"/v1/inspections/{found['inspection_id']}"
    answer = thermal.client.get(f"{path}/values")
    size = int(answer.headers["X-Height"]), int(answer.headers["X-Width"])
    celsius = np.frombuffer(answer.content, "<f4").reshape(size)
    written = np.asarray(Image.open(io.BytesIO(data)), np.float64) * 0.01 - 273.15
    assert np.abs(celsius - written).max() < 1e-3
    shown = np.asarray(Image.open(io.BytesIO(thermal.client.get(f"{path}/artefacts/query").content)))
    assert shown.shape[:2] == size, "the page lays findings and values over it"
    expected = np.clip((written - 10) / 70, 0, 1) * 255
    assert np.abs(shown.mean(2) - expected).mean() < 3, "grey, by the span of the specification"
    for name in ("overlay", "heatmap", "side_by_side"):
        picture = Image.open(io.BytesIO(thermal.client.get(f"{path}/artefacts/{name}").content))
        assert picture.width > picture.height, "a colour bar stands beside it"
    page = thermal.client.get(f"{path}/artefacts/html").text
    assert "ΔT against the golden sample" in page
    assert "Difference in K" in page


def test_pictures_of_a_filed_report_stay_what_they_were_when_the_specification_changes(thermal: Running) -> None:
    def drawn(inspection_id: str) -> bytes:
        drawing = thermal.service.files.drawing(inspection_id)
        assert drawing is not None
        return drawing.file("query")

    first, other = (inspected(thermal, p, rendered(103))["inspection_id"] for p in ("stays", "other"))
    before = drawn(first)
    changed = {**SPECIFICATION, "thermal": {**SPECIFICATION["thermal"], "palette": "iron"}}  # type: ignore[dict-item]
    assert thermal.client.put("/v1/products/assembly/spec", json=changed).status_code == 200
    drawn(other)  # what was drawn last is kept at hand
    assert drawn(first) == before
    third = inspected(thermal, "iron", rendered(103))["inspection_id"]
    assert drawn(third) != before
    assert thermal.client.put("/v1/products/assembly/spec", json=SPECIFICATION).status_code == 200


def test_photos_have_no_values_and_their_reports_no_kind(server: Running) -> None:
    found = server.inspected("good.png", "no kind")
    assert {"kind", "unit", "conditions", "notes"} & found["report"].keys() == set()
    assert all("quantities" not in f for f in found["report"]["findings"])
    assert server.client.get(f"/v1/inspections/{found['inspection_id']}/values").status_code == 404


@pytest.mark.parametrize(
    ("product", "name", "form", "said"),
    [
        ("assembly", "good.png", {}, "without temperatures"),
        ("board", "p.tiff", {}, "intensity window"),
        ("assembly", "p.tiff", {"conditions": "emissivity=2"}, "at most 1"),
        ("assembly", "p.tiff", {"conditions": "emissivity"}, "NAME=NUMBER"),
        ("board", "good.png", {"conditions": "emissivity=0.9"}, "nothing is to be stated with a photo"),
    ],
)
def test_file_or_condition_that_does_not_fit_the_kind_is_refused(
    thermal: Running, product: str, name: str, form: dict[str, str], said: str
) -> None:
    data = thermal.photos[name] if name in thermal.photos else rendered(1)
    answer = thermal.client.post(
        "/v1/captures", files={"image": (name, data)}, data={"part_id": "x", "product": product, **form}
    )
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]
