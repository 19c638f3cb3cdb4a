"""The wheel holds exactly the rooms: every module, template and type marker, nothing else."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("agent", "memory", "model", "server", "tools")
KINDS = {
    ".py", ".j2", ".css", ".html", ".js", ".svg", ".typed", ".json", ".safetensors", ".md", ".jinja", ".yaml", ".png",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build folder is left behind (setuptools packs what lies in one)."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in (*ROOMS, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_exactly_the_files_of_the_rooms(wheel: zipfile.ZipFile) -> None:
    packed = {n for n in wheel.namelist() if ".dist-info/" not in n}
    kept = (p for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file())
    files = (p for p in kept if p.suffix in KINDS or p.name == "LICENSE")  # of what is not ours
    assert packed == {f"refdiff/{p.relative_to(ROOT).as_posix()}" for p in files}
    assert {f"refdiff/{room}/{name}" for room in ROOMS for name in ("__init__.py", "py.typed")} <= packed
    assert "refdiff/agent/report/templates/report.html.j2" in packed


def test_wheel_installs_the_refdiff_command(wheel: zipfile.ZipFile) -> None:
    [name] = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {"refdiff": "refdiff.server.cli.main:main"}


def test_wheel_runs_without_the_source_tree(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import refdiff.server.cli.main as c; print(c.__file__); raise SystemExit(c.run(['goldens', '--help']))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}  # searched before the editable install
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=True
    )
    assert done.stdout.splitlines()[0] == str(tmp_path / "refdiff" / "server" / "cli" / "main.py")


def test_wheel_carries_the_licences_of_code_and_weights(wheel: zipfile.ZipFile) -> None:
    packed = {n.split(".dist-info/licenses/")[1] for n in wheel.namelist() if ".dist-info/licenses/" in n}
    assert packed == {"LICENSE", "NOTICE", "model/weights/LICENSE.md"}
    [name] = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    assert "License-Expression: Apache-2.0 AND LicenseRef-RefDiff-Weights\n" in wheel.read(name).decode()
