"""Generated cases for a fixed time, and the corpus of what they found.

A case is JSON data. What fails is shrunk by hypothesis and kept in `corpus/<kind>/`; commit it with the mending. `make test`
replays the corpus; `make fuzz` generates cases for REFDIFF_FUZZ_S seconds, shared by the kinds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("REFDIFF_FUZZ_S", "0"))  # read now: fixtures clear the environment
CORPUS = Path(__file__).parent / "corpus"
KINDS = ("images", "requests", "chats", "folders")
LIMIT_S = 10.0  # nothing may take longer
_ROUND = 50  # cases between two looks at the clock

Check = Callable[[Any], None]


def corpus(kind: str) -> list[Any]:
    """The kept cases of a kind, for pytest.mark.parametrize."""
    found = sorted((CORPUS / kind).glob("*.json"))
    return [pytest.param(json.loads(path.read_text(encoding="utf-8")), id=path.stem) for path in found]


@contextmanager
def in_time() -> Iterator[None]:
    """Fails if the block takes longer than LIMIT_S of computing; on a busy machine it may wait for its turn."""
    began, computed = time.monotonic(), time.process_time()
    yield
    took, computed = time.monotonic() - began, time.process_time() - computed
    assert computed < LIMIT_S, f"took {computed:.1f} s of computing"
    assert took < 10 * LIMIT_S, f"took {took:.1f} s"


def fuzz(kind: str, cases: st.SearchStrategy[Any], check: Check) -> int:
    """Check new cases for the share of this kind; the number checked. A case that fails is kept, and fails the test."""
    began, count, failing = time.monotonic(), 0, None

    @settings(
        max_examples=_ROUND, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def round_(case: Any) -> None:
        nonlocal count, failing
        count += 1
        try:
            check(case)
        except Exception:
            failing = case  # the last one that fails is the smallest
            raise

    try:
        while time.monotonic() < began + SECONDS / len(KINDS):
            round_()
    except BaseException:
        if failing is not None:
            text = json.dumps(failing, ensure_ascii=True, indent=1) + "\n"
            name = hashlib.sha256(text.encode()).hexdigest()[:12]
            (CORPUS / kind / f"{name}.json").write_text(text, encoding="utf-8")
        raise
    finally:
        print(f"{kind}: {count:,} cases in {time.monotonic() - began:.0f} s", flush=True)
    return count
