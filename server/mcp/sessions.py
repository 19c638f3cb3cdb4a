"""Sessions in which another agent calls our tools one by one on one part. They file nothing.

MCP callers know a session as a "bench".
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError

from refdiff.agent.service import InspectionService
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.tools.context import ToolContext
from refdiff.tools.evidence import Evidence, evidence_of
from refdiff.tools.inspection.captures import find_part
from refdiff.tools.registry import TOOLS

MAX_BENCHES = 32  # open at a time; the least recently used one is closed
_MAX_STEPS = 100
_TOOLS = {t.name: t for t in TOOLS if t.name != "submit_report"}


@dataclass
class _ToolSession:
    tools: ToolContext
    product: str
    evidence: list[Evidence] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class ToolSessions:
    """Safe to share between threads. The tools and their order are those of the agent, with its errors."""

    def __init__(self, service: InspectionService) -> None:
        self._service = service
        self._open: OrderedDict[str, _ToolSession] = OrderedDict()
        self._mutex = threading.Lock()

    def open(self, part_id: str, product: str | None) -> tuple[str, dict[str, Any], Evidence]:
        """Open a session on the newest photo of a part: its id, and the result of find_part.

        Raises UnknownPartError, InputError.
        """
        capture = find_part(self._service.stores, part_id, product)
        workspace = self._service.workspace
        tools = ToolContext(workspace, capture.part_id, capture.product, capture=capture)
        bench_id = f"b-{uuid.uuid4().hex[:12]}"
        with self._mutex:
            self._open[bench_id] = _ToolSession(tools, capture.product)
            while len(self._open) > MAX_BENCHES:
                self._open.popitem(last=False)
        return (bench_id, *self.run(bench_id, "find_part", part_id=capture.part_id))

    def run(self, bench_id: str, tool: str, **arguments: Any) -> tuple[dict[str, Any], Evidence]:
        """Call one tool in an open session: its result as the agent reads it, and the evidence. Raises RefDiffError."""
        session = self._get(bench_id)
        known = _TOOLS[tool]
        try:
            known.tool_call_schema.model_validate(arguments)  # type: ignore[union-attr]
        except ValidationError as e:
            what = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg'].lower()}" for p in e.errors())
            raise InputError(f"{tool}: {what}") from e
        with session.lock:
            if len(session.evidence) >= _MAX_STEPS:
                raise InputError(f"bench {bench_id} has {_MAX_STEPS} steps; open another one")
            runtime = SimpleNamespace(context=session, state={"evidence": session.evidence})
            text, artifact = self._service.run_exclusive(lambda: known.func(**arguments, runtime=runtime))  # type: ignore[attr-defined]
            (record,) = evidence_of([artifact["evidence"] | {"id": f"e{len(session.evidence) + 1}"}])
            session.evidence.append(record)
        return json.loads(text), record

    def picture(self, bench_id: str, sha256: str, max_px: int) -> bytes:
        """A picture of the evidence as a PNG or JPEG."""
        return self._service.shown(sha256, self._get(bench_id).product, max_px)

    def _get(self, bench_id: str) -> _ToolSession:
        with self._mutex:
            session = self._open.get(bench_id)
            if session is None:
                raise UnknownRecordError(
                    f"no bench {bench_id[:40]!r} (the last {MAX_BENCHES} stay open); call find_part"
                )
            self._open.move_to_end(bench_id)
            return session
