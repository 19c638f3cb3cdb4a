"""The golden bank on a Qdrant server: how its collection is made, what a server that fails does, and what it is asked.

The server is `qdrant_contract.Contract`: Qdrant's engine behind its HTTP API, checked against Qdrant's own schema.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_http import serving
from pydantic import SecretStr
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_contract import Contract, Fault, operations

from refdiff.memory.changes import GOLDEN
from refdiff.memory.golden_bank import connection
from refdiff.memory.golden_bank.bank import PREFIX, GoldenBank
from refdiff.memory.golden_bank.collection import INDEXED
from refdiff.memory.golden_bank.golden import point_id
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import StorageError, UnavailableError

from .conftest import GLOBAL_DIM, PATCH_DIM, OpenBank, make_golden, make_vectors, on_server

RECORDED = Path(__file__).with_name("qdrant_contract.json")
_WRITE = bool(os.environ.get("REFDIFF_SNAPSHOT_WRITE"))


@pytest.fixture
def name(contract: Contract) -> Iterator[str]:
    """A fingerprint of the test's own; its collection is gone afterwards."""
    fingerprint = f"t{uuid.uuid4().hex[:12]}"
    yield fingerprint
    contract._drop(PREFIX + fingerprint)


def open_on(settings: MemorySettings, name: str, **more: Any) -> GoldenBank:
    return GoldenBank.open(settings, name, GLOBAL_DIM, PATCH_DIM, **more)


