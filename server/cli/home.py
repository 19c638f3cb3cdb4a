"""`refdiff doctor`, `backup`, `restore`, `move-records` and `move-photos`: the home folder as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.model.wording import few
from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_stores, settings
from refdiff.server.cli.options import Json, shown_path
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.settings import MemorySettings
    from refdiff.memory.upkeep.backup import Manifest
    from refdiff.memory.upkeep.doctor import Examination, Finding
    from refdiff.memory.upkeep.move import MovedPhotos
    from refdiff.model.progress import Progress
    from refdiff.server.cli.installation import Check, Use

_UNSOUND = 65
_SHOWN = 5  # names of one finding, for people; --json has all


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: refdiff doctor · refdiff doctor --deep · refdiff doctor --repair")(doctor)
    app.command(epilog="Examples: refdiff backup /backups/2026-01-31.tar · refdiff backup /backups/today")(backup)
    app.command(
        "move-records", epilog="Example: REFDIFF_DATABASE_URL=postgresql://refdiff@db/refdiff refdiff move-records"
    )(move_records)
    app.command("move-photos", epilog="Example: REFDIFF_OBJECTS_URL=s3://parts/refdiff refdiff move-photos")(
        move_photos
    )
    app.command(epilog="Example: REFDIFF_HOME=/data/new refdiff restore /backups/2026-01-31.tar")(restore)


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every photo, report and audit record; takes minutes in a large home.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is safe: leftovers, permissions, damaged checkpoints.")
    ] = False,
    _json: Json = False,
) -> None:
    """Say whether this installation can work, what is wrong and how to mend it, and what takes how much disk.

    Home folder, database, audit trail, golden bank, weights, language model, calibrations; photos that are missing, and with
    --deep those that are damaged. Safe while the server runs; the embedded golden bank is then not checked.
    Nothing that a person made is changed or deleted.

    Exit code: 0 all works, perhaps with warnings; 65 something is broken, missing or damaged.
    """
    from refdiff.memory.upkeep.doctor import examine
    from refdiff.server.cli.installation import check_installation, disk_use, look_at_bank

    chosen = settings()
    home = chosen.memory.home
    with output.progress("examining") as moved:
        bank = look_at_bank(chosen.memory)
        found = examine(chosen.memory, bank.contents, repair, moved, deep)
        checks = check_installation(chosen, found, bank)
        use = disk_use(found, chosen.model.cache, home)
    sound = found.sound and not any(c.status == "broken" for c in checks)
    document = {"home": shown_path(home), "sound": sound, "deep": deep, "checks": [asdict(c) for c in checks],
                "findings": [asdict(f) | {"count": len(f.names)} for f in found.findings], "use": asdict(use)}  # fmt: skip
    said = f"{shown_path(home)}: {_said(found, sound, deep)}"
    emit(
        document,
        *map(_check, checks),
        *(_finding(f) for f in found.findings if f.kind != "unchecked"),
        said,
        *_used(use),
    )
    if not sound:
        raise typer.Exit(_UNSOUND)


def _check(c: Check) -> str:
    way_out = f"\n{'':26}{c.remedy}" if c.remedy else ""
    return output.printable(f"{c.status:<9} {c.name:<15} {c.says}{way_out}")


def _used(use: Use) -> list[str]:
    lines = [_parts("home", use.home, use.grows), _parts("cache", use.cache, {})]
    if use.bytes_per_inspection is not None:
        left = ""
        if use.days_left is not None:
            left = f"; at {use.inspections_a_day:g} a day, as lately, the disk is full in {use.days_left:,} days"
        lines.append(f"{use.inspections:,} inspections take {use.bytes_per_inspection / 1e3:,.0f} kB each{left}")
    return lines


def _parts(what: str, sizes: dict[str, int], grows: dict[str, str]) -> str:
    shown = "".join(
        f"\n  {_mb(n):>12}  {output.printable(name)}{f', grows with {grows[name]}' if name in grows else ''}"
        for name, n in sizes.items()
        if n
    )
    return f"{what}: {_mb(sum(sizes.values()))}{shown}"


def _said(found: Examination, sound: bool, deep: bool) -> str:
    if found.unread:
        return "the records could not be read, so not all was examined"
    if not found.sound:
        return "something is missing or damaged"
    if not sound:
        return "something is broken"
    return "nothing is missing or damaged" + ("" if deep else "; --deep also reads every photo and record")


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

    Every file is listed with its sha256. Records in Postgres are in it, as one consistent state, and photos in an object
    store. The golden samples of a Qdrant server are not: use Qdrant's snapshots.
    """
    from refdiff.memory.photos.image_store import FolderImages
    from refdiff.memory.schema import open_main
    from refdiff.memory.stores import open_images
    from refdiff.memory.upkeep.backup import back_up

    memory = settings().memory
    with contextlib.ExitStack() as opened, output.progress("backing up") as moved:
        server = opened.enter_context(open_main(memory)) if memory.database_url is not None else None
        images = open_images(memory)  # refuses settings under which they would be missed
        elsewhere = None if isinstance(images, FolderImages) else images
        made = back_up(memory.home, target, moved, server, elsewhere)
    if memory.qdrant_url is not None:
        output.note("the golden samples are on a Qdrant server and not in this backup; take a snapshot there too")
    if made.damaged:
        output.note(f"{len(made.damaged)} photos were damaged already; `refdiff doctor` names them")
    if made.missing:
        setting = "REFDIFF_OBJECTS_URL" if elsewhere else "REFDIFF_HOME"
        output.note(
            f"{len(made.missing)} photos of parts are not in {memory.objects_url or shown_path(memory.home)}, and not in "
            f"this backup; is that where these records have them ({setting})? `refdiff doctor` names them"
        )
    lacks = {"damaged": made.damaged, "missing": made.missing}
    emit(_written(target, made) | lacks, f"{_size(made)} in {shown_path(target)}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="What `refdiff backup` wrote.")],
    _json: Json = False,
) -> None:
    """Restore a backup into the home folder (REFDIFF_HOME), which must be missing or empty.

    Every file is compared with its sha256 before any takes its place. With REFDIFF_DATABASE_URL, the records go into that
    database, which must have none; with REFDIFF_OBJECTS_URL, the photos into that bucket, but for damaged ones. If that is
    interrupted once the files are there, `refdiff move-photos` does the rest.
    """
    from refdiff.memory.upkeep import backup as backups

    memory = settings().memory
    home = memory.home
    with output.progress("restoring") as moved:
        if memory.database_url is None:
            made = backups.restore(source, home, moved)
        else:
            made = backups.restore_to_server(source, memory, moved)
        into_bucket = _photos_into_bucket(memory, moved)
    with open_stores() as stores:
        checked = stores.audit.verify_store()
    if checked.problem is not None:
        output.note(f"the audit trail was not intact when the backup was made: {checked.problem}")
    if into_bucket.damaged:
        output.note(f"{_not_moved(into_bucket)}; they are in the backup")
    emit(
        _written(home, made) | {"audit": {"records": checked.records, "intact": checked.problem is None}},
        f"{_size(made)} of {made.made_at[:19]} UTC in {shown_path(home)}",
    )


