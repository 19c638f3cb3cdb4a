"""Remove old inspections: photos, drawn files, anomaly maps and reports. The audit chain keeps who removed what, and when.

First the records: each inspection gets an audit record, in the transaction that empties its report. A second transaction
puts captures back whose photo came into use meanwhile, and closes the removal with a record of its own. Then the files go
that no record names any more. A run that was killed in between has told the truth: the next one first closes the removal
that it left open, and removes the files that it left.

Safe while a server runs. A photo that was written or used within the last hour stays for the next run: a report that
names it may be about to be filed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Row, case, delete, func, inspect, null, select, text, true, update

from refdiff.memory.artefacts import inspection_folder
from refdiff.memory.audit_chain import FILED, NO_REPORT, REMOVED, append
from refdiff.memory.changes import CAPTURE, GOLDEN, PRUNE, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.sqlite_file import empty_log, free_bytes, give_back
from refdiff.memory.golden_bank.golden import golden_id_of, make_golden_id
from refdiff.memory.journals.jobs import OPEN
from refdiff.memory.kinds import Verdict
from refdiff.memory.records.adoptions import CONSENTS
from refdiff.memory.records.defect_names import NAMED_NOW
from refdiff.memory.rows.digests import content_digest
from refdiff.memory.rows.products import check_product_name
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc
from refdiff.memory.upkeep.contents import like_sha256, reading, sha256_in
from refdiff.model.errors import StorageError, UnavailableError
from refdiff.model.files import storage_error
from refdiff.model.progress import Progress, silent

AT_ONCE = 100  # inspections of one transaction: other writers wait as long as it takes
_LONGEST_PAUSE_S = 0.2  # between two of them
_IN_USE_S = 3600.0
_PAGES = 2000  # of a SQLite file that are given back at once
_STREAMED: dict[str, Any] = {"execution_options": {"yield_per": 500}}
_CHECKPOINTS = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")  # of LangGraph, in Postgres

_I, _A, _C, _J = t.inspections.c, t.audit.c, t.captures.c, t.jobs.c
_D, _B, _M, _N = t.dispositions.c, t.blind_checks.c, t.chat_messages.c, t.defect_names.c


@dataclass(frozen=True)
class Filter:
    """Which inspections are to be removed."""

    before: str  # ISO 8601, UTC: filed before then
    verdict: Verdict | None = None
    product: str | None = None
    open_too: bool = False  # also those that wait for a person

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", to_utc(self.before))
        if self.product is not None:
            check_product_name(self.product)

    def __str__(self) -> str:
        more = [self.verdict or "", f"of product {self.product}" if self.product else "",
                "also those that waited for a person" if self.open_too else ""]  # fmt: skip
        return ", ".join([f"filed before {self.before[:19]} UTC", *filter(None, more)])


@dataclass(frozen=True)
class GoldenPhotos:
    """What must stay for the golden bank, also for golden samples whose record is damaged."""

    sha256: set[str]
    golden_ids: set[str]

    @classmethod
    def of_file(cls, path: Path) -> GoldenPhotos:
        """Of the embedded bank's file, which another process may hold open. Raises StorageError."""
        if not path.exists():
            if (path.parent / "qdrant").exists():
                raise StorageError(
                    f"{path.parent / 'qdrant'}: the golden samples of an earlier version; open them once, then repeat this "
                    "(refdiff goldens list)"
                )
            return cls(set(), set())
        with reading(path) as bank:
            points = [int(row[0]) for row in bank.execute("SELECT point FROM goldens")]
        return cls(sha256_in(path), {golden_id_of(p) for p in points if 0 <= p < 1 << 48})

    def and_recorded(self, conn: Connection) -> GoldenPhotos:
        """With all that the audit trail calls enrolled, also in another bank than the one that was read."""
        said = conn.scalars(select(_A.content).where(_A.inspection_id == "", _A.kind == GOLDEN))
        return GoldenPhotos(self.sha256.union(like_sha256(said)), self.golden_ids)

    def need(self, sha256: str, products: Iterable[str]) -> bool:
        """Whether it is, or may be, the photo of a golden sample of one of the products."""
        return sha256 in self.sha256 or any(make_golden_id(p, sha256) in self.golden_ids for p in products)


class Waiting(Protocol):
    """What inspections are resumed with."""

    def threads(self) -> list[str]:
        """Ids of the inspections that have something."""

    def remove(self, inspection_id: str) -> None:
        """Forget all of one."""


