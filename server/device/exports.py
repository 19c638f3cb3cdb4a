"""Which export a device decides by: the file that it was started with, or a newer one that came from the server.

    exports/state.json      which one is in use, which one before, which one waits, which ones are not wanted
    exports/DIGEST.refdiff  one that came down; DIGEST is the sha256 of its manifest

Every step is one replacement of `state.json`, and a file is there before it is named in it, so a crash between any two steps
leaves the export before or the one after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refdiff.agent.device.device import Device
from refdiff.memory.locks import hold_lock
from refdiff.model.errors import InputError, RefDiffError, UnavailableError
from refdiff.model.files import make_folder, remove_leftovers, storage_error, write_atomic
from refdiff.model.settings import software_version
from refdiff.tools.exported.archive import SUFFIX, Export

FOLDER = "exports"
_STATE = "state.json"
_TRIES = 2  # of opening one: a process that dies twice while it does will again
_LOCK_S = 10.0
_UNWANTED = 32  # that are remembered


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


class KeptExports:
    """The exports below one folder. Threads and processes may share it; one process calls `begin`."""

    def __init__(self, root: Path) -> None:
        """root: the folder that the device keeps for itself. Raises StorageError."""
        self.root = root / FOLDER

    def begin(self, given: Path) -> State:
        """What to decide by now. Another file than before as `given` is what counts: nothing that came before it does.

        Raises InputError, DamagedError where the file cannot be opened.
        """
        make_folder(self.root)
        self._given = given
        with Export(given, parts=False) as export:
            digest = export.digest
        with self._changing():
            remove_leftovers(self.root)
            state = self.state()
            if state is None or state.given != digest:
                state = self._write(State(given=digest, current=digest))
            named = {state.current, state.previous, state.waiting}
            for path in self.root.glob(f"*{SUFFIX}"):
                if path.stem not in named:
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

    def offer(self, digest: str) -> None:
        """An export came down and lies at `path`: it waits to be used."""
        with self._changing():
            state = self._known()
            self._write(state.model_copy(update={"waiting": digest, "tries": 0}))

    def trying(self) -> str | None:
        """The export that waits, whose opening counts as tried from now on; None if there is none, or it was tried too
        often: it is unwanted then."""
        with self._changing():
            state = self._known()
            if state.waiting is None:
                return None
            if state.tries >= _TRIES:
                self._refused(state)
                return None
            self._write(state.model_copy(update={"tries": state.tries + 1}))
            return state.waiting

    def adopt(self, digest: str) -> None:
        """The export that waited is in use."""
        with self._changing():
            state = self._known()
            dropped = state.previous
            after = {"current": digest, "previous": state.current, "waiting": None, "tries": 0}
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
        write_atomic(self.root / _STATE, state.model_dump_json(indent=1).encode())
        return state

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        busy = UnavailableError(f"{self.root}: another refdiff-edge is changing it; try again")
        with hold_lock(self.root / "state.lock", busy, wait_s=_LOCK_S):
            yield


def _newest(unwanted: dict[str, str]) -> dict[str, str]:
    return dict(list(unwanted.items())[-_UNWANTED:])


class ExportInUse(AbstractContextManager["ExportInUse"]):
    """The open export of a device, which another takes the place of between two photos. For one thread."""

    def __init__(
        self, kept: KeptExports, given: Path, opened: Callable[[Path], Device], note: Callable[[str], None]
    ) -> None:
        """opened: opens an export. note: called with what a person should know. Raises what opening `given` raises."""
        self._kept, self._opened, self._note = kept, opened, note
        self._seen: tuple[int, int] | None = None
        self._said = ""
        state = kept.begin(given)
        found = list(dict.fromkeys(d for d in (state.current, state.previous, state.given) if d is not None))
        for digest in found:
            try:
                self._device = opened(kept.path(digest))
            except RefDiffError as e:
                if digest == found[-1]:
                    raise
                note(f"{e}; trying the export before it")
            else:
                break
        if self._device.digest != state.current:
            note(f"deciding by export {self._device.digest[:12]}")
            kept.fall_back(self._device.digest)

    def __exit__(self, *error: object) -> None:
        self._device.__exit__(*error)

    def device(self) -> Device:
        """What decides the next photo. Opens what waits, or what a rollback asks for; keeps what is open where that
        fails."""
        changed = self._kept.changed()
        if changed is not None and changed != self._seen:
            try:
                self._follow()
                self._seen, self._said = changed, ""
            except UnavailableError as e:  # the disk, or another process: asked again for the next photo
                if str(e) != self._said:
                    self._note(f"{e}; still deciding by export {self._device.digest[:12]}")
                self._said = str(e)
        return self._device

    def _follow(self) -> None:
        if (digest := self._kept.trying()) is not None:
            if self._swap(digest, tried=True):
                self._kept.adopt(digest)
            else:
                self._kept.refuse(digest)
        elif (state := self._kept.state()) is not None and state.current != self._device.digest:
            self._swap(state.current, tried=False)

    def _swap(self, digest: str, *, tried: bool) -> bool:
        """tried: whether it has to inspect a golden sample first."""
        path = self._kept.path(digest)
        try:
            device = self._opened(path)
            try:
                if device.digest != digest or device.manifest.product != self._device.manifest.product:
                    raise InputError(f"{path}: is not the export that it was")
                if tried:
                    device.try_out()
            except BaseException:
                device.__exit__()
                raise
        except Exception as e:  # whatever it is, the line does not stop
            why = str(e) if isinstance(e, RefDiffError) else f"{type(e).__name__}: {e}"
            self._note(f"export {digest[:12]} cannot be used ({why}); still deciding by {self._device.digest[:12]}")
            return False
        before, self._device = self._device, device
        before.__exit__()
        said = f"deciding by export {digest[:12]} of {device.manifest.created_at} from now on"
        self._note(f"{said}, no longer by {before.digest[:12]}")
        return True
