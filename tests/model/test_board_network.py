"""The board network: the packaged weights find and name drawn defects, and training produces loadable weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from refdiff.model.boards.network import (
    BoardDefect,
    contrast_pair,
    crop,
    load_boards,
    one_defect,
    overlap,
    propose,
    type_of,
    view_of,
)
from refdiff.model.difference.scorer import load_difference
from refdiff.model.errors import InputError, StorageError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.training.boards import BoardRecipe, train_boards
from refdiff.model.training.harder_boards import bent, dimmed, roughened, widened
from refdiff.model.training.pairs import Photo, Source
from refdiff.model.training.sources import deeppcb_groups
from refdiff.server.cli.invocation import begin
from refdiff.server.cli.main import app

Box = tuple[int, int, int, int]
Change = Callable[[RgbImage, np.random.Generator], RgbImage]


def _board(seed: int = 0) -> RgbImage:
    """Copper tracks (dark) with pads on a bright board, as DeepPCB shows them."""
    rng = np.random.default_rng(seed)
    grey = np.full((400, 400), 255, np.uint8)
    for y in range(30, 390, 40):
        cv2.line(grey, (10, y), (390, y), 0, 12)
        cv2.circle(grey, (int(rng.integers(60, 340)), y), 14, 0, -1)
    return np.repeat(grey[..., None], 3, 2)


def _with(kind: str) -> tuple[RgbImage, Box]:
    image = _board().copy()
    if kind == "open":
        cv2.rectangle(image, (196, 140), (206, 160), (255, 255, 255), -1)
        return image, (186, 132, 216, 168)
    if kind == "short":
        cv2.rectangle(image, (200, 150), (207, 190), (0, 0, 0), -1)
        return image, (188, 150, 219, 190)
    if kind == "pin-hole":
        cv2.circle(image, (200, 150), 3, (255, 255, 255), -1)
        return image, (187, 137, 213, 163)
    cv2.circle(image, (200, 170), 5, (0, 0, 0), -1)
    return image, (187, 157, 213, 183)


@pytest.mark.parametrize("kind", ["open", "short", "pin-hole", "copper"])
def test_packaged_board_network_finds_and_names_a_drawn_defect(kind: str) -> None:
    image, box = _with(kind)
    best = load_boards().detect(image, _board())[0]
    assert best.type == kind
    assert best.confidence > 0.5
    assert overlap(best.box, box) > 0.33


def test_unchanged_board_and_one_pixel_shift_have_no_defect() -> None:
    board = _board()
    assert load_boards().detect(board, board) == []
    moved = np.roll(board, (1, 1), axis=(0, 1))
    assert [d for d in load_boards().detect(moved, board) if d.confidence >= 0.5] == []


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (31, 40), (33, 35)])
def test_tiny_blank_boards_have_no_defect(size: tuple[int, int]) -> None:
    blank = np.full((*size, 3), 200, np.uint8)
    assert load_boards().detect(blank, blank) == []


def test_board_reference_shifted_by_some_pixels_is_registered() -> None:
    image, box = _with("copper")
    moved = np.roll(_board(), (4, -3), axis=(0, 1))
    sure = [d for d in load_boards().detect(image, moved) if d.confidence >= 0.5]
    assert [d.type for d in sure] == ["copper"]
    assert overlap(sure[0].box, box) > 0.33


@pytest.mark.parametrize("kind", ["open", "short", "pin-hole", "copper"])
@pytest.mark.parametrize("change", [bent, widened])
def test_harder_template_hides_no_defect_and_makes_none(change: Change, kind: str) -> None:
    image, box = _with(kind)
    for seed in range(3):
        template = change(_board(), np.random.default_rng(seed))
        sure = [d for d in load_boards().detect(image, template) if d.confidence >= 0.5]
        assert [d.type for d in sure] == [kind]
        assert overlap(sure[0].box, box) > 0.33


def test_defect_beside_a_rough_template_is_the_surest() -> None:
    image, box = _with("open")
    best = load_boards().detect(image, roughened(_board(), np.random.default_rng(2)))[0]
    assert best.type == "open"
    assert overlap(best.box, box) > 0.33


def test_dim_noisy_photo_shows_its_defect_alone() -> None:
    image, _ = _with("short")
    dim = dimmed(image, np.random.default_rng(0))
    assert [d.type for d in load_boards().detect(dim, _board()) if d.confidence >= 0.5] == ["short"]


def test_reference_is_bent_and_widened_onto_its_photo() -> None:
    rng = np.random.default_rng(0)
    pair = contrast_pair(_board(), widened(bent(_board(), rng), rng))
    assert ((pair[0] > 127) != (pair[1] > 127)).mean() < 0.01  # 0.047 unregistered
    assert propose(pair) == []


def test_what_the_reference_does_not_reach_does_not_differ() -> None:
    board = _board()
    part = board[:, :300].copy()
    part[:, :4] = 0  # copper that the other picture begins beyond
    pair = contrast_pair(part, board[:, 8:308].copy())
    assert not ((pair[0] > 127) != (pair[1] > 127))[:, :4].any()


def test_photo_without_copper_differs_wherever_the_reference_has_it() -> None:
    blank = np.full_like(_board(), 255)
    pair = contrast_pair(blank, _board())
    assert pair[0].min() == 255
    assert (pair[1] < 128).any()


def test_contrast_pair_is_independent_of_light() -> None:
    image, _ = _with("open")
    dim = (image // 3 + 40).astype(np.uint8)
    pair = contrast_pair(dim, (_board() // 3 + 40).astype(np.uint8))
    assert pair.shape == (2, 400, 400)
    assert np.abs(pair.astype(int) - contrast_pair(image, _board())).max() <= 4


def test_large_board_proposal_is_shrunk_into_its_crop() -> None:
    image, _ = _with("short")
    cv2.rectangle(image, (20, 20), (380, 380), (0, 0, 0), 9)
    pair = contrast_pair(image, _board())
    largest = max(propose(pair), key=lambda b: b[2] - b[0])
    assert view_of(largest)[2] > 5
    assert crop(pair, view_of(largest)).shape == (2, 80, 80)


COPPER, BOARD = 0, 255
# marks on a crop of 80 x 80 px with a track of 30 px from left to right and a narrow one above it
MARKS = {
    "thin cut": ("open", [((44, 23), (36, 57), BOARD, 2)]),
    "blot beside a thin cut": ("open", [((38, 37), (38, 43), BOARD, 7), ((46, 23), (46, 57), BOARD, 2)]),
    "cut by two strokes": ("open", [((40, 23), (40, 37), BOARD, 2), ((40, 43), (40, 57), BOARD, 2)]),
    "cut from a hole to the edge": ("open", [((40, 40), (40, 57), BOARD, 3)]),
    "stroke into the edge": ("mousebite", [((40, 23), (40, 48), BOARD, 2)]),
    "outline on the edge": (
        "mousebite",
        [((36, 24), (36, 30), BOARD, 2), ((42, 24), (42, 30), BOARD, 2), ((36, 30), (42, 30), BOARD, 2)],
    ),
    "bite almost through": ("mousebite", [((40, 23), (40, 50), BOARD, 5)]),
    "long scratch inside": ("pin-hole", [((25, 43), (55, 36), BOARD, 2)]),
    "hole beside the edge": ("pin-hole", [((40, 29), (44, 29), BOARD, 3)]),
    "thin bridge": ("short", [((40, 14), (40, 26), COPPER, 2)]),
    "bridge within one conductor": ("short", [((28, 40), (52, 40), COPPER, 2)]),
    "whisker": ("spur", [((40, 20), (40, 26), COPPER, 2)]),
    "long island": ("copper", [((25, 66), (55, 68), COPPER, 3)]),
}
DUAL = {
    "open": "short",
    "mousebite": "spur",
    "pin-hole": "copper",
    "short": "open",
    "spur": "mousebite",
    "copper": "pin-hole",
}


@pytest.mark.parametrize("mark", MARKS)
def test_board_defect_type_follows_the_change_of_the_conductors(mark: str) -> None:
    kind, lines = MARKS[mark]
    before = np.full((80, 80), BOARD, np.uint8)
    before[25:55] = before[5:15] = COPPER
    if mark in ("cut from a hole to the edge", "bridge within one conductor"):
        cv2.circle(before, (40, 40), 8, BOARD, -1)
    if mark == "cut by two strokes":  # only together do the strokes reach from edge to edge
        before[37:44, 39:43] = BOARD
    now = before.copy()
    for start, stop, colour, thickness in lines:
        cv2.line(now, start, stop, colour, thickness)
    assert type_of(np.stack([now, before])) == kind
    assert type_of(255 - np.stack([now, before])) == DUAL[kind]  # with copper and board exchanged a cut is a bridge


def test_board_crop_without_change_has_no_type() -> None:
    assert type_of(np.zeros((2, 80, 80), np.uint8)) is None


@pytest.mark.parametrize(
    ("box", "kind", "same"),
    [
        ((110, 100, 150, 140), "open", True),
        ((125, 100, 165, 140), "open", False),
        ((110, 100, 150, 140), "mousebite", False),
        ((102, 100, 142, 140), "mousebite", True),
        ((100, 100, 115, 115), "open", True),
        ((100, 100, 115, 115), "pin-hole", False),
        ((145, 145, 160, 160), "open", False),
    ],
)
def test_board_boxes_are_merged_by_overlap_and_type(box: Box, kind: str, same: bool) -> None:
    assert one_defect(box, kind, BoardDefect((100, 100, 140, 140), 0.9, "open")) is same


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("boards")
    template = folder / "t.png"
    template.write_bytes(encode_png(_board()))
    photos = []
    for kind in ("open", "copper"):
        image, box = _with(kind)
        tested = folder / f"{kind}.png"
        tested.write_bytes(encode_png(image))
        photos.append(Photo(tested, True, partner=template, boxes=((*box, kind),)))
    return {"g": Source("deeppcb_g", (), (*photos,) * 8, "none")}


@pytest.mark.long
def test_board_training_lowers_the_loss_and_its_weights_load(groups: dict[str, Source], tmp_path: Path) -> None:
    losses: list[float] = []

    def told(what: str, done: int, total: int, note: str = "") -> None:
        if what == "training":
            losses.append(float(note.removeprefix("loss ")))

    path = train_boards(BoardRecipe(epochs=12, batch=16), groups, tmp_path / "out", progress=told)
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:4])
    assert load_boards(path).sha256 != load_boards().sha256
    assert "Research use only" in (tmp_path / "out/BOARDS_CARD.md").read_text()
    with pytest.raises(StorageError, match="'difference' is needed"):
        load_difference(path)


def test_board_training_without_enough_data_is_refused(groups: dict[str, Source], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no board group is left"):
        train_boards(BoardRecipe(left_out=("g",)), groups, tmp_path)
    with pytest.raises(InputError, match="places to learn from, 4096 or more"):
        train_boards(BoardRecipe(batch=4096), groups, tmp_path)
    template = groups["g"].bad[0].partner
    assert template is not None
    same = Source("same", (), (Photo(template, True, partner=template),), "none")
    with pytest.raises(InputError, match="differ nowhere"):
        train_boards(BoardRecipe(), {"same": same}, tmp_path)
    small = tmp_path / "small.png"
    small.write_bytes(encode_png(_board()[:200]))
    other = Source("other", (), (Photo(small, True, partner=template),), "none")
    with pytest.raises(InputError, match="they must be equal"):
        train_boards(BoardRecipe(), {"other": other}, tmp_path)


def test_board_training_command_names_the_missing_or_broken_file(tmp_path: Path) -> None:
    with begin(as_json=False):
        result = CliRunner().invoke(app, ["train", "boards", "--research", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "deeppcb" in str(result.exception)
    (tmp_path / "deeppcb/PCBData").mkdir(parents=True)
    (tmp_path / "deeppcb/PCBData/trainval.txt").write_text("group1/1/a.jpg group1/1_not/a.txt\n")
    with pytest.raises(InputError, match="line 1: test image"):
        deeppcb_groups(tmp_path)
