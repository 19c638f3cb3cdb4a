"""Compare what the product answers with what it answered before: numbers and structure strictly, wording separately.

A case is two files under `snapshots/expected`: `<case>.json` is the answer with its prose replaced by "<text>";
`<case>.words.json` is that prose alone, by path. So a change of wording touches no file that holds a number.

REFDIFF_SNAPSHOT_STRICT=1: for a change on one machine; numbers, also those in prose, and pictures must be the same.
REFDIFF_SNAPSHOT_WRITE=1 writes both files, =words the second one alone. Look at what git says changed before you commit.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "snapshots"
STRICT = os.environ.get("REFDIFF_SNAPSHOT_STRICT") == "1"
WRITE = os.environ.get("REFDIFF_SNAPSHOT_WRITE", "")

# fields that say something in words; of a list all items
PROSE = {
    "answer", "basis", "description", "message", "note", "notes", "reason", "reasoning", "request", "summary", "text",
    "unsupported_claims_dropped", "verdict_reason",
}  # fmt: skip
# fields that differ from run to run or from version to version
VOLATILE = {"ms", "ms_per_image", "seconds", "seconds_each", "timings_ms", "version"}
MASKS = [
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"insp-\d{8}-\d{6}-[0-9a-f]{8}"), "<inspection>"),
    (re.compile(r"\bc-[0-9a-f]{12}\b"), "<capture>"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "<address>"),
]
NUMBER = re.compile(r"(?<![\w-])[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
DIGEST = re.compile(r"[0-9a-f]{64}")
PIXELS = re.compile(r"(?:^|_)(?:x0|y0|x1|y1|px)$")  # whole pixels: corners of boxes, areas and lengths


def masked(value: Any, root: Path) -> Any:
    """The answer without what differs from run to run: times, new ids, ports and the folder `root`."""
    if isinstance(value, dict):
        return {k: "<varies>" if k in VOLATILE and v is not None else masked(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [masked(v, root) for v in value]
    if isinstance(value, str):
        # reports that were filed before name the folder in which the fixture was made
        for folder in (str(root), "/tmp/refdiff-home"):
            value = value.replace(folder, "<root>")
        for pattern, name in MASKS:
            value = pattern.sub(name, value)
    return value


def words_of(value: Any, path: str = "", prose: bool = False) -> Iterator[tuple[str, str]]:
    """(path, text) of each prose that is not empty."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from words_of(item, f"{path}.{name}" if path else name, name in PROSE)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from words_of(item, f"{path}[{number}]", prose)
    elif prose and isinstance(value, str) and value:
        yield path, value


def without_words(value: Any, prose: bool = False) -> Any:
    if isinstance(value, dict):
        return {name: without_words(item, name in PROSE) for name, item in value.items()}
    if isinstance(value, list):
        return [without_words(item, prose) for item in value]
    return "<text>" if prose and isinstance(value, str) and value else value


def differences(expected: Any, actual: Any, strict: bool = False, path: str = "") -> list[str]:
    """What differs, a line each; [] if nothing does."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        found = [f"{path}.{name}: {'gone' if name in expected else 'new'}" for name in expected.keys() ^ actual.keys()]
        for name in expected.keys() & actual.keys():
            found += differences(expected[name], actual[name], strict, f"{path}.{name}")
        return sorted(found)
    if isinstance(expected, list) and isinstance(actual, list):
        found = [] if len(expected) == len(actual) else [f"{path}: {len(expected)} items became {len(actual)}"]
        for number, pair in enumerate(zip(expected, actual, strict=False)):
            found += differences(*pair, strict, f"{path}[{number}]")
        return found
    return [] if _same(expected, actual, strict, path) else [f"{path}: {expected!r} became {actual!r}"]


def _same(expected: Any, actual: Any, strict: bool, path: str) -> bool:
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (expected, actual)):
        if isinstance(expected, float) or isinstance(actual, float):
            relative, absolute = (1e-6, 1e-6) if strict else (2e-3, 2e-4)
            return math.isclose(expected, actual, rel_tol=relative, abs_tol=absolute)
        pixels = not strict and PIXELS.search(path.rpartition(".")[2])
        # number formats of other machines move outlines by a fraction of a pixel, and large areas by some pixels
        return abs(expected - actual) <= (max(2, 5e-3 * abs(expected)) if pixels else 0)
    if not strict and ".images." in path:  # pictures that were computed
        return bool(DIGEST.fullmatch(str(expected)) and DIGEST.fullmatch(str(actual)))
    return type(expected) is type(actual) and bool(expected == actual)


def check(case: str, answer: Any, root: Path) -> None:
    """The answer is as it was; only what `masked` takes away may differ."""
    answer = masked(answer, root)
    plain, words = without_words(answer), dict(words_of(answer))
    files = FOLDER / "expected" / f"{case}.json", FOLDER / "expected" / f"{case}.words.json"
    for file, found, write in zip(files, (plain, words), (WRITE == "1", WRITE in ("1", "words")), strict=True):
        if write:
            file.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    expected, said = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    if not STRICT:
        said, words = ({path: NUMBER.sub("#", text) for path, text in w.items()} for w in (said, words))
    found = differences(expected, plain, STRICT, case) + differences(said, words, STRICT, f"{case} (words)")
    assert not found, "\n".join(["", *found])
