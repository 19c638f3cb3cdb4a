"""Questions about a report with their true answers, to train the language model on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refdiff.agent.language.facts import Fact, facts
from refdiff.agent.language.questions import NOT_KNOWN, choices, prompt_of
from refdiff.agent.report.schema import Artefacts, DefectReport

_ASKABLE = 6  # findings that are asked about; the model always reads these

# topic -> phrasings to train on, phrasings for the test; {n} is a finding's number, {limit} a length
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "verdict": (
        ("what is the verdict?", "did it pass?", "is the part ok?", "is it all right?", "can we use it?", "good or bad?",
         "Teil in Ordnung?", "Ist das Teil gut?", "Wie lautet das Urteil?", "¿Está bien la pieza?", "¿Pasó la inspección?",
         "¿Cuál es el veredicto?", "零件合格吗？", "判定结果是什么？"),
        ("so, pass or fail?", "Ist es durchgefallen?", "¿es apta?", "通过了吗"),
    ),
    "why": (
        ("why?", "why that verdict?", "what is the reason?", "what made it a {verdict}?", "Warum?",
         "Was ist der Grund für das Urteil?", "¿Por qué?", "¿Por qué ese veredicto?",
         "为什么这样判定？", "理由是什么？"),
        ("how did you come to that verdict?", "Weshalb?", "¿cuál es el motivo?", "判定的理由？"),
    ),
    "count": (
        ("how many findings are there?", "how many defects?", "number of defects", "Wie viele Befunde?",
         "Anzahl der Fehler?", "¿Cuántos defectos hay?", "número de hallazgos", "有几个缺陷？", "缺陷数量是多少？"),
        ("number of findings?", "Wie viele Fehler hat es?", "¿cuántos hallazgos?", "发现了多少处异常"),
    ),
    "golden": (
        ("which golden was used?", "what was it compared with?", "which reference?", "which good sample is that against?",
         "Womit wurde verglichen?", "Welches Gutmuster?", "¿Con qué muestra se comparó?", "¿Qué referencia se usó?",
         "用的哪个标准样品？", "与哪个参考比较？"),
        ("name the golden sample", "Welche Referenz war es?", "¿cuál fue el patrón?", "对照的是哪个样品"),
    ),
    "similarity": (
        ("how similar is the golden?", "similarity of the reference?", "how well does the reference match?",
         "Wie ähnlich ist das Gutmuster?", "¿Cuánto se parece la referencia?", "similitud de la muestra", "相似度是多少？"),
        ("how close is the reference?", "Ähnlichkeit?", "¿qué similitud hay?", "与样品有多像"),
    ),
    "score": (
        ("what is the score?", "image score?", "how anomalous is it?", "Welcher Anomaliewert?", "Wie hoch ist der Wert?",
         "¿Qué puntuación tiene?", "puntuación de anomalía", "异常分数是多少？", "得分多少？"),
        ("tell me the anomaly score", "Punktzahl?", "¿cuál es el puntaje?", "评分"),
    ),
    "scale": (
        ("what is the scale?", "how many mm per pixel?", "Welcher Maßstab?",
         "¿Cuál es la escala?", "¿Cuántos mm mide un píxel?", "比例是多少？", "每像素多少毫米？"),
        ("which scale was used?", "Wie groß ist ein Pixel?", "escala?", "一个像素等于几毫米"),
    ),
    "length": (
        ("how long is finding {n}?", "length of f{n}?", "how large is the defect f{n}?", "Wie lang ist f{n}?",
         "Länge von Befund {n}?", "¿Cuánto mide f{n}?", "longitud del defecto {n}", "缺陷{n}有多长？", "f{n} 的长度？"),
        ("what length does finding {n} have?", "Welche Länge hat f{n}?", "¿qué tan largo es f{n}?", "第{n}个缺陷多长"),
    ),
    "width": (
        ("how wide is finding {n}?", "width of f{n}?", "Wie breit ist f{n}?", "Breite von Befund {n}?",
         "¿Qué ancho tiene f{n}?", "anchura del defecto {n}", "缺陷{n}有多宽？", "f{n} 的宽度？"),
        ("what about the width of finding {n}?", "Welche Breite hat f{n}?", "¿cómo de ancho es f{n}?", "第{n}个缺陷多宽"),
    ),
    "place": (
        ("where is finding {n}?", "where is f{n}?", "location of defect {n}", "Wo ist f{n}?", "Lage von Befund {n}?",
         "¿Dónde está f{n}?", "ubicación del defecto {n}", "缺陷{n}在哪里？", "f{n} 的位置？"),
        ("in which area is f{n}?", "An welcher Stelle ist f{n}?", "¿en qué zona está f{n}?", "第{n}个缺陷在什么位置"),
    ),
    "type": (
        ("what is finding {n}?", "what kind of defect is f{n}?", "type of f{n}?", "Was ist f{n}?",
         "Welche Art von Fehler ist f{n}?", "¿Qué tipo de defecto es f{n}?", "缺陷{n}是什么？", "f{n} 的类型？"),
        ("what sort of defect is f{n}?", "Was für ein Fehler ist f{n}?", "¿qué clase es f{n}?", "第{n}个是什么缺陷"),
    ),
    "cause": (
        ("what caused f{n}?", "probable cause of finding {n}?", "Was ist die Ursache von f{n}?",
         "Woher kommt Befund {n}?", "¿Qué causó f{n}?", "causa probable de f{n}", "缺陷{n}的原因是什么？"),
        ("why did defect {n} happen?", "Wodurch entstand f{n}?", "¿a qué se debe f{n}?", "第{n}个缺陷是什么造成的"),
    ),
    "severity": (
        ("how severe is f{n}?", "severity of finding {n}?", "Wie schwer ist f{n}?", "Ist Befund {n} kritisch?",
         "¿Qué gravedad tiene f{n}?", "¿Es grave f{n}?", "缺陷{n}有多严重？", "f{n} 的严重程度？"),
        ("how bad is finding {n}?", "Wie schlimm ist f{n}?", "¿cómo de grave es f{n}?", "第{n}个缺陷严重吗"),
    ),
    "within": (
        ("is f{n} within {limit}?", "is finding {n} shorter than {limit}?", "Ist f{n} kürzer als {limit}?",
         "Bleibt Befund {n} unter {limit}?", "¿Mide f{n} menos de {limit}?", "缺陷{n}在 {limit} 以内吗？"),
        ("does f{n} stay below {limit}?", "Liegt f{n} innerhalb von {limit}?",
         "¿está f{n} por debajo de {limit}?", "f{n}超过 {limit} 了吗"),
    ),
    "elsewhere": (
        ("what was the temperature?", "who made this part?", "when was it serviced?", "what is the batch?",
         "what is the operator's name?", "which material is it?", "how deep is the defect?", "what does it cost?",
         "was the previous part ok?", "which camera took the photo?", "Welche Charge ist das?",
         "Wer hat das Teil gefertigt?", "Wie tief ist der Kratzer?", "¿Quién es el proveedor?", "¿Qué temperatura había?",
         "车间的湿度是多少？", "上一个零件合格吗？"),
        ("what is the humidity?", "which supplier delivered it?", "how heavy is the part?", "Was kostet das Teil?",
         "¿de qué lote es?", "是谁操作的"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One example."""

    prompt: str  # facts and question as the model reads them
    answer: str  # one of the options
    known: bool  # the report holds the answer
    options: list[str]  # all that may be answered


