"""Exports in int8: the networks of an export in float32, quantised, and compared with those before anything is written.

All else of the export that the networks decide is made again by them: features and vectors of the golden samples, and the
calibration. Defects are drawn on golden samples, half of which the networks were not quantised on.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy.stats import binomtest

from refdiff.agent.evaluation.metrics import image_auroc, paired_auroc_difference
from refdiff.agent.verdict.rates import LEVEL
from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.memory.rows.calibrations import Calibration
from refdiff.model.difference.quantised import quantised
from refdiff.model.difference.sessions import GraphFormat, Run, open_session, openvino_files
from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.model.training.product import spoiled
from refdiff.tools.exported.archive import Export, write_export
from refdiff.tools.exported.content import CONTENT, FEATURES, VECTORS
from refdiff.tools.exported.export import Exported, export_product, golden_features, largest_difference
from refdiff.tools.exported.networks import GRAPHS, graph_parts
from refdiff.tools.exported.signing import NO_KEYS, Keys
from refdiff.tools.exported.workspace import ExportedWorkspace
from refdiff.tools.inspection.calibration import (
    attained_alpha,
    calibrates,
    in_doubt,
    measured_again,
    p_value,
    requested_alpha,
    with_counts,
    with_pose,
)
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.workspace import Workspace

_SUFFIX = ".onnx"
_PARTS = 12  # that networks are quantised on
_HELD_OUT = 24  # parts that defects are drawn on
_DEFECTS = 2  # of each
_CALLS = 32  # of a network that are kept, of all; a call of one tile takes about 6 MB
_TIMED = 7
_SEED = 0


@dataclass(frozen=True)
class Beside:
    """int8 beside float32, of one product. Pairs: float32, int8."""

    good: int  # parts, as the calibration has them
    defects: int  # drawn on parts that the networks were not quantised on
    auroc: tuple[float, float]
    gained: float  # AUROC of int8 minus that of float32
    interval: tuple[float, float]  # of that, 95 %
    attained: float  # the false-reject rate at which both are asked for escapes
    escapes: tuple[int, int]  # defects that are not failed at it
    newly_missed: int  # of those of int8, the ones that float32 fails
    ms: tuple[float, float]  # CPU time of all networks for one photo, one thread, on the machine that wrote the export
    mb: tuple[float, float]  # of the networks

    @property
    def slower(self) -> bool:
        return self.ms[1] > self.ms[0]


def export_int8(
    workspace: Workspace,
    product: str,
    path: Path,
    *,
    graphs: GraphFormat = "openvino",
    keys: Keys = NO_KEYS,
    by: str = "",
    progress: Progress = silent,
) -> tuple[Exported, Beside]:
    """As `export_product`, in int8.

    Raises as that, and InputError where int8 finds fewer defects than chance explains, or golden samples are too few to say.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, trial = Path(folder) / "float32.refdiff", Path(folder) / "int8.refdiff"
        written = export_product(workspace, product, plain, graphs="onnx", by=by, progress=progress)
        with closing(_Watched.of_file(plain)) as exact:
            known = exact.content.calibration
            quantising, held_out = _chosen(exact, known)
            seen = _watch(exact, quantising)
            parts = {name: exact.export.read(name) for name in exact.export.manifest.parts}
            networks = {n.removeprefix(f"{GRAPHS}/").removesuffix(_SUFFIX): parts.pop(n) for n in _graphs(parts)}
            if idle := sorted(networks.keys() - seen.keys()):
                raise InputError(
                    f"product {known.product!r}: too few golden samples to quantise {', '.join(idle)} on; enrol more, or "
                    "export it without --int8"
                )
            both = {}
            for name, network in networks.items():
                small = quantised(network, seen[name].calls, exact_start=name == "encoder")
                both[name] = _files(network, graphs), _files(small, graphs)
                parts |= graph_parts(name, both[name][1])
            about = exact.export.manifest.model_dump(exclude={"format", "parts"})
            about |= {"graphs": graphs, "number_format": "int8"}
            parts = {name: data for name, data in parts.items() if not name.startswith(f"{FEATURES}/")}
            write_export(trial, about, parts, NO_KEYS)
            with closing(ExportedWorkspace.of_file(trial)) as rough:  # it makes the features that it does not have
                parts |= _golden_parts(rough, known.product, progress)
            write_export(trial, about, parts, NO_KEYS)
            with closing(ExportedWorkspace.of_file(trial)) as rough:
                calibration = measured_again(rough, known.product, known, progress)
                bad = _defects(((exact, known), (rough, calibration)), held_out, progress)
            attained = attained_alpha(requested_alpha(exact, known), known.n, in_doubt(exact, known))
            beside = _beside(known, calibration, bad, attained, _ms(both, seen, graphs), both)
            _check(known.product, beside)
            content = replace(exact.content, calibration=replace(calibration, marks=[]))
        parts[CONTENT] = content.encode()
        manifest, digest = write_export(path, about | {"beside_float32": asdict(beside)}, parts, keys)
    made = replace(written, path=path, manifest=manifest, digest=digest, parts=len(parts), signed=keys.signs,
                   rounding=largest_difference(known, calibration))  # fmt: skip
    return made, beside


