"""The verdict, a pure function of numbers, and its reason in words. No model, no store, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refdiff.agent.report.schema import LlmReading, Severity, Verdict, VerdictBasis
from refdiff.agent.report.summary import apart, counted, listed, sentence_case, spaced
from refdiff.tools.inspection.calibration import MIN_PARTS, MIN_PARTS_TO_FAIL, attained_alpha
from refdiff.tools.inspection.specification import Limit, ProductSpec

REVIEW_P = 0.05


@dataclass(frozen=True)
class Rated:
    """What the specification says about a finding."""

    severity: Severity
    within: bool  # accepted by a limit
    reject: bool  # over a limit, or in a critical zone
    why: str  # the rest of a sentence that begins with the finding's name: "is 2.1 mm long; the limit is 1.5 mm"
    missing_scale: bool = False  # its limit is in mm and the scale is unknown


@dataclass(frozen=True)
class RatedFinding:
    """A finding as the policy sees it."""

    rated: Rated
    peak_p: float | None  # conformal p-value of its strongest place; None without calibration
    label: str  # begins a sentence: "Scratch f1"


@dataclass(frozen=True)
class Decision:
    """The verdict and why. `reason` is one sentence without its full stop: first what was found, then the statistics."""

    verdict: Verdict
    basis: VerdictBasis
    reason: str
    attained: float  # false-reject rate that the calibration can promise


@dataclass(frozen=True)
class PolicyInput:
    """Everything the verdict depends on."""

    p: float | None  # conformal p-value of the image score; None without calibration
    n: int  # good parts in the calibration
    alpha: float  # requested false-reject rate
    in_doubt: int = 0  # 1: the highest of the n scores may be that of a defect, and sets no limit
    findings: list[RatedFinding] = field(default_factory=list)
    p_rest: float | None = None  # of the image score without the findings; None where nothing else makes the score
    # what no place shows, "component 2: 5 of 6", "the photo registers to none of its golden samples"; part of the score
    oddities: list[str] = field(default_factory=list)
    reading: LlmReading | None = None
    problems: list[str] = field(default_factory=list)  # what makes the comparison unreliable


def rate_finding(
    spec: ProductSpec,
    *,
    type: str,
    length_mm: float | None,
    width_mm: float | None,
    length_px: float,
    area_px: float,
    zones: list[str],
    places: Sequence[str] = (),
    quantities: Mapping[str, float] | None = None,
    in_colour: bool = False,
) -> Rated:
    """Severity and acceptance from the specification: critical zones first, then the first limit that fits.

    zones: critical ones that it touches; places: all that limits may be about. quantities: what the product's kind measures.
    in_colour: of a height map, its colour differs, too or alone: a limit of its height accepts nothing then.
    """
    if zones:
        return Rated(Severity.CRITICAL, False, True, f"lies in critical zone {', '.join(zones)}")
    exceeded: list[_Size] = []
    for limit in spec.limits:
        if limit.type not in ("any", type) or limit.zone not in (None, *places):
            continue
        if in_colour and limit.of_height and not (limit.reject and "deviation_mm" in (quantities or {})):
            continue
        sizes = _sizes(limit, length_mm, width_mm, length_px, area_px) + _measured(limit, quantities or {})
        over = [s for s in sizes if s.value is not None and s.value > s.maximum]
        if over:
            exceeded = exceeded if limit.reject else over
            continue
        if any(s.value is None for s in sizes):
            # whether it fits, and so whether a later limit applies, is unknown: a person must decide
            return Rated(Severity.UNRATED, False, False, "has a limit in mm, but the scale is unknown", True)
        if all(s.value is not None and s.value <= s.maximum for s in sizes):
            why = _why(limit.reject, sizes, exceeded)
            return Rated(Severity(limit.severity), not limit.reject, limit.reject, why)
    return Rated(Severity.UNRATED, False, False, "has no limit in the specification")


@dataclass(frozen=True)
class _Size:
    """A measured size beside the maximum of a limit; value: None where the scale is unknown."""

    value: float | None
    maximum: float
    unit: str
    what: str  # "long", "wide", "in area"


def _sizes(
    limit: Limit, length_mm: float | None, width_mm: float | None, length_px: float, area_px: float
) -> list[_Size]:
    pairs = (
        (length_mm, limit.max_length_mm, "mm", "long"),
        (width_mm, limit.max_width_mm, "mm", "wide"),
        (length_px, limit.max_length_px, "px", "long"),
        (area_px, limit.max_area_px, "px²", "in area"),
    )
    return [_Size(value, maximum, unit, what) for value, maximum, unit, what in pairs if maximum is not None]


def _measured(limit: Limit, quantities: Mapping[str, float]) -> list[_Size]:
    """What the product's kind measures beside the maxima of a limit; a limit of another kind fits nothing."""
    delta, off, volume = (quantities.get(name) for name in ("delta_k", "deviation_mm", "volume_mm3"))
    pairs = (
        (None if delta is None else abs(delta), limit.max_delta_k, "K", "off its golden sample"),
        (quantities.get("hottest_c", quantities.get("extreme_c")), limit.max_temperature_c, "°C", "at its hottest"),
        (None if off is None else abs(off), limit.max_deviation_mm, "mm", "off its golden sample"),
        (None if volume is None else abs(volume), limit.max_volume_mm3, "mm³", "in volume"),
    )
    return [_Size(value, maximum, unit, what) for value, maximum, unit, what in pairs if maximum is not None]


