"""The package for devices holds what the command imports, and nothing that a device has no package for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "refdiff.server.device.command"
# what they import late is for devices, too; elsewhere late imports are of what a device does without
OF_DEVICES = ("refdiff.server.device.", "refdiff.agent.device.", "refdiff.tools.exported.")
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "pydantic_settings": "pydantic-settings"}


def _project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def _path(module: str) -> Path | None:
    path = ROOT / f"{'/'.join(module.split('.')[1:])}.py"
    return path if path.is_file() else None


def _imports(path: Path, late: bool) -> Iterator[str]:
    """Full names of what a file imports when it is loaded, and if `late` inside functions, too; not for type checking."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not late:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)


def _needed() -> tuple[set[str], set[str]]:
    """Modules of the product that the command needs, and packages of others."""
    modules: set[str] = set()
    others: set[str] = set()
    todo = [COMMAND]
    while todo:
        module = todo.pop()
        path = _path(module)
        if path is None or module in modules:
            continue
        modules.add(module)
        for name in _imports(path, module.startswith(OF_DEVICES)):
            if not name.startswith("refdiff."):
                others.add(name.split(".")[0])
            else:
                todo.append(name if _path(name) else name.rpartition(".")[0])
    return modules, others - set(sys.stdlib_module_names)


def test_package_lists_the_modules_that_the_command_imports() -> None:
    assert _project(ROOT / "edge")["tool"]["setuptools"]["py-modules"] == sorted(_needed()[0])


def test_package_requires_what_its_modules_import_as_the_product_does() -> None:
    edge, product = (_project(folder)["project"] for folder in (ROOT / "edge", ROOT))
    needed = {PACKAGES.get(name, name) for name in _needed()[1]}
    named = {re.split(r"[><=]", requirement)[0] for requirement in edge["dependencies"]}
    assert named == needed
    assert set(edge["dependencies"]) <= set(product["dependencies"])
    assert set(edge["optional-dependencies"]["openvino"]) <= set(product["optional-dependencies"]["openvino"])
    assert edge["version"] == product["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from links, so that no build folder is left behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for room in ("agent", "memory", "model", "server", "tools"):
        (tree / room).symlink_to(ROOT / room)
    (tree / "edge").mkdir()
    for name in ("pyproject.toml", "README.md"):
        (tree / "edge" / name).write_bytes((ROOT / "edge" / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree / "edge")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_same_source_files(wheel: zipfile.ZipFile) -> None:
    packed = {n for n in wheel.namelist() if ".dist-info/" not in n}
    listed = {m.replace(".", "/") + ".py" for m in _needed()[0]}
    assert packed - {n for n in packed if n.endswith("/__init__.py")} == listed
    for name in packed:
        assert wheel.read(name) == (ROOT / name.removeprefix("refdiff/")).read_bytes(), name
