"""Goldens of another encoder, damaged ones and those whose photo is lost: said, and enrolled again from their photos."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from refdiff.memory.golden_bank.golden import point_id
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import DamagedError, UnavailableError, UnknownProductError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.golden_samples.reenroll import reenroll
from refdiff.tools.inspection.retrieval import retrieve_reference
from refdiff.tools.workspace import Workspace

PHOTOS = [Upload(f"{i}.png", encode_png(render("circuit", 1, i, size=(96, 128), noise_seed=i).image)) for i in range(3)]


def opened(root: Path, working_px: int) -> Workspace:
    memory = MemorySettings(home=root / "home", qdrant_url=None, bank_wait_s=1)
    return Workspace.open(memory=memory, model=ModelSettings(cache=root / "cache", working_px=working_px))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A home with three goldens at 96 px, the second flagged."""
    with opened(tmp_path, 96) as workspace:
        result = enroll(workspace, "board", PHOTOS, scale_mm_per_px=0.05, enrolled_by="ann")
        workspace.bank.set_status(result.added[1].golden_id, "flagged", "dark")
    return tmp_path


def test_goldens_of_another_working_size_are_said_and_enrolled_again_as_they_were(root: Path) -> None:
    with opened(root, 96) as workspace:
        before = workspace.bank.list()
    with opened(root, 128) as workspace:
        photo = workspace.encoder.embed(workspace.golden_image(before[0]))
        with pytest.raises(UnknownProductError, match=r"3 golden samples were enrolled.*WORKING_PX.*goldens reenroll"):
            retrieve_reference(workspace, photo, "board")
        assert reenroll(workspace, "another product").restored == []
        seen: list[tuple[int, int]] = []
        result = reenroll(workspace, progress=lambda _, done, total, note="": seen.append((done, total)))
        assert (result.restored, result.refused, seen[-1]) == (before, [], (3, 3))
        assert workspace.bank.list() == before
        assert retrieve_reference(workspace, photo, "board")[0].golden == before[0]
        assert workspace.bank.notes() == []
        assert reenroll(workspace).restored == []
    with opened(root, 96) as workspace:
        assert workspace.bank.list() == before


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_golden_without_its_photo_is_named_with_the_way_out_and_is_no_outage(root: Path, how: str) -> None:
    with opened(root, 96) as workspace:
        golden = workspace.bank.list()[0]
        path = workspace.stores.images.path(golden.sha256)
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(DamagedError) as caught:
            workspace.golden_image(golden)
        assert not isinstance(caught.value, UnavailableError)
        ways = ("refdiff enroll --product board", f"goldens retire {golden.golden_id}")
        for words in (golden.golden_id, golden.filename, str(path), f"is {how}", *ways):
            assert words in str(caught.value)
        enroll(workspace, "board", PHOTOS)
        assert workspace.golden_image(golden).shape == (96, 128, 3)


def test_goldens_whose_photo_is_lost_are_listed_and_the_others_enrolled_again(root: Path) -> None:
    with opened(root, 128) as workspace:
        lost, *others = workspace.bank.of_other_encoders()
        workspace.stores.images.path(lost.sha256).unlink()
        result = reenroll(workspace)
        assert result.restored == others
        assert [(r.golden_id, r.filename) for r in result.refused] == [(lost.golden_id, lost.filename)]
        assert "is missing" in result.refused[0].reason


@pytest.mark.parametrize("part", ["vectors", "record"])
def test_damaged_golden_is_restored_from_its_photo(root: Path, part: str) -> None:
    with opened(root, 96) as workspace:
        golden = workspace.bank.list()[1]
    with closing(sqlite3.connect(root / "home" / "goldens.sqlite")) as conn, conn:
        column = {"vectors": "patches", "record": "record"}[part]
        conn.execute(f"UPDATE goldens SET {column} = 'x' WHERE point = ?", (point_id(golden.golden_id),))
    with opened(root, 96) as workspace:
        assert [d.golden_id for d in workspace.bank.damaged()] == [golden.golden_id]
        (restored,) = reenroll(workspace).restored
        assert (restored.golden_id, restored.product, restored.sha256) == (
            golden.golden_id,
            golden.product,
            golden.sha256,
        )
        assert (restored == golden) == (part == "vectors")
        assert restored.status == "flagged"
        assert part == "vectors" or "scale" in restored.note
        assert workspace.bank.damaged() == []


def test_damaged_golden_without_record_and_photo_is_refused_with_the_reason(root: Path) -> None:
    with opened(root, 96) as workspace:
        golden = workspace.bank.list()[1]
        workspace.stores.images.path(golden.sha256).unlink()
    with closing(sqlite3.connect(root / "home" / "goldens.sqlite")) as conn, conn:
        conn.execute("UPDATE goldens SET record = '' WHERE point = ?", (point_id(golden.golden_id),))
    with opened(root, 96) as workspace:
        result = reenroll(workspace)
        assert result.restored == []
        assert [r.golden_id for r in result.refused] == [golden.golden_id]
        assert "enrol its photo again" in result.refused[0].reason
        assert len(enroll(workspace, "board", PHOTOS).added) == 1
        assert workspace.bank.damaged() == []
