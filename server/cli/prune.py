"""`refdiff prune`: remove old inspections from the home folder."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.memory.kinds import Verdict
from refdiff.model.errors import InputError, UnavailableError, UnknownProductError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_stores, settings
from refdiff.server.cli.options import Json, MaybeProduct, clean, period, shown_path
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.stores import Stores
    from refdiff.memory.upkeep.prune import GoldenPhotos, Pruned


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: refdiff prune --older-than 90d --verdict PASS --dry-run · "
        "refdiff prune --older-than 8w --product bracket"
    )(prune)


def prune(
    older_than: Annotated[
        timedelta,
        typer.Option(metavar="AGE", parser=period, help="Inspections filed longer ago than this: 12h, 90d, 8w."),
    ],
    verdict: Annotated[
        Verdict | None,
        typer.Option(metavar="PASS|FAIL|REVIEW", case_sensitive=False, help="Only inspections with this verdict."),
    ] = None,
    product: MaybeProduct = None,
    open_too: Annotated[
        bool, typer.Option("--open", help="Also those that wait for a person: open reviews and blind checks.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be removed, and remove nothing.")
    ] = False,
    _json: Json = False,
) -> None:
    """Remove old inspections for good: photos, drawn files, anomaly maps and reports.

    Never removed: photos of golden samples, inspections that wait for a person (but with --open), inspections with a named
    finding, photos that were not inspected yet. The list of inspections and the audit trail stay whole, and say who removed
    what. Safe while the server runs, one process at a time; one that was interrupted is repeated.
    """
    from refdiff.memory.upkeep import prune as pruning

    chosen = settings()
    try:
        before = datetime.now(UTC) - older_than
    except OverflowError as e:
        raise typer.BadParameter("further back than dates go.", param_hint="--older-than") from e
    wanted = pruning.Filter(before.isoformat(), verdict, product and clean(product), open_too)
    with contextlib.ExitStack() as opened, output.progress("pruning") as moved:
        if chosen.memory.database_url is None and not chosen.memory.home.exists():
            raise InputError(f"{shown_path(chosen.memory.home)}: no such home folder; set REFDIFF_HOME")
        stores = opened.enter_context(open_stores())
        if wanted.product is not None:
            wanted = replace(wanted, product=stores.products.name_of(wanted.product))
            if not stores.inspections.list(wanted.product, limit=1):
                raise UnknownProductError(
                    f"no inspection of product {wanted.product!r}; `refdiff inspections list` shows which there are"
                )
        waiting = None
        if open_too and not dry_run:
            from refdiff.agent.checkpoints import open_checkpoints

            url = chosen.agent.checkpoint_url or chosen.memory.database_url
            waiting = opened.enter_context(open_checkpoints(chosen.memory.home, url))
        found = pruning.prune(
            stores, _goldens(stores), wanted, chosen.server.user, drawn=chosen.model.cache / "reports",
            dry_run=dry_run, progress=moved, waiting=waiting,
        )  # fmt: skip
    emit({"dry_run": dry_run, "filter": asdict(wanted), "bytes": found.bytes} | asdict(found), *_lines(found, dry_run))


def _goldens(stores: Stores) -> GoldenPhotos:
    """Photos that the golden bank needs. Raises UnavailableError where that is not known: nothing is removed then."""
    from refdiff.memory.upkeep.prune import GoldenPhotos

    memory = stores.settings
    if memory.qdrant_url is None:
        found = GoldenPhotos.of_file(memory.home / "goldens.sqlite")
    else:
        from refdiff.server.cli.installation import look_at_bank

        bank = look_at_bank(memory).contents
        if isinstance(bank, str):
            raise UnavailableError(f"nothing is removed, as photos of golden samples cannot be told apart: {bank}")
        ids = {name.partition(" ")[0].partition(":")[0] for name in bank.damaged}
        found = GoldenPhotos({g.sha256 for g in bank.goldens}, {g.golden_id for g in bank.goldens} | ids)
    if not (found.sha256 or found.golden_ids) and stores.inspections.list(limit=1):
        where = shown_path(memory.home / "goldens.sqlite") if memory.qdrant_url is None else "the Qdrant server"
        raise UnavailableError(
            f"nothing is removed: {where} has no golden samples, though parts were inspected, so their photos cannot be "
            "told apart; set QDRANT_URL and REFDIFF_HOME as they were then, or restore a backup"
        )
    return found


def _lines(found: Pruned, dry_run: bool) -> list[str]:
    done = "would be removed" if dry_run else "removed"
    lines = [
        f"{found.inspections} inspections {done}, with {found.captures} captures: {_mb(found.bytes)} in all",
        f"{found.photos} photos {_mb(found.photo_bytes)}, {found.files} drawn files {_mb(found.file_bytes)}, "
        f"reports and maps in the database {_mb(found.record_bytes)}",
        *(f"kept: {n} inspections ({why})" for why, n in sorted(found.kept.items())),
    ]
    if found.in_use:
        lines.append(f"{found.in_use} photos were used within the last hour: prune again later to remove them")
    if not dry_run and (found.returned_bytes or found.free_bytes):
        free = "" if found.free_bytes < 1_000_000 else (
            f"; {_mb(found.free_bytes)} inside it are free for the next records (to give them back too, stop all that "
            'uses the home and run: sqlite3 refdiff.sqlite "PRAGMA auto_vacuum=2; VACUUM")'
        )  # fmt: skip
        lines.append(f"refdiff.sqlite is {_mb(found.returned_bytes)} shorter{free}")
    return lines


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
