"""The verdict, a pure function of numbers. No model, no store, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from refdiff.agent.report.schema import LlmReading, Severity, Verdict, VerdictBasis
from refdiff.tools.inspection.calibration import MIN_PARTS_TO_FAIL
from refdiff.tools.inspection.specification import Limit, ProductSpec

REVIEW_P = 0.05


@dataclass(frozen=True)
class Rated:
    """What the specification says of a finding. within: accepted by a limit; reject: failed by one or a critical zone."""

    severity: Severity
    within: bool
    reject: bool
    why: str
    missing_scale: bool = False


@dataclass(frozen=True)
class RatedFinding:
    """A finding as the policy sees it. peak_p: conformal p-value of its strongest place, None if not calibrated."""

    rated: Rated
    peak_p: float | None
    label: str


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    basis: VerdictBasis
    reason: str
    attained: float


@dataclass(frozen=True)
class PolicyInput:
    """p: conformal p-value of the image score (None: not calibrated), n: calibration parts, alpha: asked for."""

    p: float | None
    n: int
    alpha: float
    findings: list[RatedFinding] = field(default_factory=list)
    reading: LlmReading | None = None
    problems: list[str] = field(default_factory=list)


def attained_alpha(alpha: float, n: int) -> float:
    """The smallest false-reject rate that n calibration parts can promise, not below what was asked."""
    return max(alpha, 1 / (n + 1))


def score_threshold(scores: list[float], alpha: float) -> float | None:
    """The score above which a part fails (p <= attained), None without calibration."""
    if not scores:
        return None
    k = int(attained_alpha(alpha, len(scores)) * (len(scores) + 1) + 1e-9)
    return sorted(scores, reverse=True)[min(k, len(scores)) - 1]


def rate_finding(
    spec: ProductSpec,
    *,
    type: str,
    length_mm: float | None,
    width_mm: float | None,
    length_px: float,
    area_px: float,
    zones: list[str],
) -> Rated:
    """Severity and acceptance from the specification: critical zones first, then the first limit that fits."""
    if zones:
        return Rated(Severity.CRITICAL, False, True, f"in critical zone {', '.join(zones)}")
    for limit in spec.limits:
        if limit.type not in ("any", type):
            continue
        sizes = _sizes(limit, length_mm, width_mm, length_px, area_px)
        if any(value is not None and value > maximum for maximum, value, _ in sizes):
            continue
        if any(value is None for _, value, _ in sizes):
            # it may or may not fit, and with it every later limit: a person must judge
            return Rated(Severity.UNRATED, False, False, f"limit for {limit.type} in mm, scale unknown", True)
        if all(value <= maximum for maximum, value, _ in sizes if value is not None):
            why = f"{'beyond' if limit.reject else 'within'} limit for {limit.type}" + "".join(
                f", {name} {value:.4g} <= {maximum:.4g}" for maximum, value, name in sizes
            )
            return Rated(Severity(limit.severity), not limit.reject, limit.reject, why)
    return Rated(Severity.UNRATED, False, False, "no limit applies")


def _sizes(
    limit: Limit, length_mm: float | None, width_mm: float | None, length_px: float, area_px: float
) -> list[tuple[float, float | None, str]]:
    pairs = (
        (limit.max_length_mm, length_mm, "length mm"),
        (limit.max_width_mm, width_mm, "width mm"),
        (limit.max_length_px, length_px, "length px"),
        (limit.max_area_px, area_px, "area px"),
    )
    return [(maximum, value, name) for maximum, value, name in pairs if maximum is not None]


def decide(facts: PolicyInput) -> Decision:
    """p <= attained: FAIL; p <= max(.05, 2 attained): REVIEW; else PASS; then limits, model's reading, problems."""
    attained = attained_alpha(facts.alpha, facts.n)
    if facts.p is None:
        reason = "not calibrated: at least two good parts are needed before anything can be judged"
        return Decision(Verdict.REVIEW, VerdictBasis.SYSTEM, reason, attained)
    decision = _by_limits(facts, _by_score(facts.p, attained), attained)
    if decision.verdict is Verdict.FAIL and facts.n < MIN_PARTS_TO_FAIL:
        reason = (
            f"{decision.reason}; only {facts.n} good parts are known, {MIN_PARTS_TO_FAIL} are needed to fail a part"
        )
        decision = Decision(Verdict.REVIEW, VerdictBasis.SYSTEM, reason, attained)
    if facts.reading is not None and facts.reading.counts and decision.verdict is not Verdict.REVIEW:
        accepted = decision.basis is VerdictBasis.LIMIT and decision.verdict is Verdict.PASS
        if facts.reading.defect != (decision.verdict is Verdict.FAIL) and not accepted:
            sees = f"a defect ({facts.reading.type})" if facts.reading.defect else "no defect"
            reason = f"{decision.reason}; but the model, reading the pair, sees {sees}"
            decision = Decision(Verdict.REVIEW, VerdictBasis.LLM_DISAGREEMENT, reason, attained)
    if facts.problems:
        reason = f"{decision.reason}; {'; '.join(facts.problems)}"
        basis = decision.basis if decision.verdict is Verdict.REVIEW else VerdictBasis.SYSTEM
        decision = Decision(Verdict.REVIEW, basis, reason, attained)
    return decision


def _by_score(p: float, attained: float) -> Decision:
    review = max(REVIEW_P, 2 * attained)
    if p <= attained:
        verdict, compared = Verdict.FAIL, f"p {p:.3g} <= {attained:.3g}"
    elif p <= review:
        verdict, compared = Verdict.REVIEW, f"p {p:.3g} is between {attained:.3g} and {review:.3g}"
    else:
        verdict, compared = Verdict.PASS, f"p {p:.3g} > {review:.3g}"
    words = {
        Verdict.FAIL: "differs from its reference more than good parts do",
        Verdict.REVIEW: "differs from its reference more than most good parts do",
        Verdict.PASS: "differs from its reference no more than good parts do",
    }
    return Decision(verdict, VerdictBasis.ANOMALY, f"{words[verdict]} ({compared})", attained)


def _by_limits(facts: PolicyInput, decision: Decision, attained: float) -> Decision:
    """Limits may accept what the score found, or reject what it let pass if the place itself is significant."""
    rejected = [f for f in facts.findings if f.rated.reject]
    sure = [f for f in rejected if decision.verdict is Verdict.FAIL or (f.peak_p is not None and f.peak_p <= attained)]
    if sure:
        return Decision(Verdict.FAIL, VerdictBasis.LIMIT, f"{sure[0].label}: {sure[0].rated.why}", attained)
    if rejected and decision.verdict is Verdict.PASS:
        reason = f"{rejected[0].label}: {rejected[0].rated.why}, but the place is hardly outside what good parts show"
        return Decision(Verdict.REVIEW, VerdictBasis.LIMIT, reason, attained)
    unsized = [f for f in facts.findings if f.rated.missing_scale]
    if decision.verdict is Verdict.PASS:  # a limit that cannot be applied matters where the place itself is significant
        unsized = [f for f in unsized if f.peak_p is not None and f.peak_p <= attained]
    if unsized:
        reason = f"{decision.reason}; limits in mm cannot be applied: scale unknown"
        return Decision(Verdict.REVIEW, VerdictBasis.SYSTEM, reason, attained)
    if decision.verdict is Verdict.PASS or not facts.findings:
        return decision
    if all(f.rated.within for f in facts.findings):
        reason = "all findings are within limits: " + "; ".join(f"{f.label}: {f.rated.why}" for f in facts.findings)
        return Decision(Verdict.PASS, VerdictBasis.LIMIT, reason, attained)
    return decision