@pytest.fixture
def impatient(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank that is opened from now on waits 1 s for the server, which says nothing for longer."""
    monkeypatch.setattr(connection, "SERVER_TIMEOUT_S", 1)
    contract.silent_s = 1.5


@pytest.fixture
def bank(settings: MemorySettings, contract: Contract, name: str) -> Iterator[GoldenBank]:
    """On the server, with the golden sample 1."""
    with open_on(on_server(settings, contract), name) as bank:
        assert bank.add(make_golden(1), *make_vectors(1))
        yield bank


# ---- how a collection is made ----

LAYOUTS: dict[str, dict[str, Any]] = {
    "nothing set": {},
    "int8": {"qdrant_quantization": "int8"},
    "int8 on disk": {"qdrant_quantization": "int8", "qdrant_on_disk": True},
    "cluster": {"qdrant_shards": 6, "qdrant_replicas": 2},
    "by product": {"qdrant_shard_by_product": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_collection_is_made_as_set_and_finds_what_exhaustive_search_finds(
    settings: MemorySettings, contract: Contract, name: str, layout: str
) -> None:
    wanted = LAYOUTS[layout]
    goldens = [make_golden(i, "ab"[i % 2]) for i in range(60)]
    with open_on(on_server(settings, contract, **wanted), name) as bank:
        assert bank.differences() == []
        info = bank._client.get_collection(bank._name)
        for i, golden in enumerate(goldens):
            assert bank.add(golden, *make_vectors(i))
        vector, patches = make_vectors(999)
        by_global = sorted(range(0, 60, 2), key=lambda i: -float(vector @ make_vectors(i)[0]))
        found = bank.nearest("a", vector, patches, k=8)
        assert {h.golden.golden_id for h in found} <= {goldens[i].golden_id for i in by_global[:32]}
        assert len(found) == 8
        for hit in found:  # the cosine is that of the vectors, not of their small copies
            exact = float(vector @ make_vectors(int(hit.golden.sha256, 16))[0])
            assert hit.global_similarity == pytest.approx(max(0.0, exact), abs=1e-5)
    made: Any = info.config.params.vectors
    assert made["patches"].on_disk, "patches are fetched for a few candidates"
    assert (made["global"].hnsw_config.m, made["global"].hnsw_config.payload_m) == (0, 16)
    assert made["global"].on_disk == wanted.get("qdrant_on_disk", False)
    kinds = {"int8": qm.ScalarQuantization, None: type(None)}
    assert isinstance(made["global"].quantization_config, kinds[wanted.get("qdrant_quantization")])
    params = info.config.params
    assert (params.shard_number, params.replication_factor) == (
        wanted.get("qdrant_shards", 1), wanted.get("qdrant_replicas", 1)
    )  # fmt: skip
    assert (params.sharding_method == qm.ShardingMethod.CUSTOM) == ("qdrant_shard_by_product" in wanted)


def test_index_of_products_keeps_them_together_and_no_other_field_has_links(bank: GoldenBank) -> None:
    schema = bank._client.get_collection(bank._name).payload_schema
    told = {field: (i.params.is_tenant, i.params.enable_hnsw) for field, i in schema.items()}  # type: ignore[union-attr]
    assert told == {"product": (True, True)} | dict.fromkeys(("status", "part_group", "sha256"), (False, False))


def test_settings_that_come_after_the_collection_are_told_and_it_serves_as_it_is(
    settings: MemorySettings, contract: Contract, name: str, bank: GoldenBank, caplog: pytest.LogCaptureFixture
) -> None:
    later = on_server(
        settings, contract, qdrant_quantization="int8", qdrant_on_disk=False, qdrant_shard_by_product=True
    )
    with open_on(later, name) as again:
        assert again.differences() == [
            "REFDIFF_QDRANT_QUANTIZATION is int8, it was made with none",
            "REFDIFF_QDRANT_SHARD_BY_PRODUCT is true, it was made with false",
        ]
        assert [h.golden for h in again.nearest("bracket", *make_vectors(1), k=1)] == bank.list()
        assert again.add(make_golden(2), *make_vectors(2))
    assert "REFDIFF_QDRANT_QUANTIZATION is int8" in caplog.text


@pytest.mark.filterwarnings("ignore:Api key is used")
def test_layout_of_an_earlier_version_is_told_and_changed_as_the_guide_says(
    settings: MemorySettings, contract: Contract, name: str
) -> None:
    server, collection = on_server(settings, contract), PREFIX + name
    client = QdrantClient(url=contract.url, api_key=str(contract.api_key), check_compatibility=False)
    many = qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM)
    client.create_collection(
        collection,
        vectors_config={
            "global": qm.VectorParams(size=GLOBAL_DIM, distance=qm.Distance.DOT),
            "patches": qm.VectorParams(
                size=PATCH_DIM, distance=qm.Distance.COSINE, hnsw_config=qm.HnswConfigDiff(m=0), multivector_config=many
            ),
        },
    )
    for field in INDEXED:
        schema = qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, is_tenant=field == "product")
        client.create_payload_index(collection, field_name=field, field_schema=schema)
    with open_on(server, name) as bank:
        told = ["its graph links golden samples of all products", "its patches lie in memory"]
        assert bank.differences() == told
        assert bank.add(make_golden(1), *make_vectors(1))

    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    fields, change = re.findall(r"for FIELD in ([\w ]+);.*?curl -X PATCH .*? -d '(.*?)'\n", guide, re.DOTALL)[0]
    for field in fields.split():
        client.delete_payload_index(collection, field)
    with open_on(server, name) as bank:  # a restart
        assert bank.differences() == told
        schema = bank._client.get_collection(collection).payload_schema
    assert {field: (i.params.is_tenant, i.params.enable_hnsw) for field, i in schema.items()} == {  # type: ignore[union-attr]
        "product": (True, None)
    } | dict.fromkeys(fields.split(), (False, False))
    assert {"product", *fields.split()} == {*INDEXED}
    http = client._client.openapi_client.client._client  # type: ignore[attr-defined]
    http.request("PATCH", f"{contract.url}/collections/{collection}", json=json.loads(change)).raise_for_status()
    int8 = on_server(settings, contract, qdrant_quantization="int8", qdrant_on_disk=True)
    with open_on(int8, name) as bank:
        assert bank.differences() == []
        assert [h.golden for h in bank.nearest("bracket", *make_vectors(1), k=1)] == bank.list()
    client.close()


def test_settings_of_servers_leave_the_embedded_bank_alone(settings: MemorySettings) -> None:
    fields = settings.model_dump() | LAYOUTS["int8 on disk"] | LAYOUTS["by product"] | LAYOUTS["cluster"]
    with GoldenBank.open(MemorySettings(**fields), "f", GLOBAL_DIM, PATCH_DIM) as bank:
        assert bank.add(make_golden(1), *make_vectors(1))
        assert (bank.count(), bank.differences()) == (1, [])


def test_product_of_its_own_shards_is_asked_for_there(settings: MemorySettings, contract: Contract, name: str) -> None:
    sharded = on_server(settings, contract, qdrant_shard_by_product=True)
    with open_on(sharded, name) as bank, open_on(sharded, name) as other:
        for i in range(9):
            assert bank.add(make_golden(i, "abc"[i % 3]), *make_vectors(i))
        shards = contract._collections[bank._name].shards
        assert {key: shard.info().points_count for key, shard in shards.items()} == {"a": 3, "b": 3, "c": 3}
        assert {h.golden.product for h in other.nearest("b", *make_vectors(1), k=9)} == {"b"}
        assert (other.count("c"), other.count(), other.nearest("unheard of", *make_vectors(1), k=1)) == (3, 9, [])
        other.set_status(make_golden(1, "b").golden_id, "retired", "a scratch")
        assert bank.count("b", ("retired",)) == 1


def test_processes_that_start_at_the_same_moment_share_one_collection(
    settings: MemorySettings, contract: Contract, name: str
) -> None:
    sharded, errors, together = on_server(settings, contract, qdrant_shard_by_product=True), [], threading.Barrier(6)

    def start(i: int) -> None:
        try:
            together.wait(10)
            with open_on(sharded, name) as bank:
                together.wait(10)
                assert bank.add(make_golden(i), *make_vectors(i))
        except Exception as e:
            errors.append(e)
            together.abort()

    threads = [threading.Thread(target=start, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    with open_on(sharded, name) as bank:
        assert bank.count("bracket") == 6


# ---- a server that fails ----


def of_golden(stores: Stores, golden_id: str) -> list[Any]:
    """The audit records of a golden sample, oldest first."""
    return stores.audit.changes(GOLDEN, golden_id)


FAULTS: tuple[Fault, ...] = ("503", "503 after it is done", "hangs up after it is done", "says nothing")


@pytest.mark.parametrize("fault", FAULTS)
def test_write_that_gets_no_answer_is_made_once(
    settings: MemorySettings, stores: Stores, contract: Contract, name: str, impatient: None, fault: Fault
) -> None:
    golden = make_golden(1)
    with open_on(on_server(settings, contract), name, chain=stores.db) as bank:
        contract.faults = {"upsert_points": [fault], "set_payload": [fault]}
        assert bank.add(golden, *make_vectors(1))
        assert bank.set_status(golden.golden_id, "flagged", "dark").status == "flagged"
        assert (bank.count(), bank.get(golden.golden_id).note) == (1, "dark")
        assert contract.faults == {"upsert_points": [], "set_payload": []}
    told = of_golden(stores, golden.golden_id)
    assert [("failed" in r.facts, r.facts["after"] is None) for r in told] == [(False, False)] * 2


@pytest.mark.parametrize("fault", FAULTS[:3])
def test_golden_whose_enrolment_failed_is_enrolled_by_the_same_command(
    settings: MemorySettings, stores: Stores, contract: Contract, name: str, fault: Fault
) -> None:
    golden = make_golden(1)
    with open_on(on_server(settings, contract), name, chain=stores.db) as bank:
        contract.faults = {"upsert_points": [fault] * 2}
        with pytest.raises(UnavailableError):
            bank.add(golden, *make_vectors(1))
        assert bank.add(golden, *make_vectors(1)) == (fault == "503"), "it is there, or it is not"
        assert [g.golden_id for g in bank.list()] == [golden.golden_id]
        np.testing.assert_allclose(bank.vectors(golden.golden_id)[1], make_vectors(1)[1], atol=1e-6)
    assert "failed" in of_golden(stores, golden.golden_id)[1].facts


MESSAGES: dict[str, tuple[Callable[[GoldenBank, Contract], object], str]] = {
    "a search is answered 503": (
        lambda bank, contract: contract.faults.update(query_points=["503"]),
        r"http://127\.0\.0\.1:\d+ failed \(503: Service internal error: the test said so\); see its log",
    ),
    "a search is not answered": (
        lambda bank, contract: contract.faults.update(query_points=["says nothing"]),
        r"broke off or took over 1 s \(\w+\).*repeat the command",
    ),
    "a search is broken off": (
        lambda bank, contract: contract.faults.update(query_points=["hangs up after it is done"]),
        r"broke off or took over 1 s \(RemoteProtocolError\)",
    ),
    "the collection is gone": (
        lambda bank, contract: contract._drop(bank._name),
        r"has lost the golden samples \(404: Not found: Collection `\w+` doesn't exist!\); restore its snapshot",
    ),
    "the collection has vectors of other sizes now": (
        lambda bank, contract: _made_anew(bank, contract),
        r"failed \(400: Wrong input: Vector dimension error: expected dim: 3, got 24\)",
    ),
}


def _made_anew(bank: GoldenBank, contract: Contract) -> None:
    contract._drop(bank._name)
    bank._client.create_collection(
        bank._name, vectors_config={"global": qm.VectorParams(size=3, distance=qm.Distance.DOT)}
    )


@pytest.mark.parametrize("trouble", MESSAGES)
def test_trouble_of_a_server_is_named_with_the_way_out(
    contract: Contract, impatient: None, bank: GoldenBank, trouble: str
) -> None:
    make, said = MESSAGES[trouble]
    make(bank, contract)
    with pytest.raises(UnavailableError, match=said) as caught:
        bank.nearest("bracket", *make_vectors(1), k=1)
    assert str(contract.api_key) not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [(None, "Must provide an API key"), ("another", "Invalid API key")],
)
def test_key_that_a_server_refuses_is_named_by_its_setting(
    settings: MemorySettings, contract: Contract, key: str | None, said: str
) -> None:
    asked = MemorySettings(home=settings.home, qdrant_url=contract.url, qdrant_api_key=key and SecretStr(key))
    with pytest.raises(UnavailableError, match=rf"refuses the key \(401: {said}.*set QDRANT_API_KEY"):
        open_on(asked, "f")


def test_collection_of_another_encoders_sizes_is_refused(
    settings: MemorySettings, contract: Contract, name: str
) -> None:
    server = on_server(settings, contract)
    open_on(server, name).close()
    with pytest.raises(StorageError, match=r"holds vectors of sizes \(24, 8\), this encoder makes \(24, 9\)"):
        GoldenBank.open(server, name, GLOBAL_DIM, PATCH_DIM + 1)


@pytest.mark.parametrize(
    "page", [b"<html>Welcome to nginx!</html>", b'{"hello": "world"}', b'{"result": 7, "time": "now"}']
)
def test_server_that_is_no_qdrant_is_told(settings: MemorySettings, tmp_path: Path, page: bytes) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Other)
    with (
        serving(http),
        pytest.raises(UnavailableError, match=r"is no Qdrant that this version knows; correct QDRANT_URL"),
    ):
        open_on(MemorySettings(home=tmp_path, qdrant_url=f"http://127.0.0.1:{http.server_port}"), "f")


def test_goldens_that_were_there_before_a_server_went_away_are_there_when_it_is_back(
    bank: GoldenBank,
) -> None:
    """In the meantime every call fails at once, and none looks as if there were no golden samples."""
    real, bank._client._client.openapi_client.client.host = (
        bank._client._client.openapi_client.client.host,
        "http://127.0.0.1:9",
    )  # type: ignore[attr-defined]
    calls: list[Callable[[], object]] = [
        lambda: bank.list(), lambda: bank.count("bracket"), lambda: bank.nearest("bracket", *make_vectors(2), k=1),
        lambda: bank.add(make_golden(2), *make_vectors(2)), lambda: bank.of_other_encoders(),
    ]  # fmt: skip
    for call in calls:
        begun = time.perf_counter()
        with pytest.raises(UnavailableError, match=r"does not answer \(ConnectError\); start it"):
            call()
        assert time.perf_counter() - begun < 5
    bank._client._client.openapi_client.client.host = real  # type: ignore[attr-defined]
    assert [g.sha256 for g in bank.list()] == [make_golden(1).sha256]


# ---- named defects ----


def test_named_defects_are_found_by_distance_within_their_product(open_bank: OpenBank) -> None:
    weights = f"w{time.time_ns():x}"
    vectors = {f"{i}": np.full(5, i, np.float32) for i in range(4)}
    with open_bank() as bank:
        index = bank.defects(weights, 5)
        index.hold("board", 1, {key: ("crack", v) for key, v in vectors.items() if key != "3"}, [])
        index.hold("gear", 1, {"3": ("burr", vectors["3"])}, [])
        found = index.nearest("board", vectors["1"], ["0", "1", "2", "3"])
        assert list(found.items()) == [("1", 0.0), ("0", pytest.approx(5**0.5)), ("2", pytest.approx(5**0.5))] or list(
            found.items()
        ) == [("1", 0.0), ("2", pytest.approx(5**0.5)), ("0", pytest.approx(5**0.5))]
        index.hold("board", 2, {}, ["1"])
        assert set(index.nearest("board", vectors["1"], ["0", "1", "2"])) == {"0", "2"}
        bank._client.delete_collection(f"refdiff_defects_{weights}")


# ---- what a server is asked ----


def everything(settings: MemorySettings, contract: Contract, name: str) -> dict[str, Any]:
    """Every call of the bank, and the shapes of what a server was asked and answered."""
    contract.asked.clear()
    for by_product in (False, True):
        server = on_server(settings, contract, qdrant_shard_by_product=by_product, qdrant_quantization="int8")
        with open_on(server, name) as bank:
            golden = make_golden(1, part_group="lot 7", station="S2", scale_mm_per_px=0.05)
            bank.add(golden, *make_vectors(1))
            bank.set_status(golden.golden_id, "flagged", "dark")
            bank.nearest("bracket", *make_vectors(2), k=2, exclude_ids=[make_golden(2).golden_id], exclude_groups=["x"])
            (
                bank.get(golden.golden_id),
                bank.vectors(golden.golden_id),
                bank.count("bracket"),
                bank.notes(),
                bank.products(),
            )
            index = bank.defects(f"of{name}", 5)
            index.hold("bracket", 1, {"a": ("crack", np.ones(5, np.float32))}, ["b"])
            index.nearest("bracket", np.ones(5, np.float32), ["a"])
            bank._client.delete_collection(bank._name)
            bank._client.delete_collection(f"refdiff_defects_of{name}")
    return dict(sorted(contract.asked.items()))


def test_server_is_asked_as_recorded(settings: MemorySettings, contract: Contract, name: str) -> None:
    """The record shows in a diff what a change asks of a server for the first time. REFDIFF_SNAPSHOT_WRITE=1 writes it."""
    asked = everything(settings, contract, name)
    if _WRITE:
        RECORDED.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    assert asked == json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:Api key is used")
def test_contract_refuses_what_qdrants_schema_does_not_know(contract: Contract) -> None:
    client = QdrantClient(url=contract.url, api_key=str(contract.api_key), check_compatibility=False)
    http = client._client.openapi_client.client._client  # type: ignore[attr-defined]
    asked = [
        ("PUT", "/collections/c", {"vectors": {"size": 4, "distance": "Dot"}, "made_up": 1}),
        ("POST", "/collections/c/points/made_up", {}),
        ("POST", "/collections/c/points/count?made_up=1", {"exact": True}),
        ("PATCH", "/collections/c", {"params": {"replication_factor": 2}}),
    ]
    for method, path, body in asked:
        assert http.request(method, contract.url + path, json=body).status_code >= 400
    problems, contract.problems = contract.problems, []
    assert len(problems) == len(asked)
    for problem, said in zip(
        problems, ["made_up", "no such operation", "the query has made_up", "not served"], strict=True
    ):
        assert said in problem
    assert len(operations()) > 60
    client.close()


def test_point_ids_of_goldens_are_numbers_that_a_server_keeps_exactly(
    bank: GoldenBank,
) -> None:
    (record,) = bank._client.scroll(bank._name)[0]
    assert record.id == point_id(make_golden(1).golden_id)
