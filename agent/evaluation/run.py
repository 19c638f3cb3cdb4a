"""`refdiff evaluate`: enrol, calibrate and inspect a data set in a temporary home; never touches user data.

Takes exactly the inspection path (`tools.inspection.comparison.compare`), without the LLM unless `judge` is set.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from refdiff.agent.drivers.driver import Driver
from refdiff.agent.evaluation.layouts import DataSet, Format, Sample, golden_subset, load_masks, read_dataset
from refdiff.agent.evaluation.metrics import (
    Detection,
    DetectionMetrics,
    PixelMetrics,
    detection_metrics,
    write_detections,
)
from refdiff.agent.evaluation.results import EvaluationResults, ImageResult, build_results, learned_effect
from refdiff.agent.report.schema import Alpha, Verdict
from refdiff.agent.settings import AgentSettings
from refdiff.agent.verdict.decide import PolicyInput, decide
from refdiff.memory.golden_bank.golden import IN_USE, Golden, make_golden_id
from refdiff.memory.rows.calibrations import Calibration
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import ImageError, InputError
from refdiff.model.images import RgbImage, decode_image, encode_png, measure_window
from refdiff.model.language.reading import READ
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import ModelSettings
from refdiff.model.wording import few
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import fit_product
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import (
    attained_alpha,
    current_calibration,
    in_doubt,
    p_value,
    said_of,
    software_fingerprint,
    standing_out,
    unlike_goldens,
    weights_in_use,
    with_counts,
    with_pose,
)
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.inspection import problems_of
from refdiff.tools.inspection.light import other_light
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.regions import map_window
from refdiff.tools.workspace import Workspace

PRODUCT = "evaluated"


@dataclass(frozen=True)
class LearnedPhoto:
    """A reference learned from a person, as stored in the user's own bank."""

    golden: Golden
    data: bytes


@dataclass(frozen=True)
class _Plan:
    """What `evaluate` was asked for."""

    data: DataSet
    settings: ToolsSettings
    goldens: int | None
    references: int
    judge: bool
    detections: Path | None
    seed: int
    fit: bool
    progress: Progress


@dataclass(frozen=True)
class _Run:
    """The plan at work in one home. learned: enrolled besides the plan's goldens. driver: reads the pairs."""

    plan: _Plan
    learned: Sequence[LearnedPhoto]
    workspace: Workspace
    driver: Driver | None


def learned_photos(product: str) -> list[LearnedPhoto]:
    """The active references that a product of the configured home owes to people's decisions; read-only.

    Raises InputError where there are none, BankBusyError where a server holds the bank.
    """
    with Workspace.open() as workspace:
        found = [g for g in workspace.bank.list(product, IN_USE) if g.source != "enrolled"]
        photos = [LearnedPhoto(g, workspace.stores.images.get(g.sha256)) for g in found]
    if not photos:
        raise InputError(
            f"product {product!r} has not learned any references yet: "
            "refdiff review INSPECTION --override --as-reference --reason TEXT"
        )
    return photos


def _without(data: DataSet, sha256: set[str]) -> tuple[DataSet, list[str]]:
    """The data set without test images of these contents, and their names: never test on learned photos."""
    if not sha256:
        return data, []
    gone = {s.name for s in data.test if hashlib.sha256(_read(s.path)).hexdigest() in sha256}
    return replace(data, test=tuple(s for s in data.test if s.name not in gone)), sorted(gone)


def evaluate(
    directory: Path,
    *,
    format: Format | None = None,
    split: str | None = None,
    goldens: int | None = None,
    references: int | None = None,
    alpha: float | None = None,
    judge: bool = False,
    detections: Path | None = None,
    seed: int = 0,
    learned: str | None = None,
    fit: bool = False,
    progress: Progress = silent,
) -> EvaluationResults:
    """Evaluate a data set; `EvaluationResults` defines the metrics.

    goldens: how many of train/good to enrol (default all). references: K compared with each image. judge: let the
    configured LLM read each pair too. detections: folder for one `<id>.txt` per test image (deeppcb). seed: of the
    bootstrap. learned: product whose references learned from people are enrolled too; the same images are measured without
    them first, and the results say what changed (mvtec layout). fit: fit the difference network to the goldens first
    (mvtec layout).
    Images that cannot be read are left out, named in the notes. Raises InputError for a folder that is not a data set, or of
    which no test image can be read.
    """
    data = read_dataset(directory, format, split)
    if detections is not None and data.format != "deeppcb":
        raise InputError(f"--detections applies to the deeppcb layout, {directory} is {data.format}; leave it out")
    settings = ToolsSettings() if alpha is None else ToolsSettings(alpha=alpha)
    if learned is not None and data.format != "mvtec":
        raise InputError(f"--learned applies to the mvtec layout, {directory} is {data.format}; leave it out")
    if fit and data.format != "mvtec":
        raise InputError(f"--fit applies to the mvtec layout, {directory} is {data.format}; leave it out")
    photos = learned_photos(learned) if learned is not None else []
    data, left_out = _without(data, {p.golden.sha256 for p in photos})

    plan = _Plan(data, settings, goldens, references or settings.references, judge, detections, seed, fit, progress)
    if learned is None:
        return _measure(plan, [])
    before, after = _measure(plan, []), _measure(plan, photos)
    effect = learned_effect(learned, [p.golden.golden_id for p in photos], left_out, before, after)
    return after.model_copy(update={"learned": effect})


