"""A scanned part through the command line, Slack and MCP: its deviation is told in mm, and its picture shown."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client
from PIL import Image

from refdiff.agent.service import InspectionService
from refdiff.server.mcp.server import build_server
from refdiff.tools.inspection.calibration import calibrate

from .bot_server import serving, wait
from .cloud_parts import BULGE, PART, enrol_scans, scanned
from .fake_slack import SECRET, TOKEN, FakeSlack, mention

pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
REFDIFF = Path(sys.executable).with_name("refdiff")


@pytest.fixture(scope="module")
def _enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("REFDIFF_HOME", str(root / "home"))
        m.setenv("REFDIFF_CACHE", str(root / "cache"))
        m.setenv("REFDIFF_LLM", "off")
        with InspectionService.open() as service:
            enrol_scans(service)
            calibrate(service.workspace, "scan")
    return root


@pytest.fixture
def root(_enrolled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with home/ (REFDIFF_HOME), in which the product "scan" is calibrated."""
    copy = tmp_path / "scans"
    shutil.copytree(_enrolled, copy)
    monkeypatch.setenv("REFDIFF_HOME", str(copy / "home"))
    monkeypatch.setenv("REFDIFF_CACHE", str(copy / "cache"))
    monkeypatch.setenv("REFDIFF_LLM", "off")
    return copy


@pytest.fixture
def service(root: Path) -> Iterator[InspectionService]:
    with InspectionService.open() as opened:
        yield opened


def deviation_of(report: dict[str, Any]) -> float:
    """mm of the first finding of a report that failed for the bulge."""
    assert (report["verdict"], report["kind"], report["unit"]) == ("FAIL", "cloud", "mm")
    finding = report["findings"][0]
    assert finding["type"] == "extra_material"
    deviation = finding["quantities"][0]
    assert deviation["name"] == "deviation_mm"
    assert abs(deviation["value"] - BULGE.height_mm) <= deviation["uncertainty"] + 0.15
    assert 8 < finding["length_mm"] < 18, "16 mm across, and no line through its points"
    return float(deviation["value"])


def test_bulge_of_a_scan_exits_with_1_and_is_told_in_mm_on_the_command_line(root: Path) -> None:
    (root / "bad.ply").write_bytes(scanned(100, BULGE))
    command = ["inspect", "--part", "7", "--product", "scan", "--image", "bad.ply", "--html", "7.html"]
    done = subprocess.run([REFDIFF, *command, "--json"], cwd=root, capture_output=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr.decode()
    report = json.loads(done.stdout)
    deviation = deviation_of(report)
    assert all(Path(p).is_file() for p in report["artefacts"].values())
    assert f"{deviation:.3g} mm off its golden sample" in (root / "7.html").read_text()
    again = subprocess.run([REFDIFF, "inspect", "--part", "7"], cwd=root, capture_output=True, timeout=120, check=False)
    assert again.returncode == 1, "the newest capture, again"
    assert " mm off its golden sample; the limit is 0.4 mm" in " ".join(again.stdout.decode().split())


def test_scan_without_points_exits_with_65_and_files_nothing(root: Path) -> None:
    (root / "empty.ply").write_bytes(scanned(100, points=500)[:200])
    command = ["inspect", "--part", "8", "--product", "scan", "--image", "empty.ply", "--json"]
    done = subprocess.run([REFDIFF, *command], cwd=root, capture_output=True, timeout=120, check=False)
    assert done.returncode == 65, done.stderr.decode()
    assert "empty.ply" in json.loads(done.stdout)["error"]["message"]
    with InspectionService.open() as service:
        assert service.stores.inspections.list() == []


def test_bulge_of_a_scan_is_told_in_mm_in_slack(service: InspectionService) -> None:
    with closing(FakeSlack()) as slack:
        settings = {"slack_bot_token": TOKEN, "slack_signing_secret": SECRET, "slack_api_url": f"{slack.url}/api/"}
        slack.photos["bad.ply"] = scanned(100, BULGE)
        scan = {"id": "F1", "name": "bad.ply", "mimetype": "application/octet-stream",
                "url_private_download": f"{slack.url}/files/bad.ply"}  # fmt: skip
        with serving(service, **settings) as url:
            slack.event(url, mention("inspect part #7, product scan", "1.1", files=[scan]), "Ev1")
            [post] = wait(lambda: slack.posts()["1.1"])
            [record] = service.stores.inspections.list()
            deviation = deviation_of(record.report)
            assert post["text"].startswith("FAIL: part 7 (scan). ")
            assert f"{deviation:.3g} mm off its golden sample" in post["text"]
            [upload] = wait(lambda: slack.of("files.completeUploadExternal"))
            picture = Image.open(io.BytesIO(slack.files[upload["files"][0]["id"]]))
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50, "six views of the part, drawn"


def test_bulge_of_a_scan_as_text_is_told_in_mm_over_mcp(service: InspectionService) -> None:
    points = PART.cloud(np.random.default_rng((3, 100)), 5000, BULGE).points
    text = "\n".join("{:.4f} {:.4f} {:.4f}".format(*p) for p in points)
    wish = {"part_id": "7", "product": "scan", "photo_base64": base64.b64encode(text.encode()).decode()}

    async def run() -> None:
        async with Client(build_server(service)) as client:
            inspected = await client.call_tool("inspect_part", wish)
            assert not inspected.is_error, inspected.content
            found = inspected.structured_content
            answer = await client.call_tool("get_report", {"inspection_id": found["inspection_id"]})
            deviation = deviation_of(answer.structured_content)
            said = " ".join(c.text for c in inspected.content if c.type == "text")
            assert said.startswith("FAIL: part 7 (scan).")
            assert f"{deviation:.3g} mm off its golden sample" in said
            [picture] = [c for c in inspected.content if c.type == "image"]
            assert len(np.unique(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data))).convert("L")))) > 50

    anyio.run(run)