@dataclass(frozen=True)
class _Seen:
    """What a network was called with. per_photo: how often, on average."""

    calls: Sequence[Sequence[NDArray[Any]]]
    per_photo: float


def _watch(workspace: _Watched, goldens: Sequence[Golden]) -> dict[str, _Seen]:
    """Inspect golden samples as they are, and with a defect: network -> what it took."""
    known, photos = workspace.content.calibration, 0
    for golden in goldens:
        for picture in (workspace.golden_image(golden), *_spoiled(workspace, golden, goldens, 1)):
            _score(workspace, known, golden, picture)
            photos += 1
    return {name: _Seen(list(calls), workspace.counted[name] / photos) for name, calls in workspace.calls.items()}


def _defects(
    measured: Sequence[tuple[ExportedWorkspace, Calibration]], goldens: Sequence[Golden], progress: Progress
) -> list[list[float]]:
    """The scores of the same synthetic defects on golden samples, of each workspace by its calibration."""
    found: list[list[float]] = [[] for _ in measured]
    for done, golden in enumerate(goldens, start=1):
        for picture in _spoiled(measured[0][0], golden, goldens, _DEFECTS):
            for scores, (workspace, calibration) in zip(found, measured, strict=True):
                scores.append(_score(workspace, calibration, golden, picture))
        progress("comparing int8 with float32", done, len(goldens))
    return found


