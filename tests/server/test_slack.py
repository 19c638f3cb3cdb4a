"""RefDiff in Slack: the whole flow against a fake Slack over real HTTP, with the real service and HTTP server."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from PIL import Image
from slack_sdk.errors import SlackApiError
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as websocket_server

from refdiff.agent.people.names import DefectNames
from refdiff.agent.report.summary import ReportSummary
from refdiff.agent.service import InspectionService, Upload
from refdiff.memory.journals.chat_messages import ChatStore
from refdiff.memory.records.defect_names import Naming
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, StorageError
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.server.chat import bot as host_module
from refdiff.server.chat.bot import ChatRequest, may_decide
from refdiff.server.chat.bots import bots
from refdiff.server.chat.slack import app as slack_app
from refdiff.server.chat.slack.blocks import answer, name_view
from refdiff.server.chat.slack.platform import make_client
from refdiff.server.chat.slack.readers import SlackReaders
from refdiff.server.settings import ChatSettings, ConfigurationError

from .bot_server import serving, wait
from .conftest import SIZE, bad_photo, good_photo
from .fake_slack import SECRET, TEAM, TOKEN, FakeSlack, mention
from .thermal_parts import enrol_assembly, rendered

REFDIFF = Path(sys.executable).with_name("refdiff")


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    fake = FakeSlack()
    yield fake
    fake.close()


@pytest.fixture
def bot(service: InspectionService, slack: FakeSlack) -> Iterator[str]:
    with serving(service, **settings_for(slack), slack_deciders="UQA, U2", public_url="https://qa.example/") as url:
        yield url


def settings_for(slack: FakeSlack) -> dict[str, Any]:
    return {"slack_bot_token": TOKEN, "slack_signing_secret": SECRET, "slack_api_url": f"{slack.url}/api/"}


def photo(slack: FakeSlack, name: str, data: bytes) -> dict[str, Any]:
    slack.photos[name] = data
    return {"id": "F1", "name": name, "mimetype": "image/png", "url_private_download": f"{slack.url}/files/{name}"}


def texts(posts: list[dict[str, Any]]) -> list[str]:
    return [p["text"] for p in posts]


def buttons(post: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {e["action_id"]: e for b in post["blocks"] if b["type"] == "actions" for e in b["elements"]}


def filed(service: InspectionService) -> list[Any]:
    return service.stores.inspections.list(limit=1000)


def test_slack_mention_with_a_photo_is_inspected_once_and_answered_in_its_thread(
    service: InspectionService, slack: FakeSlack, bot: str
) -> None:
    event = mention(
        "inspect part #4412 against the nearest good sample", "100.1", files=[photo(slack, "p.png", bad_photo(100))]
    )
    began = time.monotonic()
    assert slack.event(bot, event, "Ev1").status_code == 200
    assert time.monotonic() - began < 3
    for i in range(3):  # Slack is impatient, and tells of a mention in a channel that the bot is in twice
        assert slack.event(bot, event, "Ev1", headers={"x-slack-retry-num": str(i + 1)}).status_code == 200
        assert slack.event(bot, event | {"type": "message"}, "Ev2").status_code == 200
    [post] = wait(lambda: slack.posts()["100.1"])
    [record] = filed(service)
    assert record.part_id == "4412"
    assert record.report["requested_by"] == "Name of U1 (slack U1)"
    assert record.report["request"] == "inspect part #4412 against the nearest good sample"
    assert post["text"].startswith(f"{record.verdict}: part 4412 (board). ")
    [upload] = slack.of("files.completeUploadExternal")
    assert (upload["channel_id"], upload["thread_ts"]) == ("C1", "100.1")
    assert slack.files[upload["files"][0]["id"]].startswith((b"\x89PNG", b"\xff\xd8"))
    kinds = [b["type"] for b in post["blocks"]]
    assert kinds[0] == "header"
    reasoning = next(b for b in post["blocks"] if "*Reasoning*" in b.get("text", {}).get("text", ""))
    assert reasoning["expand"] is False
    assert buttons(post)["refdiff_page"]["url"] == f"https://qa.example/#/inspections/{record.inspection_id}"
    assert {"refdiff_accept", "refdiff_override", "refdiff_zoom"} <= set(buttons(post))
    statuses = slack.of("assistant.threads.setStatus")
    assert statuses[0]["status"].startswith("inspecting part 4412")
    assert slack.downloads == [f"Bearer {TOKEN}"]
    slack.event(bot, mention("what is the verdict?", "100.2", thread_ts="100.1"), "Ev3")
    wait(lambda: len(slack.posts()["100.1"]) == 2)
    assert record.verdict in slack.posts()["100.1"][1]["text"]
    # follow-ups need no mention in a thread that the bot answered in; elsewhere messages are not for it
    slack.event(bot, {"type": "message", "channel": "C1", "user": "U1", "ts": "100.3", "thread_ts": "100.1",
                      "text": "check the 45 mm scratch: how many findings?"}, "Ev4")  # fmt: skip
    wait(lambda: len(slack.posts()["100.1"]) == 3)
    assert "part 45" not in slack.posts()["100.1"][2]["text"].lower()  # a length is no part
    slack.event(bot, {"type": "message", "channel": "C1", "user": "U1", "ts": "200.1", "text": "lunch?"}, "Ev5")
    slack.event(bot, mention("hello", "300.1"), "Ev6")
    wait(lambda: slack.posts()["300.1"])
    assert "200.1" not in slack.posts()
    assert len(filed(service)) == 1


@pytest.mark.parametrize(
    "how",
    [{"secret": "another"}, {"age_s": 3600}, {"headers": {"x-slack-signature": ""}}],
    ids=["wrong secret", "old", "none"],
)
def test_bad_slack_signature_gets_401_and_stores_nothing(
    service: InspectionService, slack: FakeSlack, bot: str, how: dict[str, Any]
) -> None:
    assert slack.event(bot, mention("inspect part #1", "1.1"), **how).status_code == 401
    store = ChatStore(service.stores.db, "slack")
    assert store.open() == []
    assert slack.posts() == {}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("[1]", {}),
        ("5", {}),
        ('{"a":', {}),
        ("payload=%7B", {}),
        ("{}", {"x-slack-request-timestamp": "abc"}),
        ("{}", {"x-slack-request-timestamp": "9" * 400}),
        ("{}", {"x-slack-signature": "v0=é".encode()}),
        (b"\xff\xfe", {}),
    ],
)
def test_unsigned_garbage_gets_401_without_a_traceback(
    slack: FakeSlack, bot: str, body: str | bytes, headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    signed = {"x-slack-request-timestamp": str(int(time.time())), "x-slack-signature": "v0=0"}
    answers = [httpx2.post(f"{bot}/slack/events", content=body, headers=signed | headers) for _ in range(22)]
    assert [a.status_code for a in answers] == [401] * 20 + [429] * 2
    assert not [r for r in caplog.records if r.exc_info]


def _event(event: Any) -> str:
    return json.dumps({"type": "event_callback", "team_id": TEAM, "event": event})


SENSELESS = [
    *("", "5", "null", "[1]", '"x"', '{"a":', "payload=%7B", "payload=[]", "payload=null", "payload=5", "command=/x"),
    *("[" * 100_000, '{"a":' * 5000, "x" * 900_000, '{"type":["a"]}', '{"type":"url_verification","challenge":[1]}'),
    *(_event(e) for e in (None, [], "x", 5, {}, {"type": ["message"]})),
    *(json.dumps({"type": "event_callback", "authorizations": a, "event": {"type": "message"}}) for a in (5, [5])),
    *(_event(mention(text, ts)) for text, ts in (("\ud800", "1.1"), ("a", "\ud800"))),
    *(json.dumps(p) for p in ({"type": "block_actions"}, {"type": "block_actions", "actions": [5], "user": "x"},
                              {"type": "view_submission", "view": 5}, {"type": "message_action"})),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_signed_request_without_sense_is_no_failure_of_the_server(slack: FakeSlack, bot: str, kind: str) -> None:
    bodies = [*SENSELESS, *(urlencode({"payload": b}) for b in SENSELESS)]
    failed = [b[:80] for b in bodies if slack.send(bot, b, kind).status_code >= 500]
    assert failed == []


@pytest.mark.parametrize(
    ("text", "with_photo", "words"),
    [
        ("inspect part #404", None, "No capture of part 404.*Send its photo"),
        ("inspect part #404", b"not a picture", "not an image that can be read"),
        ("inspect", good_photo(1), "Which part is it"),
        ("good morning", None, "Name the part"),
        ("inspect part #7, product board", good_photo(1)[:500], "damaged"),
    ],
)
def test_slack_request_that_cannot_be_inspected_gets_a_helpful_answer(
    service: InspectionService, slack: FakeSlack, bot: str, text: str, with_photo: bytes | None, words: str
) -> None:
    files = {"files": [photo(slack, "p.png", with_photo)]} if with_photo else {}
    slack.event(bot, mention(text, "1.1", **files))
    [post] = wait(lambda: slack.posts()["1.1"])
    assert re.search(words, post["text"]), post["text"]
    assert filed(service) == []


def test_photo_outside_slack_is_not_fetched_and_gets_no_token(
    service: InspectionService, slack: FakeSlack, bot: str
) -> None:
    other = FakeSlack()
    stolen = photo(other, "p.png", good_photo(1))
    slack.event(bot, mention("inspect part #7", "1.1", files=[stolen]))
    [post] = wait(lambda: slack.posts()["1.1"])
    other.close()
    assert "not a file stored in Slack" in post["text"]
    assert other.downloads == []


def test_slack_message_in_two_events_is_inspected_with_the_photo_that_either_brings(
    service: InspectionService, slack: FakeSlack, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "HALVES_S", 0.5)
    service.capture("5", Upload("old.png", good_photo(100)), "board")  # not the one that was sent
    sent = {"subtype": "file_share", "files": [photo(slack, "p.png", bad_photo(100))]}
    for n, order in enumerate((["mention", "message"], ["message", "mention"], ["message"])):
        bare = mention("inspect part #5", f"{n}.1")
        for kind in order:
            slack.event(bot, bare if kind == "mention" else bare | {"type": "message"} | sent, f"Ev{n}{kind}")
    wait(lambda: all(slack.posts()[f"{n}.1"] for n in range(3)))
    assert [r.report["query_sha256"] for r in filed(service)] == [hashlib.sha256(bad_photo(100)).hexdigest()] * 3


@pytest.mark.parametrize("thread", [{}, {"thread_ts": "1.0"}])
def test_slack_message_whose_second_event_is_late_is_inspected_once_with_its_photo(
    service: InspectionService, slack: FakeSlack, bot: str, monkeypatch: pytest.MonkeyPatch, thread: dict[str, str]
) -> None:
    monkeypatch.setattr(host_module, "HALVES_S", 0.0)
    service.capture("5", Upload("old.png", good_photo(100)), "board")  # not the one that was sent
    bare = mention("inspect part #5", "1.1", **thread)
    whole = bare | {"type": "message", "subtype": "file_share", "files": [photo(slack, "p.png", bad_photo(100))]}
    slack.messages = [mention("hello", "1.0"), whole]
    slack.event(bot, bare, "Ev1")
    asked = thread.get("thread_ts", "1.1")
    wait(lambda: slack.posts()[asked])
    slack.event(bot, whole, "Ev2")
    slack.event(bot, mention("hello", "2.1"), "Ev3")
    wait(lambda: slack.posts()["2.1"])
    [record] = filed(service)
    assert record.report["query_sha256"] == hashlib.sha256(bad_photo(100)).hexdigest()
    assert len(slack.posts()[asked]) == 1


def test_late_photo_of_a_slack_message_is_inspected_too(
    service: InspectionService, slack: FakeSlack, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "HALVES_S", 0.0)
    bare = mention("inspect part #5, product board", "1.1")
    slack.event(bot, bare, "Ev1")
    wait(lambda: "Send its photo" in str(slack.posts()["1.1"]))
    whole = bare | {"type": "message", "subtype": "file_share", "files": [photo(slack, "p.png", bad_photo(100))]}
    for i in range(3):
        slack.event(bot, whole, f"Ev2{i}")
    wait(lambda: len(slack.posts()["1.1"]) == 2)
    assert [r.part_id for r in filed(service)] == ["5"]


def test_slack_thread_keeps_part_product_and_photo_until_they_are_complete(
    service: InspectionService, slack: FakeSlack, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "HALVES_S", 0.1)
    said = iter(range(2, 99))

    def reply(text: str, *files: dict[str, Any]) -> str:
        """What a message without a mention in the thread is answered with."""
        before, ts = len(slack.posts()["1.1"]), f"1.{next(said)}"
        event = {"type": "message", "channel": "C1", "user": "U2", "ts": ts, "thread_ts": "1.1", "text": text}
        more = {"subtype": "file_share", "files": list(files)} if files else {}
        slack.event(bot, event | more, f"Ev{ts}")
        wait(lambda: len(slack.posts()["1.1"]) > before)
        return str(slack.posts()["1.1"][-1]["text"])

    slack.event(bot, mention("inspect part #4412, product board", "1.1"), "Ev1")
    wait(lambda: "No capture of part 4412" in str(slack.posts()["1.1"]))
    assert "part 4412 (board)" in reply("", photo(slack, "a.png", good_photo(100)))
    # another photo is not filed as the same part
    assert "Which part is this?" in reply("and this one?", photo(slack, "b.png", bad_photo(100)))
    assert "part 9101 (board)" in reply("it is part 9101, product board")
    parts = {r.part_id: r.report["query_sha256"] for r in filed(service)}
    assert parts == {
        "4412": hashlib.sha256(good_photo(100)).hexdigest(),
        "9101": hashlib.sha256(bad_photo(100)).hexdigest(),
    }


def test_slack_attachments_are_inspected_or_named_but_never_replaced_by_an_older_photo(
    service: InspectionService, slack: FakeSlack, bot: str
) -> None:
    service.capture("5", Upload("old.png", good_photo(100)), "board")
    good, other = photo(slack, "good.png", good_photo(101)), photo(slack, "bad.png", bad_photo(101))
    archive = photo(slack, "a.zip", b"PK\x03\x04 and more") | {"mimetype": "application/zip"}
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([good, good, other], "one photo of one part"),
        ([good, archive], "one photo of one part"),
        ([archive], "not an image"),
        ([other | {"mimetype": "application/octet-stream"}], "part 5 (board)"),
    ]
    for n, (files, _) in enumerate(cases):
        slack.event(bot, mention("inspect part #5, product board", f"{n}.1", files=files), f"Ev{n}")
    slack.fail["files.info"] = "file_deleted"
    image = {"type": "image", "alt_text": "camera", "image_url": "https://cam.example/5.png"}
    others: list[tuple[dict[str, Any], str]] = [
        ({"attachments": [{"is_share": True, "files": [archive]}]}, "not an image"),
        ({"files": [{"id": "F9", "mode": "tombstone"}]}, "does not hand over"),
        ({"blocks": [image]}, "not a file stored in Slack"),
        ({"blocks": [image | {"slack_file": {"id": "F9"}}]}, "does not hand over"),
        ({"attachments": [{"image_url": "https://cam.example/5.png", "title": "5.png"}]}, "not a file stored in Slack"),
    ]
    for n, (message, _) in enumerate(others, len(cases)):
        slack.event(bot, mention("inspect part #5", f"{n}.1", **message), f"Ev{n}")
    for n, words in enumerate([words for _, words in (*cases, *others)]):
        wait(lambda n=n, words=words: words in str(slack.posts()[f"{n}.1"]))
    assert [r.report["query_sha256"] for r in filed(service)] == [hashlib.sha256(bad_photo(101)).hexdigest()]


def test_hot_spot_of_a_thermal_picture_is_told_in_kelvins_in_slack(
    service: InspectionService, slack: FakeSlack, bot: str
) -> None:
    enrol_assembly(service)
    hot = photo(slack, "hot.tiff", rendered(100, spot_k=12.0, spot_px=14.0)) | {"mimetype": "image/tiff"}
    slack.event(bot, mention("inspect part #7, product assembly", "1.1", files=[hot]), "Ev1")
    [post] = wait(lambda: slack.posts()["1.1"])
    [record] = filed(service)
    assert (record.verdict, record.report["unit"]) == ("FAIL", "K")
    delta = record.report["findings"][0]["quantities"][0]["value"]
    assert f"{delta:.1f} K" in str(post)
    [upload] = slack.of("files.completeUploadExternal")
    picture = Image.open(io.BytesIO(slack.files[upload["files"][0]["id"]]))
    assert picture.width > picture.height


# ---- buttons ----


@pytest.fixture
def review(
    ready: Path, monkeypatch: pytest.MonkeyPatch, slack: FakeSlack
) -> Iterator[tuple[InspectionService, str, str]]:
    """Service, address, and the inspection of a part with two stains that waits for a person: with 19 goldens nothing
    fails."""
    monkeypatch.setenv("REFDIFF_LLM", "off")
    with InspectionService.open() as service:
        for golden in service.goldens("board")[:3]:
            service.set_golden_status(golden.golden_id, "retired", "tester")
        stains = [
            DefectSpec("stain", size_px=size, where=at, contrast=1.0) for size, at in ((30, (64, 48)), (20, (105, 20)))
        ]
        photo = render("circuit", 1, 100, size=SIZE, noise_seed=100, defects=stains).image
        service.capture("5", Upload("p.png", encode_png(photo)), "board")
        with serving(service, **settings_for(slack), slack_deciders="UQA, U2") as url:
            slack.event(url, mention("inspect part #5", "1.1"))
            wait(lambda: slack.posts()["1.1"])
            [record] = filed(service)
            assert record.verdict == "REVIEW"
            yield service, url, record.inspection_id


def press(
    slack: FakeSlack, url: str, action: str, inspection_id: str, user: str, status: int = 200, **how: Any
) -> None:
    answer = slack.interact(url, {
        "type": "block_actions", "user": {"id": user, "name": user.lower(), "team_id": TEAM},
        "container": {"type": "message", "channel_id": "C1", "message_ts": "9000.1", "thread_ts": "1.1"},
        "channel": {"id": "C1"}, "message": {"ts": "9000.1", "thread_ts": "1.1"},
        "actions": [{"action_id": action, "block_id": "b", "type": "button", "value": inspection_id, "action_ts": "1"}],
    }, **how)  # fmt: skip
    assert answer.status_code == status, answer.text


def submit(slack: FakeSlack, url: str, view: dict[str, Any], name: str, value: str, user: str) -> Any:
    state = {"values": {name: {name: {"type": "plain_text_input", "value": value}}}}
    return slack.interact(url, {
        "type": "view_submission", "user": {"id": user, "name": user.lower(), "team_id": TEAM},
        "view": view | {"id": "V1", "type": "modal", "state": state},
    })  # fmt: skip


def test_only_listed_slack_users_may_decide_a_review(
    review: tuple[InspectionService, str, str], slack: FakeSlack
) -> None:
    service, url, inspection_id = review
    for action in ("refdiff_accept", "refdiff_override"):
        press(slack, url, action, inspection_id, "U3")
    told = wait(lambda: len(slack.of("chat.postEphemeral")) == 2 and slack.of("chat.postEphemeral"))
    assert all(t["user"] == "U3" and "REFDIFF_SLACK_DECIDERS" in t["text"] for t in told)
    assert slack.of("views.open") == []
    assert service.stores.dispositions.get(inspection_id) is None
    assert [r.inspection_id for r in service.stores.inspections.open_reviews()] == [inspection_id]

    press(slack, url, "refdiff_override", inspection_id, "UQA")
    [opened] = wait(lambda: slack.of("views.open"))
    blank = submit(slack, url, opened["view"], "reason", "   ", "UQA")
    assert blank.json()["response_action"] == "errors"
    sneaky = submit(slack, url, opened["view"], "reason", "me too", "U3")
    assert "may not decide" in sneaky.json()["errors"]["reason"]
    assert submit(slack, url, opened["view"], "reason", "dust <b>, part is good", "UQA").status_code == 200
    # the message was updated while the part was inspected, too
    [update] = wait(lambda: [u for u in slack.of("chat.update") if "dust" in str(u["blocks"])])
    decided = service.stores.dispositions.get(inspection_id)
    assert decided is not None
    assert (decided.decision, decided.by, decided.reason) == ("override", "uqa (slack UQA)", "dust <b>, part is good")
    assert service.stores.inspections.open_reviews() == []
    shown = str(update["blocks"])
    assert "dust &lt;b&gt;, part is good" in shown
    assert not {"refdiff_accept", "refdiff_override"} & set(buttons(update))

    press(slack, url, "refdiff_accept", inspection_id, "U2")  # too late
    late = wait(lambda: [t for t in slack.of("chat.postEphemeral") if t["user"] == "U2"])
    assert "the first decision stands" in late[0]["text"]
    assert service.stores.dispositions.get(inspection_id) == decided


def name_submitted(
    slack: FakeSlack, url: str, view: dict[str, Any], user: str, finding: str, known: str | None, typed: str | None
) -> Any:
    """What Slack gets for the dialog: a select that a dialog does not have is not in its state either."""
    given: dict[str, dict[str, Any]] = {
        "finding": {"type": "static_select", "selected_option": {"value": finding}},
        "known": {"type": "static_select", "selected_option": {"value": known} if known else None},
        "name": {"type": "plain_text_input", "value": typed},
    }
    values = {b["block_id"]: {b["block_id"]: given[b["block_id"]]} for b in view["blocks"]}
    return slack.interact(url, {
        "type": "view_submission", "user": {"id": user, "name": user.lower(), "team_id": TEAM},
        "view": view | {"id": "V1", "type": "modal", "state": {"values": values}},
    })  # fmt: skip


def test_listed_slack_users_name_a_finding_with_a_new_name_or_one_that_is_known(
    review: tuple[InspectionService, str, str], slack: FakeSlack
) -> None:
    service, url, inspection_id = review
    found = [f.id for f in service.report(inspection_id).findings]
    assert found == ["f1", "f2"]
    press(slack, url, "refdiff_name", inspection_id, "U3")
    [told] = wait(lambda: slack.of("chat.postEphemeral"))
    assert (told["user"], "REFDIFF_SLACK_DECIDERS" in told["text"]) == ("U3", True)
    assert slack.of("views.open") == []

    press(slack, url, "refdiff_name", inspection_id, "UQA")
    [opened] = wait(lambda: slack.of("views.open"))
    blocks = {b["block_id"]: b for b in opened["view"]["blocks"]}
    assert set(blocks) == {"finding", "name"}  # nothing has a name yet
    assert [o["value"] for o in blocks["finding"]["element"]["options"]] == found
    assert blocks["name"]["optional"] is False
    for user, finding, typed, says in (
        ("U3", "f1", "Oil spot", "may not decide"), ("UQA", "f1", "<b>", "letters, digits"),
        ("UQA", "f1", None, "no name was given"), ("UQA", "f99", "Oil spot", "no finding 'f99'"),
    ):  # fmt: skip
        answer = name_submitted(slack, url, opened["view"], user, finding, None, typed)
        assert says in answer.json()["errors"]["name"]
    assert service.stores.defect_names.of(inspection_id) == {}

    assert name_submitted(slack, url, opened["view"], "UQA", "f1", None, "Oil spot").status_code == 200
    [update] = wait(lambda: [u for u in slack.of("chat.update") if "Oil spot" in str(u["blocks"])])
    assert "f1: Oil spot, by uqa (slack UQA)" in str(update["blocks"])
    named = service.stores.defect_names.of(inspection_id)["f1"]
    assert (named.name, named.by, named.note) == ("Oil spot", "uqa (slack UQA)", "named in Slack")
    [record] = [r for r in service.stores.audit.of(inspection_id) if r.kind == "defect_name"]
    assert (record.by, record.facts["name"]) == ("uqa (slack UQA)", "Oil spot")

    press(slack, url, "refdiff_name", inspection_id, "U2")
    again = wait(lambda: slack.of("views.open")[1:])[0]["view"]
    assert [o["value"] for b in again["blocks"] if b["block_id"] == "known" for o in b["element"]["options"]] == [
        "Oil spot"
    ]
    both = name_submitted(slack, url, again, "U2", found[-1], "Oil spot", "dust")
    assert "leave one of them empty" in both.json()["errors"]["name"]
    assert name_submitted(slack, url, again, "U2", found[-1], "Oil spot", None).status_code == 200
    wait(lambda: service.stores.defect_names.of(inspection_id).get(found[-1]))
    assert service.stores.defect_names.of(inspection_id)[found[-1]].name == "Oil spot"
    assert name_submitted(slack, url, again, "U2", "f1", None, "dust").status_code == 200  # corrected
    wait(lambda: service.stores.defect_names.of(inspection_id)["f1"].name == "dust")
    assert service.stores.defect_names.of(inspection_id)["f1"].before == "Oil spot"
    assert service.stores.dispositions.get(inspection_id) is None  # a name decides nothing


def test_slack_gets_its_answer_before_the_finding_is_looked_at(
    review: tuple[InspectionService, str, str], slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, url, inspection_id = review
    press(slack, url, "refdiff_name", inspection_id, "UQA")
    [opened] = wait(lambda: slack.of("views.open"))
    answered, name = threading.Event(), DefectNames.name

    def slow(self: DefectNames, *args: Any) -> Naming:
        assert answered.wait(20)
        if args[2] == "scratch":
            raise StorageError("the disk is full")
        return name(self, *args)

    monkeypatch.setattr(DefectNames, "name", slow)
    for called in ("scratch", "Oil spot"):
        assert name_submitted(slack, url, opened["view"], "UQA", "f1", None, called).status_code == 200
        assert service.stores.defect_names.of(inspection_id) == {}
    answered.set()
    [told] = wait(lambda: slack.of("chat.postEphemeral"))
    assert (told["user"], told["text"]) == ("UQA", "f1 was not named 'scratch': the disk is full")
    wait(lambda: [u for u in slack.of("chat.update") if "Oil spot" in str(u["blocks"])])


def test_a_report_without_findings_offers_no_empty_list() -> None:
    empty = ReportSummary("i-1", "REVIEW", "1", "cell", "", [], "", "", "", None)
    assert "refdiff_name" not in str(answer(empty))
    with pytest.raises(InputError, match="no findings to name"):
        name_view(empty, "C1", "1.0", None)


def test_zoom_button_posts_crops_and_accept_button_files_a_disposition(
    review: tuple[InspectionService, str, str], slack: FakeSlack
) -> None:
    service, url, inspection_id = review
    press(slack, url, "refdiff_zoom", inspection_id, "U3")
    uploads = wait(lambda: slack.of("files.completeUploadExternal")[1:])
    shown = [slack.files[f["id"]] for f in uploads[0]["files"]]
    assert len(shown) == min(4, len(service.report(inspection_id).findings))
    press(slack, url, "refdiff_accept", inspection_id, "U2")
    wait(lambda: slack.of("chat.update"))
    decided = service.stores.dispositions.get(inspection_id)
    assert decided is not None
    assert (decided.decision, decided.reason) == ("accept", "accepted in Slack")


def test_slack_shortcuts_inspect_a_part_from_a_message_and_from_a_dialog(
    review: tuple[InspectionService, str, str], slack: FakeSlack
) -> None:
    service, url, _ = review
    base = {
        "type": "message_action",
        "callback_id": "refdiff_inspect_message",
        "channel": {"id": "C1"},
        "action_ts": "7.7",
    }
    message = {"type": "message", "user": "U9", "ts": "50.1", "text": "part #5 looks odd"}
    for _ in range(2):
        assert slack.interact(url, base | {"message": message}).status_code == 200
    wait(lambda: slack.posts()["50.1"])
    assert (
        slack.interact(url, {"type": "shortcut", "callback_id": "refdiff_inspect_part", "action_ts": "1"}).status_code
        == 200
    )
    [opened] = wait(lambda: slack.of("views.open"))
    assert submit(slack, url, opened["view"], "part", "#5", "U3").status_code == 200
    wait(lambda: any(p.get("blocks") for posts in slack.posts().values() for p in posts if p["channel"] == "DU3"))
    assert len(filed(service)) == 3


def test_slack_dialog_is_stored_before_it_is_acknowledged_and_inspects_once(
    service: InspectionService, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "STATUS_EVERY_S", 0.2)
    for part in ("5", "6"):
        service.capture(part, Upload("p.png", good_photo(100)), "board")
    view = {"callback_id": "refdiff_inspect_view"}
    slack.slow, slack.fail = {"chat.postMessage": 1.0}, {"chat.postMessage": "internal_error"}
    store = ChatStore(service.stores.db, "slack")
    with serving(service, **settings_for(slack)) as url:
        began = time.monotonic()
        for _ in range(3):  # Slack's retries
            assert submit(slack, url, view, "part", "#5", "U3").status_code == 200
        assert time.monotonic() - began < 3.0  # no acknowledgement waits for a message to be posted
        assert [m.request["text"] for m in store.open()] == ["inspect part #5"]
        time.sleep(1.5)
        assert slack.posts() == {}
        slack.slow, slack.fail = {}, {}
        wait(lambda: any(p.get("blocks") for posts in slack.posts().values() for p in posts))
        [opening] = slack.posts()[""]
        assert (opening["channel"], opening["text"]) == ("U3", "You asked for an inspection of part #5.")
        [thread] = set(slack.posts()) - {""}
        # asked in that thread, it is about this part
        slack.event(url, {"type": "message", "channel": "DU3", "channel_type": "im", "user": "U3", "ts": "1.2",
                          "thread_ts": thread, "text": "what is the verdict?"}, "Ev9")  # fmt: skip
        wait(lambda: len(slack.posts()[thread]) == 2)
        assert filed(service)[0].verdict in slack.posts()[thread][1]["text"]
        assert submit(slack, url, view, "part", "#5", "U3").status_code == 200  # again, long afterwards
        assert submit(slack, url, view, "part", "#6", "U3").status_code == 200  # corrected in the same dialog
        wait(lambda: len(filed(service)) == 2)
    assert sorted(r.part_id for r in filed(service)) == ["5", "6"]


def test_slack_dialog_that_cannot_be_stored_is_not_acknowledged(
    service: InspectionService, slack: FakeSlack, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise StorageError("disk full")

    monkeypatch.setattr(ChatStore, "receive", full)
    assert submit(slack, bot, {"callback_id": "refdiff_inspect_view"}, "part", "#5", "U3").status_code == 500


# ---- many people, trouble, kills ----


@pytest.mark.timeout(900)
@pytest.mark.long
def test_twenty_concurrent_slack_users_each_get_one_answer(
    service: InspectionService, slack: FakeSlack, bot: str
) -> None:
    for i in range(20):
        service.capture(f"{4000 + i}", Upload("p.png", good_photo(100 + i)), "board")

    def ask(i: int) -> float:
        began = time.monotonic()
        event = mention(f"inspect part #{4000 + i}", f"{i}.5", user=f"U{i}", channel=f"C{i % 4}")
        assert slack.event(bot, event, f"Ev{i}").status_code == 200
        return time.monotonic() - began

    with ThreadPoolExecutor(20) as crowd:
        waits = list(crowd.map(ask, range(20)))
        list(crowd.map(ask, range(20)))  # and all of them again
    assert max(waits) < 3
    wait(lambda: sum(len(p) for p in slack.posts().values()) >= 20, seconds=800)
    for i in range(20):
        [post] = slack.posts()[f"{i}.5"]
        assert f"part {4000 + i} (board)" in post["text"]
    assert len(filed(service)) == 20


def test_answer_refused_by_slack_is_posted_later(
    service: InspectionService, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "STATUS_EVERY_S", 0.2)
    service.capture("5", Upload("p.png", good_photo(100)), "board")
    slack.fail = {"assistant.threads.setStatus": "not_allowed", "chat.postMessage": "internal_error"}
    with serving(service, **settings_for(slack)) as url:
        slack.event(url, mention("inspect part #5", "1.1"))
        wait(lambda: filed(service))
        time.sleep(0.5)
        assert slack.posts() == {}
        slack.fail = {"assistant.threads.setStatus": "not_allowed"}
        wait(lambda: any(p.get("blocks") for p in slack.posts()["1.1"]))
        time.sleep(0.7)
        assert sum("blocks" in p for p in slack.posts()["1.1"]) == 1
    assert len(filed(service)) == 1


def test_slow_slack_gets_each_answer_once(
    service: InspectionService, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The periodic search for open messages must not answer those in progress again."""
    monkeypatch.setattr(host_module, "STATUS_EVERY_S", 0.05)
    service.capture("5", Upload("p.png", good_photo(100)), "board")
    slack.slow = {"files.completeUploadExternal": 0.5, "assistant.threads.setStatus": 0.1}
    with serving(service, **settings_for(slack)) as url:
        for i in range(3):
            slack.event(url, mention("inspect part #5", f"{i}.1"), f"Ev{i}")
        wait(lambda: all(slack.posts()[f"{i}.1"] for i in range(3)))
        time.sleep(0.8)
    assert {thread: len(posts) for thread, posts in slack.posts().items()} == {"0.1": 1, "1.1": 1, "2.1": 1}
    assert len(slack.of("files.completeUploadExternal")) == 3
    assert service._queue._listeners == {}


