"""The bot behind every chat platform: it understands a message and answers it, with at most one inspection per message.

A message is acknowledged as soon as it is stored; everything else happens here, in threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, Protocol, Self

from refdiff.agent.language.intent import Intent, Said
from refdiff.agent.people.names import finding_named
from refdiff.agent.report.summary import ReportSummary, summarise
from refdiff.agent.service import Inspection, InspectionService, Upload
from refdiff.agent.work.queue import Progress
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.chat_messages import ChatMessage, ChatStore
from refdiff.memory.records.defect_names import Naming, check_defect_name
from refdiff.memory.records.dispositions import Disposition
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import (
    DuplicateError,
    InputError,
    RefDiffError,
    UnavailableError,
    UnknownPartError,
    UnknownRecordError,
)
from refdiff.model.files import outage

log = logging.getLogger(__name__)

STATUS_EVERY_S = 45.0  # platforms drop a status after a minute or two
# retries of an answer that cannot be posted: waits double, about ten hours in all
LONGEST_WAIT_S, MAX_TRIES = 3600.0, 16
HALVES_S = 1.0  # how long the second event of a message may take, where the platform does not say what it brings
_UNSETTLED = timedelta(hours=1)  # how long a message waits for what it lacks
_MOST_UNSETTLED = 20  # of them, the newest are read
_THREADS = 8
_MAX_TEXT = 4000
HOW_TO_SEND = (
    'Send its photo with your message, for example "inspect part #4412, product bracket" with the picture attached.'
)


@dataclass(frozen=True)
class _Submitted:
    """An inspection, whose report is the answer. settled: keys of the messages that it rests on."""

    inspection_id: str
    settled: list[str]


# a text ("": no answer), or what finds one
_Answer = _Submitted | Callable[[], str] | str


@dataclass(frozen=True)
class ChatRequest:
    """A message to the bot."""

    key: str  # the same for every retry of the message
    thread: str  # where the answer goes and follow-ups come from; "" if the platform must open one first
    user: str  # the platform's id
    user_name: str  # may be ""
    text: str
    place: dict[str, Any]  # where the platform answers (JSON data)
    # what the platform fetches attached files with (JSON data)
    photos: list[dict[str, Any]] = field(default_factory=list)
    addressed: bool = True  # to the bot; else a message in a thread that it answers in
    halves: bool = False  # another event of the same message may follow, with its files
    answer: str = ""  # stored before it is posted: by then the thread may have gone on


class Platform(Protocol):
    """One chat platform. Methods may be called from any thread and may raise anything."""

    name: str
    shared_threads: bool  # what a message lacks may come from anyone in its thread; else from its own sender alone

    def name_of(self, user: str) -> str:
        """The name of a user, "" if unknown."""

    def refusal(self, user: str, place: dict[str, Any]) -> str:
        """Why a user may not read anything in that place; "" if they may. Raises UnavailableError."""

    def opened(self, request: ChatRequest) -> ChatRequest:
        """The request with a thread, opened here if it has none."""

    def files(self, request: ChatRequest) -> list[dict[str, Any]] | None:
        """The files of a message of which one event has come, as `ChatRequest.photos`; None if the platform does not say."""

    def photo(self, request: ChatRequest) -> Upload | None:
        """Download the first attached file of a message. Raises InputError if it is unavailable."""

    def working(self, request: ChatRequest, text: str) -> None:
        """Show that the bot is working; called repeatedly."""

    def say(self, request: ChatRequest, text: str) -> None:
        """Post plain text in the thread."""

    def show(self, request: ChatRequest, summary: ReportSummary) -> None:
        """Post a filed report in the thread."""


class ChatBot:
    """Use as a context manager; resumes the messages that a crash left unanswered."""

    def __init__(
        self,
        service: InspectionService,
        store: ChatStore,
        platform: Platform,
        *,
        deciders: str = "",
        public_url: str | None = None,
    ) -> None:
        self.service, self._store, self._platform = service, store, platform
        self._deciders, self._public_url = deciders, public_url
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=platform.name)
        # by key: request that waits for its inspection, and its status
        self._busy: dict[str, tuple[ChatRequest, str]] = {}
        self._read: set[str] = set()  # keys of messages in progress whose request was read: nothing can be added
        self._claimed: set[str] = set()  # keys of messages in progress, until they are answered
        # by thread and key, in the order received: messages of which it is not known yet what they ask for; the first is at
        # work, or failed and is retried before the others
        self._turns: dict[str, dict[str, ChatRequest]] = {}
        self._failed: dict[str, tuple[int, float]] = {}  # by key: tries, and when the next one is due (monotonic clock)
        self._mutex, self._closing = threading.Lock(), threading.Event()
        self._ticker = threading.Thread(target=self._tick, name=f"{platform.name}-status", daemon=True)

    def __enter__(self) -> Self:
        for message in self._store.open():
            self._resume(message)
        self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._mutex:
            self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def receive(self, request: ChatRequest) -> bool:
        """Store a message and start on it; False for a repeated one, whose files are added if it brings the first ones.

        Quick. Raises StorageError.
        """
        if self._store.receive(request.key, asdict(request), request.thread):
            self._start(request)
            return True
        known = self._store.get(request.key)
        if not request.photos or known is None or known.request.get("photos"):
            return False
        with self._mutex:
            if request.key not in self._read and known.state == "received":
                self._store.change(request.key, asdict(request), request.thread)
                return False
        # its first half is at work or answered: the photo is inspected by itself
        return self.receive(replace(request, key=f"{request.key}:files"))

    def knows_thread(self, thread: str) -> bool:
        """Whether a thread is about an inspection, or about a request that lacks something, or may turn out to."""
        if thread in self._turns or self._store.inspection_of(thread) is not None:
            return True
        return bool(self._unsettled(thread, datetime.now(UTC)))

    def _unsettled(self, thread: str, now: datetime) -> list[ChatRequest]:
        requests = self._store.unsettled(thread, to_utc(now - _UNSETTLED)) if thread else []
        return [ChatRequest(**request) for request in requests]

    def summary(self, inspection_id: str) -> ReportSummary:
        """The summary of a filed report. Raises UnknownRecordError."""
        report = self.service.report(inspection_id)
        stores = self.service.stores
        return summarise(
            report, stores.dispositions.get(inspection_id), self._public_url, named=stores.defect_names.of(inspection_id),
            known_names=self.service.names.known(report.product),
        )  # fmt: skip

    def decide(
        self, inspection_id: str, decision: Literal["accept", "override"], user: str, user_name: str, reason: str
    ) -> Disposition:
        """A person's decision. Raises InputError (not on the list, no reason), DuplicateError, UnknownRecordError."""
        self.check_may_decide(user)
        return self.service.people.dispose(inspection_id, decision, self._who(user, user_name), reason)

    def name_given(self, inspection_id: str, finding: str, typed: str, chosen: str, user: str) -> str:
        """What a person calls a finding: a name that they typed, or one of those that are known. Quick.

        Raises InputError (not on the list of those who decide, neither or both given, not a name), UnknownRecordError.
        """
        self.check_may_decide(user)
        typed, chosen = typed.strip(), chosen.strip()
        if typed and chosen and typed != chosen:
            raise InputError(f"you chose {chosen!r} and typed {typed!r}; leave one of them empty")
        if not (name := typed or chosen):
            raise InputError("no name was given; choose one or type a new one")
        finding_named(self.service.report(inspection_id), finding)
        return check_defect_name(name)

    def name_finding(self, inspection_id: str, finding: str, name: str, user: str, user_name: str) -> Naming:
        """Store a name that `name_given` returned, with what the finding looks like: seconds of work.

        Raises UnknownRecordError, DamagedError, StorageError.
        """
        note = f"named in {self._platform.name.title()}"
        return self.service.names.name(inspection_id, finding, name, self._who(user, user_name), note)

    def check_may_decide(self, user: str) -> None:
        """Raises InputError for somebody who is not on the list of those who decide and name, or may not read."""
        if not may_decide(self._deciders, user):
            raise InputError(
                f"you ({user}) may not decide about inspections or name findings; ask your administrator to add you to "
                f"REFDIFF_{self._platform.name.upper()}_DECIDERS"
            )
        if refusal := self._platform.refusal(user, {}):
            raise InputError(refusal)

    def run_later(self, work: Callable[[], None]) -> None:
        """Run work in the background; errors are logged."""

        def guarded() -> None:
            try:
                work()
            except Exception:
                log.exception("background work in %s failed", self._platform.name)

        if not self._closing.is_set():
            self._pool.submit(guarded)

    # -- inside

    def _who(self, user: str, name: str) -> str:
        """A person's name in reports and decisions."""
        return f"{name or self._platform.name_of(user) or 'unknown'} ({self._platform.name} {user})"[:128]

    def _resume(self, message: ChatMessage) -> None:
        request = ChatRequest(**message.request)
        self._start(request, in_turn=message.inspection_id is None and not request.answer)

    def _start(self, request: ChatRequest, in_turn: bool = True) -> None:
        """Handle a message. in_turn: after those of its thread that came before."""
        with self._mutex:
            if self._closing.is_set() or request.key in self._claimed:
                return
            if in_turn and request.thread:
                turns = self._turns.setdefault(request.thread, {})
                turns[request.key] = request
                request = next(iter(turns.values()))
                if request.key in self._claimed:
                    return
            self._claimed.add(request.key)
            self._pool.submit(self._guarded, request)

    def _end_turn(self, request: ChatRequest) -> None:
        """Start the next message of the thread: what this one asks for is stored."""
        with self._mutex:
            turns = self._turns.get(request.thread, {})
            if turns.pop(request.key, None) is None:
                return
            following = next(iter(turns.values()), None)
            if following is None:
                del self._turns[request.thread]
        if following is not None:
            self._start(following)

    def _release(self, request: ChatRequest) -> None:
        with self._mutex:
            self._claimed.discard(request.key)
            self._read.discard(request.key)

    def _guarded(self, request: ChatRequest) -> None:
        """Handle a message; errors are reported in the thread, or the message stays open."""
        waits = False
        try:
            waits = self._handle(request)
        except Exception as e:
            if not (self.service.stopping and isinstance(e, UnavailableError)):  # else answered after the next start
                self._retry_later(request)
        finally:
            if not waits:
                self._release(request)

    def _retry_later(self, request: ChatRequest) -> None:
        """Schedule another try after an exception."""
        tries, due = self._failed.get(request.key, (0, 0.0))
        if time.monotonic() < due:  # tried early, for a newer message of its thread
            return
        tries += 1
        if tries >= MAX_TRIES:
            log.exception("gave up on %s message %s after %d tries", self._platform.name, request.key, tries)
            self._answered(request)
            return
        wait_s = Backoff(STATUS_EVERY_S, LONGEST_WAIT_S).wait_s(tries)
        self._failed[request.key] = (tries, time.monotonic() + wait_s)
        log.exception(
            "%s message %s could not be answered; retrying in %.0f s", self._platform.name, request.key, wait_s
        )

    def _answered(self, request: ChatRequest) -> None:
        self._store.answered(request.key)
        self._failed.pop(request.key, None)
        self._end_turn(request)

    def _handle(self, request: ChatRequest) -> bool:
        """Returns whether the message is now waiting for an inspection, which answers it.

        In the order of the thread: photos are taken, inspections are submitted, and what is lacking is asked for.
        """
        halves = request.halves and not request.answer
        files = self._platform.files(request) if halves else None
        if halves and files is None:
            self._closing.wait(HALVES_S)
        with self._mutex:
            message = self._store.get(request.key)
            if files and message is not None and message.state == "received" and not message.request.get("photos"):
                self._store.change(request.key, message.request | {"photos": files}, request.thread)
                message = self._store.get(request.key)
            self._read.add(request.key)
        if message is None or message.state == "answered":
            self._end_turn(request)
            return False
        request = ChatRequest(**message.request)
        if message.inspection_id is not None:
            self._end_turn(request)
            self._wait_for(request, message.inspection_id)
            return True
        if not request.answer:
            # after a crash between these two lines a second thread is opened, and the first stays empty
            if not request.thread:
                request = self._platform.opened(request)
                self._store.change(request.key, asdict(request), request.thread)
            said: _Answer
            refusal, unsettled = self._platform.refusal(request.user, request.place), False
            if refusal:
                said = refusal if request.addressed else ""
            else:
                received = datetime.fromisoformat(message.created_at)
                said, unsettled = self._tried(request, lambda: self._answer(request, received))
            if isinstance(said, _Submitted):
                self._store.inspecting(request.key, request.thread, said.inspection_id, said.settled)
                self._end_turn(request)
                self._wait_for(request, said.inspection_id)
                return True
            if callable(find := said):  # a model answers between two inspections: no other message waits for that
                self._end_turn(request)
                said, _ = self._tried(request, lambda: (find(), False))
            request = replace(request, answer=str(said))
            self._store.change(request.key, asdict(request), request.thread, unsettled)
        try:
            if request.answer:
                self._platform.say(request, request.answer)
        finally:
            self._end_turn(request)
        self._answered(request)
        return False

    def _tried(self, request: ChatRequest, work: Callable[[], tuple[_Answer, bool]]) -> tuple[_Answer, bool]:
        """What the work returns; where it fails, why, and True: what was sent stays what the thread is about.

        Raises UnavailableError while the service stops.
        """
        try:
            return work()
        except RefDiffError as e:
            if self.service.stopping and isinstance(e, UnavailableError):
                raise
            return _helpful(e), True
        except Exception as e:
            log.exception("%s message %s failed", self._platform.name, request.key)
            lacking = outage(e)
            said = _helpful(lacking) if lacking else f"Internal error ({type(e).__name__}); see the log of the server."
            return said, True

    def _answer(self, request: ChatRequest, received: datetime) -> tuple[_Answer, bool]:
        """The answer, and whether the request lacks something."""
        unsettled = [
            r
            for r in self._unsettled(request.thread, received)
            if r.key != request.key and (self._platform.shared_threads or r.user == request.user)
        ]
        requests = [request, *unsettled]
        said = [Said(_text(r), len(r.photos), r.addressed) for r in requests[: _MOST_UNSETTLED + 1]]
        text, about = said[0].text, self._about(request.thread)
        intent = self.service.understand(said, about)
        if intent.part_id is not None:
            return self._submit(request, intent, requests, about), False
        if intent.ask is not None:
            return intent.ask, True
        if intent.about is not None:
            return partial(self._asked, request, intent.about, text), False
        return (partial(self.service.chat, text or "hello") if request.addressed else ""), False

    def _asked(self, request: ChatRequest, inspection_id: str, text: str) -> str:
        self._try_working(request, "reading the report")
        return self.service.ask(inspection_id, text) if text else "Ask about the report, or name another part."

    def _about(self, thread: str) -> Inspection | None:
        """The inspection that a thread is about, if any."""
        known = self._store.inspection_of(thread)
        if known is None:
            return None
        try:
            return self.service.inspection(known)
        except UnknownRecordError:  # the home was restored from an older backup
            return None

    def _submit(
        self, request: ChatRequest, intent: Intent, requests: list[ChatRequest], about: Inspection | None
    ) -> _Submitted:
        """requests: the message and those that it settles."""
        part_id = str(intent.part_id)
        self._try_working(request, f"inspecting part {part_id}")
        photo = None if intent.photo is None else self._platform.photo(requests[intent.photo])
        texts = [_text(r) for r in requests[: intent.since + 1]]
        job = self.service.submit(
            next((t for t in texts if self.service.names_part(t)), texts[0]),
            by=self._who(request.user, request.user_name),
            part_id=part_id,
            product=self.service.product_named(part_id, texts, photo=photo is not None, about=about),
            photo=photo,
            origin=f"{self._platform.name}:{request.key}",
        )
        return _Submitted(job.inspection_id, [r.key for r in requests])

    def _wait_for(self, request: ChatRequest, inspection_id: str) -> None:
        """Answer the message once the inspection ends; until then the message stays claimed."""
        with self._mutex:
            self._busy[request.key] = (request, f"inspecting ({inspection_id})")

        def hear(progress: Progress) -> None:  # runs in the inspection thread: must be quick
            with self._mutex:
                if request.key not in self._busy:
                    return  # already ended
                self._busy[request.key] = (request, progress.message)
                if progress.last:
                    del self._busy[request.key]
            if progress.last and not self._closing.is_set():
                self._pool.submit(self._finish, request, inspection_id)

        try:
            self.service.subscribe(inspection_id, hear)
        except Exception:
            with self._mutex:
                ended = self._busy.pop(request.key, None) is None
            if not ended:
                raise

    def _finish(self, request: ChatRequest, inspection_id: str) -> None:
        try:
            message = self._store.get(request.key)
            if message is None or message.state == "answered":
                return
            inspection = self.service.inspection(inspection_id)
            if inspection.report is not None:
                try:
                    self._platform.show(request, self.summary(inspection_id))
                except InputError as e:  # tampered with, or damaged: to repeat it would not help
                    self._platform.say(request, f"The report of part {inspection.part_id} is not shown: {e}")
            else:
                reason = (inspection.error or {}).get("message", "it was abandoned")
                self._platform.say(request, f"Part {inspection.part_id} could not be inspected: {reason}")
            self._answered(request)
        except Exception:
            self._retry_later(request)
        finally:
            self._release(request)

    def _try_working(self, request: ChatRequest, text: str) -> None:
        try:
            self._platform.working(request, text)
        except Exception as e:  # the status is optional
            log.info("cannot show a status in %s: %s", self._platform.name, e)

    def _tick(self) -> None:
        """Renew the status of running inspections, and retry unanswered messages."""
        last = time.monotonic()
        while not self._closing.wait(min(STATUS_EVERY_S, 5.0)):
            if time.monotonic() - last < STATUS_EVERY_S:
                continue
            last = time.monotonic()
            with self._mutex:
                busy = list(self._busy.values())
                follow = {key for turns in self._turns.values() for key in list(turns)[1:]}
            for request, text in busy:
                self._try_working(request, text)
            try:
                waiting = self._store.open()
            except RefDiffError as e:
                log.warning("open messages cannot be read: %s", e)
                continue
            for message in waiting:  # those in progress are claimed
                if message.key not in follow and self._failed.get(message.key, (0, 0.0))[1] <= time.monotonic():
                    self._resume(message)


def _text(request: ChatRequest) -> str:
    return request.text[:_MAX_TEXT].strip()


def _helpful(error: RefDiffError) -> str:
    """The error text for people without a command line."""
    text = str(error)
    if isinstance(error, UnknownPartError):
        return _with_advice(text.partition(" Record its photo with")[0])
    if isinstance(error, UnknownRecordError | DuplicateError | InputError):
        return _with_advice(text) if "say which product" in text else text
    return f"This is unavailable at the moment: {text}"


def _with_advice(text: str) -> str:
    text = f"{text[:1].upper()}{text[1:].rstrip('.; ')}"
    return f"{text}{'' if text.endswith('?') else '.'} {HOW_TO_SEND}"


def may_decide(deciders: str, user: str) -> bool:
    """Whether a user is on the list; an empty list allows nobody."""
    named = {d.strip() for d in deciders.split(",") if d.strip()}
    return bool(user) and ("*" in named or user in named)
