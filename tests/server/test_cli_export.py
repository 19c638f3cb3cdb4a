"""`refdiff export` of a real product: a file, what devices fetch, and its check."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from refdiff.server.cli import main

from .conftest import said


def test_a_key_that_is_too_short_stops_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_EXPORT_KEY", "s3cret")
    assert main.run(["goldens", "list"]) == 64
    told = capsys.readouterr().err
    assert "REFDIFF_EXPORT_KEY" in told
    assert "s3cret" not in told


def test_export_is_written_published_recorded_and_verified(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["genpkey", "-algorithm", "ed25519", "-out", "private.pem"],
                      ["pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"]):  # fmt: skip
        subprocess.run(["openssl", *arguments], check=True)
    monkeypatch.setenv("REFDIFF_EXPORT_PRIVATE_KEY", "private.pem")
    code, made = said(capsys, "export", "--product", "board", "--out", "board.refdiff", "--publish")
    assert (code, made["signed"], made["published"], made["product"]) == (0, True, True, "board")
    assert (ready / "home" / "exports" / "board.refdiff").read_bytes() == (ready / "board.refdiff").read_bytes()
    [change] = said(capsys, "audit", "list", "--kind", "export")[1]["changes"]
    assert change["facts"]["subject"] == "board"
    monkeypatch.delenv("REFDIFF_EXPORT_PRIVATE_KEY")
    monkeypatch.setenv("REFDIFF_EXPORT_PUBLIC_KEY", "public.pem")
    code, checked = said(capsys, "export", "verify", "board.refdiff")
    assert (code, checked["sha256"], checked["signature_checked"]) == (0, made["sha256"], True)
    assert main.run(["export", "--product", "board"]) == 64
    assert "--publish" in capsys.readouterr().err


def test_export_says_in_words_that_the_installation_rounds_otherwise(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said_of = {}
    for number_format in ("float32", "bfloat16"):
        monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", number_format)
        assert main.run(["export", "--product", "board", "--publish"]) == 0
        said_of[number_format] = capsys.readouterr().out
    assert "computes in bfloat16, devices in float32" in said_of["bfloat16"]
    assert "computes in" not in said_of["float32"]
