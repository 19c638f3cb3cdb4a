"""A server that speaks the part of Qdrant's HTTP API which the golden bank uses, with Qdrant's own engine behind it.

What may be asked and answered is not written here: it is read from qdrant-client, whose calls and models are generated from
Qdrant's OpenAPI. Each request is checked against it (method, path, query, body) and so is each answer; an operation that is
not served here, or a request that the schema does not know, is an error of the test that made it (`problems`).
What is not the schema's but the server's own (the texts of errors, keys of shards) follows Qdrant 1.19.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import qdrant_client.http.api as generated
import qdrant_edge as edge
import qdrant_engine as engine
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models as qm

Fault = Literal["503", "503 after it is done", "hangs up after it is done", "says nothing"]


@dataclass(frozen=True)
class Operation:
    """An operation of Qdrant's OpenAPI."""

    name: str
    method: str
    path: str  # with the names of its parameters
    query: tuple[str, ...]
    body: Any  # type of the request's body; None: it has none
    answer: Any  # type of the answer

    def match(self, path: str) -> list[str] | None:
        """The parameters of a path; None: it is another operation's."""
        found = re.fullmatch(re.sub(r"\\{\w+\\}", "([^/]+)", re.escape(self.path)), path)
        return None if found is None else [unquote(text) for text in found.groups()]


@cache
def operations() -> dict[str, Operation]:
    """All operations by name, those with the fewest parameters in their paths first."""

    class Recorder:
        def request(self, **call: Any) -> None:
            self.call = call

    found = []
    for module in pkgutil.iter_modules(generated.__path__):
        for class_name, api in vars(importlib.import_module(f"{generated.__name__}.{module.name}")).items():
            if not re.fullmatch(r"_\w+Api", class_name):
                continue
            for function_name, build in vars(api).items():
                if function_name.startswith("_build_for_"):
                    recorder, parameters = Recorder(), inspect.signature(build).parameters
                    caller = object.__new__(api)
                    caller.api_client = recorder
                    build(caller, **{name: name for name in parameters if name != "self"})
                    call = recorder.call
                    body = parameters[call["content"]].annotation if call.get("content") in parameters else None
                    query = tuple(sorted(call.get("params") or ()))
                    name = function_name.removeprefix("_build_for_")
                    found.append(Operation(name, call["method"], call["url"], query, body, call["type_"]))
    return {operation.name: operation for operation in sorted(found, key=lambda o: (o.path.count("{"), o.path))}


class _Refusal(Exception):
    """An answer that is an error: status, text."""


@dataclass
class _Collection:
    made: qm.CreateCollection
    folder: Path
    shards: dict[str | None, edge.EdgeShard] = field(default_factory=dict)  # by key; None: of no key
    indexes: dict[str, Any] = field(default_factory=dict)

    @property
    def by_key(self) -> bool:
        return self.made.sharding_method == qm.ShardingMethod.CUSTOM

    def add_shard(self, key: str | None) -> None:
        folder = self.folder / uuid.uuid4().hex
        self.shards[key] = edge.EdgeShard.create(
            str(folder),
            engine.config(self.made.vectors, self.made.hnsw_config),  # type: ignore[arg-type]
        )
        for name, params in self.indexes.items():
            self.shards[key].update(edge.UpdateOperation.create_field_index(name, engine.index(params)))

    def of(self, key: Any, writes: bool = False) -> list[edge.EdgeShard]:
        """The shards that a request is for."""
        if key is None:
            if writes and self.by_key:
                raise _Refusal(400, "Wrong input: Shard key not specified")
            return list(self.shards.values())
        if key not in self.shards:
            raise _Refusal(404, f'Not found: Shard key "{key}" not found')
        return [self.shards[key]]


