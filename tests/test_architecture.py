"""The rooms and their one-way imports, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "model": set(),
    "memory": {"model"},
    "tools": {"memory", "model"},
    "agent": {"tools", "memory", "model"},
    "server": {"agent", "tools", "memory", "model"},
}
FILES = [(room, path) for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield node.module or ""


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_imports_go_one_way(room: str, path: Path) -> None:
    for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        first, _, rest = name.partition(".")
        assert first not in MAY_IMPORT, f"{path.name} imports {name}: write refdiff.{name}"
        if first == "refdiff" and (target := rest.split(".")[0]) != room:
            assert target in MAY_IMPORT[room], f"{path.name} of {room}/ imports {name}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_init_is_a_docstring_and_nothing_else(room: str) -> None:
    for init in (ROOT / room).rglob("__init__.py"):
        body = ast.parse(init.read_text(encoding="utf-8")).body
        assert len(body) == 1, f"{init} does more than describe the room"
        assert ast.get_docstring(ast.Module(body=body, type_ignores=[]))


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_nothing_unsafe_is_called(room: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {"dill", "marshal", "shelve"} & set(_imports(tree)), f"{room}: {path.name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in ("eval", "exec", "os.system", "yaml.load", "pickle.load", "pickle.loads"), (
            f"{path.name}: {name}"
        )
        assert keywords.get("shell") != "True", path.name
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", path.name
