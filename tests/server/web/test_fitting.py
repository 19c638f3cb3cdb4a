"""A network is fitted to a product while the server goes on, by an admin alone."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from refdiff.model.training.product import ProductRecipe
from refdiff.tools.golden_samples import fit as module
from refdiff.tools.golden_samples.background_fit import Fittings

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
