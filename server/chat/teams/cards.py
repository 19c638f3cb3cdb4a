"""Adaptive Cards (JSON data, version 1.5)."""

from __future__ import annotations

import base64
import re
from typing import Any

import cv2
import numpy as np

from refdiff.agent.report.summary import ReportSummary
from refdiff.memory.records.defect_names import MAX_NAME
from refdiff.model.images import RgbImage

ACCEPT, OVERRIDE, NAME, ZOOM = "refdiff_accept", "refdiff_override", "refdiff_name", "refdiff_zoom"
# embedded in the card, because Teams cannot reach this server; a message may have 100 KB in all
MAX_PICTURE_BYTES = 24_000
_MAX_NAMES = 25  # a message may have 100 KB in all
_COLOURS = {"PASS": "Good", "FAIL": "Attention", "REVIEW": "Warning"}
_MARKDOWN = re.compile(r"([\\*_\[\]()~`#>|])")

Card = dict[str, Any]


def escape(text: str) -> str:
    """Escape text of people and models: Teams renders Markdown in cards, including links."""
    return _MARKDOWN.sub(r"\\\1", text)


def answer(report: ReportSummary, picture: str | None) -> Card:
    """A filed report: verdict, photo with findings, findings, folded reasoning, and buttons until it is decided.

    picture: a data URL.
    """
    body: list[Card] = [
        _text(report.title, size="Large", weight="Bolder", color=_COLOURS.get(report.verdict, "Default")),
        _text(f"{report.reason}."),
    ]
    if picture:
        alt = f"Photo of part {report.part_id} with its findings drawn in"
        body.append({"type": "Image", "url": picture, "altText": alt, "size": "Stretch"})
    body += [_text(f"• {line}", spacing="Small") for line in report.findings] or [_text("No findings.")]
    folded = {"id": "reasoning", "isVisible": False}
    body += [_text(report.reasoning, isSubtle=True) | folded]
    body.append(_text(f"{report.inspection_id} · {report.model}", size="Small", isSubtle=True))
    body += [_text(f"Called since: {line}") for line in report.named]
    if report.decided:
        body.append(_text(f"Decided: {report.decided}", weight="Bolder"))
    data = {"inspection_id": report.inspection_id}
    actions: list[Card] = []
    if not report.decided:
        actions.append({"type": "Action.Execute", "title": "Accept", "verb": ACCEPT, "data": data, "style": "positive"})
        actions.append({"type": "Action.ShowCard", "title": "Override…", "card": _override(data)})
    if report.nameable:
        actions.append({"type": "Action.ShowCard", "title": "Name a finding…", "card": _name(report, data)})
        actions.append({"type": "Action.Execute", "title": "Zoom", "verb": ZOOM, "data": data})
    actions.append({"type": "Action.ToggleVisibility", "title": "Reasoning", "targetElements": ["reasoning"]})
    if report.page:
        actions.append({"type": "Action.OpenUrl", "title": "Open the page", "url": report.page})
    return _card(body, actions)


def pictured(title: str, picture: str) -> Card:
    return _card(
        [_text(title, weight="Bolder"), {"type": "Image", "url": picture, "altText": title, "size": "Stretch"}]
    )


def words(text: str) -> Card:
    return _card([_text(text)])


def data_url(image: RgbImage, max_bytes: int = MAX_PICTURE_BYTES) -> str:
    """The image, (H, W, 3) uint8, as a JPEG data URL, as large as `max_bytes` allows."""
    side = 720
    while True:
        scale = min(1.0, side / max(image.shape[:2]))
        height, width = (max(1, round(s * scale)) for s in image.shape[:2])
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        for quality in (85, 70, 55):
            data = _jpeg(np.asarray(small, np.uint8), quality)
            if len(data) <= max_bytes or side < 100:
                return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
        side = side * 3 // 4


def _jpeg(image: RgbImage, quality: int) -> bytes:
    return bytes(
        cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    )


def _override(data: dict[str, str]) -> Card:
    why = {
        "type": "Input.Text",
        "id": "reason",
        "label": "Why is the verdict wrong?",
        "isMultiline": True,
        "isRequired": True,
        "errorMessage": "A reason is required; it is kept with the report.",
        "maxLength": 1000,
    }
    send = {"type": "Action.Execute", "title": "Override", "verb": OVERRIDE, "data": data, "style": "destructive"}
    return _card([why], [send])


def _name(report: ReportSummary, data: dict[str, str]) -> Card:
    """Which finding is called what: a name that the product knows, or a new one."""
    which = _choices("finding", "Finding", list(report.nameable.items()), value=next(iter(report.nameable)))
    known = [(name, name) for name in report.known_names[:_MAX_NAMES]]
    inputs = [which, *([_choices("known", "A name that you use already", known)] if known else [])]
    inputs.append({"type": "Input.Text", "id": "name", "label": "A new name", "maxLength": MAX_NAME})
    return _card(inputs, [{"type": "Action.Execute", "title": "Name", "verb": NAME, "data": data}])


def _choices(name: str, label: str, choices: list[tuple[str, str]], **more: Any) -> Card:
    """choices: (value, text)."""
    listed = [{"title": text, "value": value} for value, text in choices]
    return {"type": "Input.ChoiceSet", "id": name, "label": label, "choices": listed, "style": "compact"} | more


def _text(text: str, **style: Any) -> Card:
    return {"type": "TextBlock", "text": escape(text), "wrap": True} | style


def _card(body: list[Card], actions: list[Card] | None = None) -> Card:
    return {
        "$schema": "https://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.5",
        "body": body,
        "actions": actions or [],
    }
