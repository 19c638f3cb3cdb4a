"""The golden bank: embedded, through Qdrant's HTTP API with its engine behind, and on a server where QDRANT_URL is set."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_contract import Contract

from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.memory.golden_bank.similarity import max_sim
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import BankBusyError, InputError, RefDiffError, UnavailableError, UnknownRecordError

from .conftest import GLOBAL_DIM, PATCH_DIM, OpenBank, make_golden, make_vectors, on_server


def fill(bank: GoldenBank, count: int, product: str = "bracket", first: int = 0) -> None:
    for i in range(first, first + count):
        assert bank.add(make_golden(i, product), *make_vectors(i))


def test_golden_with_its_vectors_survives_reopening(open_bank: OpenBank) -> None:
    golden = make_golden(
        1,
        scale_mm_per_px=0.05,
        part_group="lot 7",
        station="S2",
        enrolled_by="ana",
        status="flagged",
        note="dark",
    )
    vector, patches = make_vectors(1)
    with open_bank() as bank:
        assert bank.add(golden, vector, patches)
    with open_bank() as bank:
        assert bank.get(golden.golden_id) == golden
        assert bank.list() == [golden]
        stored_vector, stored_patches = bank.vectors(golden.golden_id)
    np.testing.assert_allclose(stored_vector, vector, atol=1e-6)
    np.testing.assert_allclose(stored_patches, patches, atol=1e-6)
    assert stored_vector.dtype == stored_patches.dtype == np.float32


def test_adding_a_golden_twice_keeps_the_first(open_bank: OpenBank) -> None:
    with open_bank() as bank:
        assert bank.add(make_golden(1, enrolled_by="ana"), *make_vectors(1))
        assert not bank.add(make_golden(1, enrolled_by="bob"), *make_vectors(2))
        assert bank.get(make_golden(1).golden_id).enrolled_by == "ana"
        assert bank.add(make_golden(1, "gear"), *make_vectors(1)), "the same photo may be another product's golden"
        assert (bank.count("bracket"), bank.count("gear"), bank.count()) == (1, 1, 2)
        assert bank.products() == ["bracket", "gear"]


def test_what_a_person_has_decided_is_not_flagged(open_bank: OpenBank) -> None:
    golden_id = make_golden(0).golden_id
    with open_bank() as bank:
        fill(bank, 1)
        bank.set_status(golden_id, "retired", "scratched", "ana")
        assert bank.flag(golden_id, "stands out") is None
        assert (bank.get(golden_id).status, bank.get(golden_id).note) == ("retired", "scratched")
        bank.set_status(golden_id, "active", "fine", "ana")
        assert bank.flag(golden_id, "stands out") is None
        bank.set_status(golden_id, "active")
        flagged = bank.flag(golden_id, "stands out")
        assert flagged == bank.get(golden_id)
        assert (flagged.status, flagged.note) == ("flagged", "stands out")


def test_golden_status_is_stored_and_filters_lists_and_search(open_bank: OpenBank) -> None:
    golden = make_golden(0)
    with open_bank() as bank:
        fill(bank, 3)
        changed = bank.set_status(golden.golden_id, "retired", "scratched")
        assert (changed.status, changed.note) == ("retired", "scratched")
    with open_bank() as bank:
        assert bank.get(golden.golden_id) == changed
        assert bank.count("bracket", ("active", "flagged")) == 2
        assert bank.list("bracket", ("retired",)) == [changed]
        hits = bank.nearest("bracket", *make_vectors(0), k=3)
        assert golden.golden_id not in [h.golden.golden_id for h in hits]
        assert len(hits) == 2
        assert bank.nearest("bracket", *make_vectors(0), k=3, statuses=("retired",))[0].golden == changed
        np.testing.assert_allclose(bank.vectors(golden.golden_id)[1], make_vectors(0)[1], atol=1e-6)


def test_nearest_goldens_equal_exhaustive_search(open_bank: OpenBank) -> None:
    with open_bank() as bank:
        fill(bank, 25)
        fill(bank, 5, "gear", first=100)
        vector, patches = make_vectors(999, patches=4)
        everything = [make_vectors(i) for i in range(25)]
        expected = np.array([(patches @ p.T).max(axis=1).mean() for _, p in everything])
        order = np.argsort(-expected)
        hits = bank.nearest("bracket", vector, patches, k=5)
        assert [h.golden for h in hits] == [
            replace(make_golden(int(i)), enrolled_at=h.golden.enrolled_at) for i, h in zip(order, hits, strict=False)
        ]
        np.testing.assert_allclose([h.similarity for h in hits], expected[order[:5]], atol=1e-5)
        cosines = [max(0.0, float(vector @ everything[int(i)][0])) for i in order[:5]]
        np.testing.assert_allclose([h.global_similarity for h in hits], cosines, atol=1e-5)


def test_golden_is_its_own_nearest_unless_excluded(open_bank: OpenBank) -> None:
    with open_bank() as bank:
        fill(bank, 3)
        assert bank.add(make_golden(50, part_group="g1"), *make_vectors(0))
        assert bank.add(make_golden(51, part_group="g1"), *make_vectors(0))
        both = bank.nearest("bracket", *make_vectors(0), k=3)
        assert [h.similarity for h in both] == pytest.approx([1.0, 1.0, 1.0], abs=1e-5)
        left = bank.nearest(
            "bracket", *make_vectors(0), k=9, exclude_ids=[make_golden(0).golden_id], exclude_groups=["g1"]
        )
        assert sorted(h.golden.sha256 for h in left) == [make_golden(1).sha256, make_golden(2).sha256]


def test_nearest_finds_a_small_product_behind_many_others(open_bank: OpenBank) -> None:
    """The first candidates by `global` are all of the other product: the search must go on."""
    query = make_vectors(7)
    with open_bank() as bank:
        for i in range(150):
            assert bank.add(make_golden(i, "crowd"), query[0], make_vectors(i)[1])
        fill(bank, 2, "rare", first=500)
        assert [h.golden.product for h in bank.nearest("rare", *query, k=2)] == ["rare", "rare"]
        assert bank.nearest("unheard of", *query, k=2) == []


def test_embedded_candidate_search_matches_the_server_filter(settings: MemorySettings, contract: Contract) -> None:
    """On a server Qdrant filters; embedded, the catalogue does. Same questions, same answers."""
    answers: list[list[object]] = []
    ids = [make_golden(i, "a").golden_id for i in (0, 2, 4)]
    at = utc_now()
    for where in (settings, on_server(settings, contract)):
        said: list[object] = []
        with GoldenBank.open(where, "matches", GLOBAL_DIM, PATCH_DIM) as bank:
            for i in range(60):
                status = ("active", "retired", "flagged")[i % 3]
                golden = make_golden(i, "ab"[i % 2], part_group=f"g{i // 4}", status=status, enrolled_at=at)
                bank.add(golden, *make_vectors(i))
            for k, skip, groups in ((1, [], []), (5, ids, ["g1"]), (40, ids, [])):
                hits = bank.nearest("a", *make_vectors(1000 + k), k=k, exclude_ids=skip, exclude_groups=groups)
                said += [(h.golden, round(h.similarity, 5)) for h in hits]
                assert hits
            said += [bank.list("a", ("active",)), bank.get(ids[0]), bank.count("a", ("flagged",))]
            if where is not settings:
                bank._client.delete_collection(bank._name)
        answers.append(said)
    assert answers[0] == answers[1]


def test_banks_of_two_encoders_share_a_home_without_warnings(settings: MemorySettings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GoldenBank.open(settings, "old", GLOBAL_DIM, PATCH_DIM) as bank:
            bank.add(make_golden(0), *make_vectors(0))
        with GoldenBank.open(settings, "new", GLOBAL_DIM, PATCH_DIM) as bank:
            assert bank.count() == 0


def test_unknown_golden_ids_and_invalid_arguments_are_refused(open_bank: OpenBank) -> None:
    vector, patches = make_vectors(0)
    with open_bank() as bank:
        fill(bank, 1)
        for bad_id in ("g-000000000000", "../etc", "g-xyz", ""):
            with pytest.raises(UnknownRecordError, match="goldens list"):
                bank.get(bad_id)
            with pytest.raises(UnknownRecordError):
                bank.set_status(bad_id, "retired")
            with pytest.raises(UnknownRecordError):
                bank.vectors(bad_id)
        with pytest.raises(InputError, match="active, flagged, retired"):
            bank.set_status(make_golden(0).golden_id, "lost")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="1 or more"):
            bank.nearest("bracket", vector, patches, k=0)
        for wrong in (
            (vector[1:], patches),
            (vector, patches[:, 1:]),
            (vector, patches[:0]),
            (vector * np.nan, patches),
        ):
            with pytest.raises(RefDiffError):
                bank.add(make_golden(9), *wrong)
        assert bank.count() == 1


def test_unreachable_qdrant_server_is_named_without_its_password() -> None:
    settings = MemorySettings(qdrant_url="http://user:secret@127.0.0.1:9", qdrant_api_key=None)
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM)
    assert "secret" not in str(caught.value)


def test_max_sim_matches_values_worked_out_by_hand() -> None:
    query = np.array([[1, 0], [0, 1]], np.float32)
    candidates = [
        np.array([[2, 0]], np.float32),  # cosines 1 and 0
        np.array([[0, 1], [3, 0], [1, 1]], np.float32),  # 1 and 1
        np.array([[-1, -1]], np.float32),  # negative: clipped
    ]
    assert max_sim(query, candidates).tolist() == pytest.approx([0.5, 1.0, 0.0])


def test_retired_golden_stays_retired_where_it_is_flagged_at_the_same_time(
    settings: MemorySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden_id = make_golden(0).golden_id
    with (
        Stores.open(settings) as stores,
        GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM, stores.db, shared=True) as one,
        GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM, stores.db, shared=True) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        fill(one, 1)
        write, retired = one._write_status, []

        def flags(*args: Any) -> None:
            # a person retires it in another process, after it was read here
            retired.append(pool.submit(other.set_status, golden_id, "retired", "scratched", "ana"))
            with pytest.raises(TimeoutError):
                retired[0].result(0.2)
            write(*args)

        monkeypatch.setattr(one, "_write_status", flags)
        assert one.flag(golden_id, "stands out") is not None
        retired[0].result(10)
        assert (one.get(golden_id).status, one.get(golden_id).note) == ("retired", "scratched")


def test_processes_that_share_the_bank_see_what_each_other_changes(settings: MemorySettings) -> None:
    def opened(shared: bool = True) -> GoldenBank:
        return GoldenBank.open(settings, "f", GLOBAL_DIM, PATCH_DIM, shared=shared)

    with opened() as one, opened() as other:
        for i in range(3):
            assert one.add(make_golden(i), *make_vectors(i))
        assert [h.golden.sha256 for h in other.nearest("bracket", *make_vectors(1), k=1)] == [make_golden(1).sha256]
        other.set_status(make_golden(1).golden_id, "retired", "a defect")
        assert [h.golden.sha256 for h in one.nearest("bracket", *make_vectors(1), k=3)][-1] != make_golden(1).sha256
        assert one.get(make_golden(1).golden_id).note == "a defect"
        assert (one.count("bracket"), one.count("bracket", IN_USE)) == (3, 2)
        assert not other.add(make_golden(0), *make_vectors(0))
        with pytest.raises(BankBusyError):  # a command that wants it for itself
            opened(shared=False)
    with opened(shared=False) as alone:
        assert alone.count("bracket") == 3
        with pytest.raises(BankBusyError):
            opened()