@dataclass
class Pruned:
    """What was removed, or with a dry run would be."""

    inspections: int = 0
    kept: dict[str, int] = field(default_factory=dict)  # why -> how many inspections that the filter matches
    captures: int = 0
    photos: int = 0
    photo_bytes: int = 0
    files: int = 0  # pages and pictures of reports
    file_bytes: int = 0
    record_bytes: int = 0  # of reports and anomaly maps in the database
    in_use: int = 0  # photos that were used within the last hour: the next run removes them
    returned_bytes: int = 0  # that the file of the database is shorter by
    free_bytes: int = 0  # that are free inside of it, for what comes next

    @property
    def bytes(self) -> int:
        """Of everything."""
        return self.photo_bytes + self.file_bytes + self.record_bytes


def prune(
    stores: Stores,
    goldens: GoldenPhotos,
    wanted: Filter,
    by: str,
    *,
    drawn: Path,
    dry_run: bool = False,
    progress: Progress = silent,
    waiting: Waiting | None = None,
) -> Pruned:
    """Remove the inspections that the filter matches, but for those that are needed (`Pruned.kept`).

    drawn: folder of the pictures that were drawn later, a sub-folder for each inspection. by: who, for the audit. waiting:
    forgets what removed inspections waited with for a person, also those of a run that was killed. Raises StorageError,
    UnavailableError (also while another process prunes); what was removed until then is recorded, and the call can be
    repeated.
    """
    run = _Prune(stores, goldens, wanted, by, drawn, progress, waiting)
    if dry_run:
        return run.foresee()
    busy = UnavailableError("another process prunes at this moment; prune again once it has ended")
    with stores.db.lock("prune", busy):  # one closes what it removed before the next one looks for what was left open
        return run.run()


@dataclass
class _Removal:
    """What goes with one inspection."""

    inspection_id: str
    part_id: str
    product: str
    photo: str | None  # sha256
    report_sha256: str
    record_bytes: int
    photos: list[str]  # sha256 of all that its report names, but for those of golden samples


