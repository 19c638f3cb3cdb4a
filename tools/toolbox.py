"""The tools that the agent may call, in their usual order."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import BaseTool, tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.find_part import find_part_tool
from refdiff.tools.measure import Measurement
from refdiff.tools.pipeline import align_cached
from refdiff.tools.retrieve_reference import retrieve_reference_tool
from refdiff.tools.score_difference import score_difference_tool
from refdiff.tools.submit_report import submit_report_tool
from refdiff.tools.workbench import Result, Workbench, answer, current_capture, latest, region_box
from refdiff.tools.zoom import zoom


@tool("align", response_format="content_and_artifact")
def align_tool(
    golden_id: Annotated[str, Field(description="golden id from retrieve_reference", max_length=14)],
    runtime: ToolRuntime[Workbench, Any],
) -> Result:
    """Register a golden to the photo. Needs retrieve_reference."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    latest(evidence, "reference", "no golden yet: call retrieve_reference first")
    golden = bench.services.bank.get(golden_id)
    if golden.product != capture.product:
        raise UnknownRecordError(f"golden {golden_id} is of product {golden.product!r}, not {capture.product!r}")
    result = align_cached(bench.services, bench.query(capture), capture.sha256, golden)
    record = EvidenceRecord(
        kind="alignment",
        arguments={"golden_id": golden_id},
        numbers={
            "ok": result.ok,
            "method": result.method,
            "residual_px": None if result.residual_px is None else round(result.residual_px, 2),
            "overlap": round(result.overlap, 3),
            "angle_deg": round(result.angle_deg, 2),
            "scale": round(result.scale, 4),
        },
        images={"golden": golden.sha256},
        summary=result.reason,
    )
    return answer(record, ok=result.ok, residual_px=record.numbers["residual_px"], reason=result.reason)


@tool("zoom", response_format="content_and_artifact")
def zoom_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[Workbench, Any],
) -> Result:
    """Look closely at a region of photo and reference. Needs score_difference."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    scored, box = region_box(evidence, region)
    comparison = bench.inspect(capture).comparison
    golden = bench.services.golden_image(comparison.hits[0].golden)
    crops = zoom(bench.query(capture), golden, comparison.alignments[0], box)
    images = {"query": bench.keep_image(crops.query)}
    if crops.reference is not None:
        images["reference"] = bench.keep_image(crops.reference)
    x0, y0, x1, y1 = crops.box
    record = EvidenceRecord(
        kind="zoom",
        arguments={"region": region, "score": scored.id},
        numbers={"x0": x0, "y0": y0, "x1": x1, "y1": y1, "reference_covers": crops.covered},
        images=images,
        summary=f"{region} at native resolution, {x1 - x0} x {y1 - y0} px",
    )
    return answer(record, region=region, score=scored.id)


@tool("measure", response_format="content_and_artifact")
def measure_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[Workbench, Any],
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
    size = f"{m.length_mm:.3g} x {m.width_mm:.3g} mm" if m.length_mm and m.width_mm else "no scale"
    return EvidenceRecord(
        kind="measure",
        arguments={"region": region, "score": score_id},
        numbers=numbers,
        summary=f"{region}: {m.length_px:.1f} x {m.width_px:.1f} px ({size}), {m.place}",
    )


TOOLS: list[BaseTool] = [
    find_part_tool,
    retrieve_reference_tool,
    align_tool,
    score_difference_tool,
    zoom_tool,
    measure_tool,
    submit_report_tool,
]
