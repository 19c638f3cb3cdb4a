"""A network is fitted to a product while the server goes on, by an admin alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from refdiff.model.errors import BusyError
from refdiff.model.training.product import ProductRecipe
from refdiff.server.settings import load_settings
from refdiff.server.web import serve as serve_module
from refdiff.tools.golden_samples import background_fit
from refdiff.tools.golden_samples import fit as module
from refdiff.tools.golden_samples.background_fit import Fittings
from refdiff.tools.golden_samples.fit import is_due

from .conftest import Running


def state(server: Running) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while (product := server.client.get("/v1/products/board").json())["fitting"]["state"] == "running":
        assert time.monotonic() < deadline, product["fitting"]
        time.sleep(0.1)
    return dict(product)


def test_network_is_fitted_beside_inspections(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProductRecipe", partial(ProductRecipe, pairs=32, passes=2, batch=8))
    monkeypatch.setattr(module, "_CHECKED", 4)
    network = "/v1/products/board/network"
    assert server.client.get("/v1/products/board").json()["network"] is None
    assert server.client.post(network, headers=server.key("inspector")).status_code == 403
    assert server.client.post("/v1/products/none/network").status_code == 404
    assert server.client.delete(network).status_code == 404
    begun = server.client.post(network)
    assert (begun.status_code, begun.json()["state"]) == (202, "running")
    assert server.client.post(network).status_code == 429
    assert server.inspected("good.png", "beside")["state"] == "done"
    product = state(server)
    kept = product["fitting"]["state"] == "kept"
    assert product["fitting"]["state"] in ("kept", "not kept"), product["fitting"]
    assert (product["network"] is not None) == kept
    assert not product["calibration"]["stale"]
    weights = server.inspected("bad.png", "after")["report"]["software"]["weights"]
    assert weights.get("product") == (product["network"]["sha256"] if kept else None)
    assert server.client.delete(network).status_code == (204 if kept else 404)
    assert server.client.get("/v1/products/board").json()["network"] is None


def test_stopped_fit_ends_soon_and_says_so(server: Running) -> None:
    workspace = server.service.workspace
    fittings = Fittings(workspace, server.service._queue.beside)
    fittings.start("board", "ana")
    fittings.stop()
    found = fittings.of("board")
    assert found is not None
    assert found.state == "stopped"
    assert workspace.fitted("board") is None


def test_fit_begins_by_itself_and_waits_for_inspections(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(module._Fit, "found", lambda self, half, *more: (3, 2, 4))
    workspace = server.service.workspace
    busy = threading.Event()
    busy.set()
    fittings = Fittings(workspace, server.service._queue.beside, busy.is_set)
    networks = workspace.stores.networks
    networks.end(networks.begin("board", "another shared network", 20, "ana"), "not kept")
    looks: list[bool] = []
    monkeypatch.setattr(background_fit, "is_due", lambda *what: looks.append(is_due(*what)) or looks[-1])
    monkeypatch.setattr(background_fit, "free_bytes", lambda: 8_000_000_000)
    fittings.by_itself(every_s=0.02)
    time.sleep(0.3)
    assert fittings.of("board") is None  # something else comes first
    busy.clear()
    until(lambda: fittings.of("board") is not None)
    busy.set()
    until(lambda: (f := fittings.of("board")) is not None and f.waits)
    waiting = fittings.of("board")
    time.sleep(0.3)
    assert fittings.of("board") == waiting
    with pytest.raises(BusyError):
        fittings._begin("board", background_fit.BY_ITSELF)
    busy.clear()
    until(lambda: (f := fittings.of("board")) is not None and f.state == "not kept")
    until(lambda: len(looks) > 3)
    fittings.stop()
    assert looks[:4] == [True, False, False, False]  # not again with the same golden samples
    last = networks.last_attempt("board")
    assert last is not None
    assert (last.outcome, last.by, last.n, last.found) == ("not kept", "automatic fit", 22, (6, 4, 8))


def test_person_who_asks_for_a_fit_does_not_wait_for_an_automatic_one(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(module._Fit, "found", lambda self, half, *more: (3, 2, 4))
    workspace = server.service.workspace
    networks, busy = workspace.stores.networks, threading.Event()
    networks.end(networks.begin("board", "another shared network", 20, "ana"), "not kept")
    fittings = Fittings(workspace, server.service._queue.beside, busy.is_set)
    monkeypatch.setattr(background_fit, "free_bytes", lambda: 8_000_000_000)
    fittings.by_itself(every_s=0.02)
    until(lambda: fittings.of("board") is not None)
    busy.set()
    until(lambda: (f := fittings.of("board")) is not None and f.waits)
    begun = fittings.start("board", "ana")
    assert (begun.state, begun.by) == ("running", "ana")
    with pytest.raises(BusyError, match="'board'"):
        fittings.start("board", "bert")  # another person's is not ended
    busy.clear()
    until(lambda: (f := fittings.of("board")) is not None and f.state == "not kept")
    fittings.stop()
    last = networks.last_attempt("board")
    assert last is not None
    assert (last.outcome, last.by) == ("not kept", "ana")


def test_automatic_fit_of_what_another_process_fits_is_no_failure(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = server.service.workspace
    networks = workspace.stores.networks
    networks.end(networks.begin("board", "another shared network", 20, "ana"), "not kept")
    fittings = Fittings(workspace, server.service._queue.beside)
    monkeypatch.setattr(background_fit, "free_bytes", lambda: 8_000_000_000)
    with module._alone(workspace, "board"):
        fittings.by_itself(every_s=0.02)
        until(lambda: (f := fittings.of("board")) is not None and f.state != "running")
        found = fittings.of("board")
        fittings.stop()
    assert found is not None
    assert (found.state, "'board'" in found.message) == ("stopped", True)
    assert networks.last_attempt("board").outcome == "not kept"  # type: ignore[union-attr]


@pytest.mark.parametrize("free", [1_500_000_000, None])
def test_automatic_fit_does_not_begin_where_it_could_get_the_server_killed(
    server: Running, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    service, workspace = server.service, server.service.workspace
    networks = workspace.stores.networks
    networks.end(networks.begin("board", "another shared network", 20, "ana"), "not kept")
    monkeypatch.setattr(background_fit, "free_bytes", lambda: free)
    monkeypatch.setattr(background_fit, "fit_product", lambda *arguments, **more: pytest.fail("it began"))
    fittings = Fittings(workspace, service._queue.beside)
    monkeypatch.setattr(service, "fittings", fittings)
    fittings.by_itself(every_s=0.02)
    until(lambda: fittings.held_back("board") != "")
    product = server.client.get("/v1/products/board").json()
    assert "4 GB of free memory" in product["fit_held_back"]
    assert ("1.5 GB are free" in product["fit_held_back"]) == (free is not None)
    assert product["fitting"] is None
    networks.begin("board", "another shared network", 20, "ana")
    networks.decline("board", "ana")
    until(lambda: fittings.held_back("board") == "")  # no longer due
    fittings.stop()


@pytest.mark.parametrize("what", ["network", "fitting"])
def test_fit_that_is_ended_before_it_is_noted_as_begun_does_not_begin_again_by_itself(
    server: Running, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    networks, ended = server.service.stores.networks, threading.Event()
    begin = networks.begin

    def late(*arguments: Any) -> Any:
        assert ended.wait(60)
        return begin(*arguments)

    monkeypatch.setattr(networks, "begin", late)
    assert server.client.post("/v1/products/board/network").status_code == 202
    assert server.client.delete(f"/v1/products/board/{what}").status_code == 204
    ended.set()
    assert state(server)["fitting"]["state"] == "stopped"
    last = networks.last_attempt("board")
    assert last is not None
    assert last.outcome == "declined"
    assert not is_due(server.service.workspace, "board")


def test_fit_that_a_person_ends_does_not_begin_again_by_itself(server: Running) -> None:
    network = "/v1/products/board/network"
    assert server.client.post(network).status_code == 202
    assert server.client.delete(network).status_code == 204
    assert state(server)["fitting"]["state"] == "stopped"
    assert not is_due(server.service.workspace, "board")
    assert server.client.delete(network).status_code == 404


def test_fit_that_a_person_ends_in_the_moment_in_which_it_comes_into_use_stays(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(module._Fit, "found", lambda self, half, *more: (2, 3, 4))
    networks, ended = server.service.stores.networks, []
    save = networks.save

    def ended_then(*arguments: Any) -> bool:
        saved = save(*arguments)
        ended.append(server.client.delete("/v1/products/board/fitting").status_code)
        return saved

    monkeypatch.setattr(networks, "save", ended_then)
    assert server.client.post("/v1/products/board/network").status_code == 202
    product = state(server)
    assert (ended, product["fitting"]["state"], product["last_fit"]["outcome"]) == ([204], "kept", "kept")
    assert product["network"]["outdated"] == ""
    assert server.client.delete("/v1/products/board/network").status_code == 204
    last = networks.last_attempt("board")
    assert last is not None
    assert last.outcome == "declined"


def test_product_that_fails_does_not_keep_others_from_their_turn(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = server.service.workspace
    asked: list[str] = []

    def due(_: Any, product: str) -> bool:
        asked.append(product)
        if product != "board":
            raise ZeroDivisionError(product)
        return False

    monkeypatch.setattr(workspace.bank, "products", lambda: ["a broken one", "board", "last"])
    monkeypatch.setattr(background_fit, "is_due", due)
    fittings = Fittings(workspace, server.service._queue.beside)
    fittings.by_itself(every_s=0.02)
    until(lambda: len(asked) >= 6)
    fittings.stop()
    assert asked[:6] == ["a broken one", "board", "last"] * 2


def test_server_fits_by_itself_unless_told_not_to(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    service, began = server.service, []
    monkeypatch.setattr(service.fittings, "by_itself", lambda: began.append(True))
    for wanted in (True, False):
        monkeypatch.setattr(service.workspace.settings, "auto_fit", wanted)
        service.fit_by_itself()
    assert began == [True]
    monkeypatch.setenv("REFDIFF_AUTO_FIT", "0")
    assert not load_settings().tools.auto_fit


@pytest.mark.parametrize("wanted", ["1", "0"])
def test_serve_fits_by_itself(ready: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    began: list[Fittings] = []
    monkeypatch.setenv("REFDIFF_AUTO_FIT", wanted)
    monkeypatch.setattr(Fittings, "by_itself", lambda self: began.append(self))
    monkeypatch.setattr(serve_module.GracefulServer, "run", lambda self, sockets: None)
    monkeypatch.setattr(serve_module, "log_json", lambda level: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve_module.serve(listener, "127.0.0.1", load_settings(), lambda *_: None)
    assert len(began) == int(wanted)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
