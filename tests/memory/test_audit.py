"""The audit chain: any change, removal or truncation is reported at its place; crashes and concurrency keep it intact."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import event

from refdiff.memory import audit_store
from refdiff.memory.audit_chain import GENESIS, AuditRecord, canonical, last_given, linked
from refdiff.memory.audit_export import verify_export, write_export
from refdiff.memory.audit_store import AuditStore
from refdiff.memory.database import earlier
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, UnknownRecordError

from .conftest import tamper

EVERY_DATABASE = True

PHOTO = b"a photo"


@pytest.fixture
def filled(stores: Stores) -> Stores:
    """Four inspections i0..i3, i1 and i2 decided: records 1 to 6."""
    sha256 = stores.images.put(PHOTO)
    for i in range(4):
        report = {
            "part_id": f"p{i}", "product": "board", "verdict": "REVIEW", "requested_by": "ana", "request": "inspect",
            "query_sha256": sha256, "image_score": 0.1 + i / 3, "software": {"version": "1"},
            "references": [{"golden_id": "g-1", "sha256": "b" * 64, "similarity": 0.9}],
            "tool_trace": [{"tool": "find_part"}, {"tool": "zoom"}], "note": "größe \ud800",
        }  # fmt: skip
        stores.inspections.file(f"i{i}", f"p{i}", "board", "REVIEW", "2026-01-01", report)
        if i in (1, 2):
            stores.dispositions.add(f"i{i}", "accept", "bob", "looked at it")
    return stores


def exported(stores: Stores, path: Path, **choice: str) -> list[str]:
    write_export(path, stores.audit.export(**choice, by="eve"))
    return path.read_text().splitlines()


def test_audit_record_names_person_action_and_tools(filled: Stores) -> None:
    filed, decided = filled.audit.of("i1")
    assert (filed.seq, filed.kind, filed.by) == (2, "filed", "ana")
    assert filed.facts["goldens"] == [{"golden_id": "g-1", "sha256": "b" * 64}]
    assert filed.facts["tools"] == ["find_part", "zoom"]
    assert filed.facts["query_sha256"] == filled.images.put(PHOTO)
    assert (decided.kind, decided.by) == ("disposition", "bob")
    checked = filled.audit.verify_store(photos=True)
    assert checked.problem is None
    assert (checked.records, checked.head) == (6, filled.audit.head()[1])


def test_refused_step_leaves_no_audit_record(filled: Stores) -> None:
    with pytest.raises(InputError):
        filled.dispositions.add("i1", "override", "late", "too late")
    assert not filled.inspections.file("i1", "p1", "board", "PASS", "2026-01-01", {})
    assert filled.audit.head()[0] == 6


STORE_TAMPERING: list[tuple[str, str, str]] = [
    ("a report", """UPDATE inspections SET report = replace(report, '"image_score": 0.1', '"image_score": 0.0')""",
     "record 1 (inspection i0): its report"),
    ("a verdict in the list", "UPDATE inspections SET verdict = 'PASS' WHERE inspection_id = 'i1'", "record 2 "),
    ("a disposition", "UPDATE dispositions SET decision = 'override' WHERE inspection_id = 'i1'", "record 3 "),
    ("a disposition and its record", "UPDATE audit SET content = replace(content, 'bob', 'eve') WHERE seq = 3", "record 3 "),
    ("who asked", "UPDATE audit SET by = 'eve' WHERE seq = 4", "record 4 (inspection i2): it was changed"),
    ("a fact", "UPDATE audit SET facts = replace(facts, 'g-1', 'g-2') WHERE seq = 2", "record 2 "),
    ("a fact to nonsense", "UPDATE audit SET facts = '{' WHERE seq = 2", "record 2 (inspection i1): it cannot be read"),
    ("a record removed", "DELETE FROM audit WHERE seq = 3", "record 4 (inspection i2): record 3 should come here"),
    ("the first removed", "DELETE FROM audit WHERE seq = 1", "record 2 (inspection i1): record 1 should come here"),
    ("records exchanged", "UPDATE audit SET seq = CASE seq WHEN 2 THEN -1 WHEN 4 THEN -2 ELSE seq END;"
     "UPDATE audit SET seq = CASE seq WHEN -1 THEN 4 WHEN -2 THEN 2 ELSE seq END", "record 2 (inspection i2): it was"),
    ("the end cut off", "DELETE FROM audit WHERE seq > 4", "the end: records 5 to 6 are missing"),
    ("a report removed", "DELETE FROM inspections WHERE inspection_id = 'i3'", "record 6 "),
    ("a decision removed", "DELETE FROM dispositions WHERE inspection_id = 'i2'", "record 5 "),
    ("the end cut off with its counter", "DELETE FROM audit WHERE seq > 5; UPDATE audit_end SET seq = 5",
     "table inspections (inspection i3): it is filed without a record"),
    ("a report slipped in", "INSERT INTO inspections (inspection_id, part_id, product, verdict, created_at, report) VALUES "
     "('x', 'x', 'board', 'PASS', '2026', '{}')", "table inspections (inspection x)"),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "named"), [t[1:] for t in STORE_TAMPERING], ids=[t[0] for t in STORE_TAMPERING])
def test_tampering_with_the_store_is_reported_at_its_record(filled: Stores, statements: str, named: str) -> None:
    tamper(filled, statements)
    problem = filled.audit.verify_store().problem
    assert problem is not None
    assert str(problem).startswith(named), str(problem)


@pytest.mark.parametrize("statement", ["UPDATE audit_end SET seq = 4", "DELETE FROM audit_end"])
def test_records_added_without_moving_the_end_are_reported_and_block_no_others(filled: Stores, statement: str) -> None:
    """As an earlier version that still runs, or a restore, leaves them."""
    tamper(filled, statement)
    assert "records are counted, but there are more, up to 6" in str(filled.audit.verify_store().problem)
    assert filled.inspections.file("i9", "p9", "board", "PASS", "2026-01-01", {})
    assert filled.audit.head()[0] == 7
    assert filled.audit.verify_store().problem is None


def test_number_of_a_removed_record_is_not_given_again(filled: Stores) -> None:
    tamper(filled, "DELETE FROM audit WHERE seq = 6")
    filled.dispositions.add("i3", "accept", "bob", "seen")
    assert filled.audit.head()[0] == 7
    assert "record 6 should come here" in str(filled.audit.verify_store().problem)


def test_filing_during_a_verification_is_no_tampering(filled: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    check = audit_store._StoreCheck.run

    def run(self: Any) -> Any:
        assert last_given(self._conn) == 6  # the snapshot is taken now
        assert filled.inspections.file("i9", "p9", "board", "PASS", "2026-01-01", {})
        assert filled.audit.head()[0] == 7
        return check(self)

    monkeypatch.setattr(audit_store._StoreCheck, "run", run)
    checked = filled.audit.verify_store()
    assert (checked.problem, checked.records) == (None, 6)


def test_verification_asks_the_database_no_more_often_for_more_records(filled: Stores) -> None:
    def statements() -> int:
        asked: list[str] = []
        engine = filled.db._engine.snapshots
        event.listen(engine, "before_cursor_execute", note := lambda *call: asked.append(call[2]))
        assert filled.audit.verify_store().problems == []
        event.remove(engine, "before_cursor_execute", note)
        return len(asked)

    before = statements()
    for i in range(10, 20):
        filled.inspections.file(f"i{i}", "p", "board", "REVIEW", "2026-01-01", {"verdict": "REVIEW"}, difference=b"map")
        filled.dispositions.add(f"i{i}", "accept", "bob", "seen")
    assert statements() == before


def test_changed_photo_is_reported_when_photos_are_verified(filled: Stores) -> None:
    filled.images.path(filled.images.put(PHOTO)).write_bytes(b"another photo")
    assert filled.audit.verify_store().problem is None
    assert "its photo" in str(filled.audit.verify_store(photos=True).problem)


# -- exports


def test_audit_export_holds_every_record_and_verifies(filled: Stores, tmp_path: Path) -> None:
    lines = exported(filled, tmp_path / "a.jsonl")
    assert len(lines) == 8  # opening, 6 records, closing
    assert json.loads(lines[1])["content"] == filled.inspections.get("i0").report
    checked = verify_export(filled.audit, tmp_path / "a.jsonl", against_store=True)
    assert (checked.records, checked.problem) == (6, None)
    assert not list(tmp_path.glob(".tmp-*"))


def test_audit_export_may_be_read_from_several_threads(filled: Stores, tmp_path: Path) -> None:
    """A server streams each line from whichever thread is free."""
    lines, read = filled.audit.export(), []
    for _ in range(8):
        thread = threading.Thread(target=lambda: read.append(next(lines)))
        thread.start()
        thread.join()
    (tmp_path / "a.jsonl").write_bytes(b"".join(read))
    assert verify_export(filled.audit, tmp_path / "a.jsonl").problem is None


def test_export_of_one_inspection_discloses_no_other(filled: Stores, tmp_path: Path) -> None:
    lines = exported(filled, tmp_path / "a.jsonl", inspection_id="i1")
    assert [sorted(json.loads(line))[:2] for line in lines[3:6]] == [["link", "seq"]] * 3
    assert "i0" not in "".join(lines)
    assert "i2" not in "".join(lines)
    checked = verify_export(filled.audit, tmp_path / "a.jsonl", against_store=True)
    assert (checked.records, checked.problem, checked.head) == (2, None, filled.audit.head()[1])


def test_export_since_a_time_holds_later_records_only(filled: Stores, tmp_path: Path) -> None:
    moment = filled.audit.of("i2")[0].at
    assert len(exported(filled, tmp_path / "a.jsonl", since=moment)) == 2 + 3
    assert verify_export(filled.audit, tmp_path / "a.jsonl").problem is None
    assert len(exported(filled, tmp_path / "b.jsonl", since="2999-01-01")) == 2
    assert verify_export(filled.audit, tmp_path / "b.jsonl").problem is None
    assert verify_export(filled.audit, tmp_path / "b.jsonl").head == filled.audit.head()[1]


@pytest.mark.parametrize(
    "choice", [{"inspection_id": "i9"}, {"inspection_id": "i1", "since": "2026"}, {"since": "soon"}]
)
def test_invalid_export_selection_is_refused_before_anything_is_written(filled: Stores, choice: dict[str, str]) -> None:
    with pytest.raises((InputError, UnknownRecordError)):
        filled.audit.export(**choice)


def _resealed(path: Path, lines: list[str]) -> Path:
    """Write the lines with a matching closing line, as a forger could who knows the format but not the key."""
    end = json.loads(lines[-1])
    body = "".join(line + "\n" for line in lines[:-1]).encode()
    end |= {"lines": len(lines) - 1, "sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(body + canonical(end).encode() + b"\n")
    return path


def _hide(line: str) -> str:
    data = json.loads(line)
    del data["content"]
    return canonical({"seq": data["seq"], "link": AuditRecord(**data).record_sha256})


@pytest.mark.parametrize("since", [None, "2000-01-01"])
def test_record_replaced_by_its_digest_is_reported(filled: Stores, tmp_path: Path, since: str | None) -> None:
    lines = exported(filled, tmp_path / "a.jsonl", **({"since": since} if since else {}))
    path = _resealed(tmp_path / "b.jsonl", [*lines[:4], _hide(lines[4]), *lines[5:]])
    for against_store in (False, True):
        problem = verify_export(filled.audit, path, against_store).problem
        assert str(problem).startswith("line 5, record 4: only its digest is here"), str(problem)


def test_hidden_record_of_a_selected_inspection_is_reported_against_the_store(filled: Stores, tmp_path: Path) -> None:
    lines = exported(filled, tmp_path / "a.jsonl", inspection_id="i1")
    path = _resealed(tmp_path / "b.jsonl", [*lines[:2], _hide(lines[2]), *lines[3:]])
    checked = verify_export(filled.audit, path)
    assert (checked.records, checked.problem) == (1, None)  # only a home can know, and the checker says so
    assert checked.notes == ["only of inspection i1: other records are digests, which only their home can check"]
    problem = verify_export(filled.audit, path, against_store=True).problem
    assert str(problem).startswith("line 3, record 3 (inspection i1): only its digest is here"), str(problem)


@pytest.mark.parametrize("inspection_id", [None, "i1"])
def test_export_without_its_first_record_is_reported(filled: Stores, tmp_path: Path, inspection_id: str | None) -> None:
    lines = exported(filled, tmp_path / "a.jsonl", **({"inspection_id": inspection_id} if inspection_id else {}))
    first = json.loads(lines[1])
    opening = json.loads(lines[0]) | {"from": first["seq"] + 1, "previous": first["hash"]}
    path = _resealed(tmp_path / "b.jsonl", [canonical(opening), *lines[2:]])
    problem = verify_export(filled.audit, path, against_store=True).problem
    assert str(problem).startswith("line 1"), str(problem)
    assert (verify_export(filled.audit, path).problem is None) == (inspection_id is not None)


def _edit(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[3].replace("looked at it", "looked away"), *lines[4:]]


def _rehash_one(lines: list[str]) -> list[str]:
    """Change a record and give it a hash that fits: then the next one does not."""
    record = json.loads(lines[2])
    record["by"] = "eve"
    return [*lines[:2], json.dumps(record), *lines[3:]]


FILE_TAMPERING: list[tuple[str, Callable[[list[str]], list[str]], str]] = [
    ("edited content", _edit, "line 4, record 3 (inspection i1): its disposition"),
    ("edited record", _rehash_one, "line 3, record 2 (inspection i1): it was changed"),
    ("a field added", lambda x: [*x[:2], x[2].replace('"seq"', '"x":1,"seq"'), *x[3:]], "line 3, record 2: it is not a rec"),
    ("deleted", lambda x: x[:3] + x[4:], "line 4, record 4 (inspection i2): record 3 should come here"),
    ("reordered", lambda x: [*x[:2], x[3], x[2], *x[4:]], "line 3, record 3 (inspection i1): record 2 should"),
    ("repeated", lambda x: [*x[:3], x[2], *x[3:]], "line 4, record 2 (inspection i1): record 3 should come here"),
    ("cut off", lambda x: x[:5], "after line 5: the end is cut off"),
    ("cut off, end kept", lambda x: x[:5] + x[-1:], "line 6: records 5 to 6 are missing"),
    ("a link in place of a record", lambda x: [*x[:2], '{"link":"' + "a" * 64 + '","seq":2}', *x[3:]], "line 3, record 2"),
    ("the opening line", lambda x: [x[0].replace("eve", "bob"), *x[1:]], "line 8: the closing line does not fit"),
    ("something added", lambda x: [*x, x[1]], "line 9: it was added after the end"),
    ("nonsense", lambda x: [*x[:2], "[[[", *x[3:]], "line 3: it is cut off or cannot be read"),
    ("depth", lambda x: [*x[:2], "[" * 100_000, *x[3:]], "line 3: it is cut off or cannot be read"),
    ("not a number", lambda x: [*x[:2], x[2].replace('"image_score":0.4', '"image_score":NaN,"y":0.4'), *x[3:]], "line 3"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), [t[1:] for t in FILE_TAMPERING], ids=[t[0] for t in FILE_TAMPERING])
def test_tampering_with_an_export_is_reported_at_its_line(
    filled: Stores, tmp_path: Path, change: Callable[[list[str]], list[str]], named: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(change(exported(filled, path))) + "\n")
    problem = verify_export(filled.audit, path).problem
    assert problem is not None
    assert str(problem).startswith(named), str(problem)


def test_export_cut_off_in_its_last_line_is_reported(filled: Stores, tmp_path: Path) -> None:
    exported(filled, tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes()[:-20])
    assert "cut off" in str(verify_export(filled.audit, tmp_path / "a.jsonl").problem)


def _forge(path: Path) -> None:
    """Rewrite the whole chain, as somebody would who knows how it is made."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    previous, out = GENESIS, [canonical(lines[0]) + "\n"]
    for data in lines[1:-1]:
        content = data.pop("content")
        record = AuditRecord(**data | {"by": "nobody", "hash": ""})
        previous = linked(previous, record.record_sha256)
        out.append(canonical({**vars(record), "hash": previous, "content": content}) + "\n")
    end = lines[-1] | {"hash": previous, "sha256": hashlib.sha256("".join(out).encode()).hexdigest()}
    path.write_text("".join([*out, canonical(end) + "\n"]))


