"""The documentation agrees with the code: settings, commands, links, and the picture of the architecture."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from architecture_picture import PICTURE, picture
from pydantic import AliasChoices
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.server.cli.main import app
from refdiff.server.device.settings import DeviceSettings
from refdiff.server.settings import ChatSettings, ServerSettings
from refdiff.tools.exported.archive import ExportSettings
from refdiff.tools.settings import ToolsSettings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "model" / "weights").glob("*.md")]
SETTINGS: tuple[type[BaseSettings], ...] = (
    AgentSettings, ChatSettings, DeviceSettings, ExportSettings, MemorySettings, ModelSettings, ServerSettings,
    ToolsSettings,
)  # fmt: skip


def _variables() -> dict[str, Any]:
    """Environment variable -> default, of all settings; the first name where there are several."""
    found = {}
    for settings in SETTINGS:
        for name, field in settings.model_fields.items():
            alias = field.validation_alias
            variable = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"REFDIFF_{name.upper()}"
            found[variable] = field.get_default(call_default_factory=field.default_factory is dict)
    return found


def _documented() -> dict[str, str]:
    """Variable -> default, of the tables in docs/settings.md."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", text, re.MULTILINE))


def test_settings_page_lists_every_setting_and_no_other() -> None:
    assert sorted(_documented()) == sorted(_variables())


def test_settings_page_shows_the_defaults_of_the_code() -> None:
    shown = _documented()
    for variable, default in _variables().items():
        if default not in (None, PydanticUndefined, ""):
            expected = str(default).lower() if isinstance(default, bool) else str(default)
            assert shown[variable].strip("`") == expected, variable


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_name_only_settings_that_exist(page: Path) -> None:
    named = set(re.findall(r"\bREFDIFF_[A-Z_]+[A-Z]", page.read_text(encoding="utf-8")))
    known = {n for v in _variables() for n in (v, f"REFDIFF_{v}")}
    assert named - known - {"REFDIFF_LONG", "REFDIFF_ENV_FILE"} == set()  # of the tests, of the command line


def test_readme_has_at_most_130_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def _commands(page: Path, inline: bool) -> list[list[str]]:
    """The words after `refdiff` of each command in a page's console blocks, or in backticks inside its text."""
    text = page.read_text(encoding="utf-8")
    if inline:
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        return [shlex.split(line) for line in re.findall(r"`refdiff ([^`]+)`", prose)]
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = (shlex.split(line.removeprefix("$ "), comments=True) for line in "\n".join(blocks).splitlines()
             if re.match(r"(\$ )?(\w+=\S+ )*refdiff ", line))  # fmt: skip
    return [words[words.index("refdiff") + 1 :] for words in lines]


@pytest.mark.parametrize("inline", [False, True], ids=["console", "text"])
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_documented_commands_exist_with_their_options(page: Path, inline: bool) -> None:
    """Required options may be missing only from a command that is named in the text."""
    for words in _commands(page, inline):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        shown = f"refdiff {shlex.join(words)}"
        assert rest != words, shown
        assert inline or not hasattr(command, "commands"), shown
        known = {flag: p for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        given = [word.partition("=")[0] for word in rest if word.startswith("-")]
        if not command.context_settings.get("ignore_unknown_options"):
            assert set(given) <= set(known), shown
        missing = {p.name for p in command.params if p.required and p.param_type_name == "option"}
        assert inline or missing <= {known[flag].name for flag in given if flag in known}, (
            f"refdiff {shlex.join(words)}"
        )


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_have_targets(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(h) for h in headings}, f"{page.name}: {link}"


def test_every_page_and_picture_of_docs_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
    assert {p for p in (ROOT / "docs").iterdir() if p.is_file()} - linked == set()


def test_picture_of_the_architecture_shows_the_tree() -> None:
    """Names of files and folders, and arrows; not their purposes, which are wording."""
    drawn, current = (re.findall(r'class="[tf]">[^<]+|<path d="M\d+ ', s)
                      for s in (PICTURE.read_text(encoding="utf-8"), picture()))  # fmt: skip
    assert drawn == current, "run: python tests/bench/architecture_picture.py"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: p.name)
def test_pages_name_files_that_exist(page: Path) -> None:
    named = re.findall(
        r"\b(?:server|agent|tools|memory|model|tests)/[a-z_/]+\.[a-z]+", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
