"""What the agent's tools share during one inspection: the services, the part in question, and look-ups in the evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refdiff.memory.records.captures import Capture
from refdiff.model.errors import ToolOrderError, UnknownRecordError
from refdiff.model.images import RgbImage, encode_png
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.workspace import Workspace

if TYPE_CHECKING:
    from refdiff.model.difference.encoder import Features
    from refdiff.tools.inspection.comparison import Comparison
    from refdiff.tools.inspection.inspection import PhotoInspection

Result = tuple[str, dict[str, Any]]  # what the LLM reads (JSON), what the state keeps (artifact)


class ToolContext:
    """Context of a run (never checkpointed); `inspection.open_workbench` makes one.

    part_id: the part the request is about; tools refuse any other. features: of a photo, encoded once a
    run. inspect: the canonical inspection of a photo,
    computed once a run. compare: the photo against goldens of one's choice, by their ids. capture_id: the photo that was
    asked about, None for the newest.
    """

    # not a dataclass: the tools' argument schemas would try to validate its fields

    def __init__(
        self,
        workspace: Workspace,
        part_id: str,
        product: str | None,
        features: Callable[[Capture], Features],
        inspect: Callable[[Capture], PhotoInspection],
        compare: Callable[[Capture, list[str]], Comparison],
        capture_id: str | None = None,
    ) -> None:
        self.workspace = workspace
        self.part_id = part_id
        self.product = product
        self.features = features
        self.inspect = inspect
        self.compare = compare
        self.capture_id = capture_id

    def query(self, capture: Capture) -> RgbImage:
        return self.workspace.image(capture.sha256, capture.product, f"photo of part {capture.part_id}")

    def shown_query(self, capture: Capture) -> str:
        """sha256 of the photo in a form that anyone can show: itself, or 8-bit through the product's intensity window."""
        known = self.workspace.stores.products.get(capture.product)
        return self.keep_image(self.query(capture)) if known and known.intensity_window else capture.sha256

    def keep_image(self, image: RgbImage) -> str:
        """Store a picture that a tool made; returns its sha256."""
        return self.workspace.stores.images.put(encode_png(image))


def latest(evidence: list[dict[str, Any]], kind: str, missing: str) -> EvidenceRecord:
    """The newest evidence of a kind. Raises ToolOrderError saying what to call first."""
    for record in reversed(evidence):
        if record["kind"] == kind:
            return EvidenceRecord.model_validate(record)
    raise ToolOrderError(missing)


def current_capture(bench: ToolContext, evidence: list[dict[str, Any]]) -> Capture:
    """The photo that the first find_part found: a part photographed again meanwhile does not change a run.

    Raises ToolOrderError if find_part was not called.
    """
    found = next((r for r in evidence if r["kind"] == "capture"), None)
    if found is None:
        raise ToolOrderError("no photo yet: call find_part first")
    return bench.workspace.stores.captures.get(str(found["arguments"]["capture_id"]))


def region_box(evidence: list[dict[str, Any]], region: str) -> tuple[EvidenceRecord, tuple[int, int, int, int]]:
    """The newest scored region of that id and its box. Raises ToolOrderError, UnknownRecordError."""
    scored = latest(evidence, "score", "no regions yet: call score_difference first")
    corners = [scored.numbers.get(f"{region}_{c}") for c in ("x0", "y0", "x1", "y1")]
    if any(v is None for v in corners):
        known = ", ".join(f"r{i + 1}" for i in range(int(scored.numbers.get("regions") or 0))) or "none"
        raise UnknownRecordError(f"no region {region!r} in {scored.id}; its regions are: {known}")
    x0, y0, x1, y1 = (int(v) for v in corners if v is not None)
    return scored, (x0, y0, x1, y1)


def answer(record: EvidenceRecord, **for_the_model: Any) -> Result:
    """A tool's result: short JSON for the LLM and the evidence record for the state."""
    content = {k: v for k, v in for_the_model.items() if v is not None}
    return json.dumps(content, ensure_ascii=False), {"evidence": record.model_dump()}
