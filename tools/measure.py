"""The measure tool: the size of a region in native pixels and, where the scale is known, millimetres."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.context import Result, ToolContext, answer, current_capture, region_box
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.vision.measurement import Measurement


@tool("measure", response_format="content_and_artifact")
def measure_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[ToolContext, Any],
) -> Result:
    """Measure length, width and area of a region. Needs score_difference."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    scored, _ = region_box(evidence, region)
    canonical = bench.inspect(capture)
    if not scored.numbers.get("canonical"):
        raise UnknownRecordError(f"{scored.id} used other goldens; score with the nearest ones before measuring")
    result = next(r for r in canonical.regions if r.region.id == region)
    record = measure_record(result.measurement, region, scored.id)
    shown = {k: v for k, v in record.numbers.items() if k in ("length_mm", "width_mm", "length_px", "width_px")}
    return answer(record, region=region, score=scored.id, **shown)


def measure_record(m: Measurement, region: str, score_id: str) -> EvidenceRecord:
    """Evidence of the size of a region of a score's evidence."""
    values = {
        "length_px": m.length_px,
        "width_px": m.width_px,
        "uncertainty_px": m.uncertainty_px,
        "length_mm": m.length_mm,
        "width_mm": m.width_mm,
        "area_mm2": m.area_mm2,
        "uncertainty_mm": m.uncertainty_mm,
    }
    numbers: dict[str, float | int | str | bool | None] = {
        k: None if v is None else float(f"{v:.4g}") for k, v in values.items()
    }
    numbers |= dict(zip(("x0", "y0", "x1", "y1"), m.box, strict=True))
    numbers |= {"area_px": m.area_px, "place": m.place, "method": m.method}
    size = f"{m.length_mm:.3g} x {m.width_mm:.3g} mm" if m.length_mm and m.width_mm else "scale unknown"
    return EvidenceRecord(
        kind="measure",
        arguments={"region": region, "score": score_id},
        numbers=numbers,
        summary=f"{region}: {m.length_px:.1f} x {m.width_px:.1f} px ({size}), {m.place}",
    )
