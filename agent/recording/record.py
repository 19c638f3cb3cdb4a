"""Recordings to train the language model on: the real agent with real tools, driven by a teacher that knows the truth.

Products of training photos and rendered parts are enrolled, calibrated and inspected in a temporary home, with many
phrasings of the request. The ground truth (mask, type) decides which regions are findings, and of which type.
Every line of the JSONL is a conversation: `inspection` (tool calls), `reading` (a pair, judged), `question` (about a filed
report). Assistant messages with `"train": false` are mistakes that the next message corrects. Pictures are files by sha256.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from refdiff.agent import prompts
from refdiff.agent.context import AgentContext
from refdiff.agent.drivers.allowed_calls import MAX_LOOKED_AT
from refdiff.agent.drivers.driver import tool_call, tool_results
from refdiff.agent.drivers.embedded import plain_messages
from refdiff.agent.drivers.scripted import ScriptedDriver
from refdiff.agent.graph import build_graph
from refdiff.agent.nodes import first_state
from refdiff.agent.recording import templates
from refdiff.agent.recording.questions import questions_about
from refdiff.agent.report.schema import LlmReading
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.defect_types import DEFECT_TYPES, NO_DEFECT, RENDERED_TYPES, UNKNOWN
from refdiff.model.errors import InputError, RefDiffError
from refdiff.model.files import write_atomic
from refdiff.model.images import Box, decode_image, encode_png
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.photo_pairs import add_defect, foreground_of
from refdiff.model.training.pairs import Photo, Source, read_mask
from refdiff.tools.context import ToolContext
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.registry import TRAINED_TOOLS
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

_TOUCHED = 0.15  # fraction of a region's box, or of the defect, that must overlap to count as the defect
_RENAMED = {**RENDERED_TYPES, "impurity": "contamination"}


@dataclass(frozen=True)
class Truth:
    """The ground truth of a photo. mask: (H, W) bool in its px, None if only the label is known."""

    defective: bool
    type: str
    mask: np.ndarray | None


@dataclass(frozen=True)
class RecordingPlan:
    """per_product: inspections of each, half of them of defective parts. test: phrasings kept for the test."""

    per_product: int = 24
    goldens: int = 24
    seed: int = 0
    test: bool = False


@dataclass
class Teacher:
    """Drives a run as an endpoint would, knowing the truth. mistakes: chance of a wrong call before the right one."""

    truth: Truth
    rng: random.Random
    kind: str
    k: int
    mistakes: float = 0.06
    via: Literal["endpoint", "embedded"] = "embedded"
    model: str = "teacher"
    url: str | None = None
    weights: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)  # ids of the calls that are mistakes
    boxes: dict[str, Box] = field(default_factory=dict)  # of the canonical regions, by their ids
    _other: int = 0

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """The script's next call, with another reference first where that was asked for, and findings from the truth."""
        own = [m for m in messages if not (isinstance(m, ToolMessage) and m.tool_call_id in self.wrong)]
        call = ScriptedDriver(k=self.k, max_regions=MAX_LOOKED_AT).next_call(own)
        if not call.tool_calls:
            return call
        name, arguments = call.tool_calls[0]["name"], dict(call.tool_calls[0]["args"])
        call_id = f"call-{len(messages)}"
        results = tool_results(own)
        if self.rng.random() < self.mistakes and name in ("align", "zoom", "measure"):
            self.wrong.add(call_id)
            wrong = {"golden_id": "g-00"} if name == "align" else {"region": f"r{self.rng.randint(7, 9)}"}
            return tool_call(name, wrong, call_id)
        if self.kind == "another" and name in ("zoom", "submit_report") and self._other == 0:
            goldens = results["retrieve_reference"][-1]["goldens"]
            if len(goldens) > 1:
                self._other = 1
                return tool_call("score_difference", {"golden_ids": [goldens[1]["golden_id"]]}, call_id)
        if name == "submit_report":
            arguments = self._report(results)
        return tool_call(name, arguments, call_id)

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        self.pairs.append((reference, query))
        kind = self.truth.type if self.truth.defective else NO_DEFECT
        return LlmReading(defect=self.truth.defective, type=kind, confidence=1.0)

    def answer(self, prompt: str, text: str) -> str:
        return ""  # inspections ask for calls only

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        return options[0], None

    def _report(self, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        scored = next(r for r in reversed(results["score_difference"]) if "p_value" in r)
        score = scored["evidence"]
        looked = {
            t: {r["region"]: r for r in results.get(t, []) if r.get("score") == score} for t in ("zoom", "measure")
        }
        findings = [
            self._claim(r["region"], score, looked["zoom"][r["region"]]["evidence"], looked["measure"][r["region"]])
            for r in scored["regions"]
            if r["region"] in looked["zoom"] and r["region"] in looked["measure"] and self._is_defect(r["region"])
        ]
        best = results["retrieve_reference"][-1]["evidence"]
        template = self.rng.choice(prompts.OVERALL_WITH if findings else prompts.OVERALL_WITHOUT)
        return {"findings": findings, "reasoning": template.format(best=best, score=score)}

    def _is_defect(self, region: str) -> bool:
        if not self.truth.defective:
            return False
        if self.truth.mask is None:
            return region == "r1"
        x0, y0, x1, y1 = self.boxes[region]
        inside = self.truth.mask[y0:y1, x0:x1]
        hit = int(inside.sum())
        return hit >= _TOUCHED * min(inside.size, max(1, int(self.truth.mask.sum())))

    def _claim(self, region: str, score: str, zoomed: str, measured: dict[str, Any]) -> dict[str, Any]:
        length = "length_mm" if "length_mm" in measured else "length_px"
        slots = {"m": measured["evidence"], "length": length, "score": score, "region": region}
        kind = self.truth.type
        cause = prompts.CAUSES.get(kind)
        return {
            "region": region,
            "type": kind,
            "severity": "unrated",
            "evidence": [score, zoomed, measured["evidence"]],
            "description": self.rng.choice(prompts.DESCRIPTIONS).format(**slots),
            "reasoning": self.rng.choice(prompts.REASONS).format(**slots),
            "probable_cause": self.rng.choice(cause) if cause and self.rng.random() < 0.7 else None,
        }


# ---- recording ----


def record(sources: Sequence[Source], out: Path, plan: RecordingPlan, progress: Progress = silent) -> int:
    """Inspect parts of every source and write `out/<source>.jsonl`; how many conversations are new.

    Goldens are never inspected. Products recorded before are skipped, so a stopped recording can be continued.
    Raises InputError (a source with fewer than four good photos, a folder of another plan), StorageError.
    """
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    (out / "tools.json").write_text(
        json.dumps([convert_to_openai_tool(t, strict=True) for t in TRAINED_TOOLS]), encoding="utf-8"
    )
    plan_path, described = out / "plan.json", json.dumps(asdict(plan))
    if plan_path.exists() and plan_path.read_text() != described:
        raise InputError(
            f"{out} holds recordings made with another plan ({plan_path.read_text()}); choose another --out"
        )
    plan_path.write_text(described)
    done = 0
    for source in sources:
        path = out / f"{source.name}.jsonl"
        if path.exists():
            continue
        lines = [json.dumps(line, ensure_ascii=False) for line in _record_product(source, images, plan, progress)]
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())  # a crash leaves only complete products
        done += len(lines)
    return done


