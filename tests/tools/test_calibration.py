"""Calibration: each part counts once and is never its own reference; anything that changes scores makes it stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.records.calibrations import Calibration
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference import patch_distance
from refdiff.model.errors import InputError, UnavailableError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection import calibration as module
from refdiff.tools.inspection.calibration import (
    Pose,
    calibrate,
    calibration_key,
    current_calibration,
    in_doubt,
    p_value,
    region_confidence,
    requested_alpha,
    said_of,
    standing_out,
    summary,
    unlike_goldens,
    with_pose,
)
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.overview import product_overview
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

SIZE = (96, 128)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=tmp_path / "cache", working_px=128)
    with Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=1)) as opened:
        yield opened


def add(workspace: Workspace, folder: Path, instances: range, group: str | None = None) -> list[Golden]:
    paths = []
    for i in instances:
        path = folder / f"{i:02}.png"
        path.write_bytes(encode_png(render("circuit", 1, i, size=SIZE, noise_seed=i).image))
        paths.append(path)
    return enroll(workspace, "board", paths, part_group=group).added


def made(scores: list[float], alpha: float | None = None) -> Calibration:
    return Calibration("board", "key", sorted(scores), 0.5, len(scores), 1, peaks=sorted(scores), alpha=alpha)


# ---- photos that do not register ----


def test_mirrored_photo_scores_above_every_good_part_where_good_parts_register(
    workspace: Workspace, tmp_path: Path
) -> None:
    add(workspace, tmp_path, range(5))
    known = calibrate(workspace, "board")
    kept = workspace.stores.calibrations.get("board", known.key)
    assert kept is not None
    assert known.unregistered == kept.unregistered == []
    photo = render("circuit", 1, 50, size=SIZE, noise_seed=50).image
    good, mirrored = (compare(workspace, image, "board") for image in (photo, np.ascontiguousarray(photo[:, ::-1])))
    assert good.alignments[0].ok
    assert not mirrored.alignments[0].ok
    many = replace(known, n=40)
    flipped = np.ascontiguousarray(photo[:, ::-1])
    changed, found_mirrored = with_pose(flipped, mirrored, many)
    assert found_mirrored == Pose(["the photo fits its golden samples only when mirrored"], mirrored=True)
    assert changed.difference.score == mirrored.difference.score + max(known.scores)
    assert changed.difference.added == max(known.scores)
    # scores of height and colour together may be below 0: it is above all good parts all the same
    below = replace(mirrored, difference=replace(mirrored.difference, score=-0.5))
    lifted = with_pose(flipped, below, many)[0].difference
    assert (lifted.score, lifted.score - lifted.added) == pytest.approx((max(known.scores), -0.5))
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    _, found = with_pose(noise, compare(workspace, noise, "board"), many)
    assert found == Pose(["the photo registers to none of its golden samples"])
    assert with_pose(photo, good, many) == (good, Pose())
    # few good parts, an earlier version's calibration, or a product of which many do not register say nothing
    unlike = compare(workspace, noise, "board")
    for other in (known, replace(many, unregistered=None), replace(many, unregistered=["g-1", "g-2"]), None):
        assert with_pose(noise, unlike, other) == (unlike, Pose())
    rare = replace(many, unregistered=["g-1"])
    told = "the photo registers to none of its golden samples; g-1 does not register to the others, either"
    assert with_pose(noise, unlike, rare) == (unlike, Pose(problem=told))
    told = "the photo fits its golden samples only when mirrored; g-1 does not register to the others, either"
    assert with_pose(flipped, mirrored, rare) == (mirrored, Pose(problem=told, mirrored=True))
    assert with_pose(flipped, mirrored, known)[1] == found_mirrored  # of few good parts, too: it must not pass
    odd = replace(many, levels=[0.0] * 40)  # under another lamp, a good part is compared with itself mirrored
    assert with_pose(photo, good, odd) == (good, Pose())


# ---- goldens that stand out ----

ALIKE = [0.02, 0.03, 0.03, 0.04, 0.05, 0.05, 0.06, 0.07, 0.08, 0.1, 0.145]


@pytest.mark.parametrize(
    ("scores", "odd"),
    [
        (ALIKE, []),
        ([*ALIKE, 0.42], [0.42]),
        ([*ALIKE, 0.42, 0.9], [0.9, 0.42]),
        ([s / 100 for s in [*ALIKE, 0.42]], [0.0042]),  # whatever the scale of the scores
        ([0.001, *ALIKE], []),  # a part that scores low does no harm
        ([0.1] * 8, []),
        ([0.1] * 8 + [0.5], [0.5]),
        ([0.1] * 6 + [0.5], []),  # of so few, none is usual
    ],
)
def test_goldens_whose_score_stands_out_are_named(scores: list[float], odd: list[float]) -> None:
    calibration = replace(made(scores), golden_ids=[f"g-{i:012x}" for i in range(len(scores))])
    found = standing_out(calibration)
    assert [one.score for one in found] == pytest.approx(odd)
    ranks = [calibration.golden_ids[calibration.scores.index(score)] for score in (one.score for one in found)]
    assert [one.golden_id for one in found] == ranks
    assert standing_out(made(scores)) == []  # a calibration of an earlier version does not know whose scores they are


def test_limit_without_the_goldens_that_stand_out_is_said() -> None:
    calibration = replace(made([*ALIKE, 0.42]), golden_ids=[f"g-{i:012x}" for i in range(12)])
    found = summary(calibration, 0.05)
    assert found["stand_out"] == [{"golden_id": "g-00000000000b", "score": 0.42}]
    assert (found["limit"], found["limit_without"]) == (0.42, 0.145)
    said = said_of(calibration, standing_out(calibration), 0.05, 0)
    assert "g-00000000000b scores 0.420 (median 0.055)" in said
    assert "Parts go to REVIEW above 0.420; without it they would above 0.145" in said
    decided = said_of(calibration, standing_out(calibration), 0.05, 0, {"g-00000000000b"})
    assert "g-00000000000b scores 0.420 (activated) (median 0.055)" in decided
    doubted = summary(calibration, 0.05, 1)
    assert (doubted["limit"], doubted["in_doubt"]) == (0.145, 1)
    assert doubted["alpha"] == {"requested": 0.05, "attained": pytest.approx(2 / 13)}
    assert (found["goldens_needed_for_alpha"], doubted["goldens_needed_for_alpha"]) == (19, 39)
    said = said_of(calibration, standing_out(calibration), 0.05, 1)
    assert (
        "Parts go to REVIEW above 0.145 while g-00000000000b is in doubt, above 0.420 once it is activated; without it"
        in said
    )
    # with enough parts the highest sets no limit anyway
    many = replace(made([*ALIKE * 5, 0.42]), golden_ids=[f"g-{i:012x}" for i in range(56)])
    said = said_of(many, standing_out(many), 0.05, 1)
    assert "Parts fail above" in said
    assert "in doubt" not in said
    assert "stand_out" not in summary(made(ALIKE), 0.05)


def test_calibration_flags_a_defective_golden_once_for_a_person(workspace: Workspace, tmp_path: Path) -> None:
    goldens = add(workspace, tmp_path, range(10))
    defects = [DefectSpec("stain", size_px=30, where=(64, 48), contrast=1.0)]
    path = tmp_path / "stained.png"
    path.write_bytes(encode_png(render("circuit", 1, 30, size=SIZE, noise_seed=30, defects=defects).image))
    stained = enroll(workspace, "board", [path]).added[0]
    for golden in [*goldens, stained]:  # what the enrolment thought of them is not the question here
        workspace.bank.set_status(golden.golden_id, "active", "")
    calibration = calibrate(workspace, "board")
    assert [one.golden_id for one in standing_out(calibration)] == [stained.golden_id]
    flagged = workspace.bank.list("board", ["flagged"])
    assert [g.golden_id for g in flagged] == [stained.golden_id]
    assert flagged[0].note.startswith("stands out: scores ")
    assert in_doubt(workspace, calibration) == 1
    workspace.bank.set_status(stained.golden_id, "active", "checked: only dust")
    again = calibrate(workspace, "board")
    assert workspace.bank.list("board", ["flagged"]) == []
    assert again.golden_ids == calibration.golden_ids
    assert in_doubt(workspace, again) == 0  # a person has said that it is good
    assert workspace.stores.calibrations.latest("board") == again


# ---- what is measured ----


def test_part_with_several_photos_counts_once_and_is_not_its_own_reference(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = add(workspace, tmp_path, range(3), group="unit 7")
    singles = add(workspace, tmp_path, range(3, 6))
    seen: list[tuple[str, Comparison]] = []

    def watched(*arguments: Any, **named: Any) -> Comparison:
        result = module_compare(*arguments, **named)
        seen.append((named["query_key"], result))
        return result

    module_compare = module.compare
    monkeypatch.setattr(module, "compare", watched)
    steps: list[tuple[int, int]] = []
    calibration = calibrate(workspace, "board", 8, progress=lambda _, done, total, note="": steps.append((done, total)))
    assert (calibration.n, len(calibration.scores), calibration.references) == (4, 4, 8)
    assert steps == [(i, 4) for i in range(1, 5)]
    by_photo = {key: {hit.golden.sha256 for hit in result.hits} for key, result in seen}
    everyone = {g.sha256 for g in group + singles}
    members = {g.sha256 for g in group}
    [represented] = members & by_photo.keys()
    assert by_photo[represented] == everyone - members
    for single in singles:
        assert by_photo[single.sha256] == everyone - {single.sha256}
    assert calibration.scores == sorted(result.difference.score for _, result in seen)
    assert min(calibration.scores) > 0  # nothing was compared with itself


def test_nearly_identical_photos_count_as_one_part(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path, range(3))
    twin = render("circuit", 1, 0, size=SIZE, noise_seed=0).image.copy()
    twin[0, 0] ^= 1
    (tmp_path / "twin.png").write_bytes(encode_png(twin))
    enroll(workspace, "board", [tmp_path / "twin.png"])
    assert workspace.bank.count("board") == 4
    assert calibrate(workspace, "board").n == 3


def test_retired_goldens_are_excluded_from_calibration(workspace: Workspace, tmp_path: Path) -> None:
    goldens = add(workspace, tmp_path, range(4))
    workspace.bank.set_status(goldens[0].golden_id, "retired", "old")
    assert calibrate(workspace, "board").n == 3


def test_calibration_from_one_part_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path, range(3), group="one")
    with pytest.raises(InputError, match=r"1 part\(s\)"):
        calibrate(workspace, "board")
    assert current_calibration(workspace, "board") is None


def test_calibration_of_many_parts_measures_an_even_sample(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(workspace, tmp_path, range(7))
    everything = calibrate(workspace, "board")
    monkeypatch.setattr(module, "MAX_PARTS", 3)
    some = calibrate(workspace, "board")
    assert (everything.n, some.n) == (7, 3)
    assert set(some.scores) < set(everything.scores)
    monkeypatch.setattr(module, "MAX_PARTS", 7)
    assert calibrate(workspace, "board").scores == everything.scores


def test_calibration_is_deterministic(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path, range(4))
    first, again = calibrate(workspace, "board"), calibrate(workspace, "board")
    assert (first.key, first.scores, first.pixel_threshold) == (again.key, again.scores, again.pixel_threshold)


# ---- when it is stale ----


def _zone(kind: str, box: tuple[int, int, int, int] = (0, 0, 30, 30)) -> dict[str, Any]:
    return {"zones": [{"name": "z", "kind": kind, "box": list(box)}]}


Change = Callable[[Workspace, list[Golden], Path, pytest.MonkeyPatch], object]
CHANGES: dict[str, tuple[bool, Change]] = {
    "another golden": (True, lambda s, g, t, m: add(s, t, range(9, 10))),
    "a retired golden": (True, lambda s, g, t, m: s.bank.set_status(g[0].golden_id, "retired", "old")),
    "an ignore zone": (True, lambda s, g, t, m: s.stores.products.set_spec("board", _zone("ignore"))),
    "another frame": (True, lambda s, g, t, m: s.stores.products.set_spec("board", {"frame": g[1].golden_id})),
    "another scoring": (True, lambda s, g, t, m: m.setattr(patch_distance, "VERSION", "next")),
    "something else measured of each part": (True, lambda s, g, t, m: m.setattr(module, "_MEASURED", 0)),
    "other weights": (True, lambda s, g, t, m: m.setattr(s.encoder, "fingerprint", "0" * 16)),
    "an intensity window": (True, lambda s, g, t, m: s.stores.products.set_window_once("board", (0, 9))),
    "nothing": (False, lambda s, g, t, m: None),
    "a flag": (False, lambda s, g, t, m: s.bank.set_status(g[0].golden_id, "flagged", "odd")),
    "a critical zone": (False, lambda s, g, t, m: s.stores.products.set_spec("board", _zone("critical"))),
    "a limit": (False, lambda s, g, t, m: s.stores.products.set_spec("board", {"limits": [{"severity": "minor"}]})),
    "a golden of another product": (False, lambda s, g, t, m: enroll(s, "other", [t / "00.png"])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_calibration_key_changes_with_whatever_changes_scores(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stale, change = CHANGES[name]
    goldens = add(workspace, tmp_path, range(3))
    before = calibration_key(workspace, "board", 1)
    change(workspace, goldens, tmp_path, monkeypatch)
    assert (calibration_key(workspace, "board", 1) != before) == stale


def test_calibration_key_depends_on_the_number_of_references(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path, range(3))
    assert calibration_key(workspace, "board", 1) != calibration_key(workspace, "board", 2)


def test_stale_calibration_is_redone_and_a_fitting_one_reused(workspace: Workspace, tmp_path: Path) -> None:
    goldens = add(workspace, tmp_path, range(4))
    first = current_calibration(workspace, "board")
    assert first is not None
    again = current_calibration(workspace, "board")
    assert again == first
    workspace.bank.set_status(goldens[0].golden_id, "retired", "old")
    fewer = current_calibration(workspace, "board")
    assert fewer is not None
    assert (fewer.n, fewer.key != first.key) == (3, True)
    calibrate(workspace, "board", alpha=0.05)
    workspace.bank.set_status(goldens[0].golden_id, "active", "a mistake")
    assert current_calibration(workspace, "board") == replace(
        first, alpha=0.05
    )  # the bank is as it was; the rate is new
    shown = product_overview(workspace, "board")["calibration"]
    assert (shown["n"], shown["stale"]) == (first.n, False)


def test_golden_enrolled_during_calibration_is_measured_too(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(workspace, tmp_path, range(3))
    compare, late = module.compare, iter([range(3, 4)])

    def enrolling(*args: Any, **kwargs: Any) -> Comparison:
        for instances in late:
            add(workspace, tmp_path, instances)
        return compare(*args, **kwargs)

    monkeypatch.setattr(module, "compare", enrolling)
    found = calibrate(workspace, "board")
    assert (found.n, found.key) == (4, calibration_key(workspace, "board", 1))
    assert current_calibration(workspace, "board") == found


def test_calibration_of_a_bank_that_keeps_changing_is_not_saved(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(workspace, tmp_path, range(4))[0]
    compare, calls = module.compare, 0

    def changing(*args: Any, **kwargs: Any) -> Comparison:
        nonlocal calls
        calls += 1
        workspace.stores.products.set_spec("board", _zone("ignore", (0, 0, calls, 1)))
        return compare(*args, **kwargs)

    monkeypatch.setattr(module, "compare", changing)
    with pytest.raises(UnavailableError, match="changed during calibration"):
        calibrate(workspace, first.product)
    assert workspace.stores.calibrations.latest("board") is None


def test_ignore_zone_over_the_whole_part_gives_zero_scores(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path, range(3))
    workspace.stores.products.set_spec("board", _zone("ignore", (0, 0, 2000, 2000)))
    assert calibrate(workspace, "board").scores == [0, 0, 0]


# ---- what it says ----


@pytest.mark.parametrize(
    ("score", "p"), [(0.0, 1.0), (1.0, 1.0), (1.5, 4 / 5), (3.0, 3 / 5), (4.0, 2 / 5), (4.0001, 1 / 5), (1e9, 1 / 5)]
)
def test_p_value_counts_good_parts_with_at_least_this_score(score: float, p: float) -> None:
    assert p_value(made([1, 2, 3, 4]), score) == pytest.approx(p)


def test_p_values_of_exchangeable_good_parts_are_valid() -> None:
    """At most alpha of the exchangeable good parts get p <= alpha, ties or not."""
    for scores in ([float(i) for i in range(20)], [1.0] * 20, [1.0] * 10 + [2.0] * 10):
        p = [p_value(made(scores[:i] + scores[i + 1 :]), s) for i, s in enumerate(scores)]
        for alpha in (0.05, 0.1, 0.25, 0.5):
            assert sum(v <= alpha for v in p) <= alpha * len(p) + 1e-9


def test_region_confidence_stays_below_one() -> None:
    assert [region_confidence(made([1, 2, 3]), peak) for peak in (0, 1, 2.5, 99)] == [0, 0, 0.5, 0.75]


@pytest.mark.parametrize(
    ("n", "alpha", "attained", "needed", "can_fail"),
    [(2, 0.01, 1 / 3, 99, False), (19, 0.05, 0.05, 19, False), (20, 0.05, 0.05, 19, True), (99, 0.01, 0.01, 99, True)],
)
def test_calibration_summary_states_attained_alpha_and_goldens_needed(
    n: int, alpha: float, attained: float, needed: int, can_fail: bool
) -> None:
    found = summary(made([float(i) for i in range(n)]), alpha)
    assert found["alpha"] == {"requested": alpha, "attained": pytest.approx(attained)}
    assert (found["goldens_needed_for_alpha"], found["can_fail"]) == (needed, can_fail)
    assert found["score_range"] == [0, n - 1]


def test_alpha_of_the_calibration_is_kept_unless_set_explicitly(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path, range(3))
    assert requested_alpha(workspace, None) == workspace.settings.alpha
    calibrate(workspace, "board", alpha=0.05)
    kept = calibrate(workspace, "board")
    assert requested_alpha(workspace, kept) == 0.05
    workspace.settings = ToolsSettings(alpha=0.2)
    assert requested_alpha(workspace, kept) == 0.2


def test_photo_unlike_every_golden_is_a_problem_only_above_the_calibrated_scores() -> None:
    known = Calibration("p", "k", [0.1, 0.2, 0.3], 0.2, 3, 1, similarities=[0.8, 0.9, 0.95])
    assert "does not resemble any golden" in unlike_goldens(known, 0.5, 0.65, 0.01)
    assert unlike_goldens(known, 0.5, 0.75, 0.01) == ""
    assert unlike_goldens(known, 0.05, 0.65, 0.01) == ""
    assert unlike_goldens(None, None, 0.1, 1.0) == ""
    # a score that fails the part is suspicious, however few parts there are
    few = replace(known, scores=[i / 10 for i in range(20)], n=20)
    assert unlike_goldens(few, 2 / 21, 0.65, 2 / 21) == ""
    assert unlike_goldens(few, 2 / 21, 0.65, 1 / 21)
    assert unlike_goldens(known, 0.25, 0.65, 0.25)  # of three, no score fails