def test_rewritten_export_is_reported_against_the_store_and_by_the_seal(filled: Stores, tmp_path: Path) -> None:
    sealing = AuditStore(filled.db, filled.images, filled.settings.home, SecretStr("kept elsewhere"))
    path = tmp_path / "a.jsonl"
    write_export(path, sealing.export())
    assert verify_export(sealing, path).notes == ["the seal holds"]
    assert "not checked" in verify_export(filled.audit, path).notes[0]
    other = AuditStore(filled.db, filled.images, filled.settings.home, SecretStr("guessed"))
    assert "seal does not fit" in str(verify_export(other, path).problem)
    _forge(path)
    assert verify_export(filled.audit, path).problem is None  # the chain alone cannot know
    assert "line 2, record 1 (inspection i0): this home" in str(
        verify_export(filled.audit, path, against_store=True).problem
    )
    assert "seal does not fit" in str(verify_export(sealing, path).problem)
    exported(filled, path)
    assert "not sealed" in str(verify_export(sealing, path).problem)


@pytest.mark.parametrize(
    "data", [b"", b"{}\n", b"\x89PNG\r\n", b'{"refdiff_audit":2,"from":1}\n', b'{"refdiff_audit":1,"from":1}\n']
)
def test_file_that_is_no_audit_export_is_refused(stores: Stores, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match="not an audit export"):
        verify_export(stores.audit, tmp_path / "x")