def questions_about(report: Mapping[str, Any], rng: random.Random, *, test: bool = False, n: int = 2) -> list[Question]:
    """Questions about a report (DefectReport as JSON, filed or not); by chance, some are ones that it cannot answer."""
    made = []
    nowhere = Artefacts(overlay="", heatmap="", side_by_side="", html="")
    filed = DefectReport.model_validate({"artefacts": nowhere} | dict(report))
    for topic in rng.sample(list(TEMPLATES), n):
        findings = len(filed.findings)
        number = rng.randint(1, max(1, min(_ASKABLE, findings)) + int(rng.random() < 0.15))
        limit = f"{rng.choice((0.1, 0.2, 0.5, 1, 2, 3, 5, 10))} mm"
        template = rng.choice(TEMPLATES[topic][int(test)])
        question = template.format(n=number, limit=limit, verdict=filed.verdict.value)
        offered = choices(facts(filed), question)
        answer = _answer(topic, f"f{number}", offered)
        made.append(Question(prompt_of(filed, question), answer, answer != NOT_KNOWN, [*offered, NOT_KNOWN]))
    return made


def _answer(topic: str, finding: str, offered: Mapping[str, Fact]) -> str:
    """The choice that is the answer: the shortest one of the verdict, the longest one of its reason."""
    topics = {"why": ("verdict",), "scale": ("scale", "unscaled")}.get(topic, (topic,))
    answers = [choice for choice, fact in offered.items() if fact.topic in topics and fact.finding in ("", finding)]
    return (max if topic == "why" else min)(answers, key=len, default=NOT_KNOWN)
