"""How well the language model drives, reads and answers: python tests/bench/driving.py

On recordings with the phrasings kept for the test (`refdiff train record --test`, of images that nothing was trained on):
each next call given what was recorded before it, each reading of a pair, each question about a report. `--live N` also runs
N whole inspections through the embedded model, from the request to the report; `--rephrased N` asks about one good and one
defective part of each product in N ways.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from langchain_core.messages import ToolMessage

from refdiff.agent import prompts
from refdiff.agent.drivers.allowed_calls import allowed_calls
from refdiff.agent.evaluation.own_products import own_products
from refdiff.agent.inspector import Inspector
from refdiff.agent.language.requests import canonical_request
from refdiff.agent.recording import templates
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.defect_types import UNKNOWN
from refdiff.model.errors import InputError, LLMError, RefDiffError
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.language.build import build_model
from refdiff.model.language.engine import Engine
from refdiff.model.settings import ModelSettings
from refdiff.model.training.language.data import board_zoom, read_lines, read_tools
from refdiff.model.training.pairs import Photo, Source
from refdiff.model.training.sources import deeppcb_groups
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.workspace import Workspace

Rows = list[dict[str, Any]]
_REQUEST = re.compile(r'Request: "(.*)"\nPart: (.*)', re.DOTALL)


def next_calls(engine: Engine, lines: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], images: Path) -> Rows:
    """One row per recorded call: was the tool right, were tool and arguments (of a report: its regions and types)."""

    def picture(sha256: str) -> RgbImage:
        return decode_image((images / f"{sha256}.png").read_bytes(), name=sha256)

    rows = []
    for line in lines:
        messages = [{k: v for k, v in m.items() if k in ("role", "content", "tool_calls")} for m in line["messages"]]
        messages[1] = {"role": "user", "content": _told(line["messages"][1]["content"])}
        for i, message in enumerate(line["messages"]):
            if message["role"] != "assistant" or not message.get("train", True) or not message.get("tool_calls"):
                continue
            wanted = message["tool_calls"][0]
            try:
                call = engine.call(messages[:i], tools, picture, allowed_calls(_results(line["messages"][:i]), tools))
            except LLMError:
                call = {"name": "none", "arguments": {}}
            rows.append(
                {"product": line["product"], "asked": line["asked"], "tool": wanted["name"], "said": call["name"],
                 "right_tool": call["name"] == wanted["name"],
                 "exact": call["name"] == wanted["name"] and _core(call) == _core(wanted), "seconds": engine.last.seconds}
            )  # fmt: skip
    return rows


def _told(recorded: str) -> str:
    """The recorded request as the product words it for the model."""
    found = _REQUEST.fullmatch(recorded)
    if found is None:
        raise InputError(f"no recorded request: {recorded[:100]!r}; record anew with refdiff train record --test")
    return prompts.request_message(canonical_request(found[1], found[2]), found[2])


def _results(messages: Sequence[dict[str, Any]]) -> list[ToolMessage]:
    """The tools' answers of a recorded conversation."""
    return [
        ToolMessage(
            m["content"], name=m["name"], tool_call_id=m["tool_call_id"],
            status="error" if m["content"].startswith("Error") else "success",
        )
        for m in messages if m["role"] == "tool"
    ]  # fmt: skip


def _core(call: dict[str, Any]) -> Any:
    """What must be right of a call: everything, but of a report the words."""
    if call["name"] != "submit_report":
        return call["arguments"]
    return sorted((f["region"], f["type"], tuple(f["evidence"])) for f in call["arguments"]["findings"])


def readings(engine: Engine, lines: Sequence[dict[str, Any]], images: Path) -> Rows:
    rows = []
    for line in lines:
        pair = [decode_image((images / f"{sha}.png").read_bytes(), name=sha) for sha in line["pair"]]
        rows.append(
            _read(engine, pair[0], pair[1], line["product"], line["reading"]["defect"], line["reading"]["type"])
        )
    return rows


def _read(
    engine: Engine, reference: RgbImage, query: RgbImage, product: str, defect: bool, kind: str
) -> dict[str, Any]:
    said = engine.read(reference, query)
    return {"product": product, "defect": defect, "type": kind, "said": said, "right": said["defect"] == defect,
            "right_type": said["defect"] and said["type"] == kind, "seconds": engine.last.seconds}  # fmt: skip


def board_readings(engine: Engine, source: Source, n: int, seed: int) -> Rows:
    """Zooms of a board group: a labelled defect or none."""
    rows = []
    for i in range(n):
        pair = board_zoom(source, np.random.default_rng([seed, i]))
        rows.append(_read(engine, pair.reference, pair.query, source.name, pair.defect, pair.type))
    return rows


