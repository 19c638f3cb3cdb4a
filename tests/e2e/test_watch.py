"""`refdiff watch` killed in the middle: every photo gets one report, one JSON line, one place, at least one message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import line_kills


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.long
def test_watch_killed_twice_loses_and_repeats_no_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    outcome = line_kills.run(tmp_path / "line", photos=60, kills=2, timeout_s=240)
    assert (outcome.reports, outcome.distinct_parts, outcome.lines, outcome.moved) == (60, 60, 60, 60)
    assert (outcome.messages, outcome.left, outcome.quarantined) == (60, 0, 0)
    assert outcome.lines_in_order
    assert outcome.verdicts.get("PASS", 0) > 0
    assert sum(outcome.verdicts.get(v, 0) for v in ("FAIL", "REVIEW")) > 0
