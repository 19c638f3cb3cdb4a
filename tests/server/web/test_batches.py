"""Batches over HTTP: many parts at once, what was left out, and the end of it."""

from __future__ import annotations

import time
from typing import Any

from .conftest import Running


def capture(server: Running, part: str) -> None:
    files = {"image": ("p.png", server.photos["good.png"])}
    answer = server.client.post("/v1/captures", files=files, data={"part_id": part, "product": "board"})
    assert answer.status_code == 201, answer.text


def ended(server: Running, batch_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while not (found := server.client.get(f"/v1/batches/{batch_id}").json())["over"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return dict(found)


def test_batch_is_inspected_and_names_what_it_left_out(server: Running) -> None:
    for part in ("batch-1", "batch-2"):
        capture(server, part)
    parts = [{"part_id": "batch-1"}, {"part_id": "never photographed"}, {"part_id": "batch-2", "product": "board"}]
    answer = server.client.post("/v1/batches", json={"parts": parts, "judge": "never", "in_order": True})
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert (made["accepted"], made["complete"], made["by"]) == (2, True, "ann")
    assert [one["name"] for one in made["left_out"]] == ["part never photographed"]
    found = ended(server, made["batch_id"])
    assert (found["done"], found["failed"], sum(found["verdicts"].values())) == (2, 0, 2)
    filed = [r.part_id for r in server.service.stores.inspections.list(limit=10) if r.part_id.startswith("batch-")]
    assert filed == ["batch-2", "batch-1"]
    stopped = server.client.post(f"/v1/batches/{made['batch_id']}/stop").json()
    assert (stopped["cancelled"], stopped["stopped_by"]) == (0, "ann")
    assert made["batch_id"] in [b["batch_id"] for b in server.client.get("/v1/batches").json()]


def test_repeated_request_finds_its_batch_again(server: Running) -> None:
    capture(server, "batch-3")
    body: dict[str, Any] = {"parts": [{"part_id": "batch-3"}], "judge": "never"}
    key = {"Idempotency-Key": "shift-1"}
    first, again = (server.client.post("/v1/batches", json=body, headers=key).json() for _ in range(2))
    assert first["batch_id"] == again["batch_id"]
    assert ended(server, first["batch_id"])["accepted"] == 1
    other = server.client.post("/v1/batches", json={"parts": [{"part_id": "4"}]}, headers=key)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.text
    assert server.client.post("/v1/batches", json=body).json()["batch_id"] != first["batch_id"]


def test_lists_of_batches_count_what_was_left_out(server: Running) -> None:
    made = server.client.post("/v1/batches", json={"parts": [{"part_id": "never photographed"}]}).json()
    assert (made["left_out_count"], len(made["left_out"])) == (1, 1)
    listed = server.client.get("/v1/batches", params={"limit": 1}).json()
    assert [(b["batch_id"], b["left_out_count"], b["left_out"]) for b in listed] == [(made["batch_id"], 1, [])]


def test_batches_are_for_inspectors_and_unknown_ones_are_not_found(server: Running) -> None:
    body = {"parts": [{"part_id": "1"}]}
    assert server.client.post("/v1/batches", json=body, headers=server.key("viewer")).status_code == 403
    assert server.client.get("/v1/batches", headers=server.key("viewer")).status_code == 200
    assert server.client.get("/v1/batches/nobody").status_code == 404
    assert server.client.post("/v1/batches/nobody/stop").status_code == 404
    assert server.client.post("/v1/batches", json={"parts": []}).status_code == 422
