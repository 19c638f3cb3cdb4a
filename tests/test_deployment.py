"""Dockerfile and compose file agree with the code (read only; no image is built)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
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


def test_dockerfile_and_makefile_uninstall_the_same_packages_from_vllm() -> None:
    removed = re.findall(r"pip uninstall .*?-y ([a-z ]+)", DOCKERFILE + (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(removed) == 2
    assert len({r.strip() for r in removed}) == 1


def test_compose_documents_making_the_first_key_before_the_server_runs() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert "docker compose run --rm --no-deps --build app keys add" in text  # `exec` needs a server, which needs a key
    assert 'ENTRYPOINT ["refdiff"]' in (ROOT / "Dockerfile").read_text(encoding="utf-8")
