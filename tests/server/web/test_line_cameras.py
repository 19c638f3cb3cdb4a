"""A line camera over HTTP: photos in order, each once, without the language model where the part passes."""

from __future__ import annotations

from typing import Any

from .conftest import Running


def test_line_camera_photos_are_inspected_in_order_and_once(server: Running) -> None:
    def send(name: str, photo: str, **data: str) -> dict[str, Any]:
        files = {"image": (name, server.photos[photo])}
        answer = server.client.post("/v1/lines/cam-1/photos", files=files, data=data)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    sent = [
        send("A-1.png", "good.png"),
        send("A-2.png", "bad.png", product="board"),
        send("x.png", "good.png", part_id="A-3"),
    ]
    again = send("A-1.png", "good.png")
    assert [s["part_id"] for s in sent] == ["A-1", "A-2", "A-3"]
    assert again["inspection_id"] == sent[0]["inspection_id"]
    reports = [server.service.wait(s["inspection_id"], 120).report for s in sent]
    assert all(reports)
    assert [r.requested_by for r in reports if r] == ["cam-1 (ann)"] * 3
    filed = server.service.stores.inspections.list(limit=10)  # newest first
    ours = [s["inspection_id"] for s in sent]
    assert [r.inspection_id for r in filed if r.inspection_id in ours] == ours[::-1]
    assert {server.service.jobs.get(i).request["judge"] for i in ours} == {"on-anomaly"}


def test_invalid_photo_or_line_name_gets_422(server: Running) -> None:
    def status(path: str, data: bytes) -> int:
        return server.client.post(path, files={"image": ("1.png", data)}).status_code

    assert status("/v1/lines/cam-1/photos", b"text") == 422
    assert status("/v1/lines/cam%201/photos", server.photos["good.png"]) == 422
    assert status("/v1/lines/cam-1/photos", b"") == 422


def test_same_file_with_another_part_or_product_is_refused(server: Running) -> None:
    def send(**data: str) -> Any:
        files = {"image": ("B-1.png", server.photos["good.png"])}
        return server.client.post("/v1/lines/cam-2/photos", files=files, data=data)

    first = send(part_id="B-1", product="board").json()["inspection_id"]
    assert send(part_id="B-1", product="board").json()["inspection_id"] == first
    for other in ({"part_id": "B-2", "product": "board"}, {"part_id": "B-1", "product": "gear"}, {}):
        answer = send(**other)
        assert answer.status_code == 422, other
        assert first in answer.json()["error"]["message"]
