"""What a report tells, as single statements. Every one of them is true of the report by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refdiff.agent.language.statements import LANGUAGES, STATEMENTS, WORDS
from refdiff.agent.report.schema import ComponentCount, DefectReport, EdgeMove, Expected, Finding, NamedAs, Verdict
from refdiff.agent.report.summary import moved_distance, moved_word, percent, when, with_unit
from refdiff.memory.records.dispositions import Disposition


class Word(str):
    """A word of `WORDS`, which is translated. Every other text is quoted as it is."""

    __slots__ = ()


@dataclass(frozen=True)
class Fact:
    """One statement of a report."""

    topic: str  # a row of STATEMENTS
    finding: str  # id of the finding that it is about, such as "f1"; empty for the report as a whole
    slots: Mapping[str, str]

    def text(self, language: str = "en") -> str:
        """The statement without the id of the finding and without a full stop."""
        column = LANGUAGES.index(language)
        filled = {k: WORDS[v][column - 1] if column and isinstance(v, Word) else v for k, v in self.slots.items()}
        return STATEMENTS[self.topic][column].format(**filled)

    def sentence(self, language: str = "en") -> str:
        text = self.text(language).rstrip(".")
        return f"{self.finding}: {text}." if self.finding else f"{text[0].upper()}{text[1:]}."


Line = list[Fact]  # facts shown in one line: all of one finding, or some of the report as a whole


def facts(report: DefectReport, decided: Disposition | None = None) -> list[Line]:
    """All that a report tells. decided: what a person made of it since."""
    reference, alpha, dropped = report.reference, report.alpha, report.unsupported_claims_dropped
    return [
        [
            _fact("part", part=report.part_id),
            _fact("product", product=report.product),
            _fact("verdict", verdict=report.verdict.value, reason=report.verdict_reason),
            _fact(f"basis_{report.verdict_basis.value}"),
            _decision(report, decided),
        ],
        [
            _fact("score", score=f"{report.image_score:.3g}"),
            _fact("p", p=Word("none") if report.p_value is None else f"{report.p_value:.3g}"),
            _fact("golden", golden=reference.golden_id),
            _fact("similarity", similarity=f"{reference.similarity:.3g}"),
            *([] if report.threshold is None else [_fact("threshold", threshold=f"{report.threshold:.3g}")]),
            _fact("alpha", requested=f"{alpha.requested:.3g}", attained=f"{alpha.attained:.3g}"),
            *([_fact("calibration", n=str(report.n_calibration))] if report.n_calibration else []),
            *([_fact("references", n=str(len(report.references)))] if report.references else []),
        ],
        _scale(report),
        [_fact("count", n=str(len(report.findings)))],
        *([list(map(_counted, report.components))] if report.components else []),
        *(_finding(finding) for finding in report.findings),
        [_registration(report)],
        [_reading(report), _judge(report)],
        [_fact("dropped", n=str(len(dropped))), *(_fact("claim", claim=claim) for claim in dropped)],
        [
            _fact("inspection", id=report.inspection_id),
            _fact("inspected", when=when(report.created_at)),
            _fact("requester", who=report.requested_by),
            *([_fact("request", text=report.request)] if report.request else []),
            *(_fact("capture", text=record.summary) for record in report.evidence if record.kind == "capture"),
            _fact("software", version=report.software.version),
            *(_fact("time", step=step, ms=f"{ms:.0f}") for step, ms in report.timings_ms.items()),
        ],
        [_fact("reasoning", text=report.reasoning)],
    ]


def _fact(topic: str, finding: str = "", **slots: str) -> Fact:
    return Fact(topic, finding, slots)


def _word(name: str) -> Word | str:
    """The word of a name such as "missing_component"; a name that is not in the vocabulary stays as it is."""
    shown = name.replace("_", " ")
    return Word(shown) if shown in WORDS else shown


def _decision(report: DefectReport, decided: Disposition | None) -> Fact:
    if decided is None:
        return _fact("open" if report.verdict == Verdict.REVIEW else "undecided")
    decision = Word("verdict accepted" if decided.decision == "accept" else "verdict overridden")
    return _fact("decided", decision=decision, by=decided.by, when=decided.created_at, reason=decided.reason)


def _scale(report: DefectReport) -> Line:
    if not report.scale.mm_per_px:
        return [_fact("unscaled")]
    sources = {"capture": "given with the photo", "golden": "the golden, registered"}
    source = sources.get(report.scale.source or "", "unknown")
    return [_fact("scale", scale=f"{report.scale.mm_per_px:.3g}"), _fact("scale_source", source=Word(source))]


def _registration(report: DefectReport) -> Fact:
    alignment = report.alignment
    if not alignment.ok:
        return _fact("unregistered", method=alignment.method)
    residual = Word("unknown") if alignment.residual_px is None else with_unit("_px", alignment.residual_px)
    return _fact("registration", method=alignment.method, residual=residual, overlap=percent(alignment.overlap))


def _reading(report: DefectReport) -> Fact:
    reading = report.llm_reading
    if reading is None:
        return _fact("unread")
    defect = Word("defect" if reading.defect else "no defect")
    return _fact("reading", defect=defect, type=_word(reading.type), confidence=f"{reading.confidence:.2g}")


def _judge(report: DefectReport) -> Fact:
    judge = report.judge
    if judge.via == "fallback":
        return _fact("unjudged", why=judge.reason or "–")
    return _fact("judge", model=judge.model or "–", via=Word(judge.via))


def _finding(finding: Finding) -> Line:
    place, cause = finding.location, finding.probable_cause
    facts = [
        _fact("type", type=_word(finding.type)),
        *([_named(finding.named)] if finding.named else []),
        _fact("place", place=_word(place.region)),
        _fact("length", length=_size(finding.length_mm, finding.length_px)),
        _fact("width", width=_size(finding.width_mm, finding.width_px)),
        *([_moved(finding.type, finding.moved)] if finding.moved else []),
        *(_expected(finding.expected) if finding.expected else []),
        _fact("severity", severity=_word(finding.severity.value)),
        _fact("confidence", confidence=f"{finding.confidence:.2g}"),
        _fact("cause", cause=cause.text) if cause and cause.text else _fact("unknown_cause"),
    ]
    if finding.uncertainty_mm is not None:
        facts.append(_fact("uncertainty", uncertainty=with_unit("_mm", finding.uncertainty_mm)))
    if finding.length_mm is not None and finding.length_px is not None and finding.width_px is not None:
        length, width = with_unit("", finding.length_px), with_unit("_px", finding.width_px)
        facts.append(_fact("pixels", length=length, width=width))
    facts += [
        _fact("area", area=with_unit("area_px", finding.area_px)),
        _fact("box", box=f"{place.x0}, {place.y0}, {place.x1}, {place.y1}"),
        *([_fact("zone", zone=finding.zone)] if finding.zone else []),
        # if not, perhaps no limit applies: the reasoning says so
        *([_fact("limits")] if finding.within_limits else []),
    ]
    if finding.seen_before is not None:
        facts.append(_fact("seen", parts=str(finding.seen_before.parts), days=str(finding.seen_before.days)))
    elif "seen_before" in finding.model_fields_set:  # else filed before anything was remembered
        facts.append(_fact("unseen"))
    facts += [
        _fact("reporter", reporter=Word("language model" if finding.reported_by == "llm" else "system")),
        _fact("reasoning", text=finding.reasoning),
    ]
    return [Fact(fact.topic, finding.id, fact.slots) for fact in facts]


def _moved(kind: str, moved: EdgeMove) -> Fact:
    least = "_least" if moved.at_least else ""  # the words are of the reader's language
    return _fact(
        f"moved_{moved_word(kind, moved)}{least}", distance=moved_distance(moved), direction=_word(moved.direction)
    )


def _expected(expected: Expected) -> Line:
    unknown = Word("something that the photo does not show") if expected.outlined else None
    named = expected.name or (None if expected.component is None else f"component {expected.component}")
    what = named or unknown
    return [] if what is None else [_fact("expected", what=what)]


def _counted(count: ComponentCount) -> Fact:
    topic = "counted_extra" if count.found > count.expected else "counted"
    name = count.name or f"component {count.number}"
    return _fact(topic, name=name, found=str(count.found), expected=str(count.expected))


def _named(named: NamedAs) -> Fact:
    like = named.like
    slots = {"number": like.finding.removeprefix("f"), "part": like.part_id, "by": like.confirmed_by}
    return _fact("named", name=named.name, **slots)


def _size(mm: float | None, px: float | None) -> str:
    """A length in mm where a scale is known, else in px."""
    if mm is not None:
        return with_unit("_mm", mm)
    return Word("unknown") if px is None else with_unit("_px", px)


def compared(fact: Fact, limit: str) -> Fact:
    """A length in mm, compared as it is shown with a limit in mm; any other fact as it is."""
    if fact.topic != "length" or not fact.slots["length"].endswith(" mm"):
        return fact
    fits = float(fact.slots["length"].split()[0]) <= float(limit.replace(",", "."))
    slots = {"length": fact.slots["length"], "limit": f"{limit} mm", "fits": Word("yes" if fits else "no")}
    return Fact("within", fact.finding, slots)
