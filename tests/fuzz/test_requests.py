"""HTTP bodies to every route of a real server, and chat histories: no 5xx, no hang, no verdict about another photo."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import strategies as st

from tests.server.web.conftest import Running

from .driver import LIMIT_S, corpus, fuzz
from .image_files import as_bytes, as_text, images

# a stream has no end, and a calibration takes as long as it takes
_LEFT_OUT = ("/events", "/calibration")
_TYPES = ["application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain",
          "image/png", "application/json; charset=utf-16", ""]  # fmt: skip
_NAMES = ["part_id", "product", "image", "images", "scale_mm_per_px", "reason", "accept", "judged", "judge", "status",
          "note", "question", "spec", "zones", "limits", "model", "messages", "capture_id", "name", "role"]  # fmt: skip
_texts = st.one_of(
    st.text(max_size=30), st.sampled_from(["board", "f-1", "../x", "\x00", "#4412", "0" * 400, "g-0123456789ab"])
)
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), _texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(_NAMES), st.text(max_size=8)), inner, max_size=5),
    ),
    max_leaves=12,
)
_queries = st.dictionaries(
    st.sampled_from(["limit", "offset", "product", "part", "status", "max_px", "verdict", "since", "q"]),
    st.one_of(st.integers().map(str), _texts), max_size=3,
)  # fmt: skip
_files = st.tuples(st.sampled_from(["image", "images", "file", "x"]), _texts, images).map(list)
_bodies = st.one_of(
    st.fixed_dictionaries({"json": _json}),
    st.fixed_dictionaries({"raw": st.binary(max_size=300).map(as_text), "type": st.sampled_from(_TYPES)}),
    st.fixed_dictionaries(
        {
            "form": st.dictionaries(st.sampled_from(_NAMES), _texts, max_size=5),
            "files": st.lists(
                st.tuples(st.sampled_from(["image", "images", "file", "x"]), _texts, images).map(list), max_size=3
            ),
        }
    ),
    st.just({}),
)
_photo = st.sampled_from(["good.png", "bad.png"])  # by name: the test's own photos


def routes(server: Running) -> list[tuple[str, str]]:
    """(method, path) of all routes but those left out."""
    document = json.loads(server.client.get("/openapi.json").text)
    found = [(method, path) for path, methods in document["paths"].items() for method in methods]
    return sorted((m.upper(), p) for m, p in found if not p.endswith(_LEFT_OUT))


def requests(server: Running) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "route": st.sampled_from(routes(server)).map(list),
            "ids": st.lists(_texts, min_size=2, max_size=2),
            "query": _queries,
            "body": _bodies,
        }
    )


def send(server: Running, case: Any) -> None:
    """Send a request; 503 is right only where nothing could be done at once."""
    method, path = case["route"]
    for value in case["ids"]:
        if "{" in path:
            start, end = path.index("{"), path.index("}")
            path = path[:start] + _escaped(value) + path[end + 1 :]
    body = case["body"]
    options: dict[str, Any] = {"params": case["query"]}
    if "json" in body:
        options["json"] = body["json"]
    elif "raw" in body:
        options |= {"content": as_bytes(body["raw"]), "headers": {"content-type": body["type"]}}
    elif "form" in body:
        options |= {"data": body["form"], "files": [(n, (f or "x", as_bytes(d))) for n, f, d in body["files"]] or None}
    answer = server.client.request(method, path, timeout=LIMIT_S, **options)
    assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text[:500]}"


def _escaped(value: str) -> str:
    return quote(value.encode("utf-8", "replace"), safe="")


# ---- chat histories ----

_asks = st.builds(
    lambda verb, part, more: f"{verb} part #{part}{more}",
    st.sampled_from(["inspect", "please check", "Pr\u00fcfe", "why did"]),
    st.sampled_from(["f-1", "f-2", "9100", "4412", "f-1 and #f-2", ""]),
    st.sampled_from(["", ", product board", " against the nearest good sample, product board", " again", " fail?"]),
)
_words = st.one_of(_asks, st.sampled_from(["and this one?", "yes", "hello", "suggest a title"]), st.text(max_size=40))
_urls = st.one_of(
    _photo,
    images.map(lambda text: f"data:image/png;base64,{text}"),
    st.sampled_from(["data:application/zip;base64,UEsDBA==", "https://example.invalid/x.png", "data:,", "x"]),
)
_parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": _words}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": _urls})}),
    st.fixed_dictionaries({"type": st.sampled_from(["file", "thinking", "input_audio", "refusal", "x"])}),
)
_messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "user", "user", "assistant", "system", "tool", "developer"]),
        "content": st.one_of(_words, st.lists(_parts, max_size=4), st.none()),
    }
)
chats = st.fixed_dictionaries({"messages": st.lists(_messages, min_size=1, max_size=5)})


def converse(server: Running, case: Any) -> None:
    """A verdict is about the photo that the last message of the user brings, if it brings anything at all."""
    sent = json.loads(json.dumps(case["messages"]))
    for message in sent:
        for part in message["content"] if isinstance(message["content"], list) else []:
            url = part.get("image_url", {}).get("url")
            if url in server.photos:
                part["image_url"]["url"] = f"data:image/png;base64,{as_text(server.photos[url])}"
    began = time.monotonic()
    answer = server.client.post(
        "/v1/chat/completions", json={"model": "refdiff-inspector", "messages": sent}, timeout=60
    )
    assert answer.status_code < 500, answer.text[:500]
    report = answer.json().get("refdiff", {}).get("report") if answer.status_code == 200 else None
    if report is None:
        assert time.monotonic() - began < LIMIT_S
        return
    brought = _brought([m for m in sent if m["role"] == "user"][-1]["content"])
    assert not brought or report["query_sha256"] in brought, f"verdict about another photo: {report['query_sha256']}"


def _brought(content: Any) -> set[str]:
    """Digests of what a message brings besides text."""
    found = set()
    for part in content if isinstance(content, list) else []:
        if part["type"] == "image_url":
            _, _, encoded = part["image_url"]["url"].partition(",")
            try:
                found.add(hashlib.sha256(base64.b64decode(encoded)).hexdigest())
            except ValueError:
                found.add("unreadable")
        elif part["type"] in ("file", "input_audio"):
            found.add("unreadable")
    return found


@pytest.fixture
def known(server: Running) -> Running:
    """The server, with parts f-1 and f-2 inspected."""
    for part, name in (("f-1", "good.png"), ("f-2", "bad.png")):
        if part not in server.made:
            server.made[part] = server.inspected(name, part)["inspection_id"]
    return server


CHECKS: dict[str, Callable[[Running, Any], None]] = {"requests": send, "chats": converse}


@pytest.mark.parametrize(
    ("kind", "case"), [pytest.param(k, *c.values, id=f"{k}-{c.id}") for k in CHECKS for c in corpus(k)]
)
def test_kept_request_is_answered_without_5xx_hang_or_another_photo(known: Running, kind: str, case: Any) -> None:
    CHECKS[kind](known, case)


@pytest.mark.fuzzing
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", CHECKS)
def test_generated_requests_are_answered_without_5xx_hang_or_another_photo(known: Running, kind: str) -> None:
    cases = requests(known) if kind == "requests" else chats
    assert fuzz(kind, cases, lambda case: CHECKS[kind](known, case)) > 0