def test_answer_refused_by_slack_every_time_is_given_up(
    service: InspectionService, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "STATUS_EVERY_S", 0.05)
    monkeypatch.setattr(host_module, "MAX_TRIES", 3)
    service.capture("5", Upload("p.png", good_photo(100)), "board")
    slack.fail = {"chat.postMessage": "channel_not_found"}
    store = ChatStore(service.stores.db, "slack")
    with serving(service, **settings_for(slack)) as url:
        slack.event(url, mention("inspect part #5", "1.1"))
        wait(lambda: not store.open())
    assert len(slack.of("files.completeUploadExternal")) == 1
    assert len(filed(service)) == 1


def test_slack_messages_of_a_killed_process_are_answered_after_restart(
    service: InspectionService, slack: FakeSlack
) -> None:
    service.capture("5", Upload("p.png", good_photo(100)), "board")
    first = slack_app.message_of(mention("inspect part #5", "1.1"), TEAM)
    second = slack_app.message_of(mention("inspect part #5", "2.1"), TEAM)
    assert first is not None
    assert second is not None
    place = {"team": TEAM, "channel": "U3", "opening": "You asked."}
    dialog = ChatRequest("T1:V1:5", "", "U3", "", "inspect part #5", place)
    store = ChatStore(service.stores.db, "slack")
    for request in (first, second, dialog):
        assert store.receive(request.key, vars(request))
    # the second was killed after its inspection was accepted, before that was noted
    job = service.submit("inspect part #5", by="x", origin=f"slack:{second.key}")
    service.wait(job.inspection_id)
    with serving(service, **settings_for(slack)):
        wait(lambda: slack.posts()["1.1"] and slack.posts()["2.1"])
        wait(lambda: any(p["channel"] == "DU3" for posts in slack.posts().values() for p in posts))
    assert len(filed(service)) == 3
    assert job.inspection_id in str(slack.posts()["2.1"][0]["blocks"])