@pytest.mark.sqlite
def test_home_of_an_older_version_gets_an_audit_chain(settings: MemorySettings) -> None:
    settings.home.mkdir()
    with sqlite3.connect(settings.home / "refdiff.sqlite") as old:
        for statement in earlier._MAIN[0]:
            assert isinstance(statement, str)
            old.execute(statement)
        old.execute("PRAGMA user_version=1")
        for i in range(3):
            old.execute(
                "INSERT INTO inspections (inspection_id, part_id, product, verdict, created_at, report) "
                "VALUES (?, ?, 'board', 'FAIL', '2026', ?)", (f"i{i}", f"p{i}", json.dumps({"requested_by": "ana"})),
            )  # fmt: skip
        old.execute("INSERT INTO dispositions VALUES ('i1', 'accept', 'bob', 'seen', '2026')")
    with Stores.open(settings) as stores:
        checked = stores.audit.verify_store()
        assert (checked.problem, checked.records) == (None, 4)
        assert [r.facts.get("adopted") for r in stores.audit.of("i1")] == [True, True]


# -- kills and crowds

PRELUDE = """
import sys
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
stores = Stores.open(MemorySettings(home=sys.argv[1], database_url=sys.argv[2] or None, qdrant_url=None))
def file(name):
    assert stores.inspections.file(name, name, "board", "REVIEW", "2026-01-01", {"name": name, "text": "x" * 20_000})
    stores.dispositions.add(name, "accept", "bob", "seen")
"""


