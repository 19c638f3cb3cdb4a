"""What the command line writes: results (or one JSON document) on stdout, everything else on stderr.

When the reader goes away (`refdiff goldens list | head -1`), only the output ends: a filed verdict keeps its exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from refdiff.server.cli.invocation import current

if TYPE_CHECKING:
    from refdiff.agent.events import AgentEvent
    from refdiff.agent.report.schema import DefectReport
    from refdiff.model.progress import Progress as WorkProgress

VERDICT_STYLE = {"PASS": "bold green", "FAIL": "bold red", "REVIEW": "bold yellow"}
_PIPED_WIDTH = 140  # columns where no terminal says how wide it is


class _Console(Console):
    def __init__(self, *, stderr: bool) -> None:
        stream = sys.stderr if stderr else sys.stdout
        known = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
        # file names, part ids and texts are shown verbatim: no markup, emoji codes or guessed colours
        super().__init__(
            stderr=stderr, width=None if known else _PIPED_WIDTH, markup=False, highlight=False, emoji=False
        )

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr if self.stderr else sys.stdout)


out = _Console(stderr=False)
err = _Console(stderr=True)


def emit(document: Any, *view: RenderableType) -> None:
    """Write the result of a command: `document` (JSON data) with --json, otherwise `view`, for people."""
    invocation = current()
    invocation.emitted = True
    if not invocation.as_json:
        for part in view:
            out.print(part, soft_wrap=isinstance(part, str | Text))  # a path must stay in one piece
        return
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)


def prepare_streams(as_json: bool) -> None:
    """Write JSON as UTF-8, and escape what the encoding cannot express (file names)."""
    for stream, encoding in ((sys.stdout, "utf-8" if as_json else None), (sys.stderr, None)):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding=encoding, errors="backslashreplace")


def flush() -> None:
    """Flush both streams; a broken pipe is not an error here either."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except BrokenPipeError:
                _discard(stream)


def _discard(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def say(text: str, style: str = "") -> None:
    """Write a line for people to stderr."""
    err.print(Text(printable(text), style=style), soft_wrap=True)


def note(text: str) -> None:
    say(f"note: {text}", "yellow")


def fit_hint(product: str) -> str:
    """What to run where a network should be fitted to a product."""
    return (
        f"`refdiff fit --product {shlex.quote(product)}` trains the network on this product, to let fewer defects pass; it "
        "takes minutes"
    )


def printable(value: object) -> str:
    """Text without control characters (file names can hold escape sequences); newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(value))


@contextlib.contextmanager
def progress(title: str) -> Iterator[WorkProgress]:
    """Show a progress bar if stderr is a terminal; yields what the work reports its stages to."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    bar = Progress(*columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal)
    with bar:
        task = bar.add_task(title, total=None)

        def report(what: str, done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total or None, description=f"{title}: {what} {note}".rstrip())

        yield report


@contextlib.contextmanager
def watching(title: str) -> Iterator[Callable[[AgentEvent], None]]:
    """Show on stderr what the agent is doing; yields the function that takes its events."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
    bar = Progress(*columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal)
    with bar:
        task = bar.add_task(title, total=None)

        def show(event: AgentEvent) -> None:
            bar.update(task, description=f"{title}: {printable(event.message)}", completed=event.done,
                       total=event.total or None)  # fmt: skip

        yield show


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def facts(rows: list[tuple[str, object]]) -> Table:
    """A borderless table of names and values; rows whose value is None are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            grid.add_row(name, value if isinstance(value, Text) else printable(value))
    return grid


def verdict_text(verdict: str) -> Text:
    return Text(str(verdict), style=VERDICT_STYLE.get(str(verdict), ""))


def report_view(report: DefectReport) -> RenderableType:
    """A filed report on one screen: verdict, reason, facts and findings."""
    from refdiff.agent.report import summary

    rows: list[tuple[str, object]] = [
        ("Verdict", verdict_text(report.verdict)),
        ("Reason", report.verdict_reason),
        ("Part", f"{report.part_id}, product {report.product}"),
        *((fact.label, fact.text) for fact in summary.facts(report)),
    ]
    if not report.findings:
        return Group(facts(rows), Text(summary.NO_FINDINGS))
    found = table("#", "Finding", "Place", "Size", "Severity", "Confidence", right=("Confidence",))
    for f in report.findings:
        within = " (within limits)" if f.within_limits else ""
        named = f" ({summary.named_text(f.named)})" if f.named else ""
        measured = f", {f.quantities[0].said}" if f.quantities else ""
        seen = f", confirmed on {summary.seen_before_text(f.seen_before)}" if f.seen_before else ""
        found.add_row(
            f.id, printable(summary.called(f) + measured + named) + within + seen, f.location.region, summary.size(f),
            str(f.severity), summary.percent(f.confidence),
        )  # fmt: skip
    return Group(facts(rows), found)


def files_view(report: DefectReport) -> Text:
    """Where the files of a report are, one absolute path a line."""
    paths = report.artefacts.model_dump(exclude_none=True)
    lines = [f"{name.replace('_', ' '):<13} {path}" for name, path in paths.items()]
    return Text("\n".join([f"inspection    {report.inspection_id}", *lines]))