def _measure(plan: _Plan, learned: Sequence[LearnedPhoto]) -> EvaluationResults:
    with tempfile.TemporaryDirectory(prefix="refdiff-evaluate-") as folder:
        home = Path(folder)
        memory = MemorySettings.of_folder(home / "home")
        # golden features are of no use later, but a judge's model folder lies in the user's cache
        model = ModelSettings() if plan.judge else ModelSettings(cache=home / "cache")
        with Workspace.open(memory, model, plan.settings) as workspace:
            return _evaluate(_Run(plan, learned, workspace, _judge(workspace) if plan.judge else None))


def _judge(workspace: Workspace) -> Driver:
    from refdiff.agent.drivers.choice import choose_driver  # its clients load in seconds

    driver, why = choose_driver(workspace, AgentSettings(), lambda _: None)
    if driver is None:
        raise InputError(f"--judge needs a model: {why}; or set REFDIFF_LLM_BASE_URL")
    return driver


def _evaluate(run: _Run) -> EvaluationResults:
    plan, data, notes = run.plan, run.plan.data, list[str]()
    enrolled = _enrol(run, notes) if data.format == "mvtec" else 0
    if plan.fit:
        notes.append(_fit(run))
    calibration = _calibrate(run, notes)
    doubted = in_doubt(run.workspace, calibration)
    if calibration and (found_odd := standing_out(calibration)):
        names = ", ".join(run.workspace.bank.get(o.golden_id).filename for o in found_odd)
        notes.append(f"{said_of(calibration, found_odd, plan.settings.alpha, doubted)} ({names})")
    n = calibration.n if calibration else 0
    pixels = PixelMetrics() if data.has_masks else None
    found: dict[str, list[Detection]] = {}
    rows: list[ImageResult] = []
    if data.format == "deeppcb" and data.split == "trainval":
        notes.append(
            "the packaged networks were trained on this split, so these figures say nothing about unseen boards"
        )
    lost: list[tuple[str, str]] = []
    masks = _Masks()
    for done, sample in enumerate(data.test):
        plan.progress("inspecting", done, len(data.test))
        try:
            row, comparison = _inspect(run, sample, calibration, doubted)
        except ImageError as e:
            lost.append((sample.name, str(e).removeprefix(f"{sample.name}: ")))
            continue
        rows.append(row)
        if pixels is not None and (sample.masks or not sample.defective):
            _add_pixels(pixels, sample, comparison, masks)
        if sample.boxes is not None:
            found[sample.id] = _detect(run, sample, comparison)
    plan.progress("inspecting", len(data.test), len(data.test))
    if lost:
        notes.append(_left_out(lost, len(data.test), "test images cannot be read"))
    notes += masks.notes(sum(bool(s.masks) for s in data.test))
    if not rows:
        raise InputError(f"{data.root}: no test image can be read ({lost[0][0]}: {lost[0][1]})")
    boxes: DetectionMetrics | None = None
    if found:
        boxes = detection_metrics(found, {s.id: s.boxes for s in data.test if s.boxes is not None})
        if plan.detections is not None:
            write_detections(plan.detections, found)
    return build_results(
        data,
        rows,
        alpha=Alpha(requested=plan.settings.alpha, attained=attained_alpha(plan.settings.alpha, n, doubted)),
        references=plan.references if data.format == "mvtec" else 1,
        goldens=enrolled,
        weights_sha256=software_fingerprint(run.workspace, _network(run)),
        weights=_weights(run),
        version=version("refdiff"),
        pixels=pixels,
        detection=boxes,
        n_calibration=n,
        seed=plan.seed,
        notes=notes,
    )


