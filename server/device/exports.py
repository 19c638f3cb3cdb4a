"""Which export a device decides by: the file that it was started with, or a newer one that came from the server.

    exports/state.json      which one is in use, which one before, which one waits, which ones are not wanted
    exports/DIGEST.refdiff  one that came down; DIGEST is the sha256 of its manifest

Every step is one replacement of `state.json`, and a file is there before it is named in it, so a crash between any two steps
leaves the export before or the one after.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refdiff.agent.device.device import Device
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.locks import hold_lock
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import DamagedError, InputError, RefDiffError, UnavailableError
from refdiff.model.files import make_folder, outage, remove_leftovers, storage_error, write_atomic
from refdiff.model.settings import software_version
from refdiff.tools.exported.archive import SUFFIX, Export

FOLDER = "exports"
_STATE = "state.json"
_TRIES = 2  # of opening one: a process that dies twice while it does will again
_LOCK_S = 10.0
_UNWANTED = 32  # that are remembered
_BACKOFF = Backoff(first_s=0.5, longest_s=600.0)  # opening one takes memory and seconds from the line


class State(BaseModel):
    """Exports by digest. given: the file that the device is started with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    given: str
    current: str
    previous: str | None = None
    waiting: str | None = None  # came down, and is not in use yet
    tries: int = 0  # to open it
    # digest -> the version of RefDiff that could not use it; "": a person went back from it
    unwanted: dict[str, str] = Field(default_factory=dict)
    created: dict[str, str] = Field(default_factory=dict)  # digest -> when it was exported, of those named above

    @property
    def named(self) -> set[str]:
        """Those that are needed."""
        return {d for d in (self.given, self.current, self.previous, self.waiting) if d is not None}


