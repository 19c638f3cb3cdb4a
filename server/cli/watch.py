"""`refdiff watch`: inspect the photos that a line camera writes to a folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refdiff.model.errors import BankBusyError
from refdiff.model.files import make_folder
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_workspace, settings
from refdiff.server.cli.options import Json, MaybeProduct, ScaleMm, shown_path
from refdiff.server.cli.output import emit
from refdiff.server.settings import ConfigurationError
from refdiff.server.signals import end_if_hung, ending_if_hung, interrupting, stopping

if TYPE_CHECKING:
    from refdiff.server.watch.watcher import WatchState
    from refdiff.tools.workspace import Workspace

_SHOWN_EVERY_S = 30.0  # without a terminal
_DRAIN_S = 10.0
_END_S = 10.0  # that other inspections have to end, if one hangs


Judge = Literal["always", "on-anomaly", "never"]  # of agent/request.py, which loads in seconds


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: refdiff watch /data/camera1 --product bracket --lines results.jsonl · "
        r"refdiff watch /data/camera1 --pattern '(?P<product>\[a-z]+)_(?P<part>\d+)' --judge never"
    )(watch)


def watch(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that the camera writes to.")],
    product: MaybeProduct = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="REGEX",
            help="Regular expression for the file name without suffix, with a group `part` and optionally `product`.",
        ),
    ] = "(?P<part>.+)",
    judge: Annotated[
        Judge,
        typer.Option(
            help="What the language model does: drive every inspection, read only what is not PASS, or nothing."
        ),
    ] = "on-anomaly",
    scale_mm_per_px: ScaleMm = None,
    lines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append one JSON line per photo, in order.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="POST each result, signed with REFDIFF_WEBHOOK_SECRET; repeated until accepted (HTTP 400, 410, 413 and "
            "422 are final).",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=64, help="Parallel inspections; default: one per core.")
    ] = None,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Delete inspected photos (reports keep a copy) instead of moving them to DIR/done."
        ),
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Watch sub-folders too, such as one folder per day.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Stop when the folder is empty.")] = False,
    _json: Json = False,
) -> None:
    """Inspect each photo that appears in a folder, in order, exactly once.

    A photo stays in DIR until its report is filed, then moves to DIR/done.
    What cannot be inspected moves to DIR/quarantine, next to a file with the reason.
    Files that are no images, links and sub-folders (without --recursive) are left alone and counted.
    A file is picked up once it has not changed for 0.5 s; to be safe, write it as *.tmp and rename it.
    It is safe to kill at any time: the next run resumes where this one stopped.
    Servers, workers and watches of other folders may share the home.

    Ctrl-C or SIGTERM stops after the photos in progress. Exit code 0, whatever the verdicts; 130 if it was stopped while it
    started; 75 if an inspection, or the folder, took no step for REFDIFF_HANG_S seconds: start it again. A photo whose
    inspection was interrupted five times is refused.
    """
    current().runs_long = True
    chosen, count = settings(), workers or _cores()
    given = chosen.server.webhook_secret
    secret = given.get_secret_value() if given else ""
    if webhook and not secret:
        raise ConfigurationError(
            "--webhook needs REFDIFF_WEBHOOK_SECRET, the secret that signs messages (openssl rand -base64 32)"
        )
    # each worker has its own core; more torch threads would only wait for each other
    threads = chosen.model.threads or max(1, _cores() // count)
    import cv2

    cv2.setNumThreads(1)
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.work.watch import Watch
    from refdiff.memory.journals.watch import WatchJournal
    from refdiff.memory.locks import hold_lock
    from refdiff.server.telemetry import exporting
    from refdiff.server.watch.folder import WatchedFolder
    from refdiff.server.watch.jsonl import JsonLinesFile
    from refdiff.server.watch.names import NamePattern
    from refdiff.server.watch.watcher import FolderWatcher, WatchOptions, step
    from refdiff.server.watch.webhook import Webhook
    from refdiff.tools.kinds.readers import reader_of

    options = WatchOptions(NamePattern.parse(pattern, product), scale_mm_per_px, judge, count, chosen.server.user)
    hangs = Watch(chosen.agent.longest_step_s)
    try:
        with ExitStack() as stack:
            stack.enter_context(interrupting())  # until there is a line to stop
            stack.enter_context(exporting("refdiff-watch"))
            stack.enter_context(ending_if_hung(lambda: hangs.hung, _END_S))
            stack.enter_context(hangs)
            with hangs.over(f"the opening of {directory}"):  # a share may not answer
                folder = WatchedFolder(directory, keep=not delete, recursive=recursive)
            busy = BankBusyError(f"{folder.root} is already watched by another process; stop that one first")
            stack.enter_context(hold_lock(_journal_base(folder.root).with_suffix(".lock"), busy))
            journal = stack.enter_context(WatchJournal(_journal_path(folder.root)))
            with hangs.over(f"the opening of {lines}"):
                file = stack.enter_context(JsonLinesFile(lines)) if lines else None
            workspace = stack.enter_context(open_workspace(shared=True, threads=threads))
            if options.pattern.product is not None:
                folder.tried = reader_of(workspace.kind(options.pattern.product)).suffixes
            inspector = stack.enter_context(Inspector(workspace, chosen.agent, step, unattended=True))
            sender = stack.enter_context(Webhook(journal, webhook, secret, output.note)) if webhook else None
            _warm_up(workspace, options.pattern.product)
            show = stack.enter_context(_progress())
            line = FolderWatcher(
                folder,
                journal,
                inspector,
                options,
                lines=file,
                webhook=sender,
                note=output.note,
                show=show,
                watch=hangs,
            )
            with stopping(line.stop) as interrupted:
                output.say(f"watching {shown_path(folder.root)}, {count} at a time; Ctrl-C stops")
                state = line.run(once=once)
                end_if_hung(hangs.hung)
            if sender:
                sender.drain(_DRAIN_S)
            document = _summary(folder.root, state, journal)
    finally:  # also after an error, and after what ended the opening
        end_if_hung(hangs.hung)
    emit(document, _line_of(state))
    if interrupted():
        raise KeyboardInterrupt


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _journal_base(root: Path) -> Path:
    """Where the journal of a folder lies: in the home, since the camera's share may not suit a database."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return make_folder(settings().memory.home / "lines") / name


