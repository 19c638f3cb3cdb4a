"""Dockerfile and compose file agree with the code (read only; no image is built)."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic_settings import BaseSettings

from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.server.settings import ChatSettings, ServerSettings

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SETTINGS: tuple[type[BaseSettings], ...] = (AgentSettings, ChatSettings, MemorySettings, ModelSettings, ServerSettings)


def _known_variables() -> set[str]:
    found = set()
    for settings in SETTINGS:
        for name, field in settings.model_fields.items():
            alias = field.validation_alias
            found.add(str(alias).upper() if isinstance(alias, str) else f"REFDIFF_{name.upper()}")
    return found | {"QDRANT_URL", "QDRANT_API_KEY"}


def _stage(name: str) -> str:
    return DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]


def test_dockerfile_copies_only_existing_files_that_are_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert Path(source).parts[0] in allowed, source


def test_both_images_contain_every_room() -> None:
    for stage in ("app", "vllm"):
        assert {"agent", "memory", "model", "server", "tools"} <= set(
            re.findall(r"^COPY (\w+) ", _stage(stage), re.MULTILINE)
        )


def test_compose_uses_only_settings_that_exist() -> None:
    named = set(COMPOSE["services"]["app"]["environment"]) | set(re.findall(r"\b(REFDIFF_\w+)=", _stage("app")))
    assert named <= _known_variables(), named - _known_variables()


def test_compose_services_call_the_ports_they_listen_on() -> None:
    app = COMPOSE["services"]["app"]
    assert app["environment"]["REFDIFF_LLM_BASE_URL"] == "http://vllm:8001/v1"
    command = json.loads(re.findall(r"^ENTRYPOINT (.+)$", _stage("vllm"), re.MULTILINE)[0])
    assert command[command.index("--port") + 1] == "8001"
    assert app["ports"] == ["127.0.0.1:8000:8000"], "nothing is published beyond this machine"
    assert [s for s, about in COMPOSE["services"].items() if "ports" in about] == ["app"]


def test_compose_secrets_have_no_default_and_images_do_not_run_as_root() -> None:
    for about in COMPOSE["services"].values():
        for name, value in about["environment"].items():
            if "KEY" in name:
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name
    for stage in ("app", "vllm"):
        assert "USER refdiff" in _stage(stage)


def test_images_are_pinned_by_digest() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    images = [i for i in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) if i not in stages]
    images += [s["image"] for s in COMPOSE["services"].values() if "image" in s]
    assert len(images) >= 2
    for image in images:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_dockerfile_and_makefile_uninstall_the_same_packages_from_vllm() -> None:
    removed = re.findall(r"pip uninstall .*?-y ([a-z ]+)", DOCKERFILE + (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(removed) == 2
    assert len({r.strip() for r in removed}) == 1


def test_compose_documents_making_the_first_key_before_the_server_runs() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert "docker compose run --rm --no-deps --build app keys add" in text  # `exec` needs a server, which needs a key
    assert 'ENTRYPOINT ["refdiff"]' in (ROOT / "Dockerfile").read_text(encoding="utf-8")


# ---- constraints: see constraints/README.md ----

UNHASHED = re.compile(r"torch|triton|cuda-.*|nvidia-.*")


def _pins(name: str) -> dict[str, tuple[str, int]]:
    """Package -> version and number of hashes."""
    found, package = {}, ""
    for line in (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            package = canonicalize_name(match[1])
            found[package] = (match[2], 0)
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            found[package] = (found[package][0], found[package][1] + 1)
    return found


def _needed(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Everything that these requirements install here, through all levels."""
    found: set[tuple[str, str]] = set()
    left = [(Requirement(r), extras) for r in requirements]
    while left:
        requirement, wanted = left.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in wanted or [""]):
            continue
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in found:
                continue
            found.add(key)
            try:
                left += [(Requirement(r), [extra]) for r in requires(requirement.name) or []]
            except PackageNotFoundError:  # an extra that is not installed here
                continue
    return {name for name, _ in found}


@pytest.mark.parametrize("name", ["develop", "app"])
def test_hashed_pins_agree_with_the_versions(name: str) -> None:
    versions, hashed = _pins("cpu"), _pins(name)
    assert len(hashed) > 100
    assert {n: v for n, (v, _) in hashed.items()} == {n: versions[n][0] for n in hashed}, "run: make pins"
    assert [n for n, (_, hashes) in hashed.items() if not hashes] == []


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("develop", ["demo", "mcp", "openvino", "postgres", "s3", "slack", "teams", "thermal", "train", "dev"]),
        ("app", ["mcp", "openvino", "postgres", "s3", "slack", "teams", "thermal", "train"]),
    ],
)
def test_everything_that_is_installed_is_pinned_with_hashes(name: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e]), "setuptools"]
    missing = {n for n in _needed(asked) if not UNHASHED.fullmatch(n)} - set(_pins(name))
    assert missing == set(), "add them to constraints/cpu.txt, and run: make pins"


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    pins = _pins("cpu")
    for requirement in map(Requirement, asked):
        if requirement.name != "refdiff":
            version, _ = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_makefile_and_dockerfile_install_by_hash_before_anything_else() -> None:
    for text, name in ((DOCKERFILE, "app"), ((ROOT / "Makefile").read_text(encoding="utf-8"), "develop")):
        hashed = text.index(f"--no-deps --require-hashes -r constraints/{name}.txt")
        assert hashed < text.index("-c constraints/cpu.txt torch") < text.index("--no-deps --no-build-isolation")
