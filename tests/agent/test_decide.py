"""The verdict as a table: score, limits, zones, the model's reading, problems; and the statistics behind it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.agent.report.schema import LlmReading, Severity, Verdict
from refdiff.agent.verdict.decide import (
    PolicyInput,
    Rated,
    RatedFinding,
    decide,
    rate_finding,
)
from refdiff.memory.records.calibrations import Calibration
from refdiff.tools.inspection.calibration import attained_alpha, p_value, score_threshold
from refdiff.tools.inspection.specification import ProductSpec, parse_spec

WITHIN = Rated(Severity.MINOR, True, False, "is 0.4 mm long; the limit is 0.5 mm")
REJECT = Rated(Severity.MAJOR, False, True, "is 2.1 mm long; the limit is 1.5 mm")
ZONE = Rated(Severity.CRITICAL, False, True, "lies in critical zone bore")
UNRATED = Rated(Severity.UNRATED, False, False, "has no limit in the specification")
UNSIZED = Rated(Severity.UNRATED, False, False, "has a limit in mm, but the scale is unknown", True)
SEES = LlmReading(defect=True, type="scratch", confidence=0.9)
SEES_NONE = LlmReading(defect=False, type="none", confidence=0.9)
UNSURE, UNSURE_NONE = (r.model_copy(update={"confidence": 0.7, "counts": False}) for r in (SEES, SEES_NONE))


def _findings(*rated: Rated, peak_p: float | None = 0.5) -> list[RatedFinding]:
    return [RatedFinding(r, peak_p, f"Scratch f{i}") for i, r in enumerate(rated, start=1)]


def _decide(p: float | None, n: int = 99, alpha: float = 0.01, **facts: Any) -> tuple[str, str, str]:
    decision = decide(PolicyInput(p, n, alpha, **facts))
    return decision.verdict, decision.basis, decision.reason


def test_what_a_limit_cannot_accept_fails_also_without_a_scale() -> None:
    assert _decide(0.01, findings=_findings(UNSIZED))[0] == "REVIEW"
    verdict, basis, reason = _decide(0.01, findings=_findings(UNSIZED), oddities=["the part is mirrored"])
    assert (verdict, basis) == ("FAIL", "anomaly")
    assert "mirrored" in reason


def test_no_reason_is_lost() -> None:
    _, _, reason = _decide(None, problems=["critical zones could not be placed"])
    assert reason.startswith("Not calibrated")
    assert reason.endswith("critical zones could not be placed")
    _, _, reason = _decide(0.01, findings=_findings(ZONE), oddities=["component 1: 4 of 5"])
    assert reason == "Scratch f1 lies in critical zone bore; component 1: 4 of 5"


@pytest.mark.parametrize(
    ("p", "n", "alpha", "verdict"),
    [
        # alpha is attained with 99 parts
        (0.01, 99, 0.01, "FAIL"),
        (0.02, 99, 0.01, "REVIEW"),
        (0.05, 99, 0.01, "REVIEW"),
        (0.06, 99, 0.01, "PASS"),
        (1.0, 99, 0.01, "PASS"),
        # 2 attained beyond .05
        (0.05, 99, 0.05, "FAIL"),
        (0.1, 99, 0.05, "REVIEW"),
        (0.11, 99, 0.05, "PASS"),
        # fewer parts attain 1 / (n + 1)
        (1 / 40, 39, 0.01, "FAIL"),
        (2 / 40, 39, 0.01, "REVIEW"),
        (3 / 40, 39, 0.01, "PASS"),
        # with n < 20 nobody fails
        (1 / 21, 20, 0.01, "FAIL"),
        (1 / 20, 19, 0.01, "REVIEW"),
        (1 / 3, 2, 0.01, "REVIEW"),
        (1.0, 2, 0.01, "PASS"),
        (None, 0, 0.01, "REVIEW"),
    ],
)
def test_verdict_without_findings_follows_the_p_value(p: float | None, n: int, alpha: float, verdict: str) -> None:
    assert _decide(p, n, alpha)[0] == verdict


@pytest.mark.parametrize(
    ("p", "facts", "verdict", "basis"),
    [
        # a finding within limits is filed, not failed
        (0.01, {"findings": _findings(WITHIN)}, "PASS", "limit"),
        (0.03, {"findings": _findings(WITHIN, WITHIN)}, "PASS", "limit"),
        (0.01, {"findings": _findings(WITHIN, UNRATED)}, "FAIL", "anomaly"),
        (0.01, {"findings": _findings()}, "FAIL", "anomaly"),
        (0.9, {"findings": _findings(WITHIN)}, "PASS", "anomaly"),
        # but only what explains the score: of what is left without the findings, a person decides
        (0.01, {"findings": _findings(WITHIN, peak_p=0.2), "p_rest": 0.01}, "REVIEW", "anomaly"),
        (0.03, {"findings": _findings(WITHIN), "p_rest": 0.05}, "REVIEW", "anomaly"),
        (0.01, {"findings": _findings(WITHIN), "p_rest": 0.06}, "PASS", "limit"),
        (0.01, {"findings": _findings(WITHIN), "p_rest": 0.01, "reading": SEES_NONE}, "REVIEW", "anomaly"),
        (0.01, {"findings": _findings(UNRATED), "p_rest": 0.9}, "FAIL", "anomaly"),
        (0.9, {"findings": _findings(WITHIN), "p_rest": 0.01}, "PASS", "anomaly"),
        # limits and zones reject what is there beyond doubt
        (0.01, {"findings": _findings(WITHIN, REJECT)}, "FAIL", "limit"),
        (0.9, {"findings": _findings(ZONE, peak_p=0.01)}, "FAIL", "limit"),
        (0.9, {"findings": _findings(ZONE, peak_p=0.2)}, "REVIEW", "limit"),
        (0.9, {"findings": _findings(ZONE, peak_p=None)}, "REVIEW", "limit"),
        (0.03, {"findings": _findings(REJECT, peak_p=0.01)}, "FAIL", "limit"),
        (1 / 20, {"n": 19, "findings": _findings(REJECT, peak_p=0.01)}, "REVIEW", "system"),
        # a limit that cannot be applied asks for a person
        (0.01, {"findings": _findings(UNSIZED)}, "REVIEW", "system"),
        (0.01, {"findings": _findings(WITHIN, UNSIZED)}, "REVIEW", "system"),
        (0.9, {"findings": _findings(UNSIZED, peak_p=0.01)}, "REVIEW", "system"),
        (0.9, {"findings": _findings(UNSIZED, peak_p=0.5)}, "PASS", "anomaly"),
        # the reading turns PASS or FAIL into REVIEW, nothing else
        (0.9, {"reading": SEES}, "REVIEW", "llm_disagreement"),
        (0.01, {"reading": SEES_NONE}, "REVIEW", "llm_disagreement"),
        (0.9, {"reading": UNSURE}, "PASS", "anomaly"),
        (0.01, {"reading": UNSURE_NONE}, "FAIL", "anomaly"),
        (0.9, {"reading": SEES_NONE}, "PASS", "anomaly"),
        (0.01, {"reading": SEES}, "FAIL", "anomaly"),
        (0.03, {"reading": SEES}, "REVIEW", "anomaly"),
        (0.03, {"reading": SEES_NONE}, "REVIEW", "anomaly"),
        (1 / 20, {"n": 19, "reading": SEES_NONE}, "REVIEW", "system"),
        (0.01, {"findings": _findings(WITHIN), "reading": SEES}, "PASS", "limit"),  # accepted although it is a defect
        (0.9, {"findings": _findings(ZONE, peak_p=0.01), "reading": SEES_NONE}, "REVIEW", "llm_disagreement"),
        # what is wrong with the set-up asks for a person
        (0.9, {"problems": ["scales differ"]}, "REVIEW", "system"),
        (0.01, {"problems": ["scales differ"]}, "REVIEW", "system"),
        (0.03, {"problems": ["scales differ"]}, "REVIEW", "anomaly"),
        (0.9, {"problems": ["scales differ"], "reading": SEES}, "REVIEW", "llm_disagreement"),
        (None, {"reading": SEES_NONE}, "REVIEW", "system"),
    ],
)
def test_verdict_follows_limits_reading_and_problems(
    p: float | None, facts: dict[str, Any], verdict: str, basis: str
) -> None:
    assert _decide(p, **facts)[:2] == (verdict, basis)


@pytest.mark.parametrize(("p", "reading"), [(0.9, SEES), (0.01, SEES_NONE)])
def test_disagreement_reason_names_both_sides_and_every_problem(p: float, reading: LlmReading) -> None:
    reason = _decide(p, reading=reading, problems=["scales differ", "no zone"])[2]
    assert f"p {p:g}" in reason
    assert "but the language model sees" in reason
    assert "scales differ; no zone" in reason


@given(
    p=st.floats(0.001, 1),
    n=st.integers(2, 300),
    alpha=st.floats(0.001, 0.4),
    rated=st.lists(st.sampled_from([WITHIN, REJECT, ZONE, UNRATED, UNSIZED]), max_size=3),
    problems=st.lists(st.just("x"), max_size=1),
    reading=st.sampled_from([SEES, SEES_NONE]),
)
@settings(max_examples=150, deadline=None)
def test_reading_never_changes_the_verdict_except_to_review(
    p: float, n: int, alpha: float, rated: list[Rated], problems: list[str], reading: LlmReading
) -> None:
    facts: dict[str, Any] = {"findings": _findings(*rated), "problems": problems}
    without, read = _decide(p, n, alpha, **facts)[0], _decide(p, n, alpha, **facts, reading=reading)[0]
    assert read in (without, "REVIEW")
    if n < 20:
        assert read != "FAIL"


def _spec(*limits: dict[str, Any]) -> ProductSpec:
    return parse_spec({"limits": list(limits)})


SMALL = {"type": "any", "max_length_mm": 0.5, "severity": "minor"}
SCRATCH = {"type": "scratch", "max_length_mm": 2.0, "max_width_mm": 0.1, "severity": "minor"}
PIXELS = {"type": "any", "max_length_px": 10, "severity": "minor"}
BOTH = {"type": "any", "max_length_px": 10, "max_length_mm": 0.5, "severity": "minor"}
REST = {"type": "any", "severity": "major", "reject": True}


@pytest.mark.parametrize(
    ("limits", "type", "length_mm", "width_mm", "length_px", "zones", "expected"),
    [
        # severity, within, reject, missing scale
        ([], "scratch", 1.0, 1.0, 20, [], ("unrated", False, False, False)),
        ([SMALL, REST], "dent", 0.5, 0.1, 20, [], ("minor", True, False, False)),
        ([SMALL, REST], "dent", 0.51, 0.1, 20, [], ("major", False, True, False)),
        ([SMALL], "dent", 0.51, 0.1, 20, [], ("unrated", False, False, False)),
        ([SCRATCH, REST], "scratch", 2.0, 0.1, 20, [], ("minor", True, False, False)),
        ([SCRATCH, REST], "scratch", 2.0, 0.2, 20, [], ("major", False, True, False)),
        ([SCRATCH, REST], "dent", 0.1, 0.1, 20, [], ("major", False, True, False)),
        ([REST, SMALL], "dent", 0.1, 0.1, 20, [], ("major", False, True, False)),  # the first that fits decides
        ([PIXELS, REST], "dent", None, None, 10, [], ("minor", True, False, False)),
        # without a scale nobody knows whether a limit in mm fits, nor then whether a later one counts
        ([SMALL, REST], "dent", None, None, 20, [], ("unrated", False, False, True)),
        ([SCRATCH, REST], "dent", None, None, 20, [], ("major", False, True, False)),
        ([BOTH, REST], "dent", None, None, 20, [], ("major", False, True, False)),  # its px do not fit: certain
        ([BOTH, REST], "dent", None, None, 9, [], ("unrated", False, False, True)),
        # a critical zone comes first
        ([SMALL], "dent", 0.1, 0.1, 20, ["bore"], ("critical", False, True, False)),
        ([SMALL], "dent", None, None, 20, ["bore"], ("critical", False, True, False)),
    ],
)
def test_finding_is_rated_by_the_specification(
    limits: list[dict[str, Any]],
    type: str,
    length_mm: float | None,
    width_mm: float | None,
    length_px: float,
    zones: list[str],
    expected: tuple[str, bool, bool, bool],
) -> None:
    rated = rate_finding(
        _spec(*limits),
        type=type,
        length_mm=length_mm,
        width_mm=width_mm,
        length_px=length_px,
        area_px=50,
        zones=zones,
    )
    assert (rated.severity, rated.within, rated.reject, rated.missing_scale) == expected
    assert rated.why


@pytest.mark.parametrize(
    ("limits", "length_mm", "width_mm", "why"),
    [
        ([SMALL, REST], 0.4, 0.1, "is 0.4 mm long; the limit is 0.5 mm"),
        ([SMALL, REST], 2.1, 0.1, "is 2.1 mm long; the limit is 0.5 mm"),
        ([SMALL, REST], 0.5001, 0.1, "is 0.5001 mm long; the limit is 0.5 mm"),
        ([SMALL, SCRATCH, REST], 2.1, 0.1, "is 2.1 mm long; the limit is 2 mm"),  # the last that would have accepted it
        ([SCRATCH, REST], 1.0, 0.2, "is 0.2 mm wide; the limit is 0.1 mm"),
        ([SCRATCH, REST], 2.1, 0.2, "is 2.1 mm long and 0.2 mm wide; the limits are 2 mm and 0.1 mm"),
        ([REST], 2.1, 0.2, "is not acceptable at any size"),
        ([SMALL | {"reject": True}], 0.4, 0.1, "is 0.4 mm long; up to 0.5 mm is rejected"),
        ([{"type": "any", "severity": "minor"}], 2.1, 0.2, "is acceptable at any size"),
        ([{"type": "any", "severity": "minor", "max_area_px": 60}], 2.1, 0.2, "is 50 px² in area; the limit is 60 px²"),
        ([SMALL], None, None, "has a limit in mm, but the scale is unknown"),
        ([], 2.1, 0.2, "has no limit in the specification"),
    ],
)
def test_rating_reason_names_size_and_limit(
    limits: list[dict[str, Any]], length_mm: float | None, width_mm: float | None, why: str
) -> None:
    rated = rate_finding(
        _spec(*limits), type="scratch", length_mm=length_mm, width_mm=width_mm, length_px=20, area_px=50, zones=[]
    )
    assert rated.why == why


@pytest.mark.parametrize(
    ("alpha", "n", "attained"),
    [(0.01, 99, 0.01), (0.01, 98, 1 / 99), (0.05, 19, 0.05), (0.05, 400, 0.05), (0.01, 0, 1)],
)
def test_attained_alpha_is_limited_by_the_number_of_goldens(alpha: float, n: int, attained: float) -> None:
    assert attained_alpha(alpha, n) == pytest.approx(attained)


@given(
    scores=st.lists(st.integers(0, 40).map(lambda i: i / 8), min_size=2, max_size=120),
    alpha=st.sampled_from([0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.29]),
    score=st.integers(-1, 41).map(lambda i: i / 8),
)
@settings(max_examples=300, deadline=None)
def test_score_above_the_threshold_fails_exactly_when_its_p_value_does(
    scores: list[float], alpha: float, score: float
) -> None:
    """Ties included: a part fails by its p-value exactly if its score is above the threshold that the report shows."""
    calibration = Calibration("p", "k", sorted(scores), 0.0, len(scores), 1)
    fails = p_value(calibration, score) <= attained_alpha(alpha, len(scores))
    threshold = score_threshold(scores, alpha)
    assert threshold is not None
    assert fails == (score > threshold)


def test_score_threshold_without_calibration_is_none() -> None:
    assert score_threshold([], 0.05) is None


@pytest.mark.parametrize(("n", "alpha"), [(39, 0.05), (99, 0.01), (59, 0.05)])
def test_exchangeable_good_parts_fail_no_more_often_than_attained_alpha(n: int, alpha: float) -> None:
    """Each of n + 1 parts in turn as the new one: at most attained * (n + 1) of them fail."""
    scores = [float(i % 17) + i / 100 for i in range(n + 1)]
    failed = 0
    for left, rest in ((s, scores[:i] + scores[i + 1 :]) for i, s in enumerate(scores)):
        p = p_value(Calibration("p", "k", sorted(rest), 0.0, n, 1), left)
        failed += _decide(p, n, alpha)[0] == "FAIL"
    assert 1 <= failed <= attained_alpha(alpha, n) * (n + 1) + 1e-9


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.01), (40, 0.01), (60, 0.05), (400, 0.01)])
@pytest.mark.parametrize("outlier", [0.0, 2.5, 100.0])
def test_one_outlier_among_the_goldens_cannot_move_the_limit(n: int, alpha: float, outlier: float) -> None:
    """Simulated on 2,000 banks: at most 2 / (n + 1) of the good parts fail (or alpha), whatever the outlier scores."""
    rng = np.random.default_rng([n, 7])
    rates = []
    for _ in range(2000):
        others = sorted(rng.gamma(4, size=n - 1))
        limit = score_threshold([*others, outlier or rng.gamma(4)], alpha, in_doubt=1)
        assert limit is not None
        rates.append((rng.gamma(4, size=20) > limit).mean())
        assert limit <= others[-1]
    promised = attained_alpha(alpha, n, in_doubt=1)
    assert promised == pytest.approx(max(alpha, 2 / (n + 1)))
    assert np.mean(rates) <= promised + 3 * np.std(rates) / len(rates) ** 0.5


def test_a_fail_that_only_a_golden_in_doubt_exceeds_says_so() -> None:
    facts = PolicyInput(p=2 / 41, n=40, alpha=0.01, in_doubt=1)
    decision = decide(facts)
    assert (decision.verdict, decision.attained) == (Verdict.FAIL, pytest.approx(2 / 41))
    assert "only 1 of 40 good parts shows a difference as large, and it is in doubt itself" in decision.reason.lower()
    assert decide(replace(facts, in_doubt=0)).verdict is Verdict.REVIEW


def test_verdict_reason_states_every_part_once() -> None:
    for p, reading, problems in itertools.product((0.01, 0.03, 0.9), (None, SEES, SEES_NONE), ([], ["scales differ"])):
        reason = _decide(p, reading=reading, problems=problems)[2]
        assert reason.count("scales differ") == len(problems)
        assert reason.count(" 99 good parts") == 1


TOP, AMONG = 1 / 31, 3 / 31  # of a region: beyond all of 30 good parts, or as strong as on two of them


@pytest.mark.parametrize(
    ("p", "peaks", "facts", "reason"),
    [
        # the score is beyond every good part: which regions are, too?
        (1 / 31, [TOP] * 3, {},
         "3 regions differ from the reference more than in any of 30 good parts (p 0.032, alpha 0.05)"),
        (1 / 31, [TOP], {}, "1 region differs from the reference more than in any of 30 good parts (p 0.032, alpha 0.05)"),
        (1 / 31, [TOP, AMONG], {},
         "1 of 2 regions differs from the reference more than in any of 30 good parts (p 0.032, alpha 0.05)"),
        (1 / 31, [AMONG], {},
         "The part as a whole differs from the reference more than any of 30 good parts (p 0.032, alpha 0.05)"),
        # some good parts score as high
        (2 / 31, [AMONG], {"alpha": 0.1},
         "1 region stands out, and only 1 of 30 good parts shows a difference as large (p 0.065, alpha 0.1)"),
        (3 / 31, [TOP], {}, "Borderline: only 2 of 30 good parts show a difference as large (p 0.097, alpha 0.05)"),
        (13 / 31, [], {}, "No difference beyond what 12 of 30 good parts show (p 0.42)"),
        (1, [], {}, "No difference beyond what all 30 good parts show (p 1)"),
        (13 / 31, [AMONG], {},
         "1 region stands out, but 12 of 30 good parts show a difference at least as large (p 0.42)"),
        # what is missing for a verdict
        (None, [], {}, "Not calibrated: at least 2 good parts must be enrolled before a part can be judged"),
        (1 / 13, [1 / 13], {"n": 12},
         "1 region differs from the reference more than in any of 12 good parts (p 0.077, alpha 0.077); "
         "a FAIL needs at least 20 good parts, and there are only 12"),
        (1 / 31, [TOP], {"rated": UNSIZED},
         "1 region differs from the reference more than in any of 30 good parts (p 0.032, alpha 0.05); "
         "limits in mm cannot be applied because the scale is unknown"),
        # limits
        (1 / 31, [TOP], {"rated": REJECT}, "Scratch f1 is 2.1 mm long; the limit is 1.5 mm"),
        (1 / 31, [TOP] * 2, {"rated": REJECT},
         "Scratch f1 is 2.1 mm long; the limit is 1.5 mm; 1 more finding is rejected"),
        (13 / 31, [AMONG], {"rated": ZONE},
         "Scratch f1 lies in critical zone bore; but 2 of 30 good parts show a difference as strong"),
        (1 / 31, [TOP], {"rated": WITHIN}, "All findings are within limits: Scratch f1 is 0.4 mm long; the limit is 0.5 mm"),
        (1 / 31, [TOP], {"rated": WITHIN, "p_rest": 2 / 31},
         "All findings are within limits: Scratch f1 is 0.4 mm long; the limit is 0.5 mm; "
         "but only 1 of 30 good parts shows a difference as large as the rest of the photo (p 0.065)"),
        (1 / 31, [TOP], {"rated": WITHIN, "p_rest": 1 / 31},
         "All findings are within limits: Scratch f1 is 0.4 mm long; the limit is 0.5 mm; "
         "but no good part shows a difference as large as the rest of the photo (p 0.032)"),
        # the model, and the set-up
        (13 / 31, [], {"reading": SEES},
         "No difference beyond what 12 of 30 good parts show (p 0.42); "
         "but the language model sees a defect (scratch) in the pictures"),
        (1 / 31, [TOP], {"reading": SEES_NONE, "problems": ["the scales differ"]},
         "1 region differs from the reference more than in any of 30 good parts (p 0.032, alpha 0.05); "
         "but the language model sees no defect in the pictures; the scales differ"),
    ],
)  # fmt: skip
def test_verdict_reason_states_findings_before_statistics(
    p: float | None, peaks: list[float], facts: dict[str, Any], reason: str
) -> None:
    given = {"n": 30, "alpha": 0.05} | facts
    rated = given.pop("rated", UNRATED)
    found = [RatedFinding(rated, peak, f"Scratch f{i}") for i, peak in enumerate(peaks, start=1)]
    assert _decide(p, findings=found, **given)[2] == reason


@pytest.mark.parametrize(("p", "shown"), [(20 / 397, "p 0.0504, alpha 0.05"), (1 / 41, "p 0.024, alpha 0.05")])
def test_shown_p_value_is_never_rounded_across_alpha(p: float, shown: str) -> None:
    assert shown in _decide(p, n=396, alpha=0.05)[2]


@pytest.mark.parametrize(
    ("delta", "hottest", "places", "severity", "reject"),
    [
        (3.0, 50.0, [], Severity.MINOR, False),
        (-3.0, 50.0, [], Severity.MINOR, False),
        (9.0, 50.0, [], Severity.MAJOR, True),
        (3.0, 90.0, [], Severity.MAJOR, True),
        (3.0, 50.0, ["fuse"], Severity.CRITICAL, True),
        (1.0, 50.0, ["fuse"], Severity.MINOR, False),
    ],
)
def test_limits_in_kelvin_and_celsius_hold_hotter_or_colder_and_in_their_zone(
    delta: float, hottest: float, places: list[str], severity: Severity, reject: bool
) -> None:
    spec = parse_spec({
        "zones": [{"name": "fuse", "kind": "named", "box": [0, 0, 9, 9]}],
        "limits": [
            {"zone": "fuse", "max_delta_k": 2, "severity": "minor"},
            {"zone": "fuse", "severity": "critical", "reject": True},
            {"max_delta_k": 4, "max_temperature_c": 80, "severity": "minor"},
            {"severity": "major", "reject": True},
        ],
    })  # fmt: skip
    rated = rate_finding(
        spec, type="hot_spot", length_mm=None, width_mm=None, length_px=9, area_px=60, zones=[], places=places,
        quantities={"delta_k": delta, "extreme_c": hottest},
    )  # fmt: skip
    assert (rated.severity, rated.reject) == (severity, reject)
    if delta == 9.0:
        assert rated.why == "is 9 K off its golden sample; the limit is 4 K"


def test_limit_in_kelvin_fits_nothing_that_was_not_measured_in_kelvin() -> None:
    spec = parse_spec({"limits": [{"max_delta_k": 4, "severity": "minor"}]})
    rated = rate_finding(spec, type="scratch", length_mm=None, width_mm=None, length_px=9, area_px=60, zones=[])
    assert not rated.within


@pytest.mark.parametrize(("hottest", "within"), [(70.0, True), (90.0, False)])
def test_limit_of_the_temperature_reads_the_hottest_of_a_cold_spot_too(hottest: float, within: bool) -> None:
    spec = parse_spec({"limits": [{"max_temperature_c": 80, "severity": "minor"}]})
    rated = rate_finding(
        spec, type="cold_spot", length_mm=None, width_mm=None, length_px=9, area_px=60, zones=[],
        quantities={"delta_k": -6.0, "extreme_c": 40.0, "hottest_c": hottest},
    )  # fmt: skip
    assert rated.within == within


@pytest.mark.parametrize(
    ("deviation", "volume", "within", "unscaled"),
    [
        (0.2, 5.0, True, False),
        (-0.2, 5.0, True, False),
        (-0.4, 5.0, False, False),
        (0.2, 50.0, False, False),
        (0.2, None, False, True),
    ],
)
def test_limits_in_mm_hold_either_way_and_a_volume_needs_a_scale(
    deviation: float, volume: float | None, within: bool, unscaled: bool
) -> None:
    spec = parse_spec({"limits": [{"max_deviation_mm": 0.3, "max_volume_mm3": 20, "severity": "minor"}]})
    quantities = {"deviation_mm": deviation} | ({} if volume is None else {"volume_mm3": volume})
    rated = rate_finding(
        spec, type="low_spot", length_mm=None, width_mm=None, length_px=9, area_px=60, zones=[], quantities=quantities
    )
    assert (rated.within, rated.missing_scale) == (within, unscaled)
