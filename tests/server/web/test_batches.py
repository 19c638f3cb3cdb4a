"""Batches over HTTP: many parts at once, what was left out, and the end of it."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from refdiff.model.errors import UnavailableError

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


def test_repeated_request_adds_the_parts_that_an_outage_kept_out(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cut-1", "cut-2", "cut-3"]
    for part in names:
        capture(server, part)
    parts = [{"part_id": "nobody photographed this"}, *({"part_id": part} for part in names)]
    body: dict[str, Any] = {"parts": parts, "judge": "never"}
    headers, jobs, calls = {"Idempotency-Key": "cut off"}, server.service.stores.jobs, list[str]()
    add = jobs.add

    def failing(*args: Any, **more: Any) -> Any:
        calls.append(args[0])
        if len(calls) == 2:
            raise UnavailableError("the database is away")
        return add(*args, **more)

    with monkeypatch.context() as away:
        away.setattr(jobs, "add", failing)
        assert server.client.post("/v1/batches", json=body, headers=headers).status_code == 503
    [cut, *_] = server.client.get("/v1/batches", params={"limit": 1}).json()
    assert (cut["accepted"], cut["complete"]) == (1, False)
    answers = [server.client.post("/v1/batches", json=body, headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [202, 202]
    for made in (a.json() for a in answers):
        assert (made["batch_id"], made["accepted"], made["complete"]) == (cut["batch_id"], 3, True)
        assert [one["name"] for one in made["left_out"]] == ["part nobody photographed this"]
    assert ended(server, cut["batch_id"])["done"] == 3
    filed = Counter(r.part_id for r in server.service.stores.inspections.list(limit=50))
    assert [filed[part] for part in names] == [1, 1, 1]


def test_requests_that_fill_one_batch_at_once_accept_each_part_once(server: Running) -> None:
    names = [f"twin-{i}" for i in range(8)]
    for part in names:
        capture(server, part)
    body = {"parts": [{"part_id": part} for part in names], "judge": "never"}
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(
                lambda _: server.client.post("/v1/batches", json=body, headers={"Idempotency-Key": "twins"}), range(4)
            )
        )
    assert [a.status_code for a in answers] == [202] * 4
    assert {(a.json()["batch_id"], a.json()["accepted"], a.json()["complete"]) for a in answers} == {
        (answers[0].json()["batch_id"], 8, True)
    }
    assert ended(server, answers[0].json()["batch_id"])["done"] == 8


def test_key_of_a_batch_is_forgotten_after_a_day(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("day-1", "day-2"):
        capture(server, part)
    headers = {"Idempotency-Key": "each day"}

    def sent(part: str) -> Any:
        return server.client.post("/v1/batches", json={"parts": [{"part_id": part}], "judge": "never"}, headers=headers)

    first = sent("day-1").json()["batch_id"]
    assert sent("day-2").status_code == 422
    monkeypatch.setattr("refdiff.server.web.routes.batches.KEY_LASTS", timedelta(0))
    second = sent("day-2").json()
    assert second["batch_id"] != first
    assert ended(server, second["batch_id"])["done"] == 1
    monkeypatch.undo()
    assert sent("day-2").json()["batch_id"] == second["batch_id"]


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
