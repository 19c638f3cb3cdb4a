"""Block Kit messages and dialogs (JSON data). Text of people and models is escaped: no links, no mentions."""

from __future__ import annotations

import json
from typing import Any

from refdiff.agent.report.summary import ReportSummary
from refdiff.memory.records.defect_names import MAX_NAME
from refdiff.model.errors import InputError

ACCEPT, OVERRIDE, NAME = "refdiff_accept", "refdiff_override", "refdiff_name"
ZOOM, PAGE = "refdiff_zoom", "refdiff_page"
OVERRIDE_VIEW, NAME_VIEW, INSPECT_VIEW = "refdiff_override_view", "refdiff_name_view", "refdiff_inspect_view"
_MAX_SECTION = 2900  # Slack allows 3,000 characters
_MAX_OPTIONS, _MAX_OPTION = 100, 75  # of a select: how many, characters of each
_MARKS = {"PASS": ":white_check_mark:", "FAIL": ":x:", "REVIEW": ":warning:"}

Block = dict[str, Any]


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def answer(report: ReportSummary) -> list[Block]:
    """A filed report: verdict, findings, folded reasoning, and buttons until it is decided."""
    found = "\n".join(f"• {escape(line)}" for line in report.findings) or "No findings."
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": report.title[:150]}},
        _section(f"{_MARKS.get(report.verdict, '')} {escape(report.reason)}."),
        _section(f"*Findings*\n{found}"),
        # without `expand`, long text is folded behind "see more"
        _section(f"*Reasoning*\n{escape(report.reasoning)}") | {"expand": False},
        {"type": "context", "elements": [_mrkdwn(f"{report.inspection_id} · {escape(report.model)}")]},
    ]
    if report.named:
        blocks.append(_section("*Called since*\n" + "\n".join(f"• {escape(line)}" for line in report.named)))
    if report.decided:
        blocks.append(_section(f"*Decided:* {escape(report.decided)}"))
    buttons = [] if report.decided else [
        _button("Accept", ACCEPT, report.inspection_id, "primary"),
        _button("Override…", OVERRIDE, report.inspection_id, "danger"),
    ]  # fmt: skip
    if report.nameable:
        buttons.append(_button("Name a finding…", NAME, report.inspection_id))
        buttons.append(_button("Zoom", ZOOM, report.inspection_id))
    if report.page:
        buttons.append(_button("Open the page", PAGE, report.inspection_id) | {"url": report.page})
    if buttons:
        blocks.append({"type": "actions", "elements": buttons})
    return blocks


def override_view(inspection_id: str, channel: str, message_ts: str) -> Block:
    """The dialog that asks for the reason of an override."""
    return {
        "type": "modal",
        "callback_id": OVERRIDE_VIEW,
        "private_metadata": json.dumps({"inspection_id": inspection_id, "channel": channel, "ts": message_ts}),
        "title": {"type": "plain_text", "text": "Override the verdict"},
        "submit": {"type": "plain_text", "text": "Override"},
        "close": {"type": "plain_text", "text": "Cancel"},
        "blocks": [
            {"type": "context", "elements": [_mrkdwn(f"{inspection_id}: the report does not change; your decision is kept "
                                                     "with it and cannot be changed.")]},
            _input("reason", "Why is the verdict wrong?", multiline=True, max_length=1000),
        ],
    }  # fmt: skip


def name_view(report: ReportSummary, channel: str, message_ts: str, thread: str | None) -> Block:
    """The dialog that asks which finding is called what: a name that the product knows, or a new one.

    Raises InputError without findings.
    """
    if not report.nameable:
        raise InputError(f"inspection {report.inspection_id} has no findings to name")
    about = {"inspection_id": report.inspection_id, "channel": channel, "ts": message_ts, "thread": thread}
    findings = [_option(line, finding) for finding, line in report.nameable.items()]
    which = {"type": "static_select", "action_id": "finding", "options": findings, "initial_option": findings[0]}
    blocks = [_labelled("finding", "Finding", which)]
    if report.known_names:
        names = [_option(name, name) for name in report.known_names[:_MAX_OPTIONS]]
        chosen = {"type": "static_select", "action_id": "known", "options": names}
        blocks.append(_labelled("known", "A name that you use already", chosen) | {"optional": True})
    typed = _input("name", "A new name", multiline=False, max_length=MAX_NAME)
    return {
        "type": "modal",
        "callback_id": NAME_VIEW,
        "private_metadata": json.dumps(about),
        "title": {"type": "plain_text", "text": "Name a finding"},
        "submit": {"type": "plain_text", "text": "Name"},
        "close": {"type": "plain_text", "text": "Cancel"},
        "blocks": [*blocks, typed | {"optional": bool(report.known_names)}],
    }


def inspect_view() -> Block:
    """The dialog of the global shortcut."""
    return {
        "type": "modal",
        "callback_id": INSPECT_VIEW,
        "title": {"type": "plain_text", "text": "Inspect a part"},
        "submit": {"type": "plain_text", "text": "Inspect"},
        "close": {"type": "plain_text", "text": "Cancel"},
        "blocks": [_input("part", "Part id (its newest photo is inspected)", multiline=False, max_length=128)],
    }


def _input(name: str, label: str, *, multiline: bool, max_length: int) -> Block:
    element = {
        "type": "plain_text_input",
        "action_id": name,
        "multiline": multiline,
        "min_length": 1,
        "max_length": max_length,
    }
    return _labelled(name, label, element)


def _labelled(name: str, label: str, element: Block) -> Block:
    return {"type": "input", "block_id": name, "label": {"type": "plain_text", "text": label}, "element": element}


def _option(text: str, value: str) -> Block:
    shown = text if len(text) <= _MAX_OPTION else f"{text[: _MAX_OPTION - 1]}…"
    return {"text": {"type": "plain_text", "text": shown}, "value": value}


def _mrkdwn(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text if len(text) <= _MAX_SECTION else f"{text[:_MAX_SECTION]}…"}


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(text)}


def _button(label: str, action: str, value: str, style: str | None = None) -> Block:
    made: Block = {
        "type": "button",
        "text": {"type": "plain_text", "text": label},
        "action_id": action,
        "value": value,
    }
    return made | ({"style": style} if style else {})