def answers(engine: Engine, lines: Sequence[dict[str, Any]]) -> Rows:
    rows = []
    for line in lines:
        prompt, wanted = line["messages"][1]["content"], line["messages"][2]["content"]
        said, sure = engine.choose(line["messages"][:2], line["options"])
        rows.append({"question": prompt.rpartition("Question: ")[2], "wanted": wanted, "said": said, "known": line["known"],
                     "sure": sure, "right": said == wanted})  # fmt: skip
    return rows


@contextmanager
def _workplace(sources: Sequence[Source], rng: random.Random) -> Iterator[tuple[Inspector, dict[str, list[Photo]]]]:
    """An inspector with goldens of every product, and the good photos of each that were not enrolled."""
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-driving-") as folder,
        Workspace.open(MemorySettings(home=Path(folder), qdrant_url=None), ModelSettings()) as workspace,
    ):
        rest = {}
        for source in sources:
            good = rng.sample(source.good, len(source.good))
            enrolled = good[: min(30, len(good) // 2)]
            enroll(workspace, source.name, [p.path for p in enrolled])
            rest[source.name] = good[len(enrolled) :]
        with Inspector(workspace, AgentSettings(llm_base_url=None)) as inspector:
            yield inspector, rest


def live(sources: Sequence[Source], n: int, seed: int) -> Rows:
    """Whole inspections of good and defective parts with the test's phrasings."""
    rng = random.Random(seed)
    rows: Rows = []
    with _workplace(sources, rng) as (inspector, rest):
        for i in range(n):
            source = sources[i % len(sources)]
            defective = bool(source.bad) and rng.random() < 0.5
            photo = rng.choice(source.bad if defective else rest[source.name])
            part = f"{rng.randint(1000, 99999)}"
            text = rng.choice(templates.PLAIN_TEST).format(part=part)
            scale = rng.choice((None, 0.1))
            workspace = inspector.workspace
            record_capture(
                workspace.stores,
                part,
                source.name,
                photo.path,
                settings=workspace.model_settings,
                scale_mm_per_px=scale,
            )
            rows.append(_live_row(inspector, InspectionRequest(text, part, source.name), defective))
            print(f"{i + 1}/{n} {rows[-1]}", file=sys.stderr)
    return rows


def rephrased(sources: Sequence[Source], n: int, seed: int) -> Rows:
    """The same good part and the same defective part of each product, asked about in `n` ways, leading ones among them."""
    rng = random.Random(seed)
    rows: Rows = []
    with _workplace(sources, rng) as (inspector, rest):
        for source in sources:
            for defective in (False, True):
                photo = rng.choice(source.bad if defective else rest[source.name])
                part = f"{rng.randint(1000, 99999)}"
                settings = inspector.workspace.model_settings
                record_capture(inspector.workspace.stores, part, source.name, photo.path, settings=settings)
                known = (*templates.PLAIN_TEST, *rng.sample(templates.PLAIN, len(templates.PLAIN)))
                for template in known[:n]:
                    request = InspectionRequest(template.format(part=part), part, source.name)
                    rows.append(_live_row(inspector, request, defective) | {"part": part, "request": request.text})
                    print(f"{len(rows)} {rows[-1]}", file=sys.stderr)
    return rows


def _live_row(inspector: Inspector, request: InspectionRequest, defective: bool) -> dict[str, Any]:
    started = time.perf_counter()
    report = inspector.run(request)
    names = [c.tool for c in report.tool_trace]
    needless = len(names) - len({(c.tool, json.dumps(c.arguments, sort_keys=True)) for c in report.tool_trace})
    reading = report.llm_reading
    return {
        "product": request.product, "defective": defective, "verdict": report.verdict.value,
        "basis": report.verdict_basis.value, "via": report.judge.via, "reason": report.judge.reason, "calls": len(names),
        "needless": needless + sum(not c.ok for c in report.tool_trace), "dropped": len(report.unsupported_claims_dropped),
        "reading": reading.model_dump() if reading else None, "seconds": time.perf_counter() - started,
        "llm_ms": report.timings_ms.get("llm"), "findings": len(report.findings),
    }  # fmt: skip


def _share(rows: Rows, key: str) -> str:
    n = len(rows)
    return f"{sum(bool(r[key]) for r in rows) / n:.3f} (n {n})" if n else "- (n 0)"


def summary(found: dict[str, Rows]) -> Iterator[str]:
    """The figures as lines."""
    calls = found.get("next_calls", [])
    if calls:
        yield f"next tool right {_share(calls, 'right_tool')}, with arguments {_share(calls, 'exact')}"
        for tool in sorted({r["tool"] for r in calls}):
            yield f"  {tool}: {_share([r for r in calls if r['tool'] == tool], 'exact')}"
        yield f"  seconds a call p50 {np.median([r['seconds'] for r in calls]):.2f}"
    for name in ("readings", "boards"):
        rows = found.get(name, [])
        by_product = defaultdict(list)
        for row in rows:
            by_product[row["product"]].append(row)
        if rows:
            yield f"{name}: defect or not {_share(rows, 'right')}"
        for product, mine in sorted(by_product.items()):
            typed = [r for r in mine if r["defect"] and r["type"] != UNKNOWN]
            false = [r for r in mine if not r["defect"]]
            yield (
                f"  {product}: defect or not {_share(mine, 'right')}, type of defects {_share(typed, 'right_type')}, "
                f"good read as good {_share(false, 'right')}"
            )
    asked = found.get("answers", [])
    if asked:
        known, unknown = [r for r in asked if r["known"]], [r for r in asked if not r["known"]]
        yield f"questions right: known {_share(known, 'right')}, not known {_share(unknown, 'right')}"
    runs = found.get("live", [])
    if runs:
        seconds = [r["seconds"] for r in runs]
        yield (
            f"live: filed without fallback {sum(r['via'] == 'embedded' for r in runs)} of {len(runs)}, needless calls "
            f"{sum(r['needless'] for r in runs) / max(1, sum(r['calls'] for r in runs)):.3f}, dropped claims "
            f"{sum(r['dropped'] for r in runs)}, seconds p50 {np.median(seconds):.1f} p95 {np.quantile(seconds, 0.95):.1f}"
        )
        yield f"  verdicts {dict(Counter((r['defective'], r['verdict']) for r in runs))}"
        yield f"  of them by the model's disagreement {sum(r['basis'] == 'llm_disagreement' for r in runs)}"
    again = found.get("rephrased", [])
    for part in dict.fromkeys(r["part"] for r in again):
        mine = [r for r in again if r["part"] == part]
        yield (
            f"rephrased: part {part} of {mine[0]['product']} ({'defective' if mine[0]['defective'] else 'good'}), "
            f"{len(mine)} requests: {dict(Counter(r['verdict'] for r in mine))}"
        )
    yield f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"


def main(
    recordings: Annotated[Path | None, typer.Option(help="Folder of `refdiff train record --test`.")] = None,
    deeppcb: Annotated[Path | None, typer.Option(help="Folder that holds deeppcb/PCBData.")] = None,
    groups: Annotated[list[str] | None, typer.Option(help="Board groups to read.")] = None,
    bench: Annotated[Path | None, typer.Option(help="Products for --live, in the mvtec layout.")] = None,
    live_runs: Annotated[int, typer.Option("--live", min=0, help="Whole inspections to run.")] = 0,
    ways: Annotated[int, typer.Option("--rephrased", min=0, help="Ways to ask about a good and a bad part each.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each kind.")] = 200,
    seed: Annotated[int, typer.Option(help="Draws what is limited.")] = 0,
    out: Annotated[Path, typer.Option(help="All rows, as JSON.")] = Path("driving.json"),
) -> None:
    """Measure the embedded language model."""
    try:
        engine = Engine(build_model(ModelSettings()))
        found: dict[str, Rows] = {}
        if recordings:
            lines = read_lines(recordings)
            random.Random(seed).shuffle(lines)
            tools = read_tools(recordings)
            kinds = {k: [x for x in lines if x["kind"] == k][:limit] for k in ("inspection", "reading", "question")}
            found["next_calls"] = next_calls(engine, kinds["inspection"], tools, recordings / "images")
            found["readings"] = readings(engine, kinds["reading"], recordings / "images")
            found["answers"] = answers(engine, kinds["question"])
        if deeppcb:
            sources = deeppcb_groups(deeppcb)
            if unknown := set(groups or []) - set(sources):
                raise InputError(f"no board group {', '.join(sorted(unknown))}; there are {', '.join(sources)}")
            found["boards"] = [r for g in groups or [] for r in board_readings(engine, sources[g], limit, seed)]
        del engine  # an inspector loads its own
        if bench and live_runs:
            found["live"] = live(own_products(bench)[0], live_runs, seed)
        if bench and ways:
            found["rephrased"] = rephrased(own_products(bench)[0], ways, seed)
    except RefDiffError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(e.exit_code) from None
    out.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    for line in summary(found):
        print(line)


if __name__ == "__main__":
    typer.run(main)