class KeptExports:
    """The exports below one folder. Threads and processes may share it; one process calls `begin`."""

    def __init__(self, root: Path) -> None:
        """root: the folder that the device keeps for itself. Raises StorageError."""
        self.root = root / FOLDER

    def begin(self, given: Path, check: Callable[[str], object]) -> State:
        """What to decide by now. Another file than before as `given` is what counts: nothing that came before it does.

        check: called with the digest of such a file before anything is forgotten for it; raises what is wrong with it.
        Raises that, and InputError, DamagedError, StorageError where the file cannot be opened.
        """
        make_folder(self.root)
        self._given = given
        with Export(given, parts=False) as export:
            digest, created = export.digest, {export.digest: to_utc(export.manifest.created_at)}
        before = self.state()
        if before is None or before.given != digest:
            check(digest)
        with self._changing():
            remove_leftovers(self.root)
            state = self.state()
            if state is None or state.given != digest:
                state = self._write(State(given=digest, current=digest, unwanted=_left(state, digest), created=created))
            for path in self.root.glob(f"*{SUFFIX}"):
                if path.stem not in state.named:
                    path.unlink(missing_ok=True)
        return state

    def state(self) -> State | None:
        """As it is on the disk; None where there is none that can be read."""
        try:
            return State.model_validate_json((self.root / _STATE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as e:
            raise storage_error(self.root / _STATE, e) from e

    def changed(self) -> tuple[int, int] | None:
        """Another value whenever the state was written."""
        try:
            about = (self.root / _STATE).stat()
        except OSError:
            return None
        return about.st_ino, about.st_mtime_ns

    def path(self, digest: str) -> Path:
        """The file of an export."""
        state = self.state()
        return self._given if state is not None and digest == state.given else self.root / f"{digest}{SUFFIX}"

    def offer(self, digest: str, created_at: str) -> None:
        """An export came down and lies at `path`: it waits to be used. created_at: of its manifest. Raises InputError
        for what is no time."""
        created = {digest: to_utc(created_at)}
        with self._changing():
            state = self._known()
            after = {"waiting": digest, "tries": 0, "created": state.created | created}
            self._write(state.model_copy(update=after))

    def trying(self) -> str | None:
        """The export that waits, whose opening counts as tried from now on; None if there is none. Raises InputError for
        one that was tried too often, which is unwanted from now on."""
        with self._changing():
            state = self._known()
            if state.waiting is None:
                return None
            if state.tries >= _TRIES:
                self._refused(state)
                raise InputError(
                    f"export {state.waiting[:12]} cannot be used (refdiff-edge ended {state.tries} times while it opened it)"
                )
            self._write(state.model_copy(update={"tries": state.tries + 1}))
            return state.waiting

    def give_back(self, digest: str) -> None:
        """Opening the export that waits says nothing about it: it does not count as tried."""
        with self._changing():
            state = self._known()
            if state.waiting == digest and state.tries:
                self._write(state.model_copy(update={"tries": state.tries - 1}))

    def adopt(self, digest: str) -> None:
        """The export that waited is in use, unless a person went back meanwhile."""
        with self._changing():
            state = self._known()
            if state.unwanted.get(digest) == "":
                return
            dropped = state.previous
            after: dict[str, object] = {"current": digest, "previous": state.current}
            if state.waiting == digest:  # else the next one came down meanwhile
                after |= {"waiting": None, "tries": 0}
            state = self._write(state.model_copy(update=after))
            self._drop(state, dropped)

    def refuse(self, digest: str) -> None:
        """The export that waited cannot be used by this version."""
        with self._changing():
            state = self._known()
            if state.waiting == digest:
                self._refused(state)

    def fall_back(self, digest: str) -> None:
        """The export in use cannot be opened any more, and another one here is used instead."""
        with self._changing():
            state = self._known()
            dropped = state.current
            state = self._write(state.model_copy(update={"current": digest, "previous": None}))
            self._drop(state, dropped)

    def created_at(self, digest: str | None = None) -> str:
        """When an export that is here was exported, as `to_utc` writes it; default: the one in use. "": not known."""
        state = self._known()
        return state.created.get(state.current if digest is None else digest, "")

    def has(self, digest: str) -> bool:
        """Whether an export lies here already, in use or not."""
        state = self._known()
        return digest in (state.given, state.current, state.previous)

    def rollback(self) -> State:
        """Go back to the export before, and take neither the one in use nor the one that waits again. A running process
        notices between two photos. Raises InputError where there is none."""
        none = InputError(f"{self.root.parent}: no export before the one in use is kept here")
        if not self.root.is_dir():
            raise none
        with self._changing():
            state = self.state()
            if state is None or state.previous is None:
                raise none
            unwanted = dict.fromkeys(d for d in (state.current, state.waiting) if d is not None and d != state.given)
            after = {"current": state.previous, "previous": None, "waiting": None, "tries": 0,
                     "unwanted": _newest(state.unwanted | dict.fromkeys(unwanted, ""))}  # fmt: skip
            return self._write(state.model_copy(update=after))

    def known(self) -> list[str]:
        """Digests that need not come down: what is in use or waits, and what is not wanted by this version."""
        state = self._known()
        version = software_version()
        unwanted = [d for d, by in state.unwanted.items() if by in ("", version)]
        return [d for d in (state.waiting, state.current) if d is not None] + unwanted

    def _known(self) -> State:
        if (state := self.state()) is None:
            raise UnavailableError(f"{self.root / _STATE}: is gone or damaged; start refdiff-edge again")
        return state

    def _refused(self, state: State) -> None:
        assert state.waiting is not None
        unwanted = _newest(state.unwanted | {state.waiting: software_version()})
        after = self._write(state.model_copy(update={"waiting": None, "tries": 0, "unwanted": unwanted}))
        self._drop(after, state.waiting)

    def _drop(self, state: State, digest: str | None) -> None:
        """Remove the file of an export, unless it is named."""
        if digest is not None and digest not in (state.current, state.previous, state.waiting):
            with contextlib.suppress(OSError):  # else when the next process begins
                (self.root / f"{digest}{SUFFIX}").unlink(missing_ok=True)

    def _write(self, state: State) -> State:
        created = {digest: at for digest, at in state.created.items() if digest in state.named}
        state = state.model_copy(update={"created": created})
        write_atomic(self.root / _STATE, state.model_dump_json(indent=1).encode())
        return state

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        busy = UnavailableError(f"{self.root}: another refdiff-edge is changing it; try again")
        with hold_lock(self.root / "state.lock", busy, wait_s=_LOCK_S):
            yield


def _left(before: State | None, given: str) -> dict[str, str]:
    """What is unwanted once a person has given another file: also what was in use or waited, as the server may still have
    that published."""
    if before is None:
        return {}
    left = dict.fromkeys(d for d in (before.current, before.waiting) if d is not None)
    unwanted = _newest(before.unwanted | dict.fromkeys(left, ""))
    unwanted.pop(given, None)
    return unwanted


def _newest(unwanted: dict[str, str]) -> dict[str, str]:
    return dict(list(unwanted.items())[-_UNWANTED:])


class ExportInUse(AbstractContextManager["ExportInUse"]):
    """The open export of a device, which another takes the place of between two photos. For one thread."""

    def __init__(
        self, kept: KeptExports, given: Path, opened: Callable[[Path], Device], note: Callable[[str], None]
    ) -> None:
        """opened: opens an export. note: called with what a person should know. Raises what opening `given` raises, and
        UnavailableError where one that is kept cannot be opened just now."""
        self._kept, self._opened, self._note = kept, opened, note
        self._seen: tuple[int, int] | None = None
        self._failed: tuple[int, int] | None = None  # as `_seen`, when the last try did
        self._failures, self._again_at, self._said = 0, 0.0, ""
        with contextlib.ExitStack() as undo:
            checked: dict[str, Device] = {}

            def check(digest: str) -> None:
                checked[digest] = undo.push(self._open(given, digest))

            state = kept.begin(given, check)
            self._device = checked.get(state.current) or self._first(state)
            undo.pop_all()
        if self._device.digest != state.current:
            note(f"deciding by export {self._device.digest[:12]}")
            kept.fall_back(self._device.digest)

    def __exit__(self, *error: object) -> None:
        self._device.__exit__(*error)

    def device(self) -> Device:
        """What decides the next photo. Opens what waits, or what a rollback asks for; keeps what is open where that
        fails."""
        changed = self._kept.changed()
        waits = changed == self._failed and time.monotonic() < self._again_at
        if changed is not None and changed != self._seen and not waits:
            try:
                self._follow()
                self._seen, self._said, self._failures = changed, "", 0
            except UnavailableError as e:  # of the machine, or another process: tried again
                self._failures += 1
                self._failed = self._kept.changed()
                self._again_at = time.monotonic() + _BACKOFF.wait_s(self._failures)
                if str(e) != self._said:
                    self._note(f"{e}; still deciding by export {self._device.digest[:12]}")
                self._said = str(e)
        return self._device

    def _first(self, state: State) -> Device:
        """What to decide by at the start. Only an export that is wrong is passed over: what fails otherwise may pass."""
        found = list(dict.fromkeys(d for d in (state.current, state.previous, state.given) if d is not None))
        for digest in found[:-1]:
            try:
                return self._open(self._kept.path(digest), digest)
            except InputError as e:
                self._note(f"{e}; trying the export before it")
        return self._open(self._kept.path(found[-1]), found[-1])

    def _open(self, path: Path, digest: str) -> Device:
        """Raises as `Device.open`, and UnavailableError for all that the machine lacks just now."""
        try:
            device = self._opened(path)
        except Exception as e:
            if (lacking := outage(e)) is None:
                raise
            raise lacking from e
        if device.digest != digest:
            device.__exit__()
            raise DamagedError(f"{path}: is not the export that it was")
        return device

    def _follow(self) -> None:
        state = self._kept.state()
        if state is not None and state.waiting == self._device.digest:  # its opening could not be written down
            self._kept.adopt(self._device.digest)
            return
        try:
            digest = self._kept.trying()
        except InputError as e:
            self._note(f"{e}; still deciding by {self._device.digest[:12]}")
            digest = None
        if digest is not None:
            self._take(digest)
        elif (state := self._kept.state()) is not None and state.current != self._device.digest:
            self._swap(state.current, tried=False)

    def _take(self, digest: str) -> None:
        """Use what waits, or refuse it. Raises UnavailableError, after which it still waits."""
        try:
            taken = self._swap(digest, tried=True)
        except UnavailableError:
            with contextlib.suppress(UnavailableError):
                self._kept.give_back(digest)
            raise
        if taken:
            self._kept.adopt(digest)
        else:
            self._kept.refuse(digest)

    def _swap(self, digest: str, *, tried: bool) -> bool:
        """tried: whether it has to inspect a golden sample first. False: the export cannot be used. Raises UnavailableError
        where that is not its fault."""
        path = self._kept.path(digest)
        try:
            device = self._open(path, digest)
            try:
                if device.manifest.product != self._device.manifest.product:
                    raise InputError(f"{path}: is of product {device.manifest.product!r}")
                if tried:
                    device.try_out()
            except BaseException:
                device.__exit__()
                raise
        except Exception as e:  # whatever it is, the line does not stop
            if (lacking := outage(e)) is not None:
                raise lacking from e
            why = str(e) if isinstance(e, RefDiffError) else f"{type(e).__name__}: {e}"
            self._note(f"export {digest[:12]} cannot be used ({why}); still deciding by {self._device.digest[:12]}")
            return False
        before, self._device = self._device, device
        before.__exit__()
        said = f"deciding by export {digest[:12]} of {device.manifest.created_at} from now on"
        self._note(f"{said}, no longer by {before.digest[:12]}")
        return True
