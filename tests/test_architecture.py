"""The rooms, their one-way imports and what no file may do, read from the source."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import tomllib
from collections.abc import Iterator, Mapping, Sequence
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
# The files and sub-folders of each room, top to bottom: each imports only what stands below it.
ORDER = {
    "model": "training boards language difference synthesis thermal height cloud weights_file number_format images "
    "files pixel_formats decode_budget defect_types progress free_memory arrays settings errors wording",
    "tools": "registry exported find_part retrieve_reference align score_difference zoom measure similar_defects "
    "submit_report context evidence golden_samples inspection naming framing workspace kinds caches vision settings",
    "memory": "upkeep audit_export stores audit_store journals records golden_bank changes schema audit_chain "
    "audit_head database artefacts photos locks rows kinds settings timestamps",
    "agent": "service device people evaluation recording inspector graph nodes language filing verdict context "
    "drivers checkpoints work report events prompts request telemetry settings state",
    "server": "cli device web chat mcp watch telemetry model_server vllm_plugin progress base64_images extras sockets "
    "signals rounds env_files settings logs",
}
FILES = [path.relative_to(ROOT) for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
ALL_FILES = [*FILES, *(path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("*.py")))]

# runs code that came from outside, or unpickles it
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "pickle.load",
    "pickle.loads", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.jit.load", "pd.read_pickle",
}  # fmt: skip


def _imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported, at the top or inside a function; also by importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides the direction"
            # `from refdiff import tools` names its room in the alias
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield ast.literal_eval(node.args[0])


def broken_rules(room: str, source: str) -> list[str]:
    """What a file of that room does against the rules; [] if nothing."""
    tree = ast.parse(source)
    found = []
    for name in _imports(tree):
        first, *rest = name.split(".")
        if first in MAY_IMPORT or first == "tests":
            found.append(f"imports {name}: write refdiff.{name}")
        if first == "refdiff" and rest[0] != room and rest[0] not in MAY_IMPORT[room]:
            found.append(f"{room}/ imports {name}")
        if first in UNSAFE_MODULES:
            found.append(f"imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in UNSAFE_CALLS:
            found.append(f"calls {name}")
        if keywords.get("shell", "False") != "False":
            found.append(f"{name} with a shell")
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if keywords.get("verify") == "False":
            found.append(f"{name} trusts any certificate")
    return found


def _module(path: Path) -> str:
    return f"refdiff.{'.'.join(path.with_suffix('').parts)}".removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}


def _imported_modules(path: Path) -> set[str]:
    """Product modules that a file imports, also late or for type checking."""
    names = set(_imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
    return {found for name in names if (found := name if name in MODULES else name.rpartition(".")[0]) in MODULES}


def upward_imports(room: str, order: Sequence[str], imports: Mapping[str, set[str]]) -> list[str]:
    """Imports inside a room that run against its order. imports: module -> modules."""
    place = {box: i for i, box in enumerate(order)}
    found = []
    for module, others in imports.items():
        for other in others:
            if module.split(".")[1] == other.split(".")[1] == room and module.count(".") > 1 < other.count("."):
                mine, its = module.split(".")[2], other.split(".")[2]
                if mine != its and place[mine] > place[its]:
                    found.append(f"{module} imports {other}")
    return sorted(found)


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or around."""
    sorter = graphlib.TopologicalSorter({m: others - {m} for m, others in imports.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as e:
        return [sorted(set(e.args[1]))]
    return []


@pytest.mark.parametrize("room", ORDER)
def test_imports_inside_a_room_follow_its_order(room: str) -> None:
    order = ORDER[room].split()
    boxes = {path.parts[1].removesuffix(".py") for path in FILES if path.parts[0] == room} - {"__init__"}
    assert sorted(order) == sorted(boxes), "each file and sub-folder has its place in ORDER"
    assert upward_imports(room, order, {m: _imported_modules(p) for m, p in MODULES.items()}) == []


def test_files_do_not_import_each_other_in_a_circle() -> None:
    assert circles({m: _imported_modules(p) for m, p in MODULES.items()}) == []


def test_order_rules_report_upward_and_circular_imports() -> None:
    up = {"refdiff.tools.context": {"refdiff.tools.registry"}, "refdiff.tools.registry": set[str]()}
    assert upward_imports("tools", ["registry", "context"], up) == [
        "refdiff.tools.context imports refdiff.tools.registry"
    ]
    assert upward_imports("tools", ["context", "registry"], up) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_root_has_at_most_14_files(room: str) -> None:
    """A room's root holds at most about a dozen files; more belong into a sub-folder with one idea."""
    assert len(list((ROOT / room).glob("*.py"))) <= 14


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_the_code_rules(path: Path) -> None:
    assert broken_rules(path.parts[0], (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [p for p in FILES if "vllm_plugin" in p.parts], ids=str)
def test_vllm_plugin_file_imports_only_the_model_room(path: Path) -> None:
    """It loads in an environment that has neither FastAPI's rooms nor LangGraph nor Qdrant."""
    names = [n for n in _imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))) if n.startswith("refdiff.")]
    assert [n for n in names if not n.startswith(("refdiff.model.", "refdiff.server.vllm_plugin."))] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "from refdiff.memory.stores import Stores"),
        ("model", "def f():\n    import refdiff.tools.vision.registration"),
        ("memory", "from refdiff import tools"),
        (
            "tools",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from refdiff.agent.nodes import build_graph",
        ),
        ("agent", "import importlib\nimportlib.import_module('refdiff.server.cli.main')"),
        ("server", "from agent.graph import build_graph"),
        ("server", "import tests.conftest"),
        ("tools", "import pickle"),
        ("memory", "from pickle import UnpicklingError"),
        ("model", "torch.load(path)"),
        ("model", "torch.load(path, weights_only=False)"),
        ("tools", "np.load(path)"),
        ("tools", "yaml.load(text, Loader=yaml.Loader)"),
        ("agent", "eval(text)"),
        ("server", "subprocess.run(command, shell=True)"),
        ("server", "subprocess.run(command, shell=flag)"),
    ],
)
def test_code_rule_rejects_a_violation(room: str, source: str) -> None:
    assert broken_rules(room, source)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("tools", "yaml.safe_load(text)\nnp.load(path, allow_pickle=False)\nimport tools_of_others"),
        ("model", "torch.load(path, map_location='cpu', weights_only=True)"),
        ("server", "from refdiff import agent"),
    ],
)
def test_code_rules_accept_valid_code(room: str, source: str) -> None:
    assert broken_rules(room, source) == []


