"""The watched folder of a device: photos inspected one after the other, each exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from refdiff.agent.device.device import Device, read_photo
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.rows.captures import normalise_part_id
from refdiff.memory.rows.watched import FileIdentity
from refdiff.model.errors import InputError, UnavailableError
from refdiff.server.device.delivery import Delivery
from refdiff.server.device.spool import Spool
from refdiff.server.watch.folder import WatchedFolder

POLL_S = 0.25
BACKOFF = Backoff(first_s=0.5, longest_s=30.0)  # before retries where the disk is full


@dataclass
class DeviceState:
    """Progress since the start."""

    verdicts: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0


class DeviceWatcher:
    """Use `run` in one thread."""

    def __init__(
        self,
        folder: WatchedFolder,
        device: Device,
        spool: Spool,
        *,
        delivery: Delivery | None = None,
        scale_mm_per_px: float | None = None,
        requested_by: str = "device",
        note: Callable[[str], None],
    ) -> None:
        """note: called with what a person should know."""
        self._folder, self._device, self._spool, self._delivery = folder, device, spool, delivery
        self._scale, self._by, self._note = scale_mm_per_px, requested_by, note
        self._stop = threading.Event()
        self.state = DeviceState()

    def stop(self) -> None:
        """Stop after the photo in progress."""
        self._stop.set()

    def run(self, *, once: bool = False) -> DeviceState:
        """Inspect until stopped, or (once) until the folder holds no photo any more."""
        for entry in self._spool.unfinished():  # of a process that was killed
            self._folder.finish(entry.identity)
            self._spool.finish(entry)
        failures = 0
        while not self._stop.is_set():
            ready = self._folder.complete()
            try:
                done = [self._one(identity) for identity in ready if not self._stop.is_set()]
            except UnavailableError as e:
                failures += 1
                self._note(f"{e}; the photo stays where it is, and is tried again")
                self._stop.wait(BACKOFF.wait_s(failures))
                continue
            failures = 0
            if once and not ready and not self._folder.unsettled:
                break
            if not any(done):
                self._stop.wait(POLL_S)
        return self.state

    def _one(self, identity: FileIdentity) -> bool:
        """Inspect a photo and move it away; False if it may be complete later."""
        if (entry := self._spool.find(identity)) is None:
            if not self._folder.is_there(identity):
                return False
            try:
                data = read_photo(self._folder.path(identity))
                part_id = normalise_part_id(Path(identity.name).stem)
                record = self._device.record(
                    data, part_id, scale_mm_per_px=self._scale, filename=identity.name, requested_by=self._by
                )
            except InputError as e:
                if not self._folder.is_there(identity) or self._folder.may_still_grow(identity):
                    return False
                self._folder.quarantine(identity, str(e))
                self.state.quarantined += 1
                self._note(f"{identity.name} was moved to quarantine: {e}")
                return True
            if not self._folder.is_there(identity):  # overwritten while it was read: another photo
                return False
            entry = self._spool.put(identity, data, record)
        self._folder.finish(identity)
        self._spool.finish(entry)
        self.state.verdicts[entry.verdict] += 1
        if self._delivery:
            self._delivery.wake()
        return True
