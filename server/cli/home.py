"""`refdiff doctor`, `backup`, `restore` and `move-records`: the home folder as a whole."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import RefDiffError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_stores, open_workspace, settings
from refdiff.server.cli.options import Json, shown_path
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.upkeep.backup import Manifest
    from refdiff.memory.upkeep.doctor import BankContents, Examination, Finding

_UNSOUND = 65
_SHOWN = 5  # names of one finding, for people; --json has all


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: refdiff doctor · refdiff doctor --repair")(doctor)
    app.command(epilog="Examples: refdiff backup /backups/2026-01-31.tar · refdiff backup /backups/today")(backup)
    app.command(
        "move-records", epilog="Example: REFDIFF_DATABASE_URL=postgresql://refdiff@db/refdiff refdiff move-records"
    )(move_records)
    app.command(epilog="Example: REFDIFF_HOME=/data/new refdiff restore /backups/2026-01-31.tar")(restore)


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is safe: leftovers, permissions, damaged checkpoints.")
    ] = False,
    _json: Json = False,
) -> None:
    """Compare the records, files and golden samples of the home folder, and say what is wrong with them.

    Reads every photo. Safe while the server runs; the golden samples are then not checked.
    Nothing that a person made is changed or deleted.

    Exit code: 0 nothing is missing or damaged, 65 something is, or the records could not be read.
    """
    from refdiff.memory.upkeep.doctor import examine

    memory = settings().memory
    home = memory.home
    with output.progress("examining") as moved:
        found = examine(memory, _bank(memory), repair, moved)
    emit(_examined(home, found), *_lines(home, found))
    if not found.sound:
        raise typer.Exit(_UNSOUND)


def _bank(memory: MemorySettings) -> BankContents | str:
    """What the golden bank holds, or in words why that is not known."""
    from refdiff.memory.schema import MAIN
    from refdiff.memory.upkeep.doctor import BankContents

    if memory.database_url is None and not (memory.home / MAIN).exists():
        return "without the main database, the bank is not opened"
    try:
        with open_workspace(bank_wait_s=0.0) as workspace:
            bank = workspace.bank
            return BankContents(
                [*bank.list(), *bank.of_other_encoders()], [f"{d.name}: {d.reason}" for d in bank.damaged()]
            )
    except RefDiffError as e:
        return str(e)


def _examined(home: Path, found: Examination) -> dict[str, Any]:
    rows = [asdict(f) | {"count": len(f.names)} for f in found.findings]
    use = {"bytes": found.bytes, "inspections": found.inspections, "bytes_per_inspection": _each(found)}
    return {"home": shown_path(home), "sound": found.sound, "findings": rows, "use": use}


def _each(found: Examination) -> int | None:
    """Bytes of the files of one inspection, on average."""
    return found.bytes.get("inspections", 0) // found.inspections if found.inspections else None


def _lines(home: Path, found: Examination) -> list[str]:
    size = sum(found.bytes.values())
    largest = sorted(found.bytes.items(), key=lambda item: -item[1])[:4]
    parts = ", ".join(f"{output.printable(name)} {_mb(n)}" for name, n in largest)
    each = _each(found)
    average = "" if each is None else f"; {found.inspections} inspections, {_mb(each)} of files each"
    return [
        *(_finding(f) for f in found.findings),
        f"{shown_path(home)}: {_said(found)}",
        f"{_mb(size)} in use ({parts}){average}",
    ]


def _said(found: Examination) -> str:
    if found.unread:
        return "the records could not be read, so not all was examined"
    return "nothing is missing or damaged" if found.sound else "something is missing or damaged"


def _finding(f: Finding) -> str:
    names = "; ".join(output.printable(n) for n in f.names[:_SHOWN])
    more = f"; and {len(f.names) - _SHOWN} more (--json lists all)" if len(f.names) > _SHOWN else ""
    end = "mended" if f.mended else f.remedy
    return f"{f.kind}: {len(f.names)} {f.what}: {names}{more}\n  {end}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def backup(
    target: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="New tar file (its name ends in .tar), or new folder.")
    ],
    _json: Json = False,
) -> None:
    """Copy the home folder, also while the server runs: databases, golden samples, photos and reports.

    Every file is listed with its sha256. Records in Postgres are in it, as one consistent state. The golden samples of a
    Qdrant server are not: use Qdrant's snapshots.
    """
    from refdiff.memory.schema import open_main
    from refdiff.memory.upkeep.backup import back_up

    memory = settings().memory
    with contextlib.ExitStack() as opened, output.progress("backing up") as moved:
        server = opened.enter_context(open_main(memory)) if memory.database_url is not None else None
        made = back_up(memory.home, target, moved, server)
    if memory.qdrant_url is not None:
        output.note("the golden samples are on a Qdrant server and not in this backup; take a snapshot there too")
    if made.damaged:
        output.note(f"{len(made.damaged)} photos were damaged already; `refdiff doctor` names them")
    emit(_written(target, made) | {"damaged": made.damaged}, f"{_size(made)} in {shown_path(target)}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="What `refdiff backup` wrote.")],
    _json: Json = False,
) -> None:
    """Restore a backup into the home folder (REFDIFF_HOME), which must be missing or empty.

    Every file is compared with its sha256 before any takes its place. With REFDIFF_DATABASE_URL, the records go into that
    database, which must have none.
    """
    from refdiff.memory.upkeep import backup as backups

    memory = settings().memory
    home = memory.home
    with output.progress("restoring") as moved:
        if memory.database_url is None:
            made = backups.restore(source, home, moved)
        else:
            made = backups.restore_to_server(source, memory, moved)
    with open_stores() as stores:
        checked = stores.audit.verify_store()
    if checked.problem is not None:
        output.note(f"the audit trail was not intact when the backup was made: {checked.problem}")
    emit(
        _written(home, made) | {"audit": {"records": checked.records, "intact": checked.problem is None}},
        f"{_size(made)} of {made.made_at[:19]} UTC in {shown_path(home)}",
    )


def move_records(_json: Json = False) -> None:
    """Move the records of this home into the empty Postgres database of REFDIFF_DATABASE_URL, all or none.

    Products, captures, reports, decisions, jobs, keys, chats and the audit trail; photos and files stay in the folder. Stop
    everything that uses the home first. The SQLite file stays as refdiff.sqlite-moved.
    """
    from refdiff.memory.schema import MOVED
    from refdiff.memory.upkeep import move

    memory = settings().memory
    with output.progress("moving") as moved:
        copied = move.move_records(memory, moved)
    with open_stores() as stores:
        checked = stores.audit.verify_store()
    if checked.problem is not None:
        output.note(f"the audit trail was not intact before: {checked.problem}")
    emit(
        {"rows": copied, "audit": {"records": checked.records, "intact": checked.problem is None}},
        f"{sum(copied.values())} rows moved; {MOVED} stays in {shown_path(memory.home)} and may be deleted",
    )


def _written(place: Path, made: Manifest) -> dict[str, Any]:
    listed = "".join(f"{f.path} {f.sha256}\n" for f in made.files)
    return {
        "path": shown_path(place),
        "files": len(made.files),
        "bytes": made.bytes,
        "made_at": made.made_at,
        "software": made.software,
        "sha256": hashlib.sha256(listed.encode()).hexdigest(),  # of all paths and digests: two equal backups have one
    }


def _size(made: Manifest) -> str:
    return f"{len(made.files)} files, {_mb(made.bytes)}"