def _why(reject: bool, fits: list[_Size], exceeded: list[_Size]) -> str:
    """exceeded: sizes over the last limit that would have accepted the finding."""
    sizes = exceeded if reject and exceeded else fits
    if not sizes:
        return f"is {'not ' if reject else ''}acceptable at any size"
    measured = listed([f"{apart(s.value, s.maximum)} {s.unit} {s.what}" for s in sizes if s.value is not None])
    limits = listed([f"{s.maximum:.6g} {s.unit}" for s in sizes])
    if reject and not exceeded:
        return f"is {measured}; up to {limits} is rejected"
    return f"is {measured}; the {'limit is' if len(sizes) == 1 else 'limits are'} {limits}"


def decide(facts: PolicyInput) -> Decision:
    """p <= attained: FAIL; p <= max(.05, 2 attained): REVIEW; else PASS; then limits, the model's reading, problems."""
    attained = attained_alpha(facts.alpha, facts.n, facts.in_doubt)
    if facts.p is None:
        reason = f"Not calibrated: at least {MIN_PARTS} good parts must be enrolled before a part can be judged"
        reason = "; ".join([reason, *facts.problems])
        return Decision(Verdict.REVIEW, VerdictBasis.SYSTEM, reason, attained)
    decision = _by_limits(facts, _by_score(facts, facts.p, attained), attained)
    if decision.verdict is Verdict.FAIL and facts.n < MIN_PARTS_TO_FAIL:
        reason = (
            f"{decision.reason}; a FAIL needs at least {MIN_PARTS_TO_FAIL} good parts, and there are only {facts.n}"
        )
        decision = Decision(Verdict.REVIEW, VerdictBasis.SYSTEM, reason, attained)
    if facts.reading is not None and facts.reading.counts and decision.verdict is not Verdict.REVIEW:
        accepted = decision.basis is VerdictBasis.LIMIT and decision.verdict is Verdict.PASS
        if facts.reading.defect != (decision.verdict is Verdict.FAIL) and not accepted:
            sees = f"a defect ({spaced(facts.reading.type)})" if facts.reading.defect else "no defect"
            reason = f"{decision.reason}; but the language model sees {sees} in the pictures"
            decision = Decision(Verdict.REVIEW, VerdictBasis.LLM_DISAGREEMENT, reason, attained)
    if facts.problems:
        reason = f"{decision.reason}; {'; '.join(facts.problems)}"
        basis = decision.basis if decision.verdict is Verdict.REVIEW else VerdictBasis.SYSTEM
        decision = Decision(Verdict.REVIEW, basis, reason, attained)
    return decision


def _by_score(facts: PolicyInput, p: float, attained: float) -> Decision:
    review = _review_p(attained)
    # what no good part shows is never passed over, however many golden samples deviate in something else
    verdict = Verdict.FAIL if p <= attained else Verdict.REVIEW if p <= review or facts.oddities else Verdict.PASS
    return Decision(verdict, VerdictBasis.ANOMALY, _score_reason(facts, verdict, p, attained), attained)


def _review_p(attained: float) -> float:
    """The p-value up to which a person has to look."""
    return max(REVIEW_P, 2 * attained)