@contextmanager
def server_process(slack: FakeSlack, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`refdiff serve` with the bot, and its address."""
    secrets = {"SLACK_BOT_TOKEN": TOKEN, "SLACK_SIGNING_SECRET": SECRET, "REFDIFF_SLACK_API_URL": f"{slack.url}/api/"}
    command = [str(REFDIFF), "serve", "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, **secrets, **environment}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process, process.stdout.readline().split()[2]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_stopping_server_waits_for_no_inspection_and_loses_no_slack_message(ready: Path, slack: FakeSlack) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # a language model that never answers
    slow = {"REFDIFF_LLM_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "REFDIFF_LLM_TIMEOUT_S": "600"}
    files = [photo(slack, "p.png", good_photo(100))]
    with server_process(slack, **slow) as (process, url):
        slack.event(url, mention("inspect part #5, product board", "1.1", files=files), "Ev1")
        slack.event(url, mention("inspect part #6, product board", "2.1", files=files), "Ev2")
        silent.settimeout(60)
        held, _ = silent.accept()  # it runs
        slack.event(url, mention("hello", "3.1"), "Ev3")  # a question, which waits for the model too
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(p.get("blocks") for posts in slack.posts().values() for p in posts)
        assert "3.1" not in slack.posts()
    for closing in (held, silent):
        closing.close()
    with server_process(slack, REFDIFF_LLM="off"):
        wait(lambda: all(any(p.get("blocks") for p in slack.posts()[t]) for t in ("1.1", "2.1")))
        wait(lambda: slack.posts()["3.1"])
    with Stores.open() as stores:
        assert sorted(r.part_id for r in stores.inspections.list()) == ["5", "6"]


@pytest.mark.long
def test_button_in_slack_decides_at_a_real_server_once_and_for_readers_alone(ready: Path, slack: FakeSlack) -> None:
    with InspectionService.open() as service:
        for golden in service.goldens("board")[:3]:  # with 19 of them nothing fails: a person has to decide
            service.set_golden_status(golden.golden_id, "retired", "tester")
        service.capture("5", Upload("p.png", bad_photo(100)), "board")
    people = {"REFDIFF_SLACK_DECIDERS": "*", "REFDIFF_SLACK_READERS": "U1,U2", "REFDIFF_LLM": "off"}
    with server_process(slack, **people) as (_, url):
        assert slack.event(url, mention("inspect part #5", "1.1")).status_code == 200
        [post] = wait(lambda: slack.posts()["1.1"])
        assert post["text"].startswith("REVIEW: part 5")
        accept, override = (buttons(post)[f"refdiff_{name}"]["value"] for name in ("accept", "override"))
        assert accept == override

        def decided() -> Any:
            with Stores.open() as stores:
                return stores.dispositions.get(accept), stores.inspections.open_reviews()

        for how in ({"secret": "another"}, {"age_s": 3600}, {"headers": {"x-slack-signature": ""}}):
            press(slack, url, "refdiff_accept", accept, "U2", 401, **how)
        for action in ("refdiff_accept", "refdiff_override", "refdiff_zoom"):
            press(slack, url, action, accept, "U9")
        told = wait(lambda: len(slack.of("chat.postEphemeral")) == 3 and slack.of("chat.postEphemeral"))
        assert {t["user"] for t in told} == {"U9"}
        assert slack.of("views.open") == []
        assert decided()[0] is None

        press(slack, url, "refdiff_accept", accept, "U2")
        accepted = slack.sent
        wait(
            lambda: [u for u in slack.of("chat.update") if not {"refdiff_accept", "refdiff_override"} & set(buttons(u))]
        )
        disposition, waiting = decided()
        assert (disposition.decision, disposition.by) == ("accept", "u2 (slack U2)")
        assert waiting == []

        assert slack.client.send(accepted).status_code == 200  # the same bytes: overheard, or sent again by Slack
        late = wait(lambda: [t for t in slack.of("chat.postEphemeral") if t["user"] == "U2"])
        assert "the first decision stands" in late[0]["text"]
        assert decided() == (disposition, [])


def test_slack_socket_mode_answers_without_a_public_url(service: InspectionService, slack: FakeSlack) -> None:
    service.capture("5", Upload("p.png", good_photo(100)), "board")
    event = mention("inspect part #5", "1.1")
    acknowledged: list[dict[str, Any]] = []

    def talk(link: ServerConnection) -> None:
        link.send(json.dumps({"type": "hello", "num_connections": 1}))
        for envelope in ("e1", "e2"):  # the second is Slack's retry
            body = {"type": "event_callback", "team_id": TEAM, "event_id": "Ev1", "event": event}
            link.send(json.dumps({"envelope_id": envelope, "type": "events_api", "payload": body}))
            acknowledged.append(json.loads(link.recv(timeout=30)))
        for _ in link:  # until the bot goes
            pass

    with websocket_server(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        slack.socket_url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/link"
        socket_only = {"slack_bot_token": TOKEN, "slack_app_token": "xapp-test", "slack_api_url": f"{slack.url}/api/"}
        with serving(service, **socket_only) as url:
            wait(lambda: slack.posts()["1.1"])
            assert slack.event(url, mention("inspect part #5", "2.1")).status_code in (404, 405)  # no such address
        server.shutdown()
    assert [a["envelope_id"] for a in acknowledged] == ["e1", "e2"]
    assert len(filed(service)) == 1


def test_refused_slack_app_token_is_a_configuration_error(service: InspectionService, slack: FakeSlack) -> None:
    slack.fail = {"apps.connections.open": "invalid_auth"}
    socket_only = {"slack_bot_token": TOKEN, "slack_app_token": "xapp-test", "slack_api_url": f"{slack.url}/api/"}
    with pytest.raises(ConfigurationError, match=r"SLACK_APP_TOKEN \(invalid_auth\)"), serving(service, **socket_only):
        pass


def test_server_starts_during_a_slack_outage(service: InspectionService, slack: FakeSlack) -> None:
    slack.fail = {"apps.connections.open": "service_unavailable"}
    socket_only = {"slack_bot_token": TOKEN, "slack_app_token": "xapp-test", "slack_api_url": f"{slack.url}/api/"}
    with serving(service, **socket_only) as url:
        assert httpx2.get(f"{url}/healthz").status_code == 200


def test_server_starts_when_slack_is_unreachable(service: InspectionService) -> None:
    nowhere = {"slack_bot_token": TOKEN, "slack_app_token": "xapp-test", "slack_api_url": "http://127.0.0.1:9/api/"}
    with serving(service, **nowhere) as url:
        assert httpx2.get(f"{url}/healthz").status_code == 200


def test_incomplete_slack_secrets_are_a_configuration_error(service: InspectionService) -> None:
    from fastapi import FastAPI

    with (
        pytest.raises(ConfigurationError, match="SLACK_SIGNING_SECRET"),
        bots(FastAPI(), service, ChatSettings(slack_bot_token=TOKEN)),
    ):
        pass
    with bots(FastAPI(), service, ChatSettings()) as on:
        assert on == []


def test_server_with_incomplete_slack_secrets_exits_with_64(ready: Path) -> None:
    command = [str(REFDIFF), "serve", "--port", "0"]
    done = subprocess.run(command, env={**os.environ, "SLACK_BOT_TOKEN": TOKEN}, capture_output=True, text=True)
    assert done.returncode == 64, done.stderr
    assert "SLACK_SIGNING_SECRET" in done.stderr


GUEST, STRANGER = {"is_restricted": True}, {"team_id": "T9", "is_stranger": True}


@pytest.mark.parametrize(
    ("readers", "profile", "shared", "may"),
    [
        ("", {}, False, True),
        ("", {"is_restricted": True}, False, False),
        ("", {"is_ultra_restricted": True}, False, False),
        ("", {"team_id": "T9"}, True, False),
        ("", {"team_id": "T9", "is_stranger": True}, False, False),
        ("", {"team_id": "T2", "enterprise_user": {"teams": ["T2", TEAM]}}, False, True),
        ("", {"deleted": True}, False, False),
        ("", {}, True, False),  # a member asks, strangers would read
        ("U1", GUEST, True, True),
        ("U2", {}, False, False),
        (f"{TEAM}, T9", STRANGER, False, False),
        ("T9", {"team_id": "T9"}, False, True),
        ("T9", {}, False, False),
        ("*", STRANGER, True, True),
    ],
)
def test_slack_readers_are_members_of_the_workspace_or_named(
    slack: FakeSlack, readers: str, profile: dict[str, Any], shared: bool, may: bool
) -> None:
    slack.people["U1"] = profile
    slack.shared = {"C1"} if shared else set()
    known = SlackReaders(make_client(TOKEN, f"{slack.url}/api/"), readers)
    for told in (shared, None):  # by the event, or by the channel
        assert (known.refusal("U1", "C1", told) == "") is may
    for error in ("user_not_found", "missing_scope"):
        slack.fail = {"users.info": error}
        assert (known.refusal("U1", "C1", shared) == "") is (readers in ("*", "U1"))


@pytest.mark.parametrize("error", ["missing_scope", "channel_not_found"])
def test_slack_channel_that_may_be_shared_gets_no_report(slack: FakeSlack, error: str) -> None:
    slack.fail = {"conversations.info": error}
    known = SlackReaders(make_client(TOKEN, f"{slack.url}/api/"), "")
    assert "may be shared" in known.refusal("U1", "C1")
    assert known.refusal("U1", "D1") == known.refusal("U1", "") == ""  # for the user alone


def test_slack_outage_lets_nobody_read(slack: FakeSlack) -> None:
    slack.fail = {"users.info": "internal_error"}
    with pytest.raises(SlackApiError):
        SlackReaders(make_client(TOKEN, f"{slack.url}/api/"), "").refusal("U1")


def test_slack_guest_gets_neither_report_nor_pictures_nor_a_decision(
    service: InspectionService, slack: FakeSlack
) -> None:
    service.capture("5", Upload("p.png", bad_photo(100)), "board")
    done = service.wait(service.submit("inspect part #5", by="qa").inspection_id)
    slack.people["U9"] = GUEST
    with serving(service, **settings_for(slack), slack_deciders="*") as url:
        slack.event(url, mention("inspect part #5", "2.1", user="U9"), "Ev2")
        wait(lambda: slack.posts()["2.1"])
        body = {"type": "block_actions", "user": {"id": "U9", "name": "guest", "team_id": TEAM},
                "container": {"channel_id": "C1", "message_ts": "3.1", "thread_ts": "3.1"}}  # fmt: skip
        for action in ("refdiff_zoom", "refdiff_accept"):
            button = {"action_id": action, "block_id": "b", "value": done.inspection_id, "type": "button"}
            assert slack.interact(url, body | {"actions": [button]}).status_code == 200
        wait(lambda: len(slack.of("chat.postEphemeral")) == 2)
        assert all("no guests" in told["text"] for told in slack.of("chat.postEphemeral"))
    assert ["no guests" in text for text in texts(slack.posts()["2.1"])] == [True]
    assert slack.files == {}
    assert len(filed(service)) == 1
    assert service.stores.dispositions.get(done.inspection_id) is None


@pytest.mark.parametrize(
    ("deciders", "user", "may"),
    [
        ("", "U1", False),
        ("U1", "U1", True),
        ("U2, U1", "U1", True),
        ("U11", "U1", False),
        ("*", "U1", True),
        ("*", "", False),
    ],
)
def test_may_decide_follows_the_list_of_deciders(deciders: str, user: str, may: bool) -> None:
    assert may_decide(deciders, user) is may


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<@UBOT> inspect part #4412", "inspect part #4412"),
        ("<@UBOT|refdiff> part <tel:4412|4412> &amp; more &lt;x&gt;", "part 4412 & more <x>"),
        ("<https://a.example/x|link> <#C1|general>", "link general"),
    ],
)
def test_slack_markup_becomes_the_typed_text(text: str, wanted: str) -> None:
    assert slack_app.plain(text) == wanted