class Contract:
    """The server, running. A context manager."""

    def __init__(self, api_key: str | None = None) -> None:
        """api_key: that a request must carry; None: none."""
        self.api_key = api_key
        self.problems: list[str] = []  # what broke the contract, in words
        self.asked: dict[str, dict[str, Any]] = {}  # the shapes of what was asked and answered, by operation
        self.faults: dict[str, list[Fault]] = {}  # operation -> what goes wrong at its next calls
        self.silent_s = 1.0  # how long "says nothing" lasts
        self._collections: dict[str, _Collection] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="refdiff-qdrant-"))
        self._lock = threading.Lock()
        contract = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                contract._serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _answer

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Contract:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        for name in list(self._collections):
            self._drop(name)
        shutil.rmtree(self._folder)

    # -- HTTP

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        raw = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        url = urlsplit(request.path)
        operation, status, answer = None, 200, None
        try:
            operation, parameters = self._operation(request.command, url.path)
            probes = operation.answer is str  # no key is asked of them
            if self.api_key is not None and not probes and request.headers.get("api-key") != self.api_key:
                given = "api-key" in request.headers
                text = "Invalid API key or JWT" if given else "Must provide an API key or an Authorization bearer token"
                self._send(request, 401, text.encode(), "text/plain")
                return
            fault = self.faults[operation.name].pop(0) if self.faults.get(operation.name) else None
            if fault == "503":
                raise _Refusal(503, "Service internal error: the test said so")
            if fault == "says nothing":
                time.sleep(self.silent_s)
                request.close_connection = True
                return
            body = self._checked(operation, url.query, raw)
            answer = self._done(operation, parameters, body)
            if probes:
                self._send(request, 200, answer.encode(), "text/plain")
                return
            if fault == "503 after it is done":
                raise _Refusal(503, "Service internal error: the test said so")
            if fault == "hangs up after it is done":
                request.close_connection = True
                return
        except _Refusal as refusal:
            status, said = refusal.args
            answer = {"status": {"error": said}, "time": 0.0, "result": None}
        if operation is not None:
            self._remember(operation, raw, status, answer)
        self._send(request, status, json.dumps(answer).encode(), "application/json")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _operation(self, method: str, path: str) -> tuple[Operation, list[str]]:
        for operation in operations().values():
            if operation.method == method and (parameters := operation.match(path)) is not None:
                return operation, parameters
        self.problems.append(f"{method} {path}: Qdrant has no such operation")
        raise _Refusal(404, "Not found")

    def _checked(self, operation: Operation, query: str, raw: bytes) -> Any:
        """The body of a request that fits the schema."""
        if unknown := set(parse_qs(query)) - set(operation.query):
            self.problems.append(f"{operation.name}: the query has {', '.join(sorted(unknown))}")
        if operation.body is None:
            return None
        try:
            return TypeAdapter(operation.body).validate_json(raw)
        except ValidationError as e:
            self.problems.append(f"{operation.name}: {e}")
            raise _Refusal(400, f"Format error in JSON body: {e}") from e

    def _done(self, operation: Operation, parameters: list[str], body: Any) -> Any:
        serve: Callable[..., Any] | None = getattr(self, f"_{operation.name}", None)
        if serve is None:
            self.problems.append(f"{operation.name} is not served: add it to {Path(__file__).name}")
            raise _Refusal(501, f"{operation.name} is not served")
        try:
            with self._lock:
                result = serve(*parameters, *(() if operation.body is None else (body,)))
        except engine.Unsupported as e:
            self.problems.append(f"{operation.name}: {e} is not served: add it to qdrant_engine.py")
            raise _Refusal(501, str(e)) from e
        except _Refusal:
            raise
        except Exception as e:  # the engine's own words, as the server passes them on
            raise _Refusal(400, f"Wrong input: {e}") from e
        if operation.answer is str:
            return result
        answer = {"result": TypeAdapter(Any).dump_python(result, mode="json"), "status": "ok", "time": 0.001}
        try:
            known = TypeAdapter(operation.answer).validate_python(answer)
        except ValidationError as e:
            self.problems.append(f"answer of {operation.name}: {e}")
            raise _Refusal(500, str(e)) from e
        if unknown := _leaves(answer) - _leaves(known.model_dump(mode="json")):
            self.problems.append(f"answer of {operation.name}: the schema has no {', '.join(sorted(unknown))}")
        return answer

    def _remember(self, operation: Operation, raw: bytes, status: int, answer: Any) -> None:
        kept = self.asked.setdefault(
            operation.name, {"request": f"{operation.method} {operation.path}", "body": [], "answers": {}}
        )
        kept["body"] = sorted({*kept["body"], *(_leaves(json.loads(raw)) if raw else ())})
        shape = sorted(_leaves(answer)) if status == 200 else answer["status"]["error"].split(":")[0]
        kept["answers"].setdefault(str(status), shape)

    # -- operations, by the names that Qdrant's OpenAPI has for them

    def _livez(self) -> str:
        return "healthz check passed"

    _readyz = _livez

    def _get_collections(self) -> Any:
        return {"collections": [{"name": name} for name in self._collections]}

    def _collection_exists(self, name: str) -> Any:
        return {"exists": name in self._collections}

    def _create_collection(self, name: str, made: qm.CreateCollection) -> Any:
        if name in self._collections:
            raise _Refusal(409, f"Wrong input: Collection `{name}` already exists!")
        kept = _Collection(made, self._folder / name)
        if not kept.by_key:
            kept.add_shard(None)
        self._collections[name] = kept
        return True

    def _get_collection(self, name: str) -> Any:
        kept = self._known(name)
        infos = [shard.info() for shard in kept.shards.values()]
        made, hnsw = kept.made, kept.made.hnsw_config or qm.HnswConfigDiff()
        params = qm.CollectionParams(
            vectors=made.vectors,
            shard_number=made.shard_number or 1,
            sharding_method=made.sharding_method,
            replication_factor=made.replication_factor or 1,
            write_consistency_factor=1,
            on_disk_payload=True,
        )
        config = qm.CollectionConfig(
            params=params,
            hnsw_config=qm.HnswConfig(m=16 if hnsw.m is None else hnsw.m, ef_construct=100, full_scan_threshold=10000),
            optimizer_config=qm.OptimizersConfig(
                deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=5
            ),
            wal_config=qm.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0),
            quantization_config=made.quantization_config,
        )
        schema = {
            field: qm.PayloadIndexInfo(data_type=qm.PayloadSchemaType.KEYWORD, params=index, points=0)
            for field, index in kept.indexes.items()
        }
        info = qm.CollectionInfo(
            status=qm.CollectionStatus.GREEN,
            optimizer_status=qm.OptimizersStatusOneOf.OK,
            segments_count=sum(i.segments_count for i in infos),
            points_count=sum(i.points_count for i in infos),
            indexed_vectors_count=sum(i.indexed_vectors_count for i in infos),
            config=config,
            payload_schema=schema,
        )
        return info.model_dump(mode="json", exclude_none=True)

    def _delete_collection(self, name: str) -> Any:
        return self._drop(name)

    def _create_field_index(self, name: str, asked: qm.CreateFieldIndex) -> Any:
        kept = self._known(name)
        if not isinstance(asked.field_schema, qm.KeywordIndexParams):
            raise engine.Unsupported(f"an index of {type(asked.field_schema).__name__}")
        index = engine.index(asked.field_schema)
        for shard in kept.shards.values():
            shard.update(edge.UpdateOperation.create_field_index(asked.field_name, index))
        kept.indexes[asked.field_name] = asked.field_schema
        return _COMPLETED

    def _delete_field_index(self, name: str, field_name: str) -> Any:
        kept = self._known(name)
        for shard in kept.shards.values():
            shard.update(edge.UpdateOperation.delete_field_index(field_name))
        kept.indexes.pop(field_name, None)
        return _COMPLETED

    def _update_collection(self, name: str, asked: qm.UpdateCollection) -> Any:
        """Changes what `_get_collection` tells; the engine's shards, which cannot be changed, stay as they are."""
        if others := asked.model_fields_set - {"vectors"}:
            raise engine.Unsupported(f"a change of {', '.join(sorted(others))}")
        made = self._known(name).made
        for vector, change in (asked.vectors or {}).items():
            assert isinstance(made.vectors, dict)
            plain = made.vectors[vector].model_dump(exclude_none=True)
            for field_name, value in change.model_dump(exclude_none=True).items():
                plain[field_name] = {**plain.get(field_name, {}), **value} if isinstance(value, dict) else value
            made.vectors[vector] = qm.VectorParams(**plain)
        return True

    def _create_shard_key(self, name: str, asked: qm.CreateShardingKey) -> Any:
        kept = self._known(name)
        if not kept.by_key:
            raise _Refusal(400, "Bad request: Sharding method is not custom")
        if asked.shard_key in kept.shards:
            raise _Refusal(400, f"Bad request: Sharding key {asked.shard_key} already exists for collection {name}")
        kept.add_shard(str(asked.shard_key))
        return True

    def _list_shard_keys(self, name: str) -> Any:
        return {"shard_keys": [{"key": key} for key in self._known(name).shards if key is not None]}

    def _upsert_points(self, name: str, asked: qm.PointsList) -> Any:
        operation = engine.upsert(asked.points, asked.update_mode)
        for shard in self._known(name).of(asked.shard_key, writes=True):
            shard.update(operation)
        return _COMPLETED

    def _delete_points(self, name: str, asked: qm.PointIdsList) -> Any:
        for shard in self._known(name).of(asked.shard_key, writes=True):
            shard.update(edge.UpdateOperation.delete_points(_ids(asked.points)))
        return _COMPLETED

    def _set_payload(self, name: str, asked: qm.SetPayload) -> Any:
        for shard in self._known(name).of(asked.shard_key, writes=True):
            known = [r.id for r in shard.retrieve(_ids(asked.points), False, False)]
            if len(known) < len(asked.points or ()):
                raise _Refusal(404, f"Not found: No point with id {asked.points} found")
            shard.update(edge.UpdateOperation.set_payload(known, asked.payload))
        return _COMPLETED

    def _overwrite_payload(self, name: str, asked: qm.SetPayload) -> Any:
        for shard in self._known(name).of(asked.shard_key, writes=True):
            shard.update(edge.UpdateOperation.overwrite_payload(_ids(asked.points), asked.payload))
        return _COMPLETED

    def _get_points(self, name: str, asked: qm.PointRequest) -> Any:
        found = [
            record
            for shard in self._known(name).of(asked.shard_key)
            for record in shard.retrieve(
                _ids(asked.ids), engine.selected(asked.with_payload), engine.selected(asked.with_vector)
            )
        ]
        return [_record(record) for record in found]

    def _scroll_points(self, name: str, asked: qm.ScrollRequest) -> Any:
        limit = asked.limit or 10
        found = [
            record
            for shard in self._known(name).of(asked.shard_key)
            for record in shard.scroll(
                edge.ScrollRequest(
                    offset=asked.offset,
                    limit=limit + 1,
                    filter=engine.condition(asked.filter),
                    with_payload=engine.selected(asked.with_payload),
                    with_vector=engine.selected(asked.with_vector),
                )
            )[0]
        ]
        found.sort(key=lambda record: record.id)
        more = found[limit].id if len(found) > limit else None
        return {"points": [_record(record) for record in found[:limit]], "next_page_offset": more}

    def _count_points(self, name: str, asked: qm.CountRequest) -> Any:
        request = edge.CountRequest(filter=engine.condition(asked.filter), exact=asked.exact is not False)
        return {"count": sum(shard.count(request) for shard in self._known(name).of(asked.shard_key))}

    def _facet(self, name: str, asked: qm.FacetRequest) -> Any:
        request = edge.FacetRequest(asked.key, asked.limit or 10, bool(asked.exact), engine.condition(asked.filter))
        counts: Counter[Any] = Counter()
        for shard in self._known(name).of(asked.shard_key):
            counts.update({hit.value: hit.count for hit in shard.facet(request)})
        return {"hits": [{"value": value, "count": count} for value, count in counts.most_common(asked.limit)]}

    def _query_points(self, name: str, asked: qm.QueryRequest) -> Any:
        kept = self._known(name)
        if asked.prefetch or asked.score_threshold is not None or asked.offset or asked.with_vector:
            raise engine.Unsupported("a query with prefetch, score_threshold, offset or with_vector")
        vector = asked.query.nearest if isinstance(asked.query, qm.NearestQuery) else asked.query
        limit = 10 if asked.limit is None else asked.limit
        request = engine.query(vector, asked.using, limit, asked.filter, asked.params, asked.with_payload)
        found = [point for shard in kept.of(asked.shard_key) for point in shard.query(request)]
        vectors = kept.made.vectors
        params = vectors[asked.using or ""] if isinstance(vectors, dict) else vectors
        nearest_is_high = params is not None and params.distance != qm.Distance.EUCLID
        found.sort(key=lambda point: point.score, reverse=nearest_is_high)
        return {
            "points": [_record(point) | {"version": point.version, "score": point.score} for point in found[:limit]]
        }

    def _known(self, name: str) -> _Collection:
        if name not in self._collections:
            raise _Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
        return self._collections[name]

    def _drop(self, name: str) -> bool:
        kept = self._collections.pop(name, None)
        if kept is None:
            return False
        for shard in kept.shards.values():
            shard.close()
        shutil.rmtree(kept.folder, ignore_errors=True)
        return True


_COMPLETED = {"operation_id": 1, "status": "completed"}


def _ids(points: Any) -> list[Any]:
    return list(points or ())


def _record(record: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"id": record.id if isinstance(record.id, int) else str(record.id)}
    for name in ("payload", "vector"):
        if (value := getattr(record, name)) is not None:
            said[name] = value
    return said


def _leaves(value: Any, place: str = "") -> set[str]:
    """The shape of JSON data: the places in it, without what they hold."""
    if isinstance(value, dict) and value:
        return {leaf for name, part in value.items() if part is not None for leaf in _leaves(part, f"{place}.{name}")}
    if isinstance(value, list):
        inner = {leaf for part in value if isinstance(part, dict | list) for leaf in _leaves(part, f"{place}[]")}
        return inner or {place}
    return {place}
