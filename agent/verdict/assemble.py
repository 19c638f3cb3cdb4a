"""From evidence and verified claims to the report: findings, verdict, numbers. Code fills in everything measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from refdiff.agent.report.schema import (
    AlignmentSummary,
    Alpha,
    Cause,
    ComponentCount,
    EdgeMove,
    Expected,
    Finding,
    LikeFinding,
    LlmReading,
    Location,
    NamedAs,
    Reference,
    Scale,
    SeenBefore,
    Severity,
    Specification,
    Verdict,
    VerdictBasis,
)
from refdiff.agent.report.summary import count_text, counted, golden_sentences, sentence_case, spaced, with_unit
from refdiff.agent.verdict.decide import (
    Decision,
    PolicyInput,
    Rated,
    RatedFinding,
    decide,
    rate_finding,
)
from refdiff.agent.verdict.verify import CheckedClaim, claimed_region
from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.model.defect_types import MISSING_COMPONENT, UNKNOWN
from refdiff.model.images import Box
from refdiff.tools.context import ToolContext, measure_evidence
from refdiff.tools.evidence import Evidence, MeasureEvidence, MeasureNumbers, ScoreEvidence, SimilarEvidence
from refdiff.tools.inspection.calibration import requested_alpha, score_threshold
from refdiff.tools.inspection.colour import FOUND_IN_COLOUR
from refdiff.tools.inspection.inspection import PhotoInspection, RegionResult
from refdiff.tools.inspection.specification import ProductSpec
from refdiff.tools.vision.regions import MAX_REGIONS, place_name

if TYPE_CHECKING:
    from refdiff.agent.state import InspectionState


def complete_evidence(tools: ToolContext, evidence: Sequence[Evidence]) -> list[Evidence]:
    """The evidence with the canonical score, and of each of its regions the measurement and what named defects it is like,
    where no tool call recorded them."""
    complete = list(evidence)

    def add(record: Evidence) -> None:
        complete.append(record.model_copy(update={"id": f"e{len(complete) + 1}"}))

    canonical = tools.canonical
    if _score_id(complete, canonical) is None:
        add(tools.score_evidence(canonical.comparison))
    score_id = _score_id(complete, canonical)
    assert score_id is not None
    for result in canonical.regions:
        if _measure_id(complete, score_id, result) is None:
            add(measure_evidence(result, score_id, canonical.scale))
        if _similar(complete, score_id, result) is None:
            similar = tools.similar_evidence(result, score_id)
            if similar is not None:
                add(similar)
    return complete


def _canonical_scores(evidence: Sequence[Evidence], canonical: PhotoInspection) -> list[ScoreEvidence]:
    """Scores of this comparison; if the bank changed while a run was interrupted, it is another comparison."""
    goldens = [h.golden.golden_id for h in canonical.comparison.hits]
    return [
        e
        for e in evidence
        if isinstance(e, ScoreEvidence)
        and e.numbers.canonical
        and e.arguments.golden_ids == goldens
        and len(e.numbers.regions) == len(canonical.regions)
    ]


def _score_id(evidence: Sequence[Evidence], canonical: PhotoInspection) -> str | None:
    score = round(canonical.comparison.difference.score, 4)
    return next((e.id for e in _canonical_scores(evidence, canonical) if e.numbers.score == score), None)


def _measure_id(evidence: Sequence[Evidence], score_id: str, result: RegionResult) -> str | None:
    wanted = (score_id, result.region.id)
    found = (e for e in evidence if isinstance(e, MeasureEvidence))
    return next((e.id for e in found if (e.arguments.score, e.arguments.region) == wanted), None)


def _similar(evidence: Sequence[Evidence], score_id: str, result: RegionResult) -> SimilarEvidence | None:
    wanted = (score_id, result.region.id)
    found = (e for e in evidence if isinstance(e, SimilarEvidence))
    return next((e for e in found if (e.arguments.score, e.arguments.region) == wanted), None)


def _measured(evidence: Sequence[Evidence], measure_id: str) -> MeasureNumbers:
    return next(e.numbers for e in evidence if isinstance(e, MeasureEvidence) and e.id == measure_id)


def _edge_move(numbers: MeasureNumbers, measure_id: str) -> EdgeMove | None:
    if numbers.moved_px is None:
        return None
    return EdgeMove(
        distance_px=numbers.moved_px, x_px=numbers.moved_x_px or 0.0, y_px=numbers.moved_y_px or 0.0,
        uncertainty_px=numbers.moved_uncertainty_px or 0.0, distance_mm=numbers.moved_mm,
        uncertainty_mm=numbers.moved_uncertainty_mm, direction=numbers.moved_direction or "", evidence=measure_id,
        at_least=bool(numbers.moved_at_least),
    )  # fmt: skip


def _expected(
    kind: str, registered: bool, numbers: MeasureNumbers, place: Location, measure_id: str
) -> Expected | None:
    """What the golden sample has where something is missing; None where it does not tell."""
    outlined = numbers.outline_golden is not None
    if kind != MISSING_COMPONENT or not registered or not (outlined or numbers.component is not None):
        return None
    return Expected(
        place=place, component=numbers.component, name=numbers.component_name, outlined=outlined, evidence=measure_id
    )


def _named(similar: SimilarEvidence | None) -> NamedAs | None:
    """The name that a region takes, with the finding that it is like."""
    if similar is None or similar.numbers.name is None:
        return None
    found = similar.numbers
    like = LikeFinding(
        inspection_id=found.inspection_id, part_id=found.part_id, finding=found.finding,
        confirmed_by=found.confirmed_by, confirmed_at=found.confirmed_at, picture=similar.images.get("example"),
    )  # fmt: skip
    return NamedAs(name=str(found.name), evidence=similar.id, like=like)


@dataclass(frozen=True)
class ClaimedRegion:
    """A region of the canonical comparison, what was claimed of it, and what the specification says of it."""

    result: RegionResult
    claim: CheckedClaim | None
    type: str  # the model's word for it; where it has none, the difference network's
    measured: Rated  # as a defect of unknown type
    rated: Rated  # as a defect of that type
    registered: bool  # the nearest golden sample lies on the photo


def claimed_regions(
    spec: ProductSpec, canonical: PhotoInspection, evidence: Sequence[Evidence], claims: Sequence[CheckedClaim]
) -> list[ClaimedRegion]:
    """All regions, strongest first, each with the first claim about it."""
    by_id = {e.id: e for e in evidence}
    scores = {e.id for e in _canonical_scores(evidence, canonical)}
    about: dict[str, CheckedClaim] = {}
    for claim in claims:
        found = claimed_region(claim.region, claim.evidence, by_id)
        if found is not None and found[0].id in scores:
            about.setdefault(claim.region, claim)
    regions = []
    for result in canonical.regions:
        said = about.get(result.region.id)
        kind = _type_of(result, said)
        measured, rated = _rate(spec, result, result.described.called or UNKNOWN), _rate(spec, result, kind)
        regions.append(ClaimedRegion(result, said, kind, measured, rated, canonical.comparison.nearest.alignment.ok))
    return regions


def _type_of(result: RegionResult, claim: CheckedClaim | None) -> str:
    """What was measured, else what was claimed, else what the difference network takes it for."""
    if result.described.called is not None:
        return result.described.called
    return claim.type if claim and claim.type != UNKNOWN else result.region.type


def _rate(spec: ProductSpec, result: RegionResult, kind: str) -> Rated:
    m = result.measurement
    return rate_finding(
        spec,
        type=kind,
        length_mm=m.length_mm,
        width_mm=m.width_mm,
        length_px=m.length_px,
        area_px=m.area_px,
        zones=result.zones,
        places=result.places,
        quantities={q.name: q.value for q in result.described.quantities},
        in_colour=FOUND_IN_COLOUR in result.described.found_in,
    )


def _finding(
    number: int,
    region: ClaimedRegion,
    by_llm: bool,
    evidence: list[str],
    threshold: float,
    named: NamedAs | None,
    numbers: MeasureNumbers,
    measure_id: str,
    unit: str,
) -> Finding:
    """by_llm: the claim, if there is one, is a model's. named: what people call defects like it. numbers: of its
    measurement, the evidence of that id. unit: of the anomaly map."""
    result, rated, m = region.result, region.rated, region.result.measurement
    claim = region.claim if by_llm else None
    kind, quantities = _type_of(result, claim), list(result.described.quantities)
    x0, y0, x1, y1 = result.extent.box
    moved, place = _edge_move(numbers, measure_id), Location(x0=x0, y0=y0, x1=x1, y1=y1, region=m.place)
    expected = _expected(kind, region.registered, numbers, place, measure_id)
    length = with_unit("_mm", m.length_mm) if m.length_mm is not None else with_unit("_px", m.length_px)
    first = f"{quantities[0].said}, " if quantities else ""
    plain = f"{sentence_case(named.name if named else spaced(kind))}, {first}{length} long, {m.place}."
    where = list(result.described.found_in)
    unit = f" {unit}" if unit else ""
    said, cause = (claim.reasoning, claim.probable_cause) if claim else ("", "")
    peak, limit = f"{result.region.peak:.3f}", f"threshold {threshold:.3f}{unit}"
    measured = (
        f"The {limit.replace(' ', ' is ', 1)}." if peak in said else f"The difference peaks at {peak}{unit} ({limit})."
    )
    return Finding(
        id=f"f{number}",
        type=kind,
        named=named,
        description=" ".join([(claim and claim.description) or plain, *golden_sentences(kind, moved, expected)]),
        location=place,
        moved=moved,
        expected=expected,
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
        reasoning=" ".join(t for t in (said, measured, f"{_label(number, kind)} {rated.why}.") if t),
        within_limits=rated.within,
        zone=", ".join(result.places) or None,
        quantities=quantities,
        found_in=where,
        reported_by="llm" if claim else "system",
    )


def _label(number: int, kind: str) -> str:
    """What a sentence about a finding begins with: "Missing component f1"."""
    return f"{sentence_case(spaced(kind))} f{number}"


def _seen_before(tools: ToolContext, days: int, findings: list[Finding]) -> list[Finding]:
    """The findings with what people recently confirmed on other parts of the product.

    Unknown anomalies need not be the same defect, so they count only in the same place.
    """
    capture = tools.find_capture()
    confirmed = tools.workspace.stores.adoptions.confirmed(capture.product, days, except_part=capture.part_id)
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


def conclude(
    canonical: PhotoInspection, regions: Sequence[ClaimedRegion], alpha: float, reading: LlmReading | None
) -> Decision:
    """The verdict from what was measured. Types are only a network's opinion: a limit by type may ask for REVIEW only."""

    def findings(by_type: bool) -> list[RatedFinding]:
        return [
            RatedFinding(r.rated if by_type else r.measured, r.result.peak_p, _label(i, r.type))
            for i, r in enumerate(regions, start=1)
        ]

    facts = PolicyInput(
        p=canonical.p_value,
        n=canonical.calibration.n if canonical.calibration else 0,
        alpha=alpha,
        in_doubt=canonical.in_doubt,
        findings=findings(by_type=False),
        p_rest=canonical.p_rest,
        oddities=[*canonical.pose, *(count_text(c) for c in _components(canonical) if c.wrong)],
        reading=reading,
        problems=canonical.problems,
    )
    decision, claimed = decide(facts), decide(replace(facts, findings=findings(by_type=True)))
    if claimed.verdict is not decision.verdict and decision.verdict is not Verdict.REVIEW:
        reason = (
            f"{decision.reason}; but with the reported defect types it would be {claimed.verdict}: {claimed.reason}"
        )
        return replace(decision, verdict=Verdict.REVIEW, basis=VerdictBasis.LLM_DISAGREEMENT, reason=reason)
    accepted = decision.verdict is Verdict.PASS and decision.basis is VerdictBasis.LIMIT
    if accepted and canonical.crowded:
        reason = f"{decision.reason}; but only the {MAX_REGIONS} strongest regions were measured"
        return replace(decision, verdict=Verdict.REVIEW, reason=reason)
    return decision


