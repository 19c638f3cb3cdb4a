"""A product of point clouds and one of height maps over HTTP, from files to reports with their pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.model.images import encode_png
from refdiff.model.synthesis.height import Defect, Stain, depth_png, xyz_tiff
from tests.server.cloud_parts import BULGE, LIMITS, PART, SPECIFICATION, scanned

from .conftest import Running


def height_map(seed: int, defect: Defect | None = None) -> bytes:
    return depth_png(PART.height_map(np.random.default_rng((4, seed)), defect, size=(160, 160), mm_per_px=0.75).mm)


KINDS = {
    "scan": ("cloud", "ply", scanned, SPECIFICATION),
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


def in_colour(seed: int, stain: Stain | None = None) -> tuple[bytes, bytes]:
    """A height map and its colour photo."""
    rng = np.random.default_rng((7, seed))
    made = PART.height_map(rng, size=(160, 160), mm_per_px=0.75)
    return xyz_tiff(made.mm, 0.75), encode_png(PART.colour_photo(made, rng, stain))


def test_height_map_with_its_colour_photo_is_one_report_with_pictures_of_both(server: Running) -> None:
    rules = {"unit_mm": 1, "values": "distance", "colour": True}
    assert server.client.put("/v1/products/painted/spec", json={"depth": rules}).status_code == 200
    form = {"product": "painted", "kind": "depth"}
    pairs = [in_colour(i) for i in range(3)]
    files = [
        ("images", (f"{i}.{end}", data))
        for i, pair in enumerate(pairs)
        for end, data in zip(("tiff", "png"), pair, strict=True)
    ]
    answer = server.client.post("/v1/goldens", files=files[:4], data=form)
    assert (answer.status_code, len(answer.json()["added"]), answer.json()["refused"]) == (200, 2, []), answer.text
    one = {"images": ("heights.tiff", pairs[2][0]), "colour": ("photo.png", pairs[2][1])}
    assert server.client.post("/v1/goldens", files=one, data=form).json()["n_in_bank"] == 3
    answer = server.client.post("/v1/goldens", files=[*files[:4], ("colour", ("c.png", pairs[0][1]))], data=form)
    assert (answer.status_code, "belongs to one image" in answer.text) == (422, True)

    stain = Stain(36.0, 17.0, 4.0)
    height, photo = in_colour(100, stain)
    path, key = "/v1/inspections?wait_s=60", {"Idempotency-Key": "painted-1"}
    part = {"part_id": "painted-1", "product": "painted"}
    answer = server.client.post(path, files={"image": ("1.tiff", height)}, data=part)
    assert (answer.status_code, "its colour photo is missing" in answer.text) == (422, True)
    sent = {"image": ("1.tiff", height), "colour": ("1.png", photo)}
    answer = server.client.post(path, files=sent, data=part, headers=key)
    assert answer.status_code == 200, answer.text
    report = answer.json()["report"]
    finding = report["findings"][0]
    assert (finding["type"], finding["found_in"]) == ("colour_change", ["colour"])
    assert (
        server.client.post(path, files=sent, data=part, headers=key).json()["inspection_id"] == report["inspection_id"]
    )
    other = sent | {"colour": ("1.png", pairs[0][1])}
    assert server.client.post(path, files=other, data=part, headers=key).status_code == 422
    for picture in ("overlay", "heatmap", "side_by_side", "query"):
        shown = server.client.get(f"/v1/inspections/{report['inspection_id']}/artefacts/{picture}").content
        Image.open(io.BytesIO(shown)).load()
    captured = server.client.post("/v1/captures", files=sent, data=part | {"part_id": "painted-2"})
    assert captured.json()["sha256"] == report["query_sha256"]
