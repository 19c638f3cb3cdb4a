"""A product of point clouds and one of height maps over HTTP, from files to reports with their pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.model.synthesis.height import Defect, SolidPart, depth_png, ply

from .conftest import Running

PART = SolidPart("bracket")
BULGE = Defect("bulge", 1.5, 36.0, 17.0, 8.0)
LIMITS = [
    {"type": "any", "max_deviation_mm": 0.4, "severity": "minor"},
    {"type": "any", "severity": "major", "reject": True},
]


def scan(seed: int, defect: Defect | None = None) -> bytes:
    return ply(PART.cloud(np.random.default_rng((3, seed)), 5000, defect).points)


def height_map(seed: int, defect: Defect | None = None) -> bytes:
    return depth_png(PART.height_map(np.random.default_rng((4, seed)), defect, size=(160, 160), mm_per_px=0.75).mm)


KINDS = {
    "scan": ("cloud", "ply", scan, {"cloud": {"unit_mm": 1}, "limits": LIMITS}),
    "plate": (
        "depth", "png", height_map,
        {"depth": {"unit_mm": 0.01, "offset_mm": -100, "values": "height"}, "scale_mm_per_px": 0.75, "limits": LIMITS},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def product(request: pytest.FixtureRequest, server: Running) -> tuple[Running, str]:
    name = str(request.param)
    kind, end, made, spec = KINDS[name]
    if kind == "cloud":
        pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
    assert server.client.put(f"/v1/products/{name}/spec", json=spec).status_code == 200
    for i in range(21):
        files = [("images", (f"{i}.{end}", made(i)))]
        answer = server.client.post("/v1/goldens", files=files, data={"product": name, "kind": kind})
        assert answer.status_code == 200, answer.text
    assert answer.json()["n_in_bank"] == 21, answer.text
    return server, name


def inspected(server: Running, name: str, part: str, data: bytes) -> dict[str, Any]:
    form = {"part_id": f"{name}-{part}", "product": name}
    answer = server.client.post("/v1/inspections?wait_s=60", files={"image": ("p", data)}, data=form)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_bulge_fails_with_its_mm_and_every_picture_is_drawn(product: tuple[Running, str]) -> None:
    server, name = product
    kind, _, made, _ = KINDS[name]
    found = inspected(server, name, "bad", made(100, BULGE))
    report = found["report"]
    finding = report["findings"][0]
    assert (report["verdict"], report["kind"], report["unit"]) == ("FAIL", kind, "mm")
    assert finding["type"] == ("extra_material" if kind == "cloud" else "high_spot")
    deviation = finding["quantities"][0]
    assert deviation["name"] == "deviation_mm"
    assert abs(deviation["value"] - BULGE.height_mm) <= deviation["uncertainty"] + 0.15
    assert "mm off its golden sample; the limit is 0.4 mm" in report["verdict_reason"]
    assert finding["length_mm"] is not None
    path = f"/v1/inspections/{found['inspection_id']}"
    answer = server.client.get(f"{path}/values")
    size = int(answer.headers["X-Height"]), int(answer.headers["X-Width"])
    assert np.isfinite(np.frombuffer(answer.content, "<f4")).any()
    shown = Image.open(io.BytesIO(server.client.get(f"{path}/artefacts/query").content))
    assert shown.size[::-1] == size
    for picture in ("overlay", "heatmap", "side_by_side", "reference"):
        Image.open(io.BytesIO(server.client.get(f"{path}/artefacts/{picture}").content)).load()
    page = server.client.get(f"{path}/artefacts/html").text
    assert "Deviation from the golden sample" in page
    assert "Difference in mm" in page


def test_good_part_does_not_fail(product: tuple[Running, str]) -> None:
    server, name = product
    report = inspected(server, name, "good", KINDS[name][2](101))["report"]
    assert report["verdict"] in ("PASS", "REVIEW"), report["verdict_reason"]


def test_photo_is_refused(product: tuple[Running, str]) -> None:
    server, name = product
    answer = server.client.post(
        "/v1/captures", files={"image": ("p.png", server.photos["good.png"])}, data={"part_id": "x", "product": name}
    )
    assert answer.status_code == 422
    assert "picture" in answer.json()["error"]["message"]
