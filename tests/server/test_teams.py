"""RefDiff in Teams: the whole flow against a fake Teams connector over real HTTP, with real tokens and the real service."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from PIL import Image

from refdiff.agent.service import InspectionService, Upload
from refdiff.memory.journals.chat_messages import ChatStore
from refdiff.server.chat import bot as host_module
from refdiff.server.chat.bots import bots
from refdiff.server.chat.teams import app as teams_app
from refdiff.server.chat.teams import cards
from refdiff.server.settings import ChatSettings, ConfigurationError

from .bot_server import serving, wait
from .conftest import bad_photo, good_photo
from .fake_teams import CLIENT, TENANT, FakeTeams
from .thermal_parts import enrol_assembly, rendered

THREAD = "19:c@thread.tacv2;messageid=1"


@pytest.fixture
def teams() -> Iterator[FakeTeams]:
    fake = FakeTeams()
    yield fake
    fake.close()


SETTINGS: dict[str, Any] = {
    "teams_client_id": CLIENT, "teams_tenant_id": TENANT, "teams_deciders": "aad-qa", "public_url": "https://qa.example",
}  # fmt: skip


@pytest.fixture
def bot(service: InspectionService, teams: FakeTeams) -> Iterator[str]:
    with serving(service, teams.cloud, **SETTINGS) as url:
        yield url


def photo(teams: FakeTeams, data: bytes, *, inline: bool = True) -> dict[str, Any]:
    teams.photos["p.png"] = data
    url = f"{teams.url}/teams/v3/attachments/p.png"
    if inline:
        return {"contentType": "image/png", "contentUrl": url, "name": "p.png"}
    return {"contentType": "application/vnd.microsoft.teams.file.download.info", "name": "p.png",
            "content": {"downloadUrl": "https://evil.example/p.png", "fileType": "png"}}  # fmt: skip


def filed(service: InspectionService) -> list[Any]:
    return service.stores.inspections.list(limit=1000)


def texts(card: dict[str, Any]) -> list[str]:
    return [b["text"].replace("\\", "") for b in card["body"] if b["type"] == "TextBlock"]


def actions(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {a["title"]: a for a in card.get("actions", ())}


def test_teams_mention_with_a_photo_is_inspected_once_and_answered_in_its_thread(
    service: InspectionService, teams: FakeTeams, bot: str
) -> None:
    message = teams.message("inspect part #4412, product board", "m1", attachments=[photo(teams, bad_photo(100))])
    began = time.monotonic()
    assert teams.send(bot, message).status_code == 200
    assert time.monotonic() - began < 3
    for _ in range(3):
        assert teams.send(bot, message).status_code == 200
    [card] = wait(lambda: teams.cards(THREAD))
    [record] = filed(service)
    assert (record.part_id, record.report["requested_by"]) == ("4412", "Ada (teams aad-1)")
    assert texts(card)[0] == f"{record.verdict}: part 4412 (board)"
    assert len(teams.shown(THREAD)) == 1  # the line that told what happens became the answer
    typing = [a for _, _, a in teams.sent if a["type"] == "typing"]
    assert typing
    [picture] = [b for b in card["body"] if b["type"] == "Image"]
    image = Image.open(io.BytesIO(base64.b64decode(picture["url"].partition(",")[2])))
    assert (image.format, picture["altText"][:19]) == ("JPEG", "Photo of part 4412 ")
    [folded] = [b for b in card["body"] if b.get("isVisible") is False]
    assert actions(card)["Reasoning"]["targetElements"] == [folded["id"]]
    assert actions(card)["Open the page"]["url"] == f"https://qa.example/#/inspections/{record.inspection_id}"
    assert {"Accept", "Override…", "Zoom"} <= set(actions(card))
    assert teams.downloads == [f"Bearer {teams.bot_token}"]
    teams.send(bot, teams.message("what is the verdict?", "m2"))
    answer = wait(lambda: teams.shown(THREAD)[1:])
    wait(lambda: record.verdict in teams.shown(THREAD)[1]["text"])
    assert len(answer) == 1
    assert len(filed(service)) == 1


def test_hot_spot_of_a_thermal_picture_is_told_in_kelvins_in_teams(
    service: InspectionService, teams: FakeTeams, bot: str
) -> None:
    enrol_assembly(service)
    hot = photo(teams, rendered(100, spot_k=12.0, spot_px=14.0))
    teams.send(bot, teams.message("inspect part #7, product assembly", "m1", attachments=[hot]))
    [card] = wait(lambda: teams.cards(THREAD))
    [record] = filed(service)
    assert (record.verdict, record.report["unit"]) == ("FAIL", "K")
    assert f"{record.report['findings'][0]['quantities'][0]['value']:.1f} K" in str(card)
    [picture] = [b for b in card["body"] if b["type"] == "Image"]
    shown = Image.open(io.BytesIO(base64.b64decode(picture["url"].partition(",")[2])))
    assert shown.width > shown.height


@pytest.mark.parametrize(
    "kind", ["none", "nonsense", "another key", "expired", "another bot", "another service", "another issuer"]
)
def test_bad_teams_token_gets_401_and_stores_nothing(
    service: InspectionService, teams: FakeTeams, bot: str, kind: str
) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    good = jwt.decode(teams.token(), options={"verify_signature": False})
    token = {
        "none": None,
        "nonsense": "abc",
        "another key": jwt.encode(good, other, algorithm="RS256", headers={"kid": "k1"}),
        "expired": teams.token(exp=int(time.time()) - 3600),
        "another bot": teams.token(aud="someone else"),
        "another service": teams.token(serviceurl="https://evil.example"),
        "another issuer": teams.token(iss="https://evil.example"),
    }[kind]
    assert teams.send(bot, teams.message("inspect part #1", "m1"), token).status_code == 401
    store = ChatStore(service.stores.db, "teams")
    assert store.open() == []
    assert teams.sent == []


def test_teams_message_of_another_tenant_is_ignored(service: InspectionService, teams: FakeTeams, bot: str) -> None:
    elsewhere = {"conversation": {"id": THREAD, "tenantId": "other"}, "channelData": {"tenant": {"id": "other"}}}
    assert teams.send(bot, teams.message("inspect part #1", "m1") | elsewhere).status_code == 200
    assert teams.send(bot, {"not": "an activity"}).status_code < 600
    store = ChatStore(service.stores.db, "teams")
    assert store.get(f"{THREAD}:m1") is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe"])
def test_malformed_teams_activity_gets_400(teams: FakeTeams, bot: str, body: bytes) -> None:
    import httpx2

    assert httpx2.post(f"{bot}/api/messages", content=body).status_code == 400


@pytest.mark.parametrize(
    ("text", "attachment", "words"),
    [
        ("inspect part #404", None, "No capture of part 404"),
        ("hello", None, "Name the part"),
        ("inspect part #7, product board", "elsewhere", "not stored in Teams"),
        ("inspect part #5", "three", "one photo of one part"),
        ("inspect part #5", "document", "not stored in Teams"),
    ],
)
def test_teams_request_that_cannot_be_inspected_gets_a_helpful_answer(
    service: InspectionService, teams: FakeTeams, bot: str, text: str, attachment: str | None, words: str
) -> None:
    service.capture("5", Upload("old.png", good_photo(100)), "board")  # never judged instead of what is attached
    body = {"contentType": "text/html", "content": f"<p>{text}</p>"}
    attached = {
        None: [],
        "elsewhere": [photo(teams, good_photo(1), inline=False)],
        "three": [photo(teams, good_photo(1))] * 3,
        "document": [{"contentType": "reference", "contentUrl": "https://evil.example/x.pdf", "name": "x.pdf"}],
    }[attachment]
    more = {"attachments": [*attached, body]}
    teams.send(bot, teams.message(text, "m1", **more))
    wait(lambda: any(words in m["text"].replace("\\", "") for m in teams.shown(THREAD)))
    assert len(teams.shown(THREAD)) == 1
    assert filed(service) == []


def test_only_listed_teams_users_may_decide_a_review_and_name_its_findings(
    ready: Path, teams: FakeTeams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    with InspectionService.open() as service:
        for golden in service.goldens("board")[:3]:  # with 19 goldens nothing fails
            service.set_golden_status(golden.golden_id, "retired", "tester")
        service.capture("5", Upload("p.png", bad_photo(100)), "board")
        with serving(service, teams.cloud, **SETTINGS) as url:
            teams.send(url, teams.message("inspect part #5", "m1"))
            [card] = wait(lambda: teams.cards(THREAD))
            [record] = filed(service)
            inspection_id, card_id = record.inspection_id, teams.id_of_card(THREAD)
            assert record.verdict == "REVIEW"
            assert [r.inspection_id for r in service.stores.inspections.open_reviews()] == [inspection_id]
            override = actions(card)["Override…"]["card"]["actions"][0]
            data = override["data"] | {"reason": "dust, part is good"}
            naming = actions(card)["Name a finding…"]["card"]
            finding, typed = naming["body"]  # nothing has a name yet
            assert [c["value"] for c in finding["choices"]] == [f["id"] for f in record.report["findings"]]
            name = naming["actions"][0]
            given = name["data"] | {finding["id"]: finding["value"]}

            def press(verb: str, given: dict[str, Any], user: str) -> Any:
                return teams.press(url, verb, given, THREAD, card_id, user)

            assert "REFDIFF_TEAMS_DECIDERS" in press(cards.ACCEPT, data, "aad-1")["value"]
            assert "reason is missing" in press(cards.OVERRIDE, override["data"], "aad-qa")["value"]
            assert service.stores.dispositions.get(inspection_id) is None
            for user, more, says in (
                ("aad-1", {typed["id"]: "Oil spot"}, "REFDIFF_TEAMS_DECIDERS"), ("aad-qa", {}, "no name was given"),
                ("aad-qa", {typed["id"]: "<b>"}, "letters, digits"), ("aad-qa", {"finding": "f9", "name": "x"}, "'f9'"),
            ):  # fmt: skip
                assert says in press(name["verb"], given | more, user)["value"]
            changed = press(name["verb"], given | {typed["id"]: "Oil spot"}, "aad-qa")["value"]
            assert "Called since: f1: Oil spot, by Aad-Qa (teams aad-qa)" in texts(changed)
            known = actions(changed)["Name a finding…"]["card"]["body"][1]
            assert (known["id"], [c["value"] for c in known["choices"]]) == ("known", ["Oil spot"])
            wait(lambda: any("Oil spot" in t for t in texts(teams.cards(THREAD)[0])))  # for everybody
            assert (
                "leave one of them empty"
                in press(name["verb"], given | {"known": "Oil spot", "name": "x"}, "aad-qa")["value"]
            )
            press(name["verb"], given | {"known": "Oil spot"}, "aad-qa")  # it is called that already: no news
            [named] = service.stores.defect_names.history(inspection_id, "f1")
            assert (named.name, named.by, named.note) == ("Oil spot", "Aad-Qa (teams aad-qa)", "named in Teams")
            changed = press(override["verb"], data, "aad-qa")["value"]
            decided = service.stores.dispositions.get(inspection_id)
            assert decided is not None
            assert (decided.decision, decided.by, decided.reason) == (
                "override", "Aad-Qa (teams aad-qa)", "dust, part is good",
            )  # fmt: skip
            assert service.stores.inspections.open_reviews() == []
            assert not {"Accept", "Override…"} & set(actions(changed))
            wait(lambda: not {"Accept", "Override…"} & set(actions(teams.cards(THREAD)[0])))  # for everybody
            assert any("Decided: overridden by" in t for t in texts(teams.cards(THREAD)[0]))
            assert "the first decision stands" in press(cards.ACCEPT, data, "aad-qa")["value"]
            press(cards.ZOOM, data, "aad-1")
            wait(lambda: len(teams.cards(THREAD)) == 1 + min(4, len(record.report["findings"])))


@pytest.mark.timeout(900)
@pytest.mark.long
def test_twenty_concurrent_teams_users_each_get_one_answer(
    service: InspectionService, teams: FakeTeams, bot: str
) -> None:
    for i in range(20):
        service.capture(f"{4000 + i}", Upload("p.png", good_photo(100 + i)), "board")

    teams.send(bot, teams.message("hello", "m0", "chat-0"))  # fetches the keys

    def ask(i: int) -> float:
        began = time.monotonic()
        assert teams.send(bot, teams.message(f"inspect part #{4000 + i}", f"m{i + 1}", f"chat-{i}")).status_code == 200
        return time.monotonic() - began

    with ThreadPoolExecutor(20) as crowd:
        waits = list(crowd.map(ask, range(20)))
        list(crowd.map(ask, range(20)))
    assert max(waits) < 10  # Teams sends a message again after 15 s
    wait(lambda: all(teams.cards(f"chat-{i}") for i in range(20)), seconds=800)
    for i in range(20):
        assert f"part {4000 + i} (board)" in texts(teams.cards(f"chat-{i}")[0])[0]
    assert len(filed(service)) == 20


def test_teams_answers_are_posted_after_errors_and_after_a_crash(
    service: InspectionService, teams: FakeTeams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "STATUS_EVERY_S", 0.2)
    service.capture("5", Upload("p.png", good_photo(100)), "board")
    from microsoft_teams.api.activities.message import MessageActivity

    kept = teams_app.message_of(MessageActivity.model_validate(teams.message("inspect part #5", "m1")))
    assert kept is not None
    store = ChatStore(service.stores.db, "teams")
    assert store.receive(kept.key, vars(kept))  # and killed here
    teams.fail = 6
    with serving(service, teams.cloud, **SETTINGS):
        wait(lambda: teams.cards(THREAD))
        time.sleep(0.6)
        assert len(teams.cards(THREAD)) == 1
    assert teams.fail == 0
    assert len(filed(service)) == 1


def test_incomplete_teams_secrets_are_a_configuration_error(service: InspectionService) -> None:
    from fastapi import FastAPI

    with (
        pytest.raises(ConfigurationError, match="TEAMS_CLIENT_SECRET"),
        bots(FastAPI(), service, ChatSettings(teams_client_id=CLIENT)),
    ):
        pass


def test_picture_is_shrunk_to_fit_into_a_teams_card() -> None:
    image = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)  # what compresses worst
    assert len(cards.data_url(image)) < cards.MAX_PICTURE_BYTES * 4 / 3 + 100


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<at>refdiff</at> inspect part #4412", "inspect part #4412"),
        ("<p><at id='0'>refdiff</at>&nbsp;is f1 &lt; 2 mm?</p>", "is f1 < 2 mm?"),
    ],
)
def test_teams_markup_becomes_the_typed_text(text: str, wanted: str) -> None:
    assert teams_app.plain(text) == wanted


def test_markdown_in_card_text_is_escaped() -> None:
    assert cards.escape("[click](https://evil.example) *b*") == r"\[click\]\(https://evil.example\) \*b\*"