@pytest.fixture
def start(settings: MemorySettings) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def starter(code: str) -> subprocess.Popen[str]:
        url = settings.database_url.get_secret_value() if settings.database_url else ""
        command = [sys.executable, "-u", "-c", PRELUDE + code, str(settings.home), url]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
        return running[-1]

    yield starter
    for process in running:
        process.kill()
        process.communicate(timeout=30)


def test_concurrent_processes_append_to_one_audit_chain(
    settings: MemorySettings, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    processes = [start(f"for i in range(40): file(f'{name}{{i}}')") for name in "abc"]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    with Stores.open(settings) as stores:
        checked = stores.audit.verify_store()
        assert (checked.problem, checked.records) == (None, 240)


def test_kill_9_while_appending_leaves_the_audit_chain_intact(
    settings: MemorySettings, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    acknowledged: list[str] = []
    for name in "abc":
        process = start(f"for i in range(100_000):\n    file(f'{name}{{i}}')\n    print(f'{name}{{i}}')")
        assert process.stdout is not None
        acknowledged += [process.stdout.readline().strip() for _ in range(10)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [line for line in process.stdout.read().split("\n")[:-1] if line]
        process.wait(timeout=30)
    with Stores.open(settings) as stores:
        assert stores.audit.verify_store().problem is None
        assert all(len(stores.audit.of(i)) == 2 for i in acknowledged)
        assert len(acknowledged) >= 30
