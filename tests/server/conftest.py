"""A home with 22 good samples of one product, calibrated once and copied for each test."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refdiff.agent.service import InspectionService
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.scorer import shared_difference
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.server.cli import main

SIZE = (96, 128)


def good_photo(instance: int) -> bytes:
    return encode_png(render("circuit", 1, instance, size=SIZE, noise_seed=instance).image)


def bad_photo(instance: int) -> bytes:
    defects = [
        DefectSpec("stain", size_px=30, where=(64, 48), contrast=1.0),
        DefectSpec("scratch", size_px=60, contrast=1.0),
    ]
    return encode_png(render("circuit", 1, instance, size=SIZE, noise_seed=instance, defects=defects).image)


def said(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, Any]:
    """(exit code, the JSON document on stdout) of a command with --json."""
    capsys.readouterr()
    code = main.run([*command, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibrated")
    photos = root / "photos"
    photos.mkdir()
    for i in range(22):
        (photos / f"{i:02}.png").write_bytes(good_photo(i))
    (root / "good.png").write_bytes(good_photo(100))
    (root / "bad.png").write_bytes(bad_photo(100))
    with pytest.MonkeyPatch.context() as m:
        m.setenv("REFDIFF_HOME", str(root / "home"))
        m.setenv("REFDIFF_CACHE", str(root / "cache"))
        m.setenv("REFDIFF_WORKING_PX", "128")
        for name in ("QDRANT_URL", "REFDIFF_LLM_BASE_URL", "REFDIFF_CHECKPOINT_URL", "REFDIFF_DATABASE_URL"):
            m.delenv(name, raising=False)
        assert main.run(["enroll", "--product", "board", str(photos)]) == 0
        assert main.run(["calibrate", "--product", "board"]) == 0
        m.setenv("REFDIFF_ENGINE", "auto")  # as `serve` and `watch` run: what they convert, each copy has a link to
        Encoder()
        shared_difference(ModelSettings())
    converted = root / "cache" / "openvino"
    if converted.is_dir():
        converted.symlink_to(converted.rename(root / "converted"), target_is_directory=True)
    return root


@pytest.fixture
def ready(_made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with home/ (REFDIFF_HOME), photos/, good.png and bad.png; the working directory."""
    root = tmp_path / "ready"
    shutil.copytree(_made_once, root, symlinks=True, ignore=shutil.ignore_patterns("converted"))
    monkeypatch.setenv("REFDIFF_HOME", str(root / "home"))
    monkeypatch.setenv("REFDIFF_CACHE", str(root / "cache"))
    monkeypatch.setenv("REFDIFF_WORKING_PX", "128")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(root)
    assert os.environ["REFDIFF_HOME"] == str(root / "home")
    return root


@pytest.fixture
def database(request: pytest.FixtureRequest, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of that home lie in SQLite, or, by indirect parameter, were moved to Postgres."""
    if request.param == "postgres":
        monkeypatch.setenv("REFDIFF_DATABASE_URL", request.getfixturevalue("postgres"))
        assert main.run(["move-records"]) == 0


@pytest.fixture
def service(ready: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InspectionService]:
    """The service of that home, without a language model."""
    monkeypatch.setenv("REFDIFF_LLM", "off")
    with InspectionService.open() as opened:
        yield opened