def _score_reason(facts: PolicyInput, verdict: Verdict, p: float, attained: float) -> str:
    """What the image score says, in words that are true of its conformal p-value."""
    n, regions = facts.n, len(facts.findings)
    as_high = _as_high(p, n)
    show = _good_parts_show(as_high, n)
    odd = sentence_case("; ".join(facts.oddities))
    stand_out = odd or f"{counted(regions, 'region')} {'stands' if regions == 1 else 'stand'} out"
    shown = f"(p {apart(p, attained, 2)}, alpha {attained:.2g})"
    if verdict is Verdict.PASS:
        shown = f"(p {p:.2g})"
        if not regions:
            return f"No difference beyond what {show} {shown}"
        return f"{stand_out}, but {show} a difference at least as large {shown}"
    if verdict is Verdict.REVIEW:
        if odd:
            only = "and only" if p <= _review_p(attained) else "but"
            return f"{odd}, {only} {show} a difference as large {shown}"
        return f"Borderline: only {show} a difference as large {shown}"
    if odd and not as_high:
        return f"{odd}, which no good part shows {shown}"
    if as_high:
        itself = ", and it is in doubt itself" if facts.in_doubt and as_high == 1 else ""
        return f"{stand_out + ', and only' if regions or odd else 'Only'} {show} a difference as large{itself} {shown}"
    # a region needs less than the strongest place of every good part: only these are beyond all of them
    beyond = sum(f.peak_p is not None and not _as_high(f.peak_p, n) for f in facts.findings)
    if not beyond:
        return f"The part as a whole differs from the reference more than any of {n} good parts {shown}"
    what = counted(regions, "region") if beyond == regions else f"{beyond} of {regions} regions"
    return (
        f"{what} {'differs' if beyond == 1 else 'differ'} from the reference more than in any of {n} good parts {shown}"
    )


def _as_high(p: float, n: int) -> int:
    """k of p = (1 + k) / (n + 1): how many of n good parts have a score as high or higher."""
    return min(max(round(p * (n + 1)) - 1, 0), n)


def _good_parts_show(k: int, n: int) -> str:
    """`1 of 30 good parts shows`, `all 30 good parts show`."""
    return f"{'all' if k == n else f'{k} of'} {n} good parts {'shows' if k == 1 else 'show'}"


def _by_limits(facts: PolicyInput, decision: Decision, attained: float) -> Decision:
    """Limits may accept what the score found, or reject what it let pass where the region itself is significant."""
    rejected = [f for f in facts.findings if f.rated.reject]
    sure = [f for f in rejected if decision.verdict is Verdict.FAIL or (f.peak_p is not None and f.peak_p <= attained)]
    if sure:
        others = len(sure) - 1
        more = f"; {counted(others, 'more finding')} {'is' if others == 1 else 'are'} rejected" if others else ""
        reason = "; ".join([f"{sure[0].label} {sure[0].rated.why}{more}", *facts.oddities])
        return Decision(Verdict.FAIL, VerdictBasis.LIMIT, reason, attained)
    if rejected and decision.verdict is Verdict.PASS:
        first = rejected[0]
        k = facts.n if first.peak_p is None else _as_high(first.peak_p, facts.n)
        reason = f"{first.label} {first.rated.why}; but {_good_parts_show(k, facts.n)} a difference as strong"
        return Decision(Verdict.REVIEW, VerdictBasis.LIMIT, reason, attained)
    unsized = [f for f in facts.findings if f.rated.missing_scale]
    if decision.verdict is Verdict.PASS:  # an inapplicable limit matters only where the region itself is significant
        unsized = [f for f in unsized if f.peak_p is not None and f.peak_p <= attained]
    # no limit accepts what is odd
    if unsized and not (facts.oddities and decision.verdict is Verdict.FAIL):
        reason = f"{decision.reason}; limits in mm cannot be applied because the scale is unknown"
        return Decision(Verdict.REVIEW, VerdictBasis.SYSTEM, reason, attained)
    if decision.verdict is Verdict.PASS or not facts.findings:
        return decision
    if all(f.rated.within for f in facts.findings) and not facts.oddities:  # a limit accepts findings, nothing else
        accepted = "; ".join(f"{f.label} {f.rated.why}" for f in facts.findings)
        reason, rest = f"All findings are within limits: {accepted}", facts.p_rest
        if rest is not None and rest <= _review_p(attained):  # they do not explain the score
            k = _as_high(rest, facts.n)
            show = f"only {_good_parts_show(k, facts.n)}" if k else "no good part shows"
            reason += f"; but {show} a difference as large as the rest of the photo (p {apart(rest, attained, 2)})"
            return Decision(Verdict.REVIEW, VerdictBasis.ANOMALY, reason, attained)
        return Decision(Verdict.PASS, VerdictBasis.LIMIT, reason, attained)
    return decision
