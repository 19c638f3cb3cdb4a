"""The embedded bank's file: damage, other encoders, and banks of earlier versions, which are pickles."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_contract import Contract

from refdiff.memory.golden_bank.bank import PREFIX, GoldenBank
from refdiff.memory.golden_bank.golden import Golden, point_id
from refdiff.memory.golden_bank.old_bank import MAX_POINT_BYTES, ForeignCodeError, read_pickle
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import StorageError

from .conftest import GLOBAL_DIM, PATCH_DIM, make_golden, make_vectors, on_server

VECTORS = {
    "global": qm.VectorParams(size=GLOBAL_DIM, distance=qm.Distance.DOT),
    "patches": qm.VectorParams(
        size=PATCH_DIM,
        distance=qm.Distance.COSINE,
        multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
    ),
}


def open_bank(settings: MemorySettings, fingerprint: str = "f") -> GoldenBank:
    return GoldenBank.open(settings, fingerprint, GLOBAL_DIM, PATCH_DIM)


def write_old_bank(settings: MemorySettings, goldens: list[Golden], fingerprint: str = "f") -> Path:
    """A bank as earlier versions wrote it; returns the file with the pickles."""
    name = f"refdiff_goldens_{fingerprint}"
    client = QdrantClient(path=str(settings.home / "qdrant"))
    client.create_collection(name, vectors_config=VECTORS)
    for golden in goldens:
        vector, patches = make_vectors(int(golden.sha256, 16))
        arrays = {"global": vector, "patches": patches}
        point = qm.PointStruct.model_construct(
            id=point_id(golden.golden_id), vector=arrays, payload=asdict(golden) | {"of_a_newer_version": 1}
        )
        client.upsert(name, points=[point])
    # Qdrant writes a point whose status changes anew, with lists of floats instead of arrays
    first = point_id(goldens[0].golden_id)
    client.set_payload(name, payload={"status": "retired", "note": "old"}, points=[first])
    client.close()
    return settings.home / "qdrant" / "collection" / name / "storage.sqlite"


def change(file: Path, statement: str, *values: object) -> None:
    conn = sqlite3.connect(file)
    with conn:
        assert conn.execute(statement, values).rowcount
    conn.close()


# ---- banks of earlier versions ----


def test_old_bank_is_taken_over_with_its_vectors_and_kept_aside(settings: MemorySettings) -> None:
    old = [make_golden(i, scale_mm_per_px=0.05, part_group="lot 7") for i in range(5)]
    write_old_bank(settings, old)
    write_old_bank(settings, [make_golden(9)], "of-another-encoder")
    for _ in range(2):
        with open_bank(settings) as bank:
            by_id = {g.golden_id: g for g in bank.list()}
            assert [by_id[g.golden_id] for g in old[1:]] == old[1:]
            assert (by_id[old[0].golden_id].status, by_id[old[0].golden_id].note) == ("retired", "old")
            for golden in old:
                for kept, expected in zip(
                    bank.vectors(golden.golden_id), make_vectors(int(golden.sha256, 16)), strict=True
                ):
                    np.testing.assert_allclose(kept, expected, atol=1e-6)
            assert bank.damaged() == []
            assert [g.sha256 for g in bank.of_other_encoders()] == [make_golden(9).sha256]
        assert sorted(p.name for p in settings.home.iterdir()) == ["goldens.sqlite", "qdrant-old", "qdrant.lock"]
    assert (settings.home / "goldens.sqlite").stat().st_mode & 0o777 == 0o600


def test_goldens_that_an_earlier_version_adds_later_are_taken_over_too(settings: MemorySettings) -> None:
    write_old_bank(settings, [make_golden(1)])
    with open_bank(settings) as bank:
        bank.set_status(make_golden(1).golden_id, "flagged")
    write_old_bank(settings, [make_golden(2), make_golden(1)])
    with open_bank(settings) as bank:
        assert {g.sha256: g.status for g in bank.list()} == {
            make_golden(1).sha256: "flagged",  # what is here already stays
            make_golden(2).sha256: "retired",
        }
    assert {p.name for p in settings.home.glob("qdrant-old*")} == {"qdrant-old", "qdrant-old1"}


def text(value: bytes) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value


PLANTED: dict[str, Callable[[bytes], bytes]] = {
    "GLOBAL": lambda command: b"cposix\nsystem\n(S'" + command + b"'\ntR.",
    "STACK_GLOBAL": lambda command: (
        b"\x80\x04" + text(b"posix") + text(b"system") + b"\x93" + text(command) + b"\x85R."
    ),
    "INST": lambda command: b"\x80\x04(" + text(command) + b"iposix\nsystem\n.",
    "inside a container": lambda command: (
        b"\x80\x04}" + text(b"a") + b"c__builtin__\neval\n" + text(command) + b"\x85Rs."
    ),
    "another function of numpy": lambda command: b"\x80\x04cnumpy\nload\n" + text(command) + b"\x85R.",
}


@pytest.mark.parametrize("column", ["point", "id"])
@pytest.mark.parametrize("planted", PLANTED)
def test_planted_pickle_runs_nothing_and_is_named_with_the_way_out(
    settings: MemorySettings, tmp_path: Path, planted: str, column: str
) -> None:
    file = write_old_bank(settings, [make_golden(1), make_golden(2)])
    marker = tmp_path / "ran"
    pickle = PLANTED[planted](f"touch {marker}".encode())
    value = base64.b64encode(pickle).decode() if column == "id" else pickle
    change(file, f"UPDATE points SET {column} = ? WHERE rowid = (SELECT max(rowid) FROM points)", value)
    with pytest.raises(
        StorageError,
        match=r"storage.sqlite: names the code .*refdiff did not write.*Nothing in it was run.*move it away",
    ):
        open_bank(settings)
    assert not marker.exists()
    (settings.home / "qdrant").rename(tmp_path / "away")  # the way out
    open_bank(settings).close()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle"),
        (b"\x80\x04", "pickle"),
        (b"\x80\x04N", "pickle"),
        (b"garbage" * 10, "newline"),
        (b"\x80\x04e.", "pickle|instruction"),  # items without a list
        (b"\x80\x04h\x07.", "pickle|instruction"),  # a memo entry that is not there
        (b"\x80\x04K\x01K\x02b.", "pickle|instruction"),  # a state for a number
        (b"\x80\x04\x8a\xff" + b"\x01" * 255 + b"\x93.", "pickle|instruction"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x04K\x01Q.", "instruction BINPERSID"),
    ],
)
def test_damaged_pickle_is_a_value_error(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pickle(data)


def test_pickle_that_names_code_is_refused_by_name() -> None:
    with pytest.raises(ForeignCodeError, match=r"^subprocess\.Popen$"):
        read_pickle(b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93.")


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\x80\x04N.", b"\x80\x04]\x94h\x00a.", b"x" * (MAX_POINT_BYTES + 1), None],
    ids=lambda d: str(d)[:9],
)
def test_damaged_point_of_an_old_bank_is_named_and_the_others_serve(
    settings: MemorySettings, damaged: bytes | None
) -> None:
    file = write_old_bank(settings, [make_golden(1), make_golden(2)])
    change(file, "UPDATE points SET point = ? WHERE rowid = (SELECT min(rowid) FROM points)", damaged)
    with open_bank(settings) as bank:
        (lost,) = bank.damaged()
        (kept,) = bank.list()
        assert {lost.golden_id, kept.golden_id} == {make_golden(1).golden_id, make_golden(2).golden_id}


@pytest.mark.parametrize("damage", ["storage.sqlite", "meta.json"])
def test_unreadable_old_bank_is_reported_and_left_alone(settings: MemorySettings, damage: str) -> None:
    """All that is needed is in the points, so a damaged meta.json loses nothing."""
    file = write_old_bank(settings, [make_golden(1)])
    next((settings.home / "qdrant").rglob(damage)).write_bytes(b"not what it was" * 500)
    if damage == "meta.json":
        with open_bank(settings) as bank:
            assert bank.count() == 1
    else:
        with pytest.raises(StorageError, match="damaged"):
            open_bank(settings)
        assert file.exists()


def test_old_bank_without_goldens_opens(settings: MemorySettings) -> None:
    (settings.home / "qdrant").mkdir(parents=True)
    (settings.home / "qdrant" / "meta.json").touch()
    open_bank(settings).close()


# ---- damage ----

DAMAGE = {
    "vectors": "UPDATE goldens SET patches = zeroblob(length(patches)) WHERE point = ?",
    "shorter vectors": "UPDATE goldens SET global = substr(global, 1, 7) WHERE point = ?",
    "vectors of another type": "UPDATE goldens SET patches = 'text' WHERE point = ?",
    "a number in the record": "UPDATE goldens SET record = replace(record, '0.05', '0.50') WHERE point = ?",
    "half a record": "UPDATE goldens SET record = substr(record, 1, 40) WHERE point = ?",
    "no record": "UPDATE goldens SET record = x'ff' WHERE point = ?",
    "another golden's record": "UPDATE goldens SET (record, record_crc) = "
    "(SELECT record, record_crc FROM goldens WHERE point != ?1 LIMIT 1) WHERE point = ?1",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_golden_is_named_the_others_serve_and_enrolling_it_again_mends_it(
    settings: MemorySettings, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    goldens = [make_golden(i, scale_mm_per_px=0.05) for i in range(3)]
    with open_bank(settings) as bank:
        for i, golden in enumerate(goldens):
            bank.add(golden, *make_vectors(i))
    change(settings.home / "goldens.sqlite", DAMAGE[damage], point_id(goldens[1].golden_id))
    with open_bank(settings) as bank:
        (lost,) = bank.damaged()
        assert lost.golden_id == goldens[1].golden_id
        assert (lost.golden == goldens[1]) == ("vectors" in damage)
        assert bank.list() == [goldens[0], goldens[2]]
        assert {h.golden.sha256 for h in bank.nearest("bracket", *make_vectors(1), k=3)} == {
            goldens[0].sha256,
            goldens[2].sha256,
        }
        (note,) = bank.notes()
        assert note == caplog.messages[0].partition(": ")[2]
        for words in ("1 damaged golden", goldens[1].golden_id, "refdiff goldens reenroll"):
            assert words in note
        assert bank.add(goldens[1], *make_vectors(1))
        assert (bank.damaged(), bank.notes()) == ([], [])
    with open_bank(settings) as bank:
        assert sorted(g.sha256 for g in bank.list()) == [g.sha256 for g in goldens]
        assert bank.damaged() == []


def test_vectors_of_other_sizes_are_damage(settings: MemorySettings) -> None:
    with open_bank(settings) as bank:
        bank.add(make_golden(1), *make_vectors(1))
    with GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM + 1) as bank:
        assert bank.list() == []
        assert "other sizes" in bank.damaged()[0].reason


def test_unreadable_file_is_reported(settings: MemorySettings) -> None:
    with open_bank(settings) as bank:
        bank.add(make_golden(1), *make_vectors(1))
    (settings.home / "goldens.sqlite").write_bytes(b"not what it was" * 500)
    with pytest.raises(StorageError, match=r"goldens.sqlite.*damaged"):
        open_bank(settings)


def test_damaged_point_of_a_server_is_named_the_others_serve_and_enrolling_it_again_mends_it(
    settings: MemorySettings, contract: Contract
) -> None:
    goldens = [make_golden(i) for i in range(3)]
    with open_bank(on_server(settings, contract), "damaged") as bank:
        for i, golden in enumerate(goldens):
            bank.add(golden, *make_vectors(i))
        lost = point_id(goldens[1].golden_id)
        bank._client.overwrite_payload(bank._name, payload={"product": "bracket", "status": "active"}, points=[lost])
        assert bank.list() == [goldens[0], goldens[2]]
        assert len(bank.nearest("bracket", *make_vectors(1), k=3)) == 2
        assert [d.golden_id for d in bank.damaged()] == [goldens[1].golden_id]
        assert goldens[1].golden_id in bank.notes("bracket")[0]
        assert bank.add(goldens[1], *make_vectors(1))
        assert (bank.list(), bank.notes()) == (goldens, [])
        bank._client.delete_collection(bank._name)


# ---- other encoders ----


@pytest.mark.parametrize("kept", ["embedded", "server"])
def test_goldens_of_other_encoders_are_counted_once_with_their_strictest_status(
    settings: MemorySettings, contract: Contract, kept: str
) -> None:
    if kept == "server":
        settings = on_server(settings, contract)
    shared, retired, gear = make_golden(1), make_golden(2), make_golden(3, "gear")
    with open_bank(settings, "a") as bank:
        for golden in (shared, retired, gear):
            bank.add(golden, *make_vectors(1))
    with open_bank(settings, "b") as bank:
        bank.add(retired, *make_vectors(1))
        bank.set_status(retired.golden_id, "retired", "a scratch")
    with open_bank(settings, "c") as bank:
        bank.add(shared, *make_vectors(1))
        assert [(g.golden_id, g.status) for g in bank.of_other_encoders("bracket")] == [(retired.golden_id, "retired")]
        assert len(bank.of_other_encoders()) == 2
        (note,) = bank.notes("bracket")
        assert note.startswith("1 golden sample was enrolled with other weights")
        assert bank.notes("other") == []
    with open_bank(settings, "a") as bank:
        assert bank.notes() == []
        if kept == "server":
            for name in "abc":
                bank._client.delete_collection(PREFIX + name)