@pytest.mark.parametrize("init", [p for p in FILES if p.name == "__init__.py"], ids=str)
def test_init_file_holds_only_a_docstring(init: Path) -> None:
    module = ast.parse((ROOT / init).read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    assert len(module.body) == 1, "it does more than describe"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_docstring_names_what_it_may_import(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "May import" in text
    named = {other for other in MAY_IMPORT if f"refdiff.{other}" in text}
    assert named in ({*MAY_IMPORT[room]}, set()), "the docstring and the table differ"


def test_every_file_is_in_a_room_and_every_package_listed() -> None:
    """Code is in the five rooms and tests; every package is listed in pyproject, or its files miss the wheel."""
    elsewhere = {"tests", "typings", "build", "dist", *MAY_IMPORT}
    folders = [f for f in ROOT.iterdir() if f.is_dir() and not f.is_symlink() and not f.name.startswith(".")]
    outside = [p for f in folders if f.name not in elsewhere for p in f.rglob("*.py")] + list(ROOT.glob("*.py"))
    assert outside == []
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted({f"refdiff.{'.'.join(p.parent.parts)}" for p in FILES}) == sorted(listed)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_typings_link_points_to_the_room(room: str) -> None:
    assert (ROOT / "typings" / "refdiff" / room).resolve() == ROOT / room


def test_test_folders_mirror_the_rooms() -> None:
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert folders <= {*MAY_IMPORT, "bench", "e2e", "fuzz"}


def test_benches_import_only_what_the_product_has() -> None:
    """No test runs most of them, and type checks leave them out."""
    for script in [*(ROOT / "tests/bench").glob("*.py"), *(ROOT / "tests/e2e").glob("*.py")]:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("refdiff."):
                found = importlib.import_module(str(node.module))
                for name in node.names:
                    there = hasattr(found, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")
                    assert there, f"{script.name}: {node.module} has no {name.name}"


@pytest.mark.parametrize("path", ALL_FILES, ids=str)
def test_file_holds_no_machine_path_or_todo(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.name != Path(__file__).name:
        for word in ("/work/", "/tmp/lab", "../shared", "TODO", "FIXME", "XXX", "breakpoint(", "NotImplementedError"):
            assert word not in text, f"{path} holds {word!r}"