def _weights(run: _Run) -> dict[str, str]:
    """sha256 of every weight file that the results depend on."""
    boards = {"boards": run.workspace.boards.sha256} if run.plan.data.format == "deeppcb" else {}
    return weights_in_use(run.workspace, _network(run)) | boards


def _network(run: _Run) -> str | None:
    fitted = run.workspace.fitted(PRODUCT)
    return None if fitted is None else fitted.sha256


def _enrol(run: _Run, notes: list[str]) -> int:
    chosen = golden_subset(run.plan.data.train, run.plan.goldens)
    result = enroll(run.workspace, PRODUCT, chosen, progress=run.plan.progress)
    for what, left in (("cannot be enrolled", result.refused), ("are enrolled already", result.already_there)):
        if left:
            named = [(r.path.name, r.reason) for r in left]
            notes.append(_left_out(named, len(chosen), f"good training images {what}"))
    for photo in run.learned:
        golden = photo.golden
        enroll(
            run.workspace,
            PRODUCT,
            [Upload(golden.filename, photo.data)],
            scale_mm_per_px=golden.scale_mm_per_px,
            part_group=golden.part_group,
            golden_source=golden.source,
        )
    if not result.n_in_bank:
        reasons = few((f"{r.path}: {r.reason}" for r in result.refused), between="; ")
        raise InputError(
            f"{run.plan.data.root}: none of the {len(chosen)} good training images could be enrolled ({reasons})"
        )
    return result.n_in_bank


def _left_out(named: Sequence[tuple[str, str]], of: int, what: str) -> str:
    """A note on images, by name and reason, that are not measured."""
    return f"{len(named)} of {of} {what} and are left out ({_some(named)})"


def _some(named: Sequence[tuple[str, str]]) -> str:
    return few((f"{name}: {why}" for name, why in named), between="; ")


def _fit(run: _Run) -> str:
    """Fit a network to the goldens; what came of it."""
    plan = run.plan
    made = fit_product(run.workspace, PRODUCT, "evaluate", references=plan.references, progress=plan.progress)
    shared, fitted, n = made.networks.found
    return (
        f"the network was fitted to the golden samples in {made.networks.seconds:.0f} s and "
        f"{'is used' if made.kept else 'not kept'}: found {fitted} of {n} synthetic defects, the shared one {shared}"
    )


def _calibrate(run: _Run, notes: list[str]) -> Calibration | None:
    """From the goldens (mvtec) or from the good pairs set apart (pairs); None where there are too few."""
    plan, apart = run.plan, run.plan.data.calibrate
    if plan.data.format == "mvtec":
        return current_calibration(run.workspace, PRODUCT, plan.references, plan.progress)
    if not apart:
        return None
    results, lost = [], []
    for done, sample in enumerate(apart):
        try:
            results.append(_compare(run, sample)[1].difference)
        except ImageError as e:
            lost.append((sample.name, str(e).removeprefix(f"{sample.name}: ")))
        plan.progress("calibrating", done + 1, len(apart))
    if lost:
        notes.append(_left_out(lost, len(apart), "pairs set apart for calibration cannot be read"))
    if not results:
        return None
    return Calibration(
        product=PRODUCT,
        key="pairs",
        scores=sorted(d.score for d in results),
        pixel_threshold=float(np.quantile([d.peak for d in results], 0.95)),
        n=len(results),
        references=1,
        peaks=sorted(d.peak for d in results),
        levels=sorted(d.level for d in results),
    )


def _compare(run: _Run, sample: Sample) -> tuple[RgbImage, Comparison]:
    """The photo (H, W, 3) uint8 RGB, and its comparison."""
    data = _read(sample.path)
    sha256 = hashlib.sha256(data).hexdigest()
    known = run.workspace.stores.products.get(PRODUCT)
    window = known.intensity_window if known else None
    if sample.reference is None:
        image = decode_image(data, name=sample.name, window=window)
        # no photo is its own reference, as in an inspection
        itself = [make_golden_id(PRODUCT, sha256)] if run.workspace.bank.count(PRODUCT, IN_USE) > 1 else []
        return image, compare(
            run.workspace, image, PRODUCT, query_key=sha256, references=run.plan.references, exclude_ids=itself
        )
    reference = _read(sample.reference)
    if window is None and (measured := measure_window(reference, name=str(sample.reference))):
        window = run.workspace.stores.products.set_window_once(PRODUCT, measured).intensity_window
    image = decode_image(data, name=sample.name, window=window)
    golden_sha = run.workspace.stores.images.put(reference)
    golden = Golden(make_golden_id(PRODUCT, golden_sha), PRODUCT, golden_sha, sample.reference.name)
    return image, compare(run.workspace, image, PRODUCT, query_key=sha256, goldens=[golden])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ImageError(f"{path}: cannot be read ({e.strerror})") from e