class _Prune:
    def __init__(
        self, stores: Stores, goldens: GoldenPhotos, wanted: Filter, by: str, drawn: Path, progress: Progress,
        waiting: Waiting | None,
    ) -> None:  # fmt: skip
        self._stores, self._goldens, self._wanted, self._by = stores, goldens, wanted, by
        self._drawn, self._progress, self._waiting = drawn, progress, waiting
        self._in_use_since = time.time() - _IN_USE_S
        self._products: list[str] = []
        self._done = Pruned()

    def foresee(self) -> Pruned:
        """Count what `run` would remove."""
        with self._stores.db.snapshot() as conn:
            self._foresee(conn, self._stores.settings.home, self._look(conn))
        return self._done

    def run(self) -> Pruned:
        home = self._stores.settings.home
        self._stores.images.put_back(self._in_use_since)  # first: a record may rely on one of them
        with self._stores.db.snapshot() as conn:
            total = self._look(conn)
        self._close()  # what a run that was killed left open
        self._records(total)
        with self._stores.db.snapshot() as conn:
            removed = _removed(conn)
        if self._waiting is not None:
            for inspection_id in removed.keys() & self._waiting.threads():
                self._waiting.remove(inspection_id)
        with self._stores.db.snapshot() as conn:  # without what those named
            needed = self._needed(conn, _I.report != NO_REPORT, {*conn.scalars(select(_C.sha256))})
        self._sweep(home, removed, needed)
        if self._stores.db.path is not None:
            self._shrink()
        return self._done

    def _look(self, conn: Connection) -> int:
        """How many inspections are to go; what else counts is noted."""
        self._goldens = self._goldens.and_recorded(conn)
        self._products = [*conn.scalars(select(t.products.c.name))]
        matches = select(_why_kept(self._wanted.open_too), func.count()).where(_matching(self._wanted))
        found = {why: int(n) for why, n in conn.execute(matches.group_by(text("1")))}
        total = found.pop(None, 0)
        self._done.kept = found
        return total

    # -- records

    def _records(self, total: int) -> None:
        """Empty the reports, some at a time, each with its audit record."""
        last, unlike = 0, 0
        while True:
            with self._stores.db.connection() as conn:
                some = conn.execute(
                    _rows(self._wanted).with_only_columns(_I.seq, _I.photo).where(_I.seq > last).limit(AT_ONCE)
                ).all()
                if not some:
                    break
                last = some[-1].seq
                captured = conn.scalars(
                    select(_C.sha256).where(_C.sha256.in_([r.photo for r in some])).distinct()
                ).all()
            in_use = self._used_of(captured)  # an object store takes its time: nobody waits for it to write
            began = time.monotonic()
            with changing(self._stores.db) as conn:
                rows = conn.execute(_rows(self._wanted).where(_I.seq.in_([r.seq for r in some]))).all()
                going = self._as_filed(rows)
                unlike += len(rows) - len(going)
                if going:
                    self._remove(conn, going, in_use)
            self._done.captures += self._close()
            self._done.inspections += len(going)
            self._progress("removing records", self._done.inspections, total)
            time.sleep(min(time.monotonic() - began, _LONGEST_PAUSE_S))  # let others write
        if unlike:
            self._done.kept["not as filed; run: refdiff audit verify --store"] = unlike

    def _as_filed(self, rows: Iterable[Row[Any]]) -> list[_Removal]:
        """Those whose report is the one that was filed; another one is evidence."""
        found = []
        for row in rows:
            with contextlib.suppress(ValueError, RecursionError):
                if content_digest(json.loads(row.report)) == row.report_sha256:
                    photos = {*like_sha256([row.report]), *filter(None, [row.photo])}
                    found.append(_Removal(
                        row.inspection_id, row.part_id, row.product, row.photo, row.report_sha256,
                        len(row.report) + row.picture_bytes,
                        sorted(p for p in photos if not self._goldens.need(p, self._products)),
                    ))  # fmt: skip
        return found

    def _remove(self, conn: Connection, going: list[_Removal], in_use: set[str]) -> None:
        """Empty their reports, and remove the captures that go with them."""
        ids = [r.inspection_id for r in going]
        conn.execute(delete(t.differences).where(t.differences.c.inspection_id.in_(ids)))
        conn.execute(update(t.inspections).where(_I.inspection_id.in_(ids)).values(report=NO_REPORT))
        captures = self._captures(conn, going, _I.report == NO_REPORT)
        pictures = _named_pictures(conn, ids)
        gone: list[str] = []
        for r in going:
            inspected = captures.pop((r.part_id, r.product, r.photo), [])
            captured = [] if r.photo in in_use else inspected
            said = {"report_sha256": r.report_sha256, "photos": [*r.photos, *pictures.get(r.inspection_id, [])],
                    "captures": captured, "filter": asdict(self._wanted)}  # fmt: skip
            append(conn, REMOVED, r.inspection_id, self._by, said, facts={"filter": str(self._wanted)})
            self._done.record_bytes += r.record_bytes
            gone += [c["capture_id"] for c in captured]
        conn.execute(delete(t.captures).where(_C.capture_id.in_(gone)))

    def _close(self) -> int:
        """Record the removals that no run has closed, and put back those of their captures whose photo came into use after
        it was asked for: who inspects the part had found its capture before. How many captures stay removed."""
        closed = select(func.coalesce(func.max(_A.seq), 0)).where(_A.inspection_id == "", _A.kind == PRUNE)
        with self._stores.db.snapshot() as conn:
            left = select(_A.at, _A.by, _A.content).where(_A.kind == REMOVED, _A.seq > closed.scalar_subquery())
            rows = conn.execute(left.order_by(_A.seq)).all()
        if not rows:
            return 0
        contents = [json.loads(row.content) for row in rows]
        captures = [capture for content in contents for capture in content["captures"]]
        since = datetime.fromisoformat(rows[0].at).timestamp() - _IN_USE_S
        used = self._used_of({c["sha256"] for c in captures if c["product"] in self._products}, since)
        back = [c for c in captures if c["sha256"] in used]
        how = Filter(**contents[-1]["filter"])
        about = {"inspections": len(rows), "captures": len(captures) - len(back), "filter": asdict(how)}
        with changing(self._stores.db) as conn:
            for capture in back:
                if t.insert_new(conn, t.captures, capture):
                    state = {name: value for name, value in capture.items() if name != "seq"}
                    record_change(conn, CAPTURE, capture["capture_id"], self._by, None, state)
            record_change(conn, PRUNE, "inspections", rows[-1].by, about, None, change=f"removed {len(rows)}: {how}")
        return len(captures) - len(back)

    def _captures(
        self, conn: Connection, going: Iterable[_Removal], gone: ColumnElement[bool]
    ) -> dict[tuple[str, str, str | None], list[dict[str, Any]]]:
        """Captures that were inspected, all of whose inspections are gone: (part, product, photo) -> rows."""
        inspected = {(r.part_id, r.product, r.photo) for r in going}
        parts = sorted({part for part, _, _ in inspected} - _waiting_parts(conn))
        same = (_I.part_id == _C.part_id) & (_I.product == _C.product) & (_I.photo == _C.sha256)
        # by this system's clock on both sides: a device dates its reports itself
        filed = select(_A.seq).where(_A.inspection_id == _I.inspection_id, _A.kind == FILED, _A.at >= _C.created_at)
        inspected_since = filed.correlate(t.inspections, t.captures).exists()
        done = select(_I.seq).where(same, gone, inspected_since).correlate(t.captures).exists()
        live = select(_I.seq).where(same, ~gone).correlate(t.captures).exists()
        found: dict[tuple[str, str, str | None], list[dict[str, Any]]] = defaultdict(list)
        for row in conn.execute(select(t.captures).where(_C.part_id.in_(parts), done, ~live)):
            key = (row.part_id, row.product, row.sha256)
            if key in inspected:
                found[key].append(row._asdict())
        return found

    def _used_of(self, photos: Iterable[str], since: float | None = None) -> set[str]:
        return {sha256 for sha256 in photos if self._in_use(sha256, since)}

    def _in_use(self, sha256: str, since: float | None = None) -> bool:
        """Whether an inspection may be reading it now, or has since that time (s, Unix)."""
        used_at = self._stores.images.used_at(sha256)
        return used_at is not None and used_at >= (self._in_use_since if since is None else since)

    # -- files

    def _needed(self, conn: Connection, reports: ColumnElement[bool], captured: set[str]) -> set[str]:
        """Everything that looks like a sha256 in what still needs its photos. reports: which inspections do."""
        found = captured | {*conn.scalars(NAMED_NOW.with_only_columns(_N.picture))}
        waiting = select(_J.request).where(_J.state.in_((*OPEN, "failed")))
        asked = select(_M.request).where(_M.state != "answered")
        for statement in (select(_I.report).where(reports), waiting, asked):
            for row in conn.execute(statement, **_STREAMED):
                found.update(like_sha256(row))
        for table in filter(inspect(conn).has_table, _CHECKPOINTS):
            for row in conn.execute(text(f"SELECT * FROM {table}"), **_STREAMED):
                found.update(like_sha256(row))
        if (checkpoints := self._stores.settings.home / "checkpoints.sqlite").exists():
            found |= sha256_in(checkpoints)
        return found

    def _sweep(self, home: Path, removed: dict[str, list[str]], needed: set[str], *, foreseen: bool = False) -> None:
        """Remove the files of removed inspections, also what a killed run left. foreseen: only count them."""
        gone = {p for photos in removed.values() for p in photos if p not in needed}
        images = self._stores.images
        gone = gone and gone.intersection(images.ids())  # those of earlier runs are not asked for one by one
        photos = sorted(p for p in gone if not self._goldens.need(p, self._products))
        for number, sha256 in enumerate(photos, start=1):
            if foreseen:
                size = None if self._in_use(sha256) else images.size(sha256) or 0
            else:
                size = images.remove_unused(sha256, self._in_use_since)
            self._done.in_use += size is None
            self._done.photos += bool(size)
            self._done.photo_bytes += size or 0
            self._progress("removing photos", number, len(photos))
        for folders in (inspection_folder(home, ""), self._drawn):
            for folder in _folders(folders):
                if folder.name in removed:
                    self._clear(folder, foreseen)

    def _clear(self, folder: Path, foreseen: bool) -> None:
        try:
            for path in sorted(folder.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    if not foreseen:
                        path.rmdir()
                    continue
                self._done.file_bytes += path.lstat().st_size
                self._done.files += 1
                if not foreseen:
                    path.unlink()
            if not foreseen:
                folder.rmdir()
        except FileNotFoundError:  # another process made room in the cache
            return
        except OSError as e:
            raise storage_error(folder, e) from e

    # -- a dry run

    def _foresee(self, conn: Connection, home: Path, total: int) -> None:
        """Count what would be removed. Writes nothing, and keeps nobody from writing."""
        going: list[_Removal] = []
        unlike: list[str] = []
        reports = conn.execute(_rows(self._wanted), **_STREAMED)
        for number, row in enumerate(reports, start=1):
            found = self._as_filed([row])
            self._progress("reading records", number, total)
            if not found:
                unlike.append(row.inspection_id)
                continue
            going += found
            self._done.record_bytes += found[0].record_bytes
        if unlike:
            self._done.kept["not as filed; run: refdiff audit verify --store"] = len(unlike)
        would_go = (
            _matching(self._wanted) & _why_kept(self._wanted.open_too).is_(None) & _I.inspection_id.not_in(unlike)
        )
        gone = (_I.report == NO_REPORT) | would_go
        captures: set[str] = set()
        for start in range(0, len(going), AT_ONCE):
            some = going[start : start + AT_ONCE]
            found_here = self._captures(conn, some, gone)
            in_use = self._used_of({photo for _, _, photo in found_here if photo is not None})
            captures.update(c["capture_id"] for key, rows in found_here.items() if key[2] not in in_use for c in rows)
            pictures = _named_pictures(conn, [r.inspection_id for r in some])
            for r in some:
                r.photos += pictures.get(r.inspection_id, [])
        left = {sha for capture, sha in conn.execute(select(_C.capture_id, _C.sha256)).all() if capture not in captures}
        removed = _removed(conn) | {r.inspection_id: r.photos for r in going}
        self._sweep(home, removed, self._needed(conn, ~gone, left), foreseen=True)
        self._done.inspections, self._done.captures = len(going), len(captures)

    # -- SQLite

    def _shrink(self) -> None:
        db = self._stores.db
        path = db.path
        assert path is not None
        with db.connection() as conn:
            empty_log(conn)
        before = path.stat().st_size
        more = True
        while more:
            with db.transaction() as conn:
                more = give_back(conn, _PAGES)
                self._done.free_bytes = free_bytes(conn)
        with db.connection() as conn:
            empty_log(conn)
        self._done.returned_bytes = max(0, before - path.stat().st_size)


def _matching(wanted: Filter) -> ColumnElement[bool]:
    conditions = [_I.created_at < wanted.before, _I.report != NO_REPORT]
    if wanted.verdict is not None:
        conditions.append(_I.verdict == wanted.verdict)
    if wanted.product is not None:
        conditions.append(_I.product == wanted.product)
    found: ColumnElement[bool] = true()
    for condition in conditions:
        found = found & condition
    return found


_WAITS = (_I.verdict == "REVIEW") & _I.inspection_id.not_in(select(_D.inspection_id))
_UNJUDGED = _I.inspection_id.in_(select(_B.inspection_id).where(_B.judged.is_(None)))


def _why_kept(open_too: bool) -> ColumnElement[Any]:
    """Why an inspection is needed, in words; NULL if it is not."""
    learned = select(t.learned.c.inspection_id)
    why: list[tuple[ColumnElement[bool], str]] = [
        (_I.inspection_id.in_(NAMED_NOW.with_only_columns(_N.inspection_id)), "a finding has a name"),
        (_I.inspection_id.in_(select(_J.inspection_id).where(_J.state.in_(OPEN))), "its job has not ended"),
        (_I.inspection_id.in_(select(CONSENTS.c.inspection_id).where(CONSENTS.c.inspection_id.not_in(learned))),
         "its photo is proposed as a reference"),
    ]  # fmt: skip
    if not open_too:
        why += [(_WAITS, "open review"), (_UNJUDGED, "open blind check")]
    return case(*why, else_=null())


def _rows(wanted: Filter) -> Any:
    """The inspections to remove, in the order in which they were filed."""
    filed_as = (
        select(func.min(_A.content_sha256)).where(_A.inspection_id == _I.inspection_id, _A.kind == FILED)
    ).correlate(t.inspections)  # fmt: skip
    picture = select(func.length(t.differences.c.picture)).where(t.differences.c.inspection_id == _I.inspection_id)
    size = func.coalesce(picture.correlate(t.inspections).scalar_subquery(), 0)
    return (
        select(
            t.inspections, filed_as.scalar_subquery().label("report_sha256"), size.label("picture_bytes"),
        )
        .where(_matching(wanted), _why_kept(wanted.open_too).is_(None))
        .order_by(_I.seq)
    )  # fmt: skip


def _removed(conn: Connection) -> dict[str, list[str]]:
    """All inspections that were ever removed, and the photos that their reports named."""
    said = conn.execute(select(_A.inspection_id, _A.content).where(_A.kind == REMOVED), **_STREAMED)
    return {row.inspection_id: json.loads(row.content)["photos"] for row in said}


def _named_pictures(conn: Connection, ids: list[str]) -> dict[str, list[str]]:
    """Pictures of findings that had a name once: inspection -> sha256."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in conn.execute(select(_N.inspection_id, _N.picture).where(_N.inspection_id.in_(ids)).distinct()):
        found[row.inspection_id].append(row.picture)
    return found


def _waiting_parts(conn: Connection) -> set[str]:
    """Parts that a job will inspect."""
    waiting = conn.scalars(select(_J.request).where(_J.state.in_((*OPEN, "failed"))))
    return {str(json.loads(request).get("part_id")) for request in waiting}


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from (p for p in parent.iterdir() if p.is_dir())
