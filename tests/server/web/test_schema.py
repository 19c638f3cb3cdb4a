"""Generated requests, valid and invalid, are answered as the OpenAPI document declares and never with a 5xx."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.server.web.middleware import PROBES

from .conftest import Running

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_generated_requests_are_answered_as_openapi_declares(server: Running, tmp_path: Path) -> None:
    """Boundary values of every parameter, then random ones."""
    command = [
        str(SCHEMATHESIS), "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--phases", "coverage,fuzzing",
        "-n", "5", "--seed", "1",
        "--continue-on-failure", "--exclude-path-regex", "(calibration|network)$", "--request-timeout", "60",
        "--report", "json", "--report-dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    routes = sum(len(methods) for methods in json.loads(server.client.get("/openapi.json").text)["paths"].values())
    assert f"Tested: {routes - 1}" in done.stdout  # all but calibration


PUBLIC = {*PROBES, "/login", "/logout"}


def test_every_route_declares_who_may_use_it(server: Running) -> None:
    document = json.loads(server.client.get("/openapi.json").text)
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert path in PUBLIC or route["security"], f"{method} {path}"
            assert path in PROBES or {"401", "403", "429"} <= set(route["responses"]), f"{method} {path}"
