"""Folders of any contents: each file is taken, refused, or left out and counted."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from refdiff.agent.evaluation.layouts import read_dataset
from refdiff.model.errors import InputError
from refdiff.model.images import may_be_image
from refdiff.server.watch.folder import FOLDERS, WatchedFolder
from refdiff.tools.golden_samples.photos import Refusal, find_images

from .driver import corpus, fuzz, in_time
from .image_files import as_bytes, images

_FOLDERS = ["train", "test", "ground_truth", "validation", "good", "OK", "crack", "Crack", "001", "2026-11-28", ".hidden",
            "done", "a b"]  # fmt: skip
_STEMS = ["001", "001_mask", "001_GT", "001_2", "4412", "Thumbs", "camera", ".hidden", "a.b", "\u00e4"]
_SUFFIXES = [".png", ".PNG", ".jpg", ".jfif", ".tif", ".heic", ".avif", ".xml", ".log", ".db", ".tmp", ".gif", ""]
_contents = st.one_of(images, st.sampled_from(["", "PHg+"]))
_paths = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem + suffix]),
    st.lists(st.sampled_from(_FOLDERS), max_size=4), st.sampled_from(_STEMS), st.sampled_from(_SUFFIXES),
)  # fmt: skip
_laid_out = st.builds(
    lambda place, inner, stem, suffix: "/".join([place, *inner, stem + suffix]),
    st.sampled_from(["train/good", "test/good", "test/OK", "test/crack", "ground_truth/crack", "ground_truth/Crack"]),
    st.lists(st.sampled_from(_FOLDERS), max_size=1), st.sampled_from(_STEMS), st.sampled_from(_SUFFIXES),
)  # fmt: skip
folders = st.dictionaries(st.one_of(_paths, _laid_out), _contents, max_size=12)


def check(case: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, content in case.items():
            path = root / name
            if path.is_dir() or any(p.is_file() for p in path.parents):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_bytes(content))
        shown = [p for p in sorted(root.rglob("*")) if p.is_file() and not _hidden(p.relative_to(root))]
        with in_time():
            _enrolled(root, shown)
            _evaluated(root, shown)
            _watched(root, shown)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _enrolled(root: Path, shown: list[Path]) -> None:
    refused: list[Refusal] = []
    others: list[Path] = []
    found = list(find_images([root], refused, others))
    assert sorted(map(str, [*found, *others])) == sorted(map(str, shown))
    assert len(refused) == (not found)


def _evaluated(root: Path, shown: list[Path]) -> None:
    try:
        data = read_dataset(root)
    except InputError:
        return
    assert {s.kind == "good" for s in data.test if not s.defective} <= {True}
    read = {*data.train, *(s.path for s in data.test), *(mask for s in data.test for mask in s.masks)}
    counted = [
        re.match(r"(\d+) (?:images in .* not part of the layout|masks belong to no test image)", n) for n in data.notes
    ]
    left_out = sum(int(found[1]) for found in counted if found)
    of_images = [path for path in shown if may_be_image(path)]
    assert len(read) + left_out >= len(of_images), data.notes
    assert read <= set(of_images)


def _watched(root: Path, shown: list[Path]) -> None:
    for recursive in (False, True):
        folder = WatchedFolder(root, keep=False, recursive=recursive, settle_s=-1)
        ready = {i.name for i in folder.complete()}
        alone = {name for kind, names in folder.left_alone.items() if kind != FOLDERS for name in names}
        inside = {p.relative_to(root).as_posix() for p in shown}
        unwatched = set() if recursive else set(folder.left_alone.get(FOLDERS, []))
        missed = {name for name in inside - ready - alone if name.split("/")[0] not in unwatched}
        assert not ready & alone
        assert {name for name in missed if not name.startswith(("done/", "quarantine/"))} == set()


@pytest.mark.parametrize("case", corpus("folders"))
def test_kept_folder_leaves_nothing_out_silently(case: Any) -> None:
    check(case)


@pytest.mark.fuzzing
@pytest.mark.timeout(0)
def test_generated_folders_leave_nothing_out_silently() -> None:
    assert fuzz("folders", folders, check) > 0