def _journal_path(root: Path) -> Path:
    return _journal_base(root).with_suffix(".sqlite")


def _warm_up(workspace: Workspace, product: str | None) -> None:
    """Calibrate before the first photo arrives; reports a product without goldens at once."""
    from refdiff.tools.inspection.calibration import current_calibration

    if product is None:
        return
    if not workspace.bank.count(product):
        raise workspace.bank.no_goldens(product)
    with output.progress(product) as moved:
        current_calibration(workspace, product, None, moved)


@contextmanager
def _progress() -> Iterator[Callable[[WatchState], None]]:
    """Show progress: one line on a terminal, otherwise a new line every half minute."""
    if output.err.is_terminal:
        with output.err.status("waiting for photos") as status:
            yield lambda state: status.update(_line_of(state))
        return
    shown_at = [time.monotonic()]

    def tell(state: WatchState) -> None:
        if time.monotonic() - shown_at[0] >= _SHOWN_EVERY_S:
            shown_at[0] = time.monotonic()
            output.say(_line_of(state))

    yield tell


def _line_of(state: WatchState) -> str:
    counts = ", ".join(f"{state.verdicts[v]} {v}" for v in ("PASS", "FAIL", "REVIEW"))
    rate = "" if state.per_second is None else f", {state.per_second:.2f} per second"
    alone = ", ".join(f"{len(names)} {kind}" for kind, names in sorted(state.left_alone.items()))
    return (
        f"{state.filed} filed ({counts}), {state.quarantined - state.taken_back} in quarantine, {state.waiting} waiting"
        + (f", left alone: {alone}" if alone else "")
        + rate
    )


def _summary(root: Path, state: WatchState, journal: Any) -> dict[str, Any]:
    return {
        "folder": shown_path(root),
        "filed": state.filed,
        "verdicts": {v: state.verdicts[v] for v in ("PASS", "FAIL", "REVIEW")},
        "quarantined": state.quarantined,
        "taken_back": state.taken_back,
        "left_alone": {kind: len(names) for kind, names in sorted(state.left_alone.items())},
        "waiting": state.waiting,
        "seconds": round(time.monotonic() - state.started, 3),
        "photos_per_second": state.per_second and round(state.per_second, 3),
        "webhook": {"pending": 0, "sent": 0, "refused": 0} | journal.count_messages(),
    }
