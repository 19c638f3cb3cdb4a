"""`refdiff worker`: inspects what servers and batches put on the queue."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Annotated

import typer

from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, settings
from refdiff.server.cli.options import AlphaRate, Json, References
from refdiff.server.cli.output import emit
from refdiff.server.signals import HUNG, end_if_hung, ending_if_hung, stopping
from refdiff.server.sockets import listen

_LOOK_S = 0.2
_FIRST_S, _LONGEST_S = 1.0, 60.0  # between a crash and the next start, doubled each time
_END_S = 20.0  # for the end of a worker in which something hangs, besides `drain_s`
_STEADY_S = 300.0  # a worker that ran so long begins with the short wait again


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff worker --workers 4")(worker)


def worker(
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Processes, each inspects by itself.")] = 1,
    drain_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds that a running inspection has to end after SIGTERM.")
    ] = 25.0,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Answer /healthz, /readyz and /metrics on this port; 0 picks a free one."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address for --port; what it answers needs no key.")] = "127.0.0.1",
    references: References = None,
    alpha: AlphaRate = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
    _json: Json = False,
) -> None:
    """Take inspections from the queue and file them, until Ctrl-C or SIGTERM.

    Any number of workers share one queue, on one machine or, with REFDIFF_DATABASE_URL (Postgres) and a shared
    REFDIFF_HOME, on several; `refdiff serve --no-inspections` accepts what they inspect. What a worker that died had begun
    is taken over by another one after REFDIFF_LEASE_S seconds, and filed exactly once. So is what hangs, taking no step for
    REFDIFF_HANG_S seconds; its worker ends with exit code 75, and wants to be started again.

    With --port, process managers and Prometheus can ask how it does. With --workers N, a process that crashes or hangs is
    started again. The first signal lets running inspections end; what has not ended then goes back to the queue.
    """
    current().runs_long = True
    chosen = settings(references=references, alpha=alpha)
    if workers > 1:
        if port is not None:
            raise typer.BadParameter(
                "each process needs a port of its own: start them one by one.", param_hint="--port"
            )
        _supervise(workers, drain_s)
        return
    done = threading.Event()
    if supervised:
        threading.Thread(target=_until_orphaned, args=(done,), daemon=True).start()
    with contextlib.ExitStack() as opened:
        listener = None if port is None else opened.enter_context(contextlib.closing(listen(host, port)))
        from refdiff.agent.service import InspectionService  # takes a while to import
        from refdiff.server.telemetry import exporting

        interrupted = opened.enter_context(stopping(done.set))
        opened.enter_context(exporting("refdiff-worker"))
        service = InspectionService.open(chosen.memory, chosen.model, chosen.tools, chosen.agent, role="worker")
        opened.enter_context(ending_if_hung(lambda: service.hung, drain_s + _END_S))
        document, probed = {"worker": service.worker, "home": str(chosen.memory.home)}, ""
        try:
            if listener is not None:
                from refdiff.server.web.probes import probes

                document["address"] = opened.enter_context(probes(service, host, listener))  # also while it drains
                probed = f" (health: {document['address']}/healthz)"
            service.fit_by_itself()
            emit(document, f"worker {service.worker} takes inspections{probed}; Ctrl-C stops")
            while not done.wait(1.0) and (service.alive or service.hung):
                pass
        finally:
            service.close(drain_s)
    end_if_hung(service.hung)
    if not done.is_set():
        raise RuntimeError("the inspecting thread has died; the log says why")
    if interrupted():
        raise KeyboardInterrupt


def start_worker(drain_s: float = 25.0, threads: int | None = None) -> subprocess.Popen[bytes]:
    """A worker in a process of its own, which ends once its stdin is closed, or this process ends."""
    command = [sys.executable, "-c", "from refdiff.server.cli.main import main; main()"]
    if (file := current().env_file) is not None:
        command += ["--env-file", str(file)]
    options = current().options
    command += ["worker", "--supervised", "--drain-s", str(drain_s), "--json"]
    for name in ("references", "alpha"):
        if options.get(name) is not None:
            command += [f"--{name}", str(options[name])]
    environment = dict(os.environ)
    if threads is not None:
        environment.setdefault("REFDIFF_THREADS", str(threads))
    # a session of its own: Ctrl-C reaches this process alone, which then lets the worker end its inspection
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def end_worker(process: subprocess.Popen[bytes]) -> int:
    """Let it end its inspection; its exit code."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    return process.wait()


@dataclass
class _Place:
    """Where one worker runs after the other."""

    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    pause_s: float = _FIRST_S
    start_at: float = 0.0


def _supervise(count: int, drain_s: float) -> None:
    """Run workers, and start those anew that a signal ended, or that hung. One that ends with an error ends all, with its
    exit code."""
    places, done, code = [_Place() for _ in range(count)], threading.Event(), 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with stopping(done.set) as interrupted:
        try:
            output.say(f"{count} workers take inspections; Ctrl-C stops")
            while not done.is_set() and not code:
                for place in places:
                    code = code or _look_after(place, drain_s, max(1, cores // count))
                done.wait(_LOOK_S)
        finally:
            running = [p.process for p in places if p.process is not None]
            for process in running:
                if process.stdin is not None:
                    process.stdin.close()
            for process in running:
                process.wait()
    if code:
        raise typer.Exit(code)
    if interrupted():
        raise KeyboardInterrupt


def _look_after(place: _Place, drain_s: float, threads: int) -> int:
    """Start the worker of a place when it is time; the exit code of one that ended with an error, else 0."""
    now = time.monotonic()
    if place.process is None:
        if now >= place.start_at:
            place.process, place.began = start_worker(drain_s, threads), now
        return 0
    if (code := place.process.poll()) is None:
        return 0
    place.process = None
    if code > 0 and code != HUNG:
        return code
    place.pause_s = _FIRST_S if now - place.began > _STEADY_S else min(2 * place.pause_s, _LONGEST_S)
    place.start_at = now + place.pause_s
    ended = "hung" if code == HUNG else f"was ended by signal {-code}"
    output.note(f"a worker {ended}; the next one starts in {place.pause_s:g} s")
    return 0


def _until_orphaned(done: threading.Event) -> None:
    sys.stdin.buffer.read()
    done.set()
