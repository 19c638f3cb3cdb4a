"""Fits networks to products in the background of a server, one product at a time: when asked to, and by itself.

Inspections come first: a fit waits at its next step while there are any, and its threads have a low priority. A server that
does not inspect leaves fits to workers, who find in the records what was asked for, and whether a person stopped it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.memory.records.networks import FitAttempt
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BusyError, RefDiffError, UnavailableError
from refdiff.model.free_memory import free_bytes
from refdiff.tools.golden_samples.fit import INTERNAL, FitStopped, check_parts, fit_product, is_due, is_fitting
from refdiff.tools.workspace import Workspace

FitState = Literal["running", "kept", "not kept", "stopped", "failed"]

BY_ITSELF = "automatic fit"  # who asked, in the audit chain
_LOOK_S = 60.0  # between two looks for products to fit
_ASKED_S = 2.0  # between two looks at what other processes were told
_GIVE_WAY_S = 0.05  # between two looks at whether inspections are done
_STOP_S = 10.0
_NICE = 10  # of 19
_NEEDS_BYTES = 4_000_000_000  # the 2.5 GB that a fit takes, and some for what is inspected meanwhile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitting:
    """The fit of a product that runs, or ran last."""

    product: str
    by: str
    state: FitState = "running"
    stage: str = ""
    done: int = 0  # of `total` steps of the stage
    total: int = 0
    waits: bool = False  # until there is nothing to inspect
    message: str = ""  # why it failed or stopped, where there is more to say
    started_at: str = field(default_factory=utc_now)


class Fittings:
    """Threads may share it."""

    def __init__(
        self,
        workspace: Workspace,
        beside: Callable[[str], AbstractContextManager[Callable[[], None]]],
        busy: Callable[[], bool] = lambda: False,
        elsewhere: bool = False,
    ) -> None:
        """beside: held meanwhile, so that a crash is not blamed on the inspection that runs; it is told what runs, and of
        each step. busy: whether something else comes first. elsewhere: workers fit (see `for_others`), not this process."""
        self._elsewhere = elsewhere
        self._workspace, self._beside, self._busy = workspace, beside, busy
        self._latest: dict[str, Fitting] = {}
        self._threads: list[threading.Thread] = []
        self._held_back: dict[str, str] = {}  # products that an automatic fit is due for -> why it does not begin
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._given_up_by: str | None = None  # who wants the fit that runs to end
        self._asking = 0  # people who wait for an automatic fit to make room
        self._makes_room, self._next_word = False, 0.0  # for a person who asked another process; when to look again

    def start(self, product: str, by: str) -> Fitting:
        """Begin, and return soon: an automatic fit makes room. Raises InputError with too few golden samples, BusyError
        while somebody else's runs; elsewhere, only while the product is fitted."""
        check_parts(self._workspace, product)
        if self._elsewhere:
            if (now := self.of(product)) is not None and now.state == "running":
                raise BusyError(f"a network is being fitted to product {product!r}; try again when it is done", 60.0)
            return self._told(self._workspace.stores.networks.ask(product, by))
        begun = self._begin_for_person(product, by)
        self._in_thread(lambda: self._run(begun))
        return begun

    def for_others(self, every_s: float = _ASKED_S) -> None:
        """From now on, begin what people asked other processes for.

        every_s: between two looks. One worker takes each: `fit_product` holds a lock meanwhile.
        """

        def look() -> None:
            while not self._stop.wait(every_s):
                asked: list[FitAttempt] = []
                with _looking("what people asked for"):
                    asked = self._workspace.stores.networks.asked()
                for one in asked:
                    with _looking(f"product {one.product}"):
                        self._fit_asked(one)

        self._in_thread(look)

    def _fit_asked(self, asked: FitAttempt) -> None:
        networks, running = self._workspace.stores.networks, self._running()
        if self._stop.is_set() or (running is not None and running.by != BY_ITSELF):
            return
        if networks.last_attempt(asked.product) != asked:  # another worker has begun it, or a person does without
            return
        self._run(self._begin_for_person(asked.product, asked.by))
        if (ended := self._latest[asked.product]).state == "failed":
            networks.end(asked, "failed", ended.message)  # unless it was begun

    def _begin_for_person(self, product: str, by: str) -> Fitting:
        with self._changed:
            self._asking += 1
            try:
                self._changed.wait_for(lambda: (now := self._running()) is None or now.by != BY_ITSELF, _STOP_S)
                return self._begin(product, by)
            finally:
                self._asking -= 1

    def by_itself(self, every_s: float = _LOOK_S) -> None:
        """From now on, fit what is due (see `is_due`) while there is nothing else to do.

        every_s: between two looks. Golden samples that somebody is still enrolling are waited for: they must be the same at
        two looks.
        """
        seen: dict[str, int] = {}

        def look() -> None:
            while not self._stop.wait(every_s):
                products: list[str] = []
                with _looking("products"):
                    products = self._workspace.bank.products()
                for product in products:
                    if self._stop.is_set() or self._busy():
                        break
                    with _looking(f"product {product}"):  # one that fails does not keep the others from their turn
                        self._fit_if_due(product, seen)

        self._in_thread(look)

    def _fit_if_due(self, product: str, seen: dict[str, int]) -> None:
        before, seen[product] = seen.get(product), self._workspace.bank.count(product, IN_USE)
        if before != seen[product] or not is_due(self._workspace, product):
            self._held_back.pop(product, None)
        elif self._has_room(product):
            self._run(self._begin(product, BY_ITSELF))

    def of(self, product: str) -> Fitting | None:
        """The latest of a product since the server started; elsewhere, of all times."""
        if self._elsewhere:
            last = self._workspace.stores.networks.last_attempt(product)
            return None if last is None else self._told(last)
        return self._latest.get(product)

    def _told(self, attempt: FitAttempt) -> Fitting:
        """What the records say about a fit of another process: not how far it is."""
        state: FitState
        message = attempt.message
        match attempt.outcome:
            case "asked":
                state = "running"
            case "begun":
                ended = not is_fitting(self._workspace, attempt.product)
                state, message = ("stopped", "the process that fitted it ended") if ended else ("running", message)
            case "declined":
                state = "stopped"
            case outcome:
                state = outcome
        return Fitting(
            attempt.product, attempt.by, state, waits=attempt.outcome == "asked", message=message,
            started_at=attempt.created_at,
        )  # fmt: skip

    def held_back(self, product: str) -> str:
        """Why an automatic fit that is due does not begin, "" if nothing is in its way."""
        return self._held_back.get(product, "")

    def _has_room(self, product: str) -> bool:
        """Whether there is so much free memory that a fit does not get the inspecting process killed."""
        free = free_bytes()
        if free is not None and free >= _NEEDS_BYTES:
            self._held_back.pop(product, None)
            return True
        there = "this system does not say how much is free" if free is None else f"{max(0, free) / 1e9:.1f} GB are free"
        why = f"it begins by itself with {_NEEDS_BYTES / 1e9:g} GB of free memory; {there}"
        if product not in self._held_back:
            log.warning("no network is fitted to product %s: %s", product, why)
        self._held_back[product] = why
        return False

    def give_up(self, product: str, by: str) -> bool:
        """Let the fit of a product end soon: a person does without. False if none runs. Elsewhere, what ends it is the
        record of that, which is the caller's to make."""
        if self._elsewhere:
            return (now := self.of(product)) is not None and now.state == "running"
        with self._changed:
            running = self._running()
            if running is None or running.product != product:
                return False
            self._given_up_by = by
        return True

    def stop(self, hung: str = "") -> None:
        """Let what runs end soon; the next one goes on with the half that was not finished.

        hung: what hangs in this process, "" if nothing does: a fit that hangs has failed.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join(_STOP_S)
        networks, running = self._workspace.stores.networks, self._running()
        with contextlib.suppress(UnavailableError):  # else it counts as one that ended with the process
            if running is not None and (attempt := networks.last_attempt(running.product)) is not None:
                if hung.startswith(_named(running.product)):
                    networks.end(attempt, "failed", hung)
                else:
                    networks.end(attempt, "stopped")  # it ends with the process, in the midst of a step: not in vain

    def _running(self) -> Fitting | None:
        return next((f for f in list(self._latest.values()) if f.state == "running"), None)

    def _begin(self, product: str, by: str) -> Fitting:
        with self._changed:
            if (running := self._running()) is not None or (by == BY_ITSELF and self._asking):
                which = f" to product {running.product!r}" if running else ""
                raise BusyError(f"a network is being fitted{which}; try again when it is done", 60.0)
            self._latest[product] = begun = Fitting(product, by)
            self._given_up_by, self._makes_room = None, False
        return begun

    def _in_thread(self, work: Callable[[], None]) -> None:
        def run() -> None:
            _lower_priority()
            work()

        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads.append(threading.Thread(target=run, name="fit", daemon=True))
        self._threads[-1].start()

    def _run(self, fitting: Fitting) -> None:
        product = fitting.product

        def moved(what: str, done: int, total: int, note: str = "") -> None:
            step()
            self._latest[product] = now = replace(fitting, stage=what, done=done, total=total)
            while not self._ends(fitting) and self._busy():
                step()
                self._latest[product] = replace(now, waits=True)
                self._stop.wait(_GIVE_WAY_S)
            if self._ends(fitting):
                raise FitStopped
            self._latest[product] = now

        state: FitState
        message = ""
        try:
            # also while it waits: what it holds in memory may be what ends the process then
            with self._beside(_named(product)) as step:
                made = fit_product(self._workspace, product, fitting.by, progress=moved)
            state = "kept" if made.kept else "not kept"
        except FitStopped as e:
            state, message = "stopped", str(e)
        except BusyError as e:  # another process fits it
            state, message = "stopped" if fitting.by == BY_ITSELF else "failed", str(e)
        except RefDiffError as e:
            state, message = "failed", str(e)
        except Exception:
            log.exception("fitting a network to product %s failed", product)
            state, message = "failed", INTERNAL
        log.info("fit of product %s: %s %s", product, state, message)
        with self._changed:
            if state in ("stopped", "failed") and self._given_up_by is not None:
                # it may not have been noted as begun when it was given up
                with contextlib.suppress(UnavailableError):
                    self._workspace.stores.networks.decline(product, self._given_up_by)
            self._latest[product] = replace(fitting, state=state, message=message)
            self._changed.notify_all()

    def _ends(self, fitting: Fitting) -> bool:
        self._look_for_word(fitting)
        made_room = fitting.by == BY_ITSELF and (self._asking > 0 or self._makes_room)
        return self._stop.is_set() or self._given_up_by is not None or made_room

    def _look_for_word(self, fitting: Fitting) -> None:
        """Whether a person told another process to end the fit, or asked it for one, which comes before an automatic one."""
        if (now := time.monotonic()) < self._next_word:
            return
        self._next_word = now + _ASKED_S
        with contextlib.suppress(UnavailableError):
            networks = self._workspace.stores.networks
            last = networks.last_attempt(fitting.product)
            if last is not None and last.outcome == "declined" and last.created_at > fitting.started_at:
                self._given_up_by = last.by
            self._makes_room = fitting.by == BY_ITSELF and bool(networks.asked())


def _named(product: str) -> str:
    return f"fit of product {product}"


@contextlib.contextmanager
def _looking(what: str) -> Iterator[None]:
    """What fails in it is logged: the bank may be away, say, and there again at the next look."""
    try:
        yield
    except BusyError as e:
        log.info("%s", e)
    except Exception as e:
        log.warning("looking for what to fit, %s: %s", what, e, exc_info=not isinstance(e, RefDiffError))


def _lower_priority() -> None:
    """Of the calling thread, and of those that it starts: where priorities are those of threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
