"""How well named findings name others:

    python tests/bench/defect_names.py --tiles bench/magnetic_tile --boards deeppcb/PCBData --half held

Magnetic tile (a layout of bench_data.py): each defect is the largest joined part of its photo's mask, seen against the
nearest of 40 goldens. DeepPCB: annotated boxes of board pairs, at most --each of a group and type. Findings are compared as
reports compare them. A draw names 3, 5 or 20 findings of each kind, each on another tile (at least half of a kind's tiles
are left to test), and names those on other tiles by them: the photos of one tile show one defect. Of every kind in turn
nobody names an example, too: its findings should keep the network's own type.

--half choose: every second tile, board group 44000; held: the other tiles, and the board groups that nobody looked at.
The features and the rule were chosen on every second *photo* of the tiles, which shows most of the tiles of both halves.
The same half, seed and options give the same table.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from refdiff.agent.evaluation.layouts import load_masks, read_mvtec
from refdiff.memory.records.defect_names import Sight
from refdiff.memory.settings import MemorySettings
from refdiff.model.boards.deeppcb import read_split
from refdiff.model.defect_types import DIFFERENCE_TYPES, UNKNOWN
from refdiff.model.images import decode_image
from refdiff.model.training.sources import tiles_of
from refdiff.tools.framing.photos import Query, alignment
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.naming.looks import vector
from refdiff.tools.naming.nearest import learn, nearest
from refdiff.tools.vision.regions import MIN_TYPE_CONFIDENCE
from refdiff.tools.vision.shape import length_and_width
from refdiff.tools.workspace import Workspace

Half = Literal["choose", "held"]
_GROUPS: dict[str, set[str]] = {"choose": {"group44000"}, "held": set()}
_SEEN = {"group44000", "group00041"}
_DRAWS = 5
_SHAPE = 4  # numbers at the end of a vector; the types before them


@dataclass(frozen=True)
class Found:
    kind: str
    thing: str  # what shows the defect: findings of one tile may be of one defect
    vector: NDArray[np.float32]

    @property
    def own_type(self) -> str:
        """What the difference network takes it for."""
        sure = self.vector[-_SHAPE - len(DIFFERENCE_TYPES) : -_SHAPE] ** 2
        return DIFFERENCE_TYPES[int(sure.argmax())] if sure.max() >= MIN_TYPE_CONFIDENCE else UNKNOWN


@dataclass
class Counts:
    tested: int = 0
    given: int = 0
    right: int = 0
    unnamed: int = 0  # findings of a kind without a name
    misnamed: int = 0  # of them, those that got one

    def row(self) -> dict[str, float]:
        return {
            "precision": self.right / max(self.given, 1), "coverage": self.given / max(self.tested, 1),
            "named of unnamed kinds": self.misnamed / max(self.unnamed, 1),
        }  # fmt: skip


def tiles(workspace: Workspace, folder: Path, half: Half) -> Iterator[Found]:
    data = read_mvtec(folder)
    goods = sorted(data.train, key=lambda p: p.name)
    random.Random(0).shuffle(goods)
    enroll(workspace, "tile", goods[:40])
    shows = tiles_of([*data.train, *(s.path for s in data.test)])
    photos = [s for s in data.test if s.defective and s.masks]
    mine = half_of({shows[s.path] for s in photos}, half)
    for sample in (s for s in photos if shows[s.path] in mine):
        sha256 = workspace.stores.images.put(sample.path.read_bytes())
        photo = workspace.image(sha256, "tile")
        drawn = load_masks(sample.masks, photo.shape[:2])[0]
        joined = cv2.dilate(drawn.astype(np.uint8), np.ones((9, 9), np.uint8))
        labels = cv2.connectedComponents(joined)[1] * drawn
        mask = labels == np.bincount(labels[drawn]).argmax()
        query = Query(photo, sha256, workspace.encoder.embed(photo))
        golden = nearest_goldens(workspace, query, "tile", 1)[0].golden
        lies = alignment(workspace, query, golden)
        seen = _seen(mask, tuple(lies.matrix.flatten().tolist()), lies.ok)
        seen_as = vector(workspace, photo, workspace.golden_image(golden), seen)
        yield Found(sample.path.parent.name, shows[sample.path], seen_as)


def half_of(things: Collection[str], half: Half) -> set[str]:
    return set(sorted(things)[half == "held" :: 2])


def boards(workspace: Workspace, folder: Path, half: Half, each: int) -> Iterator[Found]:
    boxes: dict[tuple[str, str], list[tuple[Path, Path, tuple[int, int, int, int]]]] = {}
    for pair in read_split(folder, "trainval"):
        if pair.group in _GROUPS[half] or (half == "held" and pair.group not in _SEEN):
            for b in pair.boxes:
                found = boxes.setdefault((pair.group, b.type), [])
                found.append((pair.tested, pair.template, (int(b.x0), int(b.y0), int(b.x1), int(b.y1))))
    rng = random.Random(0)
    for (_, kind), found in sorted(boxes.items()):
        for tested, template, (x0, y0, x1, y1) in rng.sample(found, min(each, len(found))):
            photo, golden = decode_image(tested.read_bytes()), decode_image(template.read_bytes())
            mask = np.zeros(photo.shape[:2], bool)
            differs = np.abs(photo.astype(int) - golden).mean(2) > 100
            mask[y0:y1, x0:x1] = differs[y0:y1, x0:x1]
            seen = _seen(mask, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), True, (x0, y0, x1, y1))
            yield Found(kind, f"{tested.name} {x0} {y0} {x1} {y1}", vector(workspace, photo, golden, seen))


def _seen(
    mask: NDArray[np.bool_], matrix: tuple[float, ...], registered: bool, box: tuple[int, int, int, int] | None = None
) -> Sight:
    if box is None:
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        box = x, y, x + w, y + h
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    length, width = length_and_width(inside, 0.0) if inside.any() else (1.0, 1.0)
    return Sight("", "", registered, matrix, box, length, width, int(inside.sum()))


def measured(found: list[Found], examples: int, precision: float, seed: int) -> Counts:
    counts = Counts()
    kinds = sorted({f.kind for f in found})
    for draw in range(_DRAWS):
        named, rest = drawn(found, examples, random.Random(f"{seed}/{draw}"))
        for absent in (None, *kinds):
            some = [f for f in named if f.kind != absent]
            vectors, names = np.stack([f.vector for f in some]), [f.kind for f in some]
            rule = learn(vectors, names, precision, [f.thing for f in some])
            for finding in rest if absent is None else [f for f in rest if f.kind == absent]:
                apart: dict[str, list[float]] = {}
                for f in some:
                    apart.setdefault(f.kind, []).append(float(np.linalg.norm(f.vector - finding.vector)))
                best = nearest(apart)
                assert best is not None
                given = rule.allows(best, len(apart[best.name]))
                if absent is not None:
                    counts.unnamed += 1
                    counts.misnamed += given
                    continue
                counts.tested += 1
                counts.given += given
                counts.right += given and best.name == finding.kind
    return counts


def drawn(found: list[Found], examples: int, rng: random.Random) -> tuple[list[Found], list[Found]]:
    """Findings to name, so many of each kind, each on another thing; and those on none of these things, to test."""
    named: list[Found] = []
    for kind in sorted({f.kind for f in found}):
        own: dict[str, Found] = {}
        for f in found:
            if f.kind == kind:
                own.setdefault(f.thing, f)
        named += rng.sample(list(own.values()), min(examples, len(own) // 2))
    things = {f.thing for f in named}
    return named, [f for f in found if f.thing not in things]


def own_types(found: list[Found]) -> dict[str, float]:
    """The network's own types, each called what it most often is among these findings: the best that they could do."""
    sure = [f for f in found if f.own_type != UNKNOWN]
    right = sum(
        Counter(f.kind for f in sure if f.own_type == t).most_common(1)[0][1] for t in {f.own_type for f in sure}
    )
    return {"precision": right / max(len(sure), 1), "coverage": len(sure) / len(found)}


