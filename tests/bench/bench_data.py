"""Lays public data sets out in the `mvtec` layout for `refdiff evaluate`: python tests/bench/bench_data.py

elpv comes from its Python package; aliens, magnetic tile and PIPED from folders below --data. Images are linked
(or copied), masks are written anew as 0/255 PNG. The same sources, options and seed give the same folders; no image
is both in train and in test, and neither are byte-equal copies or patches of one sheet of paper. Every product gets
a manifest with its licence.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from refdiff.model.errors import InputError, RefDiffError
from refdiff.model.training.sources import (
    Listed,
    defect_pixels,
    kept_for_tests,
    list_aliens,
    list_elpv,
    list_magnetic_tile,
    list_piped,
)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Product:
    """train: number of good images to enrol; test_good / test_bad: None takes all that is left. Neither: half and half."""

    name: str
    images: tuple[Listed, ...]
    licence: str
    source: str
    train: int | None
    test_good: int | None = None
    test_bad: int | None = None
    note: str = ""


def lay_out(product: Product, out: Path, *, seed: int, copy: bool = False) -> dict[str, int]:
    """Write `out/<product>` (an earlier layout there is replaced) and return the counts.

    Raises InputError: the folder is there and is not such a layout, or there are too few good images.
    """
    train, test, dropped = _split(product, seed)
    target = out / product.name
    if target.exists():
        if not (target / MANIFEST).is_file():
            raise InputError(f"{target}: is there and was not made by bench-data; move it or choose another --out")
        shutil.rmtree(target)
    files: dict[str, str] = {}
    for image in train:
        files[_place(image.path, target / "train" / "good", copy, target)] = _sha256(image.path)
    for image in test:
        files[_place(image.path, target / "test" / image.kind, copy, target)] = _sha256(image.path)
        if image.mask is not None:
            _write_mask(image, target / "ground_truth" / image.kind / f"{image.path.stem}_mask.png")
    counts = {
        "train_good": len(train),
        "test_good": sum(i.kind == "good" for i in test),
        "test_defective": sum(i.kind != "good" for i in test),
        "masks": sum(i.mask is not None for i in test),
        "duplicates_left_out": dropped,
    }
    manifest = {
        "product": product.name,
        "licence": product.licence,
        "source": product.source,
        "note": product.note,
        "seed": seed,
        "counts": counts,
        "sha256": dict(sorted(files.items())),
    }
    # last: an interrupted run leaves no manifest, and the next one says so
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


# ---- sources ----


def elpv_mono(*, test_good: int | None = 80, test_bad: int | None = 80, train: int | None = None) -> Product:
    """Monocrystalline solar cells, defect probability 0 (good) against 1; 1/3 and 2/3 are left out.

    Raises InputError where the package is not installed.
    """
    return Product(
        "elpv_mono",
        tuple(list_elpv("mono")),
        "CC BY-NC-SA 4.0",
        "elpv-dataset 1.0 (Buerhop-Lutz, Deitsch et al.), monocrystalline cells, labels 0 and 1",
        train,
        test_good,
        test_bad,
        "no masks; the data set does not say which cells come from one module",
    )


def aliens(data: Path) -> Product:
    """Moulded toys, aligned; 20 goldens, the rest of the good ones tested."""
    return Product("aliens", tuple(list_aliens(data)), "CC BY-SA 4.0", "aliens", train=20, note="no masks")


def magnetic_tile(data: Path) -> Product:
    """Magnetic tile surfaces, five types of defects, as one product; half of the good ones are tested."""
    return Product(
        "magnetic_tile",
        tuple(list_magnetic_tile(data)),
        "research use, cite Huang et al. 2018",
        "abin24/Magnetic-tile-defect-datasets.",
        train=None,
    )


def piped(data: Path) -> list[Product]:
    """Paper with impurities, one product a paper; half of the good sheets are enrolled, the others tested."""
    return [
        Product(
            name,
            tuple(images),
            "CC BY 4.0",
            f"PIPED (Bianconi et al. 2014), {name}",
            train=None,
            note="train and test are different sheets",
        )
        for name, images in list_piped(data).items()
    ]


# ---- pieces ----


def _split(product: Product, seed: int) -> tuple[list[Listed], list[Listed], int]:
    """(train, test, byte-equal copies left out). Whole groups go to one side."""
    seen: set[str] = set()
    unique: list[Listed] = []
    for image in sorted(product.images, key=lambda i: (i.kind != "good", i.kind, i.path.name)):
        digest = _sha256(image.path)
        if digest not in seen:
            seen.add(digest)
            unique.append(image)
    # a string seed is stable across versions and platforms, and each product gets its own order
    draw = random.Random(f"{product.name}/{seed}")
    groups: dict[str, list[Listed]] = defaultdict(list)
    for image in (i for i in unique if i.kind == "good"):
        groups[image.group].append(image)
    order = sorted(groups)
    draw.shuffle(order)
    good = sum(len(members) for members in groups.values())
    wanted = product.train
    if wanted is None:
        wanted = good - product.test_good if product.test_good else good // 2
    train: list[Listed] = []
    rest: list[Listed] = []
    for name in order:
        (train if len(train) < wanted else rest).extend(groups[name])
    bad = [i for i in unique if i.kind != "good"]
    draw.shuffle(bad)
    if not train or not rest or (product.test_good is not None and len(rest) < product.test_good):
        raise InputError(
            f"{product.name}: {good} good images are too few for {wanted} to enrol and "
            f"{product.test_good or 'some'} to test; lower the numbers"
        )
    test = rest[: product.test_good] + bad[: product.test_bad]
    return train, test, len(product.images) - len(unique)


def _place(source: Path, folder: Path, copy: bool, target: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / source.name
    if copy:
        shutil.copyfile(source, place)
    else:
        place.symlink_to(source.resolve())
    return place.relative_to(target).as_posix()


def _write_mask(image: Listed, place: Path) -> None:
    assert image.mask is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(defect_pixels(image.mask, image.mask_inverted).astype(np.uint8) * 255).save(place)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with aliens, magnetic_tile and piped.")] = None,
    out: Annotated[Path, typer.Option(help="Where the products are laid out.")] = Path("bench-data"),
    seed: Annotated[int, typer.Option(help="Chooses what is enrolled and what is tested.")] = 0,
    test_good: Annotated[int, typer.Option(min=1, help="elpv: good cells to test.")] = 80,
    test_bad: Annotated[int, typer.Option(min=1, help="elpv: defective cells to test.")] = 80,
    all_test: Annotated[bool, typer.Option("--all-test", help="elpv: 200 goldens, test all the rest.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy images instead of linking them.")] = False,
    only_held_out: Annotated[
        bool, typer.Option("--held-out", help="Only images that `refdiff train` never sees, all of them.")
    ] = False,
) -> None:
    """Lay elpv, aliens, magnetic tile and PIPED out for `refdiff evaluate`. A source that is not there is skipped."""
    elpv = (None, None, 200) if all_test else (None, None, None) if only_held_out else (test_good, test_bad, None)
    sources: list[Callable[[], Sequence[Product]]] = [
        lambda: [elpv_mono(test_good=elpv[0], test_bad=elpv[1], train=elpv[2])]
    ]
    if data is not None:
        sources += [lambda: [aliens(data)], lambda: [magnetic_tile(data)], lambda: piped(data)]
    done = 0
    try:
        for source in sources:
            try:
                products = source()
            except InputError as e:
                print(f"skipped: {e}", file=sys.stderr)
                continue
            for product in products:
                if only_held_out:
                    kept = tuple(i for i in product.images if kept_for_tests(product.name, i))
                    product = replace(product, images=kept)
                counts = lay_out(product, out, seed=seed, copy=copy)
                summary = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items())
                print(f"{out / product.name}: {summary} ({product.licence})", file=sys.stderr)
                done += 1
        if not done:
            raise InputError("nothing was laid out; give --data the folder with the sources")
    except RefDiffError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(e.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
