"""From evidence and verified claims to the report: findings, verdict, numbers. Code fills in everything measured."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

from refdiff.agent.context import AgentContext
from refdiff.agent.report.schema import (
    AlignmentSummary,
    Alpha,
    Cause,
    Finding,
    LlmReading,
    Location,
    Reference,
    Scale,
    SeenBefore,
    Severity,
    Verdict,
    VerdictBasis,
)
from refdiff.agent.report.summary import counted, sentence_case, spaced, with_unit
from refdiff.agent.verdict.decide import (
    Decision,
    PolicyInput,
    Rated,
    RatedFinding,
    decide,
    rate_finding,
    score_threshold,
)
from refdiff.memory.golden_bank.bank import GoldenHit
from refdiff.memory.records.captures import Capture
from refdiff.model.defect_types import UNKNOWN
from refdiff.tools.context import ToolContext
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.inspection.calibration import requested_alpha, software_fingerprint, weights_in_use
from refdiff.tools.inspection.inspection import PhotoInspection, RegionResult
from refdiff.tools.inspection.zones import product_spec
from refdiff.tools.measure import measure_record
from refdiff.tools.score_difference import score_record
from refdiff.tools.vision.regions import MAX_REGIONS


def _same_box(claim: dict[str, Any], region: RegionResult) -> bool:
    return tuple(claim["box"]) == region.region.box


def _canonical_score(evidence: list[dict[str, Any]], canonical: PhotoInspection) -> str | None:
    """Id of the evidence of this very comparison; a bank that changed while a run was cut off makes it another one."""
    goldens = [h.golden.golden_id for h in canonical.comparison.hits]
    for record in evidence:
        numbers = record["numbers"]
        if record["kind"] == "score" and numbers.get("canonical") and record["arguments"].get("golden_ids") == goldens:
            same = numbers.get("score") == round(canonical.comparison.difference.score, 4)
            if same and numbers.get("regions") == len(canonical.regions):
                return str(record["id"])
    return None


def _measured(evidence: list[dict[str, Any]], added: list[EvidenceRecord], result: RegionResult, score_id: str) -> str:
    """Id of the canonical measurement of a region, recorded now if no tool call did."""
    for record in evidence:
        arguments = record["arguments"]
        if record["kind"] == "measure" and (arguments.get("score"), arguments.get("region")) == (
            score_id,
            result.region.id,
        ):
            return str(record["id"])
    made = measure_record(result.measurement, result.region.id, score_id)
    added.append(made.model_copy(update={"id": f"e{len(evidence) + len(added) + 1}"}))
    return added[-1].id


def _kind(claim: dict[str, Any] | None, result: RegionResult) -> str:
    """The model's word for a finding; where it has none, the difference network's."""
    return str(claim["type"]) if claim and claim["type"] != UNKNOWN else result.region.type


def _finding(
    number: int, result: RegionResult, rated: Rated, claim: dict[str, Any] | None, evidence: list[str], threshold: float
) -> Finding:
    m = result.measurement
    x0, y0, x1, y1 = m.box
    kind = _kind(claim, result)
    length = with_unit("_mm", m.length_mm) if m.length_mm is not None else with_unit("_px", m.length_px)
    plain = f"{sentence_case(spaced(kind))}, {length} long, {m.place}."
    measured = f"The difference peaks at {result.region.peak:.3f} (threshold {threshold:.3f})."
    cause = claim["probable_cause"] if claim else ""
    return Finding(
        id=f"f{number}",
        type=kind,
        description=(claim and claim["description"]) or plain,
        location=Location(x0=x0, y0=y0, x1=x1, y1=y1, region=m.place),
        area_px=m.area_px,
        length_mm=m.length_mm,
        width_mm=m.width_mm,
        uncertainty_mm=m.uncertainty_mm,
        length_px=m.length_px,
        width_px=m.width_px,
        severity=rated.severity,
        confidence=result.confidence,
        evidence=evidence,
        probable_cause=Cause(text=cause, basis="the model's reading of the pictures, not measured") if cause else None,
        reasoning=" ".join(
            t for t in ((claim and claim["reasoning"]) or "", measured, f"{_label(number, kind)} {rated.why}.") if t
        ),
        within_limits=rated.within,
        zone=", ".join(result.zones) or None,
        reported_by="llm" if claim else "system",
    )


def _label(number: int, kind: str) -> str:
    return f"{sentence_case(spaced(kind))} f{number}"


def _seen_before(bench: AgentContext, capture: Capture, findings: list[Finding]) -> list[Finding]:
    """The findings with what people recently confirmed on other parts of the product.

    Unknown anomalies need not be the same defect, so they count only in the same place.
    """
    days = bench.settings.history_days
    confirmed = bench.workspace.stores.adoptions.confirmed(capture.product, days, except_part=capture.part_id)
    seen = []
    for finding in findings:
        place = finding.location.region if finding.type == UNKNOWN else None
        parts = {c.part_id for c in confirmed if c.type == finding.type and place in (None, c.region)}
        before = SeenBefore(parts=len(parts), days=days, place=place) if parts else None
        seen.append(finding.model_copy(update={"seen_before": before}))
    return seen


def _reference(hit: GoldenHit) -> Reference:
    # beyond float32 precision the value depends on the machine's load, and a resumed report must agree
    return Reference(golden_id=hit.golden.golden_id, similarity=round(hit.similarity, 6), sha256=hit.golden.sha256)


def assemble(
    bench: AgentContext, capture: Capture, state: dict[str, Any], canonical: PhotoInspection, llm_drove: bool
) -> dict[str, Any]:
    """The report's fields except artefacts, judge, trace and timings. state: evidence, claims, reading, unsupported."""
    evidence: list[dict[str, Any]] = state["evidence"]
    added: list[EvidenceRecord] = []
    score_id = _canonical_score(evidence, canonical)
    if score_id is None:
        record = score_record(bench, capture, canonical.comparison, canonical)
        added.append(record.model_copy(update={"id": f"e{len(evidence) + 1}"}))
        score_id = added[-1].id
    dropped = list(state.get("unsupported") or [])
    claims = list(state.get("claims") or [])
    spec = product_spec(bench.workspace, capture.product)
    findings: list[Finding] = []
    judged: list[RatedFinding] = []
    as_claimed: list[RatedFinding] = []
    for number, result in enumerate(canonical.regions, start=1):
        claim = next((c for c in claims if _same_box(c, result)), None)
        if claim:
            claims.remove(claim)
        measured_id = _measured(evidence, added, result, score_id)
        cited = list(dict.fromkeys([*(claim["evidence"] if claim else []), score_id, measured_id]))
        m = result.measurement
        measured, rated = (
            rate_finding(
                spec,
                type=kind,
                length_mm=m.length_mm,
                width_mm=m.width_mm,
                length_px=m.length_px,
                area_px=m.area_px,
                zones=result.zones,
            )
            for kind in (UNKNOWN, _kind(claim, result))
        )
        if claim and claim["severity"] not in (Severity.UNRATED, rated.severity):
            dropped.append(
                f"severity {claim['severity']} of {result.region.id}: by the specification it is {rated.severity}"
            )
        finding = _finding(number, result, rated, claim if llm_drove else None, cited, canonical.threshold)
        findings.append(finding)
        label = _label(number, finding.type)
        judged.append(RatedFinding(measured, result.peak_p, label))
        as_claimed.append(RatedFinding(rated, result.peak_p, label))
    for claim in claims:
        dropped.append(f"finding at {claim['region']}: not a region of the comparison with the nearest goldens")
    decision = _decide(bench, canonical, judged, as_claimed, state.get("reading"))
    calibration = canonical.calibration
    alpha = requested_alpha(bench.workspace, calibration)
    alignment = canonical.comparison.alignments[0]
    hits = canonical.comparison.hits
    return {
        "part_id": capture.part_id,
        "product": capture.product,
        "query_sha256": capture.sha256,
        "verdict": decision.verdict,
        "verdict_basis": decision.basis,
        "verdict_reason": decision.reason,
        "image_score": canonical.comparison.difference.score,
        "p_value": canonical.p_value,
        "threshold": score_threshold(calibration.scores, alpha) if calibration else None,
        "alpha": Alpha(requested=alpha, attained=decision.attained),
        "n_calibration": calibration.n if calibration else 0,
        "reference": _reference(hits[0]),
        "references": [_reference(h) for h in hits],
        "alignment": AlignmentSummary(
            method=alignment.method,
            ok=alignment.ok,
            residual_px=alignment.residual_px,
            overlap=alignment.overlap if alignment.ok else None,
        ),
        "scale": Scale(mm_per_px=canonical.scale.mm_per_px, source=canonical.scale.source),
        "findings": _seen_before(bench, capture, findings),
        "llm_reading": state.get("reading"),
        "reasoning": _reasoning(state, canonical, decision),
        "unsupported_claims_dropped": dropped,
        "evidence": [*(EvidenceRecord.model_validate(r) for r in evidence), *added],
        "software": {
            "version": version("refdiff"),
            "weights_sha256": software_fingerprint(bench.workspace),
            "weights": weights_in_use(bench.workspace),
        },
    }