def _inspect(
    run: _Run, sample: Sample, calibration: Calibration | None, doubted: int
) -> tuple[ImageResult, Comparison]:
    started = time.perf_counter()
    image, comparison = _compare(run, sample)
    comparison, counts, uncounted = with_counts(comparison, calibration)
    comparison, pose = with_pose(image, comparison, calibration)
    ms = (time.perf_counter() - started) * 1000
    score = comparison.difference.score
    p = p_value(calibration, score) if calibration else None
    nearest = comparison.hits[0]
    reading = None
    if run.driver is not None:
        images = run.workspace.stores.images
        pair = images.put(encode_png(comparison.nearest.reduced)), images.put(encode_png(image))
        reading = run.driver.read_pair(READ, *pair)
    n, alpha = calibration.n if calibration else 0, run.plan.settings.alpha
    attained = attained_alpha(alpha, n, doubted)
    p_compared = p_value(calibration, score - comparison.difference.added) if calibration else None
    unlike = unlike_goldens(calibration, p if pose.mirrored else p_compared, nearest.similarity, attained)
    light = "" if pose.said else other_light(image, comparison, calibration, p, attained)
    facts = PolicyInput(
        p=p,
        n=n,
        alpha=alpha,
        in_doubt=doubted,
        oddities=[*pose.said, *(str(c) for c in counts if c.wrong_by)],
        reading=reading,
        problems=[
            *problems_of(comparison),
            *(said for said in (uncounted, pose.problem, unlike, light) if said),
        ],
    )
    decision = decide(facts)
    by_score = None if reading is None else decide(replace(facts, reading=None)).verdict is Verdict.PASS
    row = ImageResult(
        path=sample.name,
        label=sample.label,
        score=score,
        p_value=p,
        verdict=Verdict(decision.verdict),
        reference=str(sample.reference.relative_to(run.plan.data.root))
        if sample.reference
        else nearest.golden.golden_id,
        ms=ms,
        kind=sample.kind,
        score_passes=by_score,
        reading=None if reading is None else reading.confidence if reading.defect else 1 - reading.confidence,
    )
    return row, comparison


@dataclass(frozen=True)
class _Masks:
    """What there is to say of the masks, each by the name of its image and a reason."""

    unusable: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)

    def notes(self, of: int) -> list[str]:
        """of: how many images have masks."""
        said = []
        if self.unusable:
            what = "images with masks have one that cannot be used and are left out of the pixel figures"
            said.append(f"{len(self.unusable)} of {of} {what} ({_some(self.unusable)})")
        if self.changed:
            said.append(f"masks of {len(self.changed)} of {of} images were changed ({_some(self.changed)})")
        return said


def _add_pixels(pixels: PixelMetrics, sample: Sample, comparison: Comparison, found: _Masks) -> None:
    size = comparison.nearest.size
    anomaly_map = map_window(comparison.difference.anomaly_map, (0, 0, size[1], size[0]), size)
    if not sample.masks:
        pixels.add(anomaly_map, None)
        return
    try:
        mask, changes = load_masks(sample.masks, anomaly_map.shape)
    except InputError as e:
        found.unusable.append((sample.name, str(e)))
        return
    pixels.add(anomaly_map, mask)
    if changes:
        found.changed.append((sample.name, ", ".join(changes)))


def _detect(run: _Run, sample: Sample, comparison: Comparison) -> list[Detection]:
    """Boxes of a sample in native pixels. The layout gives templates that lie as the photos do."""
    query = decode_image(_read(sample.path), name=sample.name)
    reference = run.workspace.golden_image(comparison.hits[0].golden)
    if reference.shape != query.shape:
        raise InputError(f"{sample.name}: {query.shape[:2]} px, its template {reference.shape[:2]}; they must be equal")
    return [
        Detection(*d.box, confidence=d.confidence, type=d.type) for d in run.workspace.boards.detect(query, reference)
    ]