def _record_product(source: Source, images: Path, plan: RecordingPlan, progress: Progress) -> Iterator[dict[str, Any]]:
    if len(source.good) < 4:
        raise InputError(
            f"{source.name}: {len(source.good)} good photos; at least four are needed, to enrol some and inspect the others"
        )
    rng = random.Random(f"{plan.seed}/{source.name}")
    good = rng.sample(source.good, len(source.good))
    goldens = good[: min(plan.goldens, len(good) // 2)]
    rest = good[len(goldens) :]
    product = source.name.replace("_", "-")
    with tempfile.TemporaryDirectory(prefix="refdiff-record-") as folder:
        home = Path(folder)
        memory = MemorySettings.of_folder(home / "home")
        with Workspace.open(memory, ModelSettings(cache=home / "cache"), ToolsSettings()) as workspace:
            enroll(workspace, product, [p.path for p in goldens])
            calibrate(workspace, product, workspace.settings.references)
            for i in range(plan.per_product):
                truth, data = _photo(source, rest, rng, defective=i % 2 == 1)
                photo = home / f"photo-{i}.png"
                photo.write_bytes(data)
                progress(source.name, i + 1, plan.per_product)
                try:
                    yield from _inspect(workspace, product, source.name, photo, truth, rng, images, plan.test)
                except RefDiffError as e:
                    progress(source.name, i + 1, plan.per_product, f"skipped: {e}")


def _photo(source: Source, good: Sequence[Photo], rng: random.Random, *, defective: bool) -> tuple[Truth, bytes]:
    """A photo and its truth: real defects where there are some, else (and in a third of the cases) synthetic ones."""
    if not defective:
        return Truth(False, NO_DEFECT, None), rng.choice(good).path.read_bytes()
    if source.bad and rng.random() < 0.7:
        photo = rng.choice(source.bad)
        kind = _RENAMED.get(photo.type or "", photo.type or "")
        known = kind if kind in DEFECT_TYPES else UNKNOWN
        data = photo.path.read_bytes()
        return Truth(True, known if photo.masks else UNKNOWN, _mask(photo, data)), data
    image = decode_image(rng.choice(good).path.read_bytes(), name="photo")
    numbers = np.random.default_rng(rng.randrange(2**31))
    for _ in range(20):
        made = add_defect(image, numbers, donor=None, foreground=foreground_of(image))
        if made is not None and made.mask.any():
            return Truth(True, made.type, made.mask), encode_png(made.image)
    raise InputError(f"{source.name}: no defect could be drawn on a photo")


def _mask(photo: Photo, data: bytes) -> np.ndarray | None:
    return read_mask(photo, decode_image(data, name=str(photo.path)).shape[:2]) if photo.masks else None


def _part_id(rng: random.Random) -> str:
    styles = (
        lambda: str(rng.randint(1, 99999)), lambda: f"{rng.choice('ABCDKLMPX')}{rng.randint(1, 999)}",
        lambda: f"{rng.randint(10, 99)}-{rng.randint(10, 9999)}", lambda: f"SN{rng.randint(1000, 999999)}",
    )  # fmt: skip
    return rng.choice(styles)()


def _inspect(
    workspace: Workspace,
    product: str,
    source: str,
    photo: Path,
    truth: Truth,
    rng: random.Random,
    images: Path,
    test: bool,
) -> Iterator[dict[str, Any]]:
    kind = rng.choices(("plain", "several", "another"), (0.8, 0.12, 0.08))[0]
    template = rng.choice(templates.phrasings(test)[kind])
    part, k = _part_id(rng), 4
    if kind == "several":
        k = rng.choice(list(templates.NUMBERS))
    text = template.format(part=part, n=rng.choice(templates.NUMBERS.get(k, (str(k),))))
    scale = rng.choice((None, 0.02, 0.05, 0.1, 0.2))
    settings = workspace.model_settings
    capture = record_capture(workspace.stores, part, product, photo, settings=settings, scale_mm_per_px=scale)
    teacher = Teacher(truth, rng, kind, k)
    tools = ToolContext(workspace, capture.part_id, product, capture=capture)
    teacher.boxes = {r.region.id: r.region.box for r in tools.canonical.regions}
    request = InspectionRequest(text, capture.part_id, product, requested_by="recorder")
    context = AgentContext(tools, AgentSettings(llm_base_url=None), teacher, lambda _: None)
    state = first_state(request, request, via="embedded")
    final: dict[str, Any] = {}
    for final in build_graph(None).stream(state, context=context, stream_mode="values"):
        if final.get("report"):
            break  # nothing is filed
    if final["report"]["judge"]["via"] == "fallback" or final["report"]["unsupported_claims_dropped"]:
        raise RefDiffError(f"the teacher's own report was rejected: {final['report']['unsupported_claims_dropped']}")
    common = {"product": source, "template": template, "test": test, "photo": capture.sha256}
    messages = plain_messages(final["messages"])
    refused = prompts.UNSUPPORTED.partition("{")[0]
    for i, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        if message["role"] == "assistant":
            # after a call come its result and, where claims were refused, what was wrong with them
            sent_back = any(
                str(m["content"]).startswith(refused) for m in messages[i + 1 : i + 3] if m["role"] == "user"
            )
            message["train"] = not sent_back and not any(c["id"] in teacher.wrong for c in calls)
        for sha in _pictures(message):
            _keep(workspace, sha, images)
    yield common | {"kind": "inspection", "asked": kind, "messages": messages}
    reading = {"defect": truth.defective, "type": truth.type}
    for reference, query in teacher.pairs:
        _keep(workspace, reference, images)
        _keep(workspace, query, images)
        yield common | {"kind": "reading", "pair": [reference, query], "reading": reading}
    for question in questions_about(final["report"], rng, test=test):
        yield common | {
            "kind": "question",
            "messages": [
                *plain_messages([SystemMessage(prompts.ANSWER), HumanMessage(question.prompt)]),
                {"role": "assistant", "content": question.answer, "train": True},
            ],
            "known": question.known,
            "options": question.options,
        }


def _pictures(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [b["image"] for b in content if b.get("type") == "image"] if isinstance(content, list) else []


def _keep(workspace: Workspace, sha256: str, images: Path) -> None:
    target = images / f"{sha256}.png"
    if not target.exists():
        write_atomic(target, workspace.stores.images.get(sha256))
