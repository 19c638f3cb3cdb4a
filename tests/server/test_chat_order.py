"""What a thread is about: the chat bot with its store; the service inspects nothing, and the platform may be slow."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refdiff.agent.language.intent import Intent, Said, understand
from refdiff.agent.service import Inspection, Upload
from refdiff.memory.database import tables as t
from refdiff.memory.journals.chat_messages import ChatStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import BusyError, UnavailableError
from refdiff.server.chat import bot as bot_module
from refdiff.server.chat.bot import ChatBot, ChatRequest

from .bot_server import wait

numbers = itertools.count()


class FakeService:
    """submitted: (part, name of its photo). Its inspections never end."""

    stopping = False

    def __init__(self) -> None:
        self.submitted: list[tuple[str, str | None]] = []
        self.busy, self.model = False, threading.Event()
        self.model.set()

    def understand(self, said: Sequence[Said], about: Inspection | None = None) -> Intent:
        return understand(said, about=about)

    def names_part(self, text: str) -> bool:
        return "#" in text

    def product_named(self, *_: object, **__: object) -> str | None:
        return None

    def submit(self, text: str, *, part_id: str, photo: Upload | None, **_: object) -> Any:
        if self.busy:
            raise BusyError("too many wait")
        self.submitted.append((part_id, photo.name if photo else None))
        return SimpleNamespace(inspection_id=part_id)

    def inspection(self, inspection_id: str) -> Inspection:
        return Inspection(inspection_id, "running", inspection_id, None, "", "")

    def subscribe(self, *_: object) -> None: ...

    def ask(self, inspection_id: str, _: str) -> str:
        self.model.wait(10)
        return f"about {inspection_id}"


class FakePlatform:
    """said: texts in order. ready: posts wait for it. fail: posts that will. down: it does not say who may read."""

    name = "fake"

    def __init__(self, shared_threads: bool) -> None:
        self.shared_threads, self.said, self.fail, self.down = shared_threads, list[str](), 0, False
        self.ready = threading.Event()
        self.ready.set()

    def name_of(self, _: str) -> str:
        return ""

    def refusal(self, *_: object) -> str:
        if self.down:
            raise UnavailableError("the platform is down")
        return ""

    def opened(self, request: ChatRequest) -> ChatRequest:
        return request

    def files(self, request: ChatRequest) -> list[dict[str, Any]]:
        return request.photos

    def photo(self, request: ChatRequest) -> Upload | None:
        return Upload(request.photos[0]["name"], b"") if request.photos else None

    def working(self, *_: object) -> None: ...

    def show(self, *_: object) -> None: ...

    def say(self, _: ChatRequest, text: str) -> None:
        self.ready.wait(10)
        if self.fail:
            self.fail -= 1
            raise OSError("no network")
        self.said.append(text)


def message(text: str, photo: str | None = None, user: str = "ann") -> ChatRequest:
    return ChatRequest(f"m{next(numbers)}", "th", user, user, text, {}, [{"name": photo}] if photo else [])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        yield ChatStore(stores.db, "fake")


@contextmanager
def running(store: ChatStore, shared_threads: bool = True) -> Iterator[tuple[ChatBot, FakeService, FakePlatform]]:
    service, platform = FakeService(), FakePlatform(shared_threads)
    bot: Any = ChatBot(service, store, platform)  # type: ignore[arg-type]
    with bot:
        yield bot, service, platform


def answered(store: ChatStore, request: ChatRequest) -> Callable[[], bool]:
    def is_answered() -> bool:
        known = store.get(request.key)
        return known is not None and known.state == "answered"

    return is_answered


@pytest.mark.parametrize("shared_threads", [True, False])
def test_photo_and_part_sent_at_once_are_inspected_together_and_no_later_part_gets_that_photo(
    store: ChatStore, shared_threads: bool
) -> None:
    with running(store, shared_threads) as (bot, service, platform):
        platform.ready.clear()
        bot.receive(message("", "a.png"))
        assert bot.knows_thread("th")  # what follows needs no mention
        bot.receive(message("inspect part #4412"))
        bot.receive(message("inspect part #4413"))
        time.sleep(0.1)
        platform.ready.set()
        wait(lambda: len(service.submitted) == 2)
        assert service.submitted == [("4412", "a.png"), ("4413", None)]
        assert ["Which part" in text for text in platform.said] == [True]
        assert store.unsettled("th", "") == []


def test_open_messages_of_a_thread_are_resumed_in_their_order_whenever_that_is(store: ChatStore) -> None:
    sent = [message("", "a.png"), message("inspect part #4412"), message("inspect part #4413")]
    for request in sent:
        store.receive(request.key, asdict(request), request.thread)
    before = to_utc(datetime.now(UTC) - timedelta(hours=3))
    with store._db.transaction() as conn:
        for request in sent:
            store._set(conn, t.chat_messages.c.key == request.key, created_at=before)
    with running(store) as (_, service, _):
        wait(lambda: len(service.submitted) == 2)
        assert service.submitted == [("4412", "a.png"), ("4413", None)]


@pytest.mark.parametrize("shared_threads", [True, False])
def test_photo_waits_for_its_sender_alone_where_a_thread_is_a_whole_conversation(
    store: ChatStore, shared_threads: bool
) -> None:
    with running(store, shared_threads) as (bot, service, _):
        bot.receive(photo := message("", "ann.png"))
        wait(answered(store, photo))
        bot.receive(message("inspect part #4412", user="bob"))
        bot.receive(message("inspect part #4413"))
        wait(lambda: len(service.submitted) == 2)
        mine, others = ("ann.png", None) if shared_threads else (None, "ann.png")
        assert service.submitted == [("4412", mine), ("4413", others)]


def test_neither_an_inspection_nor_an_answer_of_the_model_holds_up_its_thread(store: ChatStore) -> None:
    with running(store) as (bot, service, platform):
        bot.receive(message("inspect part #4412", "a.png"))
        service.model.clear()
        bot.receive(question := message("what is the verdict?"))
        bot.receive(message("inspect part #4413"))
        wait(lambda: len(service.submitted) == 2)
        assert platform.said == []
        service.model.set()
        wait(answered(store, question))
        assert platform.said == ["about 4412"]


def test_photo_whose_question_is_posted_late_belongs_to_the_part_that_was_named_meanwhile(
    store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(store) as (bot, service, platform):
        platform.fail = 1
        bot.receive(first := message("", "a.png"))
        bot.receive(message("inspect part #4412"))
        wait(lambda: service.submitted == [("4412", "a.png")])
        assert platform.said == []
    monkeypatch.setattr(bot_module, "STATUS_EVERY_S", 0.05)
    with running(store) as (bot, service, platform):
        wait(answered(store, first))
        assert len(platform.said) == 1
        bot.receive(message("inspect part #4413"))
        wait(lambda: service.submitted == [("4413", None)])


def test_message_waits_for_an_earlier_one_that_failed_and_a_newer_one_tries_it_again(store: ChatStore) -> None:
    with running(store) as (bot, service, platform):
        platform.down = True
        bot.receive(first := message("", "a.png"))
        wait(lambda: first.key in bot._failed)
        wait(lambda: not bot._claimed)
        bot.receive(message("inspect part #4412"))
        wait(lambda: not bot._claimed)
        assert (service.submitted, bot._failed[first.key][0]) == ([], 1)  # an early try does not count
        platform.down = False
        bot.receive(message("inspect part #4413"))
        wait(lambda: len(service.submitted) == 2)
        assert service.submitted == [("4412", "a.png"), ("4413", None)]
        wait(lambda: bot._turns == {})


def test_photo_whose_inspection_was_not_accepted_is_not_replaced_by_an_older_one(store: ChatStore) -> None:
    with running(store) as (bot, service, _):
        service.busy = True
        bot.receive(first := message("inspect part #4412", "a.png"))
        wait(answered(store, first))
        service.busy = False
        bot.receive(message("inspect part #4412"))
        wait(lambda: service.submitted == [("4412", "a.png")])