def _decide(
    bench: ToolContext,
    canonical: PhotoInspection,
    judged: list[RatedFinding],
    as_claimed: list[RatedFinding],
    reading: dict[str, Any] | None,
) -> Decision:
    """The verdict from what was measured. Types are only a network's opinion: a limit by type may ask for REVIEW only."""
    facts = PolicyInput(
        p=canonical.p_value,
        n=canonical.calibration.n if canonical.calibration else 0,
        alpha=requested_alpha(bench.workspace, canonical.calibration),
        findings=judged,
        reading=LlmReading.model_validate(reading) if reading else None,
        problems=canonical.problems,
    )
    decision, claimed = decide(facts), decide(replace(facts, findings=as_claimed))
    if claimed.verdict is not decision.verdict and decision.verdict is not Verdict.REVIEW:
        reason = (
            f"{decision.reason}; but with the reported defect types it would be {claimed.verdict}: {claimed.reason}"
        )
        return replace(decision, verdict=Verdict.REVIEW, basis=VerdictBasis.LLM_DISAGREEMENT, reason=reason)
    accepted = decision.verdict is Verdict.PASS and decision.basis is VerdictBasis.LIMIT
    if accepted and len(judged) >= MAX_REGIONS:
        reason = f"{decision.reason}; but only the {MAX_REGIONS} strongest regions were measured"
        return replace(decision, verdict=Verdict.REVIEW, reason=reason)
    return decision


def _reasoning(state: dict[str, Any], canonical: PhotoInspection, decision: Decision) -> str:
    nearest = canonical.comparison.hits[0]
    facts = [
        f"Compared with {counted(len(canonical.comparison.hits), 'golden sample')}; the nearest is "
        f"{nearest.golden.golden_id} (similarity {nearest.similarity:.3f}).",
        f"{canonical.comparison.alignments[0].reason}.",
        f"{decision.verdict}: {decision.reason}.",
    ]
    if canonical.scale.mm_per_px is None:
        facts.append("The scale is unknown, so sizes are in pixels.")
    said = str(state.get("reasoning") or "")
    return " ".join([*facts, *([f"Language model: {said}"] if said and state.get("via") != "fallback" else [])])