def _photos_into_bucket(memory: MemorySettings, moved: Progress) -> MovedPhotos:
    """What a backup put into the folder, if there is a bucket; the folder goes, as the backup has it."""
    from refdiff.memory.stores import PHOTOS, PHOTOS_MOVED
    from refdiff.memory.upkeep.move import MovedPhotos, move_photos
    from refdiff.model.files import storage_error

    if memory.objects_url is None or not (memory.home / PHOTOS).exists():
        return MovedPhotos(0)
    try:
        found = move_photos(memory, moved)
    except BaseException:
        output.note(
            "all is restored, but not all photos are in the bucket of REFDIFF_OBJECTS_URL yet; repeat: refdiff move-photos"
        )
        raise
    try:
        shutil.rmtree(memory.home / PHOTOS_MOVED)
    except OSError as e:
        raise storage_error(memory.home / PHOTOS_MOVED, e) from e
    return found


def _not_moved(found: MovedPhotos) -> str:
    return f"{len(found.damaged)} photos are damaged, and not in the bucket: {few(found.damaged)}"


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


def move_photos(_json: Json = False) -> None:
    """Move the photos of this home into the bucket of REFDIFF_OBJECTS_URL (s3://bucket/prefix).

    Stop everything that uses the home first. If it is interrupted, repeat it. The folder stays as images-moved. Damaged
    photos are named and stay there alone.
    """
    from refdiff.memory.stores import PHOTOS_MOVED
    from refdiff.memory.upkeep import move

    memory = settings().memory
    with output.progress("moving") as moved:
        found = move.move_photos(memory, moved)
    may = " and may be deleted"
    if found.damaged:
        output.note(
            f"{_not_moved(found)}; they stay in {PHOTOS_MOVED}. Take them from a backup, or send the photos again"
        )
        may = ""
    emit(
        {"photos": found.photos, "damaged": found.damaged, "url": memory.objects_url},
        f"{found.photos} photos are in {memory.objects_url}; {PHOTOS_MOVED} stays in {shown_path(memory.home)}{may}",
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