def main(
    tiles_folder: Annotated[Path | None, typer.Option("--tiles", help="A layout of bench_data.py.")] = None,
    boards_folder: Annotated[Path | None, typer.Option("--boards", help="PCBData of DeepPCB.")] = None,
    half: Annotated[Half, typer.Option(help="Which half.")] = "choose",
    each: Annotated[int, typer.Option(help="Boxes of a board group and type.")] = 60,
    precision: Annotated[float, typer.Option(help="REFDIFF_NAME_PRECISION.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        Workspace.open(MemorySettings(home=Path(home), qdrant_url=None)) as work,
    ):
        sets: dict[str, list[Found]] = {}
        if tiles_folder:
            sets["magnetic tile"] = list(tiles(work, tiles_folder, half))
        if boards_folder:
            sets["DeepPCB"] = list(boards(work, boards_folder, half, each))
    for name, found in sets.items():
        kinds = Counter(f.kind for f in found)
        typer.echo(json.dumps({"set": name, "half": half, "findings": len(found), "kinds": kinds}))
        typer.echo(json.dumps({"own types": own_types(found)}))
        for n in (3, 5, 20):
            counts = measured(found, n, precision, seed)
            typer.echo(json.dumps({"examples": n, **counts.row(), **asdict(counts)}))


if __name__ == "__main__":
    typer.run(main)
