"""`refdiff inspect-batch` and `refdiff batch`: thousands of parts on the queue, their progress, and a way to stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refdiff.model.errors import UnavailableError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_stores, settings
from refdiff.server.cli.options import Json, MaybeProduct, clean, minute
from refdiff.server.cli.output import emit
from refdiff.server.signals import HUNG, stopping

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.journals.batches import Batch
    from refdiff.memory.stores import Stores

batch = typer.Typer(help="List batches, show one, or stop one.", no_args_is_help=True)
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Batch id, like batch-20260131-141500-5f3a9c.")]

_LOOK_S = 0.5
_BACK_S = 120.0  # for a worker to be started again and to load what it needs
_SHOWN = 20  # left out and failed parts that are named on the screen; --json names all


def register(app: typer.Typer) -> None:
    app.command(
        "inspect-batch",
        epilog="Examples: refdiff inspect-batch photos/ --product bracket · refdiff inspect-batch parts.csv",
    )(inspect_batch)
    app.add_typer(batch, name="batch")


def inspect_batch(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER",
            help="A folder of photos named by part, or a CSV file with the columns part, image, product, scale_mm_per_px "
            "(part alone is required; without an image, the part's newest photo is inspected).",
        ),
    ],
    product: MaybeProduct = None,
    judge: Annotated[
        Literal["always", "on-anomaly", "never"], typer.Option(help="Role of the language model, as in `watch`.")
    ] = "on-anomaly",
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Inspect one part after the other, also with several workers.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the progress until all is inspected, and the summary.")
    ] = True,
    _json: Json = False,
) -> None:
    """Put many parts on the queue of the running server and its workers, and wait for them.

    Parts that people ask for meanwhile go first. What cannot be inspected is left out, counted and named.
    If neither a server nor a worker runs, this command starts a worker of its own for as long as it waits. If those that ran
    end meanwhile, it waits two minutes for them to be started again.

    Ctrl-C while parts are being accepted stops the batch. Later it ends the waiting alone; to stop the batch then:
    refdiff batch stop BATCH.
    Exit code 0, whatever the verdicts; 65 if no part could be accepted; 69 if nobody inspects any more, 75 if that is
    because something hung in the last worker. The batch then resumes with the next worker.
    """
    chosen = settings()
    from refdiff.agent.work.batches import fill, parts_of
    from refdiff.model.errors import InputError
    from refdiff.tools.kinds.depth import states_colour
    from refdiff.tools.kinds.readers import reader_of
    from refdiff.tools.workspace import Workspace

    ended, stopped = threading.Event(), False
    with stopping(ended.set) as interrupted:
        with (
            Workspace.open(chosen.memory, chosen.model, chosen.tools, shared=True) as workspace,
            output.progress("accepting") as show,
        ):

            def moved(batch_id: str, done: int) -> None:
                nonlocal stopped
                show("accepting parts", done, 0)
                if ended.is_set() and not stopped:
                    stopped = True
                    workspace.stores.batches.stop(batch_id, chosen.server.user)

            more = reader_of(workspace.kind(product)).suffixes if product else ()
            in_colour = bool(product) and states_colour(workspace.how(str(product)))
            found = fill(
                workspace, clean(str(source)), parts_of(source, product, more, in_colour), by=chosen.server.user,
                judge=judge, in_order=in_order, moved=moved,
            )  # fmt: skip
        with open_stores() as stores:
            if not found.accepted:
                _emit(stores, found)
                raise InputError(f"{found.batch_id}: no part could be accepted; see what was left out")
            output.say(f"{found.batch_id}: {found.accepted} parts accepted, {found.left_out_count} left out")
            if wait:
                with _somebody_inspects(stores) as check:
                    found = _watch(stores, found, ended, check)
            elif not stores.jobs.workers():
                output.note("nobody inspects at this moment; start one: refdiff worker (or refdiff serve)")
            _emit(stores, found)
    if interrupted():
        if not stopped:
            current().goes_on = (
                "parts that wait are inspected by `refdiff worker` or `refdiff serve`; to cancel them: "
                f"refdiff batch stop {found.batch_id}"
            )
        raise KeyboardInterrupt


class HungError(UnavailableError):
    """The process that inspected ended, as something hung in it, and was not started again."""

    exit_code = HUNG


@contextlib.contextmanager
def _somebody_inspects(stores: Stores) -> Iterator[Callable[[], None]]:
    """A worker of our own meanwhile, unless another process takes inspections. Yields what raises UnavailableError once
    nobody does."""
    if stores.jobs.workers():
        gone_at: float | None = None

        def others() -> None:
            nonlocal gone_at
            if stores.jobs.workers():
                gone_at = None
                return
            hung = stores.jobs.hung()
            why = f": {hung}, which ended the last worker" if hung else ""
            if gone_at is None:
                gone_at = time.monotonic()
                output.note(f"nobody inspects at this moment{why}; waiting for a worker to be started again")
            elif time.monotonic() - gone_at > _BACK_S:
                error = HungError if hung else UnavailableError
                raise error(f"nobody inspects any more{why}; the batch waits for `refdiff worker` or `refdiff serve`")

        yield others
        return
    from refdiff.server.cli.worker import end_worker, start_worker

    process = start_worker()

    def check() -> None:
        nonlocal process
        if process.poll() == HUNG:
            process = start_worker()
        if process.poll() is not None and not stores.jobs.workers():
            raise UnavailableError(
                "the worker has ended, see above; the batch waits for `refdiff worker` or `refdiff serve`"
            )

    try:
        yield check
    finally:
        end_worker(process)


def _watch(stores: Stores, found: Batch, ended: threading.Event, check: Callable[[], None]) -> Batch:
    with output.progress(found.batch_id) as show:
        while not found.over and not ended.wait(_LOOK_S):
            check()
            found = stores.batches.get(found.batch_id)
            show("inspecting", found.accepted - found.waiting - found.running, found.accepted)
    return found


@batch.command("list", epilog="Example: refdiff batch list")
def list_batches(_json: Json = False) -> None:
    """List the newest batches and how far they are."""
    with open_stores() as stores:
        found = stores.batches.list()
    shown = output.table("Batch", "From", "Begun", "Accepted", "Left out", "Waiting", "Done", "Failed", "Stopped")
    shown.columns[0].no_wrap = True  # an id is there to be copied
    for b in found:
        shown.add_row(
            b.batch_id, output.printable(b.source), minute(b.created_at), str(b.accepted), str(b.left_out_count),
            str(b.waiting + b.running), str(b.done), str(b.failed), minute(b.stopped_at),
        )  # fmt: skip
    emit({"batches": [asdict(b) for b in found]}, shown if found else "no batches; begin one: refdiff inspect-batch")


@batch.command("show", epilog="Example: refdiff batch show batch-20260131-141500-5f3a9c")
def show_batch(batch_id: BatchId, _json: Json = False) -> None:
    """Show how far a batch is: verdicts, failures, and what was left out."""
    with open_stores() as stores:
        _emit(stores, stores.batches.get(clean(batch_id)))


@batch.command("stop", epilog="Example: refdiff batch stop batch-20260131-141500-5f3a9c")
def stop_batch(batch_id: BatchId, _json: Json = False) -> None:
    """Cancel what waits of a batch. What runs at this moment is filed."""
    with open_stores() as stores:
        _emit(stores, stores.batches.stop(clean(batch_id), settings().server.user))


def _emit(stores: Stores, found: Batch) -> None:
    failures = stores.batches.failures(found.batch_id)
    document: dict[str, Any] = asdict(found) | {"over": found.over, "failures": failures}
    rows: list[tuple[str, object]] = [
        ("batch", found.batch_id),
        ("from", output.printable(found.source)),
        ("accepted", f"{found.accepted}{'' if found.complete else ' (being filled, or cut off)'}"),
        ("left out", found.left_out_count),
        ("waiting", found.waiting),
        ("running", found.running),
        ("filed", ", ".join(f"{n} {verdict}" for verdict, n in sorted(found.verdicts.items())) or 0),
        ("failed", found.failed),
        ("cancelled", found.cancelled),
    ]  # fmt: skip
    if found.stopped_at:
        rows.append(("stopped", f"{minute(found.stopped_at)} by {found.stopped_by}"))
    lines = [f"left out: {one.name}: {one.reason}" for one in found.left_out[:_SHOWN]]
    lines += [f"failed: {one}: {reason}" for one, reason in list(failures.items())[:_SHOWN]]
    if max(found.left_out_count, len(failures)) > _SHOWN:
        lines.append(f"more: refdiff batch show {found.batch_id} --json")
    emit(document, output.facts(rows), *map(output.printable, lines))
