"""Audit exports as files: write one, and check one anywhere, with or without the home it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refdiff.memory.audit_chain import FILED, GENESIS, GONE, REMOVED, AuditRecord, ChainCheck, Problem
from refdiff.memory.audit_store import FORMAT, AuditStore, Checked
from refdiff.model.errors import InputError
from refdiff.model.files import atomic_path, storage_error

MAX_LINE = 64_000_000  # bytes; a report is some 10 kB


def write_export(path: Path, lines: Iterator[bytes]) -> int:
    """Write an export to `path`, all of it or nothing; the number of bytes. Raises StorageError."""
    written = 0
    try:
        with atomic_path(path, private=False) as temporary, temporary.open("wb") as file:
            for line in lines:
                written += file.write(line)
    except OSError as e:
        raise storage_error(path, e) from e
    return written


def verify_export(store: AuditStore, path: Path, against_store: bool = False) -> Checked:
    """Check an exported file; with `against_store` also that the store still holds the same records.

    Raises InputError if the file cannot be read or is not an export.
    """
    try:
        with path.open("rb") as file:
            return _ExportCheck(store, against_store).run(iter(lambda: file.readline(MAX_LINE), b""))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e


class _ExportCheck:
    """One pass over the lines of an export."""

    def __init__(self, store: AuditStore, against_store: bool) -> None:
        self._store, self._against_store = store, against_store
        self._digest, self._records, self._lines = hashlib.sha256(), 0, 0
        self._problems: list[Problem] = []
        self._head = GENESIS  # hash of the chain up to the first problem
        self._only: str | None = None  # id of the one inspection selected
        self._since: str | None = None  # start of the time selected
        self._without_report: dict[
            str, tuple[int, str]
        ] = {}  # inspection -> number of its filing, digest of its report

    def run(self, lines: Iterator[bytes]) -> Checked:
        """Follow the whole file, whatever is wrong with it."""
        check = self._open(next(lines, b""))
        notes = self._selected()
        self._find(check, self._entered(check))
        for number, raw in enumerate(lines, start=2):
            place = f"line {number}"
            data = _parse(raw)
            if data is not None and "end" in data:
                problem, note = self._close(check, data, place)
                if problem is None and next(lines, b""):
                    problem = Problem(f"line {number + 1}", None, None, "it was added after the end")
                self._find(check, problem)
                return self._found([*notes, *([note] if note else [])])
            self._digest.update(raw)
            self._lines += 1
            if data is None:
                self._find(check, Problem(place, check.seq + 1, None, "it is cut off or cannot be read"))
            else:
                self._find(check, self._step(check, data, place))
        self._find(check, Problem(f"after line {self._lines}", check.seq + 1, None, "the end is cut off"))
        return self._found(notes)

    def _find(self, check: ChainCheck, problem: Problem | None) -> None:
        if problem is not None:
            self._problems.append(problem)
        elif not self._problems:
            self._head = check.hash

    def _open(self, raw: bytes) -> ChainCheck:
        data = _parse(raw) or {}
        selection = data.get("selection")
        chosen: list[Any] = (
            [selection.get(k) for k in ("inspection_id", "since")] if isinstance(selection, dict) else [0]
        )
        if (
            data.get("refdiff_audit") != FORMAT
            or not isinstance(data.get("from"), int)
            or not all(c is None or isinstance(c, str) for c in chosen)
        ):
            raise InputError(
                "not an audit export of this version: its first line is not a header; make one with `refdiff audit export`"
            )
        self._digest.update(raw)
        self._lines = 1
        self._only, self._since = chosen
        return ChainCheck(data["from"] - 1, str(data.get("previous")))

    def _selected(self) -> list[str]:
        """Notes about what the export leaves out, so a part is not mistaken for everything."""
        if self._only is not None:
            return [f"only of inspection {self._only}: other records are digests, which only their home can check"]
        return [] if self._since is None else [f"since {self._since}: earlier records are not in it"]

    def _entered(self, check: ChainCheck) -> Problem | None:
        """Check that the export begins where its selection does; for a part of the chain, only a home can tell."""
        first, where = 1, "an export of everything"
        if self._only is not None or self._since is not None:
            if not self._against_store:
                return None
            first, where = self._store.entry(self._only, self._since), "the same selection in this home"
        elif check.hash != GENESIS:
            return Problem("line 1", 1, None, "an export of everything must begin with the first record")
        if check.seq + 1 == first:
            return None
        return Problem(
            "line 1", first, self._only, f"it begins with record {check.seq + 1}; {where} begins with record {first}"
        )

    def _step(self, check: ChainCheck, data: dict[str, Any], place: str) -> Problem | None:
        seq = data.get("seq")
        if not isinstance(seq, int):
            return Problem(place, check.seq + 1, None, "it has no number")
        named = f"{place}, record {seq}"
        if set(data) == {"seq", "link"}:
            return self._link(check, seq, str(data["link"]), named)
        content = data.pop("content", None)
        if data.pop("removed", False) is True and data.get("kind") == FILED:
            content = GONE
        try:
            record = AuditRecord(**data)
            problem = check.record(record, content, named)
        except (TypeError, ValueError):
            return Problem(named, seq, None, "it is not a record: a field is missing or was added")
        if content is GONE:
            self._without_report[record.inspection_id] = record.seq, record.content_sha256
        elif problem is None and record.kind == REMOVED:
            problem = self._removed(record, content, named)
        self._records += problem is None
        return problem or self._compare(check, named, record.inspection_id)

    def _removed(self, record: AuditRecord, content: Any, place: str) -> Problem | None:
        filed = self._without_report.pop(record.inspection_id, None)
        said = content.get("report_sha256") if isinstance(content, dict) else None
        if filed is None or filed[1] == said:
            return None
        what = "it removed another report than the one that was filed"
        return Problem(place, record.seq, record.inspection_id, what)

    def _link(self, check: ChainCheck, seq: int, record_sha256: str, place: str) -> Problem | None:
        """Only an export of one inspection has links, and only for the records of others."""
        if self._only is None:
            what = "only its digest is here, but the export is not of one inspection: the record was hidden"
            return Problem(place, seq, None, what)
        problem = check.link(seq, record_sha256, place) or self._compare(check, place, None)
        if problem is None and self._against_store and self._store.inspection_at(seq) == self._only:
            return Problem(
                place,
                seq,
                self._only,
                "only its digest is here, but it belongs to this inspection: the record was hidden",
            )
        return problem

    def _compare(self, check: ChainCheck, place: str, inspection_id: str | None) -> Problem | None:
        if not self._against_store or self._store.hash_at(check.seq) == check.hash:
            return None
        return Problem(place, check.seq, inspection_id, "this home does not hold this record: it was rewritten after the "
                       "export, or the export is of another home")  # fmt: skip

    def _close(self, check: ChainCheck, end: dict[str, Any], place: str) -> tuple[Problem | None, str | None]:
        last, hash_, lines, digest = (end.get(k) for k in ("end", "hash", "lines", "sha256"))
        if not isinstance(last, int):
            return Problem(place, None, None, "the closing line does not read"), None
        if (problem := check.end(last, place)) is not None:
            return problem, None
        for inspection_id, (seq, _) in self._without_report.items():
            what = "its report is not in the export, and no record says that it was removed"
            return Problem(f"record {seq}", seq, inspection_id, what), None
        if (hash_, lines, digest) != (check.hash, self._lines, self._digest.hexdigest()):
            return Problem(place, None, None, "the closing line does not fit the lines before: one was changed"), None
        wrong, note = self._store.check_seal(end)
        return (Problem(place, None, None, wrong) if wrong else None), note

    def _found(self, notes: list[str]) -> Checked:
        return Checked.of(self._records, self._head, self._problems, notes)


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
