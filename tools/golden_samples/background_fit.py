"""Fits networks to products in the background of a server, one product at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BusyError, RefDiffError
from refdiff.tools.golden_samples.fit import check_parts, fit_product
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.workspace import Workspace

FitState = Literal["running", "kept", "not kept", "stopped", "failed"]

_STOP_S = 10.0

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
    message: str = ""  # why it failed
    started_at: str = field(default_factory=utc_now)


class _Stopped(Exception):
    pass


class Fittings:
    """Threads may share it."""

    def __init__(self, workspace: Workspace, beside: Callable[[], AbstractContextManager[None]]) -> None:
        """beside: held meanwhile, so that a crash is not blamed on the inspection that runs."""
        self._workspace, self._beside = workspace, beside
        self._latest: dict[str, Fitting] = {}
        self._thread: threading.Thread | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()

    def start(self, product: str, by: str) -> Fitting:
        """Begin, and return at once. Raises InputError with too few golden samples, BusyError while one runs."""
        check_parts(self._workspace, product)
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                running = next((f.product for f in self._latest.values() if f.state == "running"), product)
                raise BusyError(f"a network is being fitted to product {running!r}; try again when it is done", 60.0)
            self._latest[product] = begun = Fitting(product, by)
            self._thread = threading.Thread(target=self._run, args=(begun,), name="fit", daemon=True)
            self._thread.start()
        return begun

    def of(self, product: str) -> Fitting | None:
        """The latest of a product since the server started."""
        return self._latest.get(product)

    def stop(self) -> None:
        """Let what runs end soon; the next one goes on with the half that was not finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self, fitting: Fitting) -> None:
        def moved(what: str, done: int, total: int, note: str = "") -> None:
            if self._stop.is_set():
                raise _Stopped
            self._latest[fitting.product] = replace(fitting, stage=what, done=done, total=total)

        state: FitState
        message = ""
        try:
            with self._beside():
                kept = fit_product(self._workspace, fitting.product, fitting.by, progress=moved).kept
                state = "kept" if kept else "not kept"
                if kept:
                    calibrate(self._workspace, fitting.product, progress=moved, by=fitting.by)
        except _Stopped:
            state = "stopped"
        except RefDiffError as e:
            state, message = "failed", str(e)
        except Exception as e:
            log.exception("fitting a network to product %s failed", fitting.product)
            state, message = "failed", f"{type(e).__name__}; the server's log has more"
        self._latest[fitting.product] = replace(fitting, state=state, message=message)