def _components(canonical: PhotoInspection) -> list[ComponentCount]:
    h, w = canonical.comparison.nearest.size

    def place(box: Box) -> Location:
        x0, y0, x1, y1 = box
        box = (min(max(x0, 0), w - 1), min(max(y0, 0), h - 1), min(max(x1, 1), w), min(max(y1, 1), h))
        return Location(x0=box[0], y0=box[1], x1=box[2], y1=box[3], region=place_name(box, (h, w)))

    return [
        ComponentCount(
            number=c.number,
            name=c.name,
            expected=c.expected,
            found=c.found,
            seen=[place(i.box) for i in c.instances],
        )
        for c in canonical.counts
    ]


def conclude_without_reading(
    tools: ToolContext, evidence: Sequence[Evidence], claims: Sequence[CheckedClaim]
) -> Decision:
    """The verdict as it would be if no model read the pair."""
    canonical = tools.canonical
    alpha = requested_alpha(tools.workspace, canonical.calibration)
    return conclude(canonical, claimed_regions(tools.spec, canonical, evidence, claims), alpha, None)


def claims_of(state: InspectionState) -> list[CheckedClaim]:
    return [CheckedClaim.model_validate(c) for c in state.get("claims") or []]


def assemble(
    tools: ToolContext, evidence: Sequence[Evidence], state: InspectionState, *, by_llm: bool, history_days: int
) -> dict[str, Any]:
    """The report's fields but those of the run itself (ids, judge, trace, timings, artefacts).

    evidence: complete. state: claims, unsupported, reasoning, reading. by_llm: a model drove.
    history_days: how long a confirmed defect is remembered.
    """
    workspace, capture, canonical = tools.workspace, tools.find_capture(), tools.canonical
    calibration, comparison = canonical.calibration, canonical.comparison
    alpha = requested_alpha(workspace, calibration)
    claims = claims_of(state)
    reading = LlmReading.model_validate(state["reading"]) if state.get("reading") else None
    regions = claimed_regions(tools.spec, canonical, evidence, claims)
    decision = conclude(canonical, regions, alpha, reading)
    score_id = _score_id(evidence, canonical)
    assert score_id is not None
    dropped = list(state.get("unsupported") or [])
    findings: list[Finding] = []
    for number, region in enumerate(regions, start=1):
        claim, rated = region.claim, region.rated
        measure_id = _measure_id(evidence, score_id, region.result)
        assert measure_id is not None
        similar = _similar(evidence, score_id, region.result)
        cited = list(dict.fromkeys([*(claim.evidence if claim else []), score_id, measure_id]))
        if similar is not None and similar.id not in cited:
            cited.append(similar.id)
        if claim and claim.severity not in (Severity.UNRATED, rated.severity):
            dropped.append(f"severity {claim.severity} of {claim.region}: by the specification it is {rated.severity}")
        numbers = _measured(evidence, measure_id)
        named = _named(similar)
        threshold, unit = canonical.threshold, tools.unit
        findings.append(_finding(number, region, by_llm, cited, threshold, named, numbers, measure_id, unit))
    matched = [r.claim for r in regions]
    dropped += [
        f"finding at {c.region}: not a region of the comparison with the nearest goldens"
        for c in claims
        if c not in matched
    ]
    alignment = comparison.nearest.alignment
    return {
        "part_id": capture.part_id,
        "product": capture.product,
        "query_sha256": capture.sha256,
        "verdict": decision.verdict,
        "verdict_basis": decision.basis,
        "verdict_reason": decision.reason,
        "image_score": comparison.difference.score,
        "p_value": canonical.p_value,
        "threshold": score_threshold(calibration.scores, alpha, canonical.in_doubt) if calibration else None,
        "alpha": Alpha(requested=alpha, attained=decision.attained),
        "n_calibration": calibration.n if calibration else 0,
        "reference": _reference(comparison.hits[0]),
        "references": [_reference(h) for h in comparison.hits],
        "alignment": AlignmentSummary(
            method=alignment.method,
            ok=alignment.ok,
            residual_px=alignment.residual_px,
            overlap=alignment.overlap if alignment.ok else None,
        ),
        "scale": Scale(mm_per_px=canonical.scale.mm_per_px, source=canonical.scale.source),
        "findings": _seen_before(tools, history_days, findings),
        "components": _components(canonical),
        "llm_reading": reading,
        "reasoning": _reasoning(canonical, decision, state.get("reasoning", "") if by_llm else ""),
        "unsupported_claims_dropped": dropped,
        "evidence": evidence,
        "kind": tools.judged_by.kind,
        "unit": tools.unit,
        "conditions": list(canonical.remarks.conditions),
        "notes": list(canonical.remarks.notes),
        "specification": Specification(version=tools.judged_by.spec_version, sha256=tools.judged_by.digest),
    }


def _reasoning(canonical: PhotoInspection, decision: Decision, said: str) -> str:
    nearest = canonical.comparison.hits[0]
    facts = [
        f"Compared with {counted(len(canonical.comparison.hits), 'golden sample')}; the nearest is "
        f"{nearest.golden.golden_id} (similarity {nearest.similarity:.3f}).",
        f"{canonical.comparison.alignments[0].reason}.",
        f"{decision.verdict}: {decision.reason}.",
    ]
    if canonical.scale.mm_per_px is None:
        facts.append("The scale is unknown, so sizes are in pixels.")
    facts += [f"{sentence_case(note)}." for note in canonical.remarks.notes]
    return " ".join([*facts, *([f"Language model: {said}"] if said else [])])