class _Watched(ExportedWorkspace):
    """Keeps some of the calls of each network, evenly drawn. calls: name -> arrays of each; counted: how many there were."""

    def __init__(self, export: Export, threads: int | None = None) -> None:
        self.calls: defaultdict[str, list[Sequence[NDArray[Any]]]] = defaultdict(list)
        self.counted: defaultdict[str, int] = defaultdict(int)
        self._rng = np.random.default_rng(_SEED)
        super().__init__(export, threads)

    def network_run(self, name: str) -> Run:
        run = super().network_run(name)

        def watched(*inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
            self.counted[name] += 1
            kept = self.calls[name]
            place = len(kept) if len(kept) < _CALLS else int(self._rng.integers(self.counted[name]))
            if place < _CALLS:
                kept[place : place + 1] = [[x.copy() for x in inputs]]
            return run(*inputs)

        return watched


def _chosen(workspace: Workspace, calibration: Calibration) -> tuple[list[Golden], list[Golden]]:
    """Golden samples to quantise on, and others to compare on; evenly, one a part. Raises InputError with too few."""
    goldens = [workspace.bank.get(i) for i in sorted(calibration.golden_ids)]
    first = {g.group: g for g in reversed(goldens) if calibrates(g)}
    parts = [first[name] for name in sorted(first)]
    # networks that are fitted to the product have seen every other part: both halves have some of both
    one, other = ([p for i, p in enumerate(parts) if i // 2 % 2 == turn] for turn in (0, 1))
    if not other:
        raise InputError(
            f"product {calibration.product!r}: golden samples of {len(parts)} parts are too few to say what int8 costs; "
            "enrol more, or export it without --int8"
        )
    return _evenly(one, _PARTS), _evenly(other, _HELD_OUT)


def _evenly(items: Sequence[Golden], most: int) -> list[Golden]:
    return list(items) if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _spoiled(workspace: Workspace, golden: Golden, others: Sequence[Golden], count: int) -> Iterator[RgbImage]:
    """The photo of a golden sample with a synthetic defect, so many times; fewer where none would be visible."""
    rng = np.random.default_rng([_SEED, *bytes.fromhex(golden.sha256[:16])])
    picture = workspace.golden_image(golden)
    for _ in range(count):
        other = workspace.golden_image(others[int(rng.integers(len(others)))])
        made = spoiled(picture, [other if other.shape == picture.shape else picture], rng, good=0.0)
        if made.mask.any():
            yield made.picture


def _score(workspace: Workspace, calibration: Calibration, golden: Golden, picture: RgbImage) -> float:
    """What an inspection makes of a picture of this golden sample, without those that show the same part."""
    same_part = [g.golden_id for g in workspace.bank.list(golden.product) if g.group == golden.group]
    references = calibration.references
    found = compare(workspace, picture, golden.product, references=references, exclude_ids=same_part)
    found, _, _ = with_counts(found, calibration)
    found, _ = with_pose(picture, found, calibration)
    return found.difference.score


def _golden_parts(workspace: ExportedWorkspace, product: str, progress: Progress) -> dict[str, bytes]:
    """Features and vectors of the golden samples, by the networks of the export."""
    in_use, vectors = workspace.bank.list(product, IN_USE), {}
    for golden in in_use:
        features = workspace.golden_features(golden)
        vectors[f"{golden.golden_id}/global"] = features.global_vec
        vectors[f"{golden.golden_id}/patches"] = features.patches
    return {VECTORS: save(vectors)} | golden_features(workspace, product, in_use, progress)


def _graphs(parts: Mapping[str, bytes]) -> list[str]:
    return [name for name in parts if name.startswith(f"{GRAPHS}/")]


def _files(network: bytes, graphs: GraphFormat) -> Mapping[str, bytes]:
    if graphs == "onnx":
        return {_SUFFIX: network}
    return openvino_files(lambda openvino: openvino.Core().read_model(network, b""))


def _ms(
    networks: Mapping[str, Sequence[Mapping[str, bytes]]], seen: Mapping[str, _Seen], graphs: GraphFormat
) -> tuple[float, float]:
    """CPU time of a photo, in float32 and in int8: the least of some calls, for other programs may be busy."""
    total = [0.0, 0.0]
    for name, both in networks.items():
        runs = [open_session(graphs, files, name, 1) for files in both]
        least = [float("inf")] * 2
        for _ in range(_TIMED):
            for i, run in enumerate(runs):
                began = time.process_time()
                run(*seen[name].calls[0])
                least[i] = min(least[i], time.process_time() - began)
        total = [t + 1e3 * seen[name].per_photo * s for t, s in zip(total, least, strict=True)]
    return total[0], total[1]


def _beside(
    exact: Calibration,
    rough: Calibration,
    bad: Sequence[Sequence[float]],
    attained: float,
    ms: tuple[float, float],
    networks: Mapping[str, Sequence[Mapping[str, bytes]]],
) -> Beside:
    good = [dict(zip(c.golden_ids, c.scores, strict=True)) for c in (exact, rough)]
    ids, defects = sorted(good[0]), len(bad[0])
    labels = [0] * len(ids) + [1] * defects
    a, b = ([scores[i] for i in ids] + list(of_bad) for scores, of_bad in zip(good, bad, strict=True))
    aurocs = image_auroc(labels, a), image_auroc(labels, b)
    gained = paired_auroc_difference(labels, b, a)
    if aurocs[0] is None or aurocs[1] is None or gained is None or gained.interval is None:
        raise InputError(
            f"product {exact.product!r}: no defect that was drawn on its golden samples can be seen, so nothing says "
            "what int8 costs; export it without --int8"
        )
    missed = [[p_value(c, s) > attained for s in of_bad] for c, of_bad in zip((exact, rough), bad, strict=True)]
    sizes = [sum(len(data) for both in networks.values() for data in both[i].values()) / 1e6 for i in range(2)]
    return Beside(
        good=len(ids),
        defects=defects,
        auroc=(aurocs[0], aurocs[1]),
        gained=gained.difference,
        interval=gained.interval,
        attained=attained,
        escapes=(sum(missed[0]), sum(missed[1])),
        newly_missed=sum(b and not a for a, b in zip(*missed, strict=True)),
        ms=ms,
        mb=(sizes[0], sizes[1]),
    )


def _check(product: str, beside: Beside) -> None:
    """Raises InputError where int8 finds less, and chance does not explain it."""
    newly, changed = beside.newly_missed, 2 * beside.newly_missed - (beside.escapes[1] - beside.escapes[0])
    p = float(binomtest(newly, changed, alternative="greater").pvalue) if changed else 1.0  # exact McNemar
    if beside.interval[1] >= 0 and p > (1 - LEVEL) / 2:
        return
    raise InputError(
        f"product {product!r} is not exported in int8, which finds fewer defects than float32: of {beside.defects} that "
        f"were drawn on its golden samples, AUROC {beside.auroc[1]:.3f} instead of {beside.auroc[0]:.3f} (difference "
        f"{beside.interval[0]:+.3f} to {beside.interval[1]:+.3f} with 95 % confidence), and {beside.escapes[1]} instead of "
        f"{beside.escapes[0]} are not failed; export it without --int8"
    )
