"""How verdicts depend on the golden samples: several draws, few and many of them, one reference and more.

python tests/bench/golden_draws.py measure bench-data/elpv_mono --goldens 20 --goldens 100 --references 4 --out runs.jsonl
python tests/bench/golden_draws.py bank bench-data/elpv_mono --goldens 20 --goldens 100 --out runs.jsonl
python tests/bench/golden_draws.py table runs.jsonl
python tests/bench/golden_draws.py change runs.jsonl --before before --now now

`measure` lays out each draw and runs `refdiff evaluate` on it, of any version of the program (--program). Of all good photos
some are tested, the others are golden samples; a larger number of them contains the smaller ones, and all are tested with
the same photos. `bank` measures patch-kNN on the same draws with the encoder of the product (Roth et al. 2022: features of
stride 8 and 16, cosine distance to the nearest patch of any golden sample, mean of the largest 1 %). What --out has already
is not measured again. `table` prints Markdown, and so does `change`: two methods on the same draws, with intervals.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from scorers import peer_cells

from refdiff.agent.evaluation.layouts import Sample, read_mvtec
from refdiff.agent.evaluation.metrics import image_auroc, paired_auroc_difference
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.patch_distance import image_score
from refdiff.model.images import decode_image
from refdiff.model.settings import ModelSettings
from refdiff.tools.inspection.calibration import attained_alpha
from refdiff.tools.workspace import Workspace

ALL = 0  # of --goldens: all that are not tested
BANK = "patch-kNN, full bank"
ALPHAS = (0.01, 0.05)
_ALPHA = ALPHAS[0]  # of the verdicts
_PROGRAM = Path(sys.executable).with_name("refdiff")

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


@dataclass(frozen=True)
class Draw:
    """tested: good, then defective ones. pool: golden samples, in the order in which they are taken."""

    tested: tuple[Sample, ...]
    pool: tuple[Path, ...]

    def goldens(self, count: int) -> tuple[Path, ...]:
        return self.pool[: count or None]


@dataclass(frozen=True)
class Run:
    """One draw, measured. asked: golden samples asked for, 0 for all; n: that the limit comes from. references: 0 for all.

    doubted: golden samples that do not set the limit (0, 1). p: of the tested photos, by their scores alone. verdicts: at
    alpha .01; empty for patch-kNN.
    """

    set: str
    method: str
    draw: int
    asked: int
    n: int
    references: int
    labels: list[int]
    scores: list[float]
    p: list[float]
    doubted: int = 0
    verdicts: list[str] = field(default_factory=list)
    pixel_auroc: float | None = None
    aupro: float | None = None
    ms: float | None = None
    notes: list[str] = field(default_factory=list)

    def key(self) -> tuple[str, str, int, int, int]:
        return self.set, self.method, self.draw, self.asked, self.references


def draw(root: Path, seed: int, test: int) -> Draw:
    """test: good and defective photos tested, at most, and at most a third of the good ones."""
    data, rng = read_mvtec(root), random.Random(seed)
    good = [
        *(Sample(p, p.name, p.stem, defective=False, kind="good") for p in data.train),
        *(s for s in data.test if not s.defective),
    ]
    bad = [s for s in data.test if s.defective]
    rng.shuffle(good)
    rng.shuffle(bad)
    n = min(test, len(good) // 3)
    return Draw((*good[:n], *bad[:test]), tuple(s.path for s in good[n:]))


def lay_out(goldens: Sequence[Path], tested: Sequence[Sample], out: Path) -> None:
    """The `mvtec` layout below `out`, by links; every file keeps its place in its list in its name."""
    for i, path in enumerate(goldens):
        _link(path, out / "train" / "good" / f"{i:04}{path.suffix}")
    for i, sample in enumerate(tested):
        _link(sample.path, out / "test" / sample.kind / f"{i:04}{sample.path.suffix}")
        for j, mask in enumerate(sample.masks):
            _link(mask, out / "ground_truth" / sample.kind / f"{i:04}" / f"{j}{mask.suffix}")


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(source.resolve())


def known(out: Path) -> list[Run]:
    """The runs of a file; none where there is no such file."""
    if not out.exists():
        return []
    return [Run(**json.loads(line)) for line in out.read_text(encoding="utf-8").splitlines()]


def _keep(out: Path, run: Run) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(run)) + "\n")


_Root = Annotated[Path, typer.Argument(metavar="SET", help="Data set in the mvtec layout.")]
_Out = Annotated[Path, typer.Option(help="Runs, one a line (JSON); appended to.")]
_Goldens = Annotated[list[int], typer.Option(help="Golden samples; 0: all that are not tested. Several times.")]
_Draws = Annotated[int, typer.Option(min=1, help="Draws of golden samples: seeds 0, 1, ...")]
_First = Annotated[int, typer.Option(min=0, help="Seed of the first draw.")]
_Test = Annotated[int, typer.Option(min=1, help="Good and defective photos tested, at most.")]


@app.command()
def measure(
    root: _Root,
    out: _Out,
    goldens: _Goldens,
    references: Annotated[list[int], typer.Option(help="Golden samples compared with. Several times.")],
    draws: _Draws = 5,
    first: _First = 0,
    test: _Test = 30,
    program: Annotated[Path, typer.Option(help="The refdiff command to measure.")] = _PROGRAM,
    method: Annotated[str, typer.Option(help="Name of its rows.")] = "RefDiff",
    fit: Annotated[bool, typer.Option(help="Fit the network to the golden samples first.")] = False,
) -> None:
    """Run `refdiff evaluate` on every draw."""
    there = {r.key() for r in known(out)}
    wanted = [(s, n, k) for s in range(first, first + draws) for n in goldens for k in references]
    for seed, count, k in track(wanted, root.name, console=Console(file=sys.stderr)):
        if (root.name, method, seed, count, k) in there:
            continue
        drawn = draw(root, seed, test)
        with tempfile.TemporaryDirectory(prefix="refdiff-draw-") as folder:
            lay_out(drawn.goldens(count), drawn.tested, Path(folder) / root.name)
            result = Path(folder) / "results.json"
            command = [
                *(str(program), "evaluate", f"{folder}/{root.name}", "--references", str(k), "--alpha", str(_ALPHA)),
                *("--out", str(result), *(["--fit"] if fit else [])),
            ]
            # a home of its own: what the user has set up must not decide
            env = os.environ | {"REFDIFF_HOME": str(Path(folder) / "home")}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{root.name}, draw {seed}, {count} golden samples: {done.stderr}")
            said = json.loads(result.read_text())
        rows = sorted(said["per_image"], key=lambda row: Path(row["path"]).stem)
        if len(rows) != len(drawn.tested):
            raise SystemExit(f"{root.name}, draw {seed}: {len(rows)} of {len(drawn.tested)} photos measured")
        n = said["n_calibration"]
        # above the share that n parts can promise there is no telling from `attained`, and no difference
        doubted = int(said["alpha"]["attained"] > 1.5 / (n + 1) and said["alpha"]["attained"] > _ALPHA)
        run = Run(
            root.name, method, seed, count, n, k,
            [r["label"] for r in rows], [r["score"] for r in rows], [r["p_value"] for r in rows], doubted,
            [r["verdict"] for r in rows], said["pixel_auroc"], said["aupro"], said["ms_per_image"]["p50"], said["notes"],
        )  # fmt: skip
        _keep(out, run)


@app.command()
def bank(root: _Root, out: _Out, goldens: _Goldens, draws: _Draws = 5, first: _First = 0, test: _Test = 30) -> None:
    """patch-kNN against the whole bank, on the same draws."""
    there = {r.key() for r in known(out)}
    for seed in range(first, first + draws):
        missing = [n for n in goldens if (root.name, BANK, seed, n, 0) not in there]
        if missing:
            for run in _banks(root.name, draw(root, seed, test), seed, missing):
                _keep(out, run)


def _banks(name: str, drawn: Draw, seed: int, counts: Sequence[int]) -> Iterator[Run]:
    """patch-kNN of one draw with so many golden samples."""
    most = max((drawn.goldens(n) for n in counts), key=len)
    cells = dict(_cells([*most, *(s.path for s in drawn.tested)]))
    scores: dict[int, dict[Path, float]] = defaultdict(dict)
    for path, query in track(cells.items(), f"{name}, bank, draw {seed}", console=Console(file=sys.stderr)):
        flat = query.flatten(1).T
        nearest = torch.stack([(flat @ cells[g].flatten(1)).amax(1) for g in most])  # (goldens, cells)
        for count in counts:
            chosen = [i for i, g in enumerate(drawn.goldens(count)) if g != path]
            scores[count][path] = image_score((1 - nearest[chosen].amax(0)).numpy())
    for count, of in scores.items():
        limits = np.array([of[g] for g in drawn.goldens(count)])
        tested = [of[s.path] for s in drawn.tested]
        p = [float((1 + (limits >= s).sum()) / (len(limits) + 1)) for s in tested]
        yield Run(name, BANK, seed, count, len(limits), 0, [s.label for s in drawn.tested], tested, p)


def _cells(paths: Sequence[Path]) -> Iterator[tuple[Path, torch.Tensor]]:
    """Unit vectors (C, h, w) of each photo."""
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-bank-") as folder,
        Workspace.open(
            MemorySettings.of_folder(Path(folder)), ModelSettings(cache=Path(folder) / "cache")
        ) as workspace,
    ):
        for path in paths:
            yield path, peer_cells(workspace.encoder.embed(decode_image(path.read_bytes(), name=path.name)))


@app.command()
def table(runs: Annotated[list[Path], typer.Argument(help="Files of runs.")]) -> None:
    """Means over draws, as Markdown."""
    rows: dict[tuple[str, int, str, int], list[Run]] = defaultdict(list)
    banks: dict[tuple[str, int, int], Run] = {}
    for run in (r for file in runs for r in known(file)):
        rows[run.set, run.asked, run.method, run.references].append(run)
        if run.method == BANK:
            banks[run.set, run.asked, run.draw] = run
    print(
        "| set | golden samples | method | references | draws | image AUROC | minus full bank | pixel AUROC | AUPRO | "
        + " | ".join(f"false rejects, escapes at {a:g}" for a in ALPHAS)
        + " | verdicts: FAIL of good, PASS of defective, REVIEW | escapes at .05 |"
    )
    print("|" + "---|" * (11 + len(ALPHAS)))
    for key in sorted(rows, key=lambda k: (k[0], k[1] or 10**6, k[2], k[3])):
        print(_row(rows[key], banks))


def _row(runs: Sequence[Run], banks: dict[tuple[str, int, int], Run]) -> str:
    aurocs = [image_auroc(r.labels, r.scores) or 0.0 for r in runs]
    beside = [(r, banks[r.set, r.asked, r.draw]) for r in runs if (r.set, r.asked, r.draw) in banks]
    paired = [paired_auroc_difference(r.labels, r.scores, b.scores) for r, b in beside if r is not b]
    bounds = [p.interval for p in paired if p and p.interval]
    minus = f"{np.mean([b[0] for b in bounds]):.3f} to {np.mean([b[1] for b in bounds]):.3f}" if bounds else ""
    first = runs[0]
    cells = [
        first.set, f"{np.mean([r.n for r in runs]):.0f}", first.method, str(first.references or "all"), str(len(runs)),
        f"{np.mean(aurocs):.3f} ({min(aurocs):.3f} to {max(aurocs):.3f})", minus,
        _mean([r.pixel_auroc for r in runs]), _mean([r.aupro for r in runs]),
        *(_share(runs, alpha) for alpha in ALPHAS), _verdicts(runs), f"{_ordered(runs, 0.05):.3f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float | None]) -> str:
    there = [v for v in values if v is not None]
    return f"{np.mean(there):.3f}" if there else ""


def _share(runs: Sequence[Run], alpha: float) -> str:
    """By the score alone: good parts that fail, defective ones that do not."""
    labels = np.concatenate([r.labels for r in runs])
    # no rounding error of the sum may decide
    failed = np.concatenate([np.array(r.p) <= attained_alpha(alpha, r.n, r.doubted) + 1e-9 for r in runs])
    return f"{failed[labels == 0].mean():.3f}, {(~failed[labels == 1]).mean():.3f}"


def _verdicts(runs: Sequence[Run]) -> str:
    if not runs[0].verdicts:
        return ""
    labels, said = (np.concatenate([getattr(r, of) for r in runs]) for of in ("labels", "verdicts"))
    shares = (said[labels == 0] == "FAIL", said[labels == 1] == "PASS", said == "REVIEW")
    return ", ".join(f"{s.mean():.3f}" for s in shares)


def _ordered(runs: Sequence[Run], share: float) -> float:
    """Escapes where the limit is put so that this share of the tested good parts of each draw fails."""
    passed = []
    for run in runs:
        labels, scores = np.array(run.labels), np.array(run.scores)
        limit = np.quantile(scores[labels == 0], 1 - share)
        passed.append(scores[labels == 1] <= limit)
    return float(np.concatenate(passed).mean())


# ---- two methods on the same draws ----

_RESAMPLES = 1000


@app.command()
def change(
    runs: Annotated[list[Path], typer.Argument(help="Files of runs.")],
    before: Annotated[str, typer.Option(help="Name of the rows to compare with.")],
    now: Annotated[str, typer.Option(help="Name of the other rows.")] = "now",
) -> None:
    """What a method changes, as Markdown: means over draws, and the 95 % interval of the change of each."""
    by_method: dict[str, dict[tuple[str, int, int, int], Run]] = defaultdict(dict)
    for run in (r for file in runs for r in known(file)):
        by_method[run.method][run.set, run.asked, 0 if run.method == BANK else run.references, run.draw] = run
    pairs: dict[tuple[str, int, int], list[tuple[Run, Run]]] = defaultdict(list)
    for (name, asked, references, seed), run in sorted(by_method[now].items()):
        if (other := by_method[before].get((name, asked, 0 if before == BANK else references, seed))) is not None:
            pairs[name, asked, references].append((other, run))
    print(f"| set | golden samples | references | draws | {' | '.join(f'{m}: {before}, {now}' for m in _MEASURES)} |")
    print("|" + "---|" * (4 + len(_MEASURES)))
    resampled = {key: _resampled(of) for key, of in pairs.items()}
    for key, of in sorted(pairs.items(), key=lambda p: (p[0][1] or 10**6, p[0][2], p[0][0])):
        print(f"| {key[0]} | {key[1] or 'all'} | {key[2]} | {len(of)} | {_said([_means(of)], resampled[key])} |")
    for asked, references in sorted({key[1:] for key in pairs}):
        keys = [k for k in pairs if k[1:] == (asked, references)]
        said = _said([_means(pairs[k]) for k in keys], np.mean([resampled[k] for k in keys], 0))
        print(f"| mean of {len(keys)} sets | {asked or 'all'} | {references} | | {said} |")


_MEASURES = ("image AUROC", "escapes in order", "PASS of defective", "FAIL of good", "REVIEW")
_Values = np.ndarray  # (measures,)


def _measured(run: Run, at: Sequence[np.ndarray]) -> _Values:
    """The measures of some photos of a run. at: indices of good ones, of defective ones."""
    scores, verdicts = np.array(run.scores), np.array(run.verdicts or [""] * len(run.scores))
    good, bad = (scores[i] for i in at)
    auroc = ((bad[:, None] > good).mean() + (bad[:, None] >= good).mean()) / 2
    passed, failed = verdicts[at[1]] == "PASS", verdicts[at[0]] == "FAIL"
    reviews = np.concatenate([verdicts[i] == "REVIEW" for i in at])
    said = [passed.mean(), failed.mean(), reviews.mean()] if run.verdicts else [np.nan] * 3
    return np.array([auroc, (bad <= np.quantile(good, 0.95)).mean(), *said])


def _classes(run: Run) -> list[np.ndarray]:
    return [np.flatnonzero(np.array(run.labels) == label) for label in (0, 1)]


def _means(pairs: Sequence[tuple[Run, Run]]) -> np.ndarray:
    """(2, measures): before and now."""
    return np.mean([[_measured(run, _classes(run)) for run in pair] for pair in pairs], 0)


def _resampled(pairs: Sequence[tuple[Run, Run]]) -> np.ndarray:
    """(_RESAMPLES, measures): the change with draws, and the photos of each draw and class, drawn with replacement."""
    rng = np.random.default_rng(0)
    changes = np.empty((_RESAMPLES, len(_MEASURES)))
    for row in changes:
        drawn = [pairs[i] for i in rng.integers(len(pairs), size=len(pairs))]
        found = []
        for was, run in drawn:
            at = [rng.choice(photos, len(photos)) for photos in _classes(run)]
            found.append(_measured(run, at) - _measured(was, at))
        row[:] = np.mean(found, 0)
    return changes


def _said(means: Sequence[np.ndarray], resampled: np.ndarray) -> str:
    """before to now (interval of the change), of each measure. means: (2, measures) of each set."""
    was, now = np.mean(means, 0)
    low, high = np.quantile(resampled, [0.025, 0.975], 0)
    return " | ".join(
        f"{a:.3f} to {b:.3f} ({x:.3f} to {y:.3f})" if np.isfinite(x) else ""  # patch-kNN gives no verdicts
        for a, b, x, y in zip(was, now, low, high, strict=True)
    )


if __name__ == "__main__":
    app()
