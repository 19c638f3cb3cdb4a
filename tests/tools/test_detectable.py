"""How small a defect is found: as an inspection would find it, the same each time, and kept with the calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.memory.records.calibrations import Calibration, MarksFound
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.marks import Mark, drawn, room
from refdiff.model.synthesis.render import Pose, render
from refdiff.tools.framing.photos import Query
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection import detectable as module
from refdiff.tools.inspection.calibration import calibrate, score_threshold, summary
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.detectable import detectable, find_marks
from refdiff.tools.inspection.overview import product_overview
from refdiff.tools.inspection.pairs import pair_with
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

SIZE = (96, 128)
PARTS = 6


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("detectable")
    memory = MemorySettings(home=folder / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=folder / "cache", working_px=128)
    with Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=2)) as opened:
        for part in range(PARTS):
            path = folder / f"{part}.png"
            path.write_bytes(encode_png(render("circuit", 1, part, size=SIZE, noise_seed=part).image))
            enroll(opened, "board", [path], scale_mm_per_px=0.1)
        yield opened


@pytest.mark.parametrize(("length", "width"), [(5, 5), (20, 2), (9, 4)])
def test_mark_has_the_stated_size_and_contrast_and_lies_where_it_may(length: float, width: float) -> None:
    image = np.full((80, 100, 3), 200, np.uint8)
    allowed = np.zeros((80, 100), bool)
    allowed[10:70, 20:90] = True
    mark = Mark(length, width, 0.4)
    ys, xs = np.nonzero(room(mark, allowed))
    for i, turn in ((0, 0.0), (len(xs) - 1, 1.0)):
        changed = (drawn(image, mark, (int(xs[i]), int(ys[i])), turn) != image).any(2)
        assert (changed & ~allowed).sum() == 0
    here = drawn(image, mark, (50, 40), 0.0)
    part = (200 - here[..., 0].astype(float)) / 80  # of each px that is covered
    assert part.max() == 1.0
    assert part[40].sum() == pytest.approx(length, abs=0.3)
    assert part[:, 50].sum() == pytest.approx(width, abs=0.3)
    assert not room(Mark(200, 2, 0.4), allowed).any()
    assert (drawn(np.zeros_like(image), mark, (50, 40), 0.0)[40, 50] == 102).all()  # brighter where it is dark


def calibration(workspace: Workspace, n: int, marks: list[MarksFound]) -> Calibration:
    """Of n parts, with the scores 1 to n."""
    scores = [float(i + 1) for i in range(n)]
    return replace(calibrate(workspace, "board"), n=n, scores=scores, golden_ids=[], marks=marks)


def marks(shape: str, *shares: float) -> list[MarksFound]:
    """Sizes 1, 2, ..., of 20 marks each, of which such shares score 96.5, the others 50."""
    return [
        MarksFound(shape, i + 1, 1, 0.4, [96.5] * round(20 * share) + [50.0] * (20 - round(20 * share)))
        for i, share in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("shares", "smallest"),
    [((0.5, 0.95, 1), 2), ((1, 1, 1), 1), ((0.95, 0.5, 1), 3), ((1, 1, 0.9), None), ((0, 0, 0), None)],
)
def test_smallest_size_is_that_from_which_on_all_are_found(
    workspace: Workspace, shares: tuple[float, ...], smallest: int | None
) -> None:
    found = detectable(workspace, calibration(workspace, 99, marks("spot", *shares)))  # p-values of .04 and .51
    assert found is not None
    for row in found["found"]:
        if row["alpha"] < 0.05:
            assert row["smallest"] is None
        else:
            assert (row["smallest"] or {}).get("working_px") == smallest
            assert row["largest_tried"] == {"working_px": 3, "px": 3, "mm": 0.3}
    assert len(found["summary"]) == 3
    words = "are missed too often" if smallest is None else f"spots from 0.{smallest} mm ({smallest} px) across"
    assert words in found["summary"][2]


@pytest.mark.parametrize(
    ("parts", "rates"),
    [
        (19, ["0.01, 0.02, 0.05 (attained 0.05)"]),
        (20, ["0.01, 0.02 (attained 0.0476)", "0.05"]),
        (50, ["0.01 (attained 0.0196)", "0.02", "0.05"]),
        (98, ["0.01 (attained 0.0101)", "0.02", "0.05"]),
        (99, ["0.01", "0.02", "0.05"]),
    ],
)
def test_attained_rate_is_that_of_the_calibration_and_said_wherever_it_is_not_the_one_asked_for(
    workspace: Workspace, parts: int, rates: list[str]
) -> None:
    known = calibration(workspace, parts, marks("spot", 1, 1))
    found = detectable(workspace, known)
    assert found is not None
    assert [line.partition(":")[0] for line in found["summary"]] == [f"alpha {rate}" for rate in rates]
    promised = {alpha: summary(known, alpha)["alpha"] for alpha in module.ALPHAS}
    assert {
        row["alpha"]: {"requested": row["alpha"], "attained": row["attained"]} for row in found["found"]
    } == promised


@pytest.mark.parametrize("n", [20, 60, 99])
def test_mark_is_found_from_the_score_on_above_which_a_part_fails(workspace: Workspace, n: int) -> None:
    known = calibration(workspace, n, [])
    for alpha in module.ALPHAS:
        limit = score_threshold(known.scores, alpha)
        assert limit is not None
        for score, found in ((limit, False), (limit + 0.5, True)):
            told = detectable(workspace, replace(known, marks=[MarksFound("spot", 1, 1, 0.4, [score])]))
            assert told is not None
            assert [r["smallest"] is not None for r in told["found"] if r["alpha"] == alpha] == [found]


def test_marks_score_as_in_an_inspection_and_are_kept_with_the_calibration(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = calibrate(workspace, "board")
    assert product_overview(workspace, "board")["calibration"].get("detectable") is None
    with pytest.raises(InputError, match="6 parts"):
        find_marks(workspace, measured)
    golden = workspace.bank.get(measured.golden_ids[0])
    part = module._Part.of(workspace, golden, measured.references)
    rng = np.random.default_rng(0)
    nothing = part.score_with(Mark(4, 4, 0.0), rng)
    assert nothing == pytest.approx(measured.scores[0], rel=1e-3)  # drawn without contrast: the calibration's own score
    mark = Mark(16, 16, 0.6)
    score = part.score_with(mark, np.random.default_rng(3))
    assert score is not None
    rng = np.random.default_rng(3)
    ys, xs = np.nonzero(room(mark, part.allowed))
    turn = float(rng.uniform(0, np.pi))
    i = int(rng.integers(len(ys)))
    photo = drawn(workspace.golden_image(golden), mark, (int(xs[i]), int(ys[i])), turn)  # the frame is the photo's size
    inspected = compare(workspace, photo, "board", exclude_ids=[golden.golden_id]).difference.score
    assert score == pytest.approx(inspected, rel=0.1)
    assert score > 1.5 * nothing

    monkeypatch.setattr(module, "MIN_PARTS_TO_FAIL", PARTS)
    monkeypatch.setattr(module, "_MARKS", 6)
    monkeypatch.setattr(
        module, "_SIZES", [("spot", Mark(d, d, 0.4)) for d in (2, 24)] + [("stroke", Mark(300, 2, 0.4))]
    )
    made = find_marks(workspace, measured)
    assert [(m.shape, m.length, len(m.scores)) for m in made.marks] == [("spot", 2, 6), ("spot", 24, 6)]
    assert np.mean(made.marks[0].scores) < np.mean(made.marks[1].scores)
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SIZES", [("stroke", Mark(300, 2, 0.4))])
        with pytest.raises(InputError, match="none of the tried sizes fits"):
            find_marks(workspace, measured)
    again = calibrate(workspace, "board")  # measured anew, with the same outcome
    assert find_marks(workspace, again, lambda what, *more: steps.append(what)) == again
    assert (again.marks, steps) == (made.marks, [])
    shown = product_overview(workspace, "board")["calibration"]["detectable"]
    assert shown == detectable(workspace, again)
    assert workspace.stores.audit.verify_store().problem is None
    repeated: Calibration = find_marks(workspace, replace(again, marks=[]))
    assert repeated.marks == made.marks


def test_mark_changes_nothing_beyond_the_end_of_a_photo_that_is_compared_in_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=tmp_path / "cache", working_px=128)
    with Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=1)) as workspace:
        for part, angle in enumerate((0.0, 0.0, 25.0)):  # the corners of the frame lie beyond the last
            scene = render("circuit", 1, part, size=(480, 480), pose=Pose(angle_deg=angle), noise_seed=part)
            path = tmp_path / f"{part}.png"
            path.write_bytes(encode_png(scene.image))
            enroll(workspace, "board", [path])
        workspace.stores.products.set_spec("board", {"smallest_defect_px": 3})
        golden = next(g for g in workspace.bank.list("board") if g.filename == "2.png")
        photo = Query(workspace.golden_image(golden), golden.sha256, workspace.golden_features(golden))
        hits = nearest_goldens(workspace, photo, "board", 1, [golden.golden_id])
        pair = pair_with(workspace, photo, "board", hits, Clock())
        tiles = [seen.picture for sized in pair.sizes for seen in sized.tiles]
        assert len(tiles) >= 4
        assert sum(not picture.covered.all() for picture in tiles) >= 2
        ready = module._Part.of(workspace, golden, 1)
        shown: list[RgbImage] = []
        real = workspace.encoder.embed
        monkeypatch.setattr(workspace.encoder, "embed", lambda image, size: (shown.append(image), real(image, size))[1])
        for seed in range(8):
            shown.clear()
            assert ready.score_with(Mark(6, 6, 0.4), np.random.default_rng(seed)) is not None
            for image in shown:
                # the tile that this is: of most of its pixels the very same
                [picture] = [
                    p for p in tiles if p.image.shape == image.shape and (p.image == image).all(2).mean() > 0.9
                ]
                assert (picture.image == image).all(2)[~picture.covered].all()
