"""Files of settings: which are read, in what order, and that a folder that somebody supplied has no say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.server.cli import main
from refdiff.server.env_files import own_file, read_env_files
from refdiff.server.settings import ConfigurationError, load_settings

REFDIFF = Path(sys.executable).with_name("refdiff")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The process's environment, which the test may change; the working folder is an empty one."""
    own = dict(os.environ)
    monkeypatch.setattr(os, "environ", own)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return own


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


DOWNLOADED = (
    "REFDIFF_HOME=./sample-home", "REFDIFF_CACHE=./cache", "REFDIFF_LLM_BASE_URL=http://127.0.0.1:9/v1",
    "REFDIFF_VLLM_PYTHON=./python", "REFDIFF_ENCODER=./encoder", "QDRANT_URL=http://127.0.0.1:9",
    "SLACK_BOT_TOKEN=xoxb-theirs", "REFDIFF_REFERENCES=7", "REFDIFF_ENV_FILE=.env",
)  # fmt: skip


def test_env_file_of_the_working_folder_changes_nothing_and_is_told_once(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_settings()
    write(Path(".env"), *DOWNLOADED)
    read_env_files()
    assert load_settings() == before
    assert main.run(["keys", "list"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count(".env in this folder is not read") == 1
    assert "refdiff --env-file .env" in captured.err
    assert not Path("sample-home").exists()
    assert main.run(["keys", "list", "--json"]) == 0
    assert ".env" not in capsys.readouterr().err
    write(Path(".env"), "DATABASE_URL=postgres://of-another-program")
    assert main.run(["keys", "list"]) == 0
    assert ".env" not in capsys.readouterr().err


def test_env_file_of_a_home_changes_nothing(environment: dict[str, str]) -> None:
    before = load_settings()
    for name in (".env", "settings.env", "config"):
        write(Path(environment["REFDIFF_HOME"]) / name, *DOWNLOADED)
    read_env_files()
    assert load_settings() == before


def test_option_beats_environment_beats_named_file_beats_own_file(environment: dict[str, str]) -> None:
    names = ("REFERENCES", "ALPHA", "WORKING_PX", "QUEUE_LIMIT")
    own, theirs = zip(names, (1, 0.1, 101, 11), strict=True), zip(names, (2, 0.2, 102), strict=False)
    write(own_file(), *(f"REFDIFF_{n}={v}" for n, v in own))
    named = write(Path("named.env"), "# ours", *(f"export REFDIFF_{n}={v}" for n, v in theirs))
    environment |= {"REFDIFF_REFERENCES": "3", "REFDIFF_ALPHA": "0.3"}
    read_env_files(named)
    found = load_settings(references=4)
    assert (found.tools.references, found.tools.alpha, found.model.working_px, found.agent.queue_limit) == (
        4, 0.3, 102, 11,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["option", "variable"])
def test_named_file_is_read_by_every_command(tmp_path: Path, how: str, environment: dict[str, str]) -> None:
    home = tmp_path / "named-home"
    write(Path(".env"), f"refdiff_home={home}")
    del environment["REFDIFF_HOME"]
    option = ["--env-file", ".env"] if how == "option" else []
    named = {"REFDIFF_ENV_FILE": ".env"} if how == "variable" else {}
    done = subprocess.run(
        [str(REFDIFF), *option, "keys", "list"], env=environment | named, capture_output=True, text=True, check=True
    )
    assert home.is_dir()
    assert ".env" not in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file; correct --env-file or REFDIFF_ENV_FILE"), (b"REFDIFF_USER=\xff", "cannot be read")],
)
def test_named_file_that_cannot_be_read_is_a_usage_error(
    content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("named.env").write_bytes(content)
    assert main.run(["--env-file", "named.env", "keys", "list"]) == ConfigurationError.exit_code == 64
    assert f"named.env: {message}" in capsys.readouterr().err


def test_bad_value_of_any_part_stops_every_command(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    environment["REFDIFF_REFERENCES"] = "many"
    assert main.run(["keys", "list"]) == 64
    assert "REFDIFF_REFERENCES=many" in capsys.readouterr().err


def test_empty_settings_count_as_unset(environment: dict[str, str]) -> None:
    for name in ("HOME", "CACHE", "ENCODER", "DIFFERENCE_WEIGHTS", "VLLM_PYTHON", "ALPHA", "USER"):
        environment[f"REFDIFF_{name}"] = ""
    found = load_settings()
    here = Path.cwd()
    assert here not in (found.memory.home, found.model.cache.absolute())
    assert (found.model.encoder, found.model.difference_weights, found.server.vllm_python) == (None, None, None)
    assert (found.tools.alpha, bool(found.server.user)) == (0.01, True)
    write(own_file(), "QDRANT_URL=http://there:6333")
    environment["QDRANT_URL"] = ""
    read_env_files()
    assert load_settings().memory.qdrant_url is None  # back to the embedded bank for this command
