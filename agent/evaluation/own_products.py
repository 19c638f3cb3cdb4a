"""A customer's own products to train networks on."""

from __future__ import annotations

from pathlib import Path

from refdiff.agent.evaluation.layouts import read_parts
from refdiff.model.errors import InputError
from refdiff.model.images import may_be_image
from refdiff.model.training.pairs import Photo, Source

_LEAST_GOOD = 2  # each is compared with another
_WEIGHT = 2.0  # of one product; a research set has about as much
_NAMED = 5  # notes in an error


def own_products(folder: Path) -> tuple[list[Source], list[str]]:
    """The products of a folder, and what of it was left out, in words.

    FOLDER/<product> in the `mvtec` layout (train/good, test/<defect>, ground_truth/<defect>; `test` may be missing), or a
    folder of good photos only; or FOLDER itself as one product. Raises InputError where no product has two good photos.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds your products")
    below = [p for p in folder.iterdir() if not p.name.startswith(".")]
    one = any(
        (folder / name).is_dir() for name in ("train", "good")
    ) or (  # a picture beside products makes their folder no product
        any(p.is_file() and may_be_image(p) for p in below) and not any((p / "train").is_dir() for p in below)
    )
    roots = [folder] if one else sorted(p for p in below if p.is_dir())
    sources, notes = [], []
    for root in roots:
        good, bad, said = read_parts(root)
        notes += [note if note.startswith(str(root)) else f"{root.name}: {note}" for note in said]
        if len(good) < _LEAST_GOOD:
            notes.append(f"{root}: {len(good)} good photos, and a product needs {_LEAST_GOOD} or more: left out")
            continue
        defects = tuple(Photo(s.path, True, s.masks, type=s.kind) for s in bad)
        sources.append(
            Source(f"own_{root.name}", tuple(map(Photo, good)), defects, "the customer's own", weight=_WEIGHT)
        )
    if not sources:
        why = "".join(f"; {note}" for note in notes[:_NAMED])
        raise InputError(
            f"{folder}: no product with two or more good images; expected {folder}/<product>/train/good/*.png{why}"
        )
    return sources, notes
