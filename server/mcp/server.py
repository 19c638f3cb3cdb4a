"""The MCP server: tools over the inspection service. Photos travel as base64; no path of a caller is ever opened.

There is no tool to decide a REVIEW, on purpose: people do, in the review page, Slack, Teams or on the command line.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import anyio
from anyio import to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from refdiff.agent.report.pictures import page_image
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.report.summary import review_page
from refdiff.agent.service import Inspection, InspectionService
from refdiff.memory.kinds import Verdict
from refdiff.memory.rows.captures import normalise_part_id
from refdiff.model.errors import RefDiffError
from refdiff.model.images import decode_image, media_type
from refdiff.server.base64_images import from_base64
from refdiff.server.mcp.answers import (
    CaptureAnswer,
    InspectionAnswer,
    ProductAnswer,
    Products,
    Row,
    Rows,
    Said,
    StepAnswer,
    inspection_text,
)
from refdiff.server.mcp.sessions import ToolSessions
from refdiff.server.progress import progress_of
from refdiff.tools.inspection.captures import find_part

P = ParamSpec("P")
T = TypeVar("T")

INSTRUCTIONS = """Visual inspection of manufactured parts against their nearest golden (good) samples.
inspect_part runs everything and files a report: verdict PASS, FAIL or REVIEW, findings with places and sizes, pictures.
ask_about_inspection answers questions about a filed report. To inspect step by step, without filing:
find_part, then retrieve_reference, align, score_difference, zoom, measure, each with the bench that find_part returned.
Only a person decides a REVIEW. Boxes are x0, y0, x1, y1 in pixels of the photo."""

PICTURE_PX = 1024  # long side of pictures in answers
# clients give up after 60 s, whatever progress they are told; until then they have the id of the inspection
WAIT_S = 40.0
_SENT_AGAIN = timedelta(minutes=30)  # a call repeated later is a new one

PartId = Annotated[str, Field(description="part id, with or without #", min_length=1, max_length=130)]
Product = Annotated[str | None, Field(description="kind of part; only where the part id does not tell it")]
Photo = Annotated[
    str | None, Field(description="photo of the part as base64 (PNG, JPEG, TIFF, ...); default: its newest")
]
Scale = Annotated[float | None, Field(description="size of one photo pixel in mm, if known", gt=0)]
InspectionId = Annotated[str, Field(description="like insp-20260131-141500-5f3a9c1e", max_length=64)]
Bench = Annotated[str, Field(description="bench that find_part returned", max_length=32)]
Region = Annotated[str, Field(description="region that score_difference returned, like r1", max_length=8)]
ReportPicture = Literal["overlay", "heatmap", "side_by_side", "query", "reference"]

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)


async def _off_loop(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a thread; our errors become tool errors, which the calling model reads."""
    try:
        return await to_thread.run_sync(functools.partial(work, *args, **kwargs))
    except RefDiffError as e:
        raise ToolError(str(e)) from e


def _answer(model: BaseModel, text: str | None = None, *pictures: bytes) -> Any:
    """A tool result: typed data, the same as text, then pictures."""
    content: list[ContentBlock] = [TextContent(type="text", text=text or model.model_dump_json(exclude_none=True))]
    content += [_image(p) for p in pictures]
    return CallToolResult(content=content, structured_content=model.model_dump(mode="json"))


def _image(data: bytes) -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(data).decode("ascii"), mime_type=media_type(data))


def _report_picture(service: InspectionService, inspection_id: str, which: ReportPicture) -> bytes:
    if which in ("query", "reference"):
        return service.picture(inspection_id, which, PICTURE_PX)
    return page_image(decode_image(service.artefact(inspection_id, which).read_bytes()), PICTURE_PX)


def build_server(service: InspectionService, by: str = "mcp", public_url: str | None = None) -> MCPServer[Any]:
    """by: the requester, as named in reports. public_url: address of the review page, for links."""
    server: MCPServer[Any] = MCPServer(
        "refdiff", title="RefDiff Inspector", instructions=INSTRUCTIONS, version=version("refdiff"), log_level="WARNING"
    )
    _add_inspections(server, service, by, public_url)
    _add_products(server, service)
    _add_steps(server, ToolSessions(service))
    return server


def _add_inspections(server: MCPServer[Any], service: InspectionService, by: str, public_url: str | None) -> None:
    max_bytes = service.workspace.model_settings.max_bytes

    def again(origin: str, part_id: str, product: str | None) -> str | None:
        """The inspection that the same call asked for and whose outcome it was not told (see `told`): its caller gave up."""
        job = service.jobs.by_origin(origin)
        if job is None:
            return None
        recent = datetime.now(UTC) - datetime.fromisoformat(job.created_at) < _SENT_AGAIN
        newest = find_part(service.stores, part_id, product).capture_id
        if (job.open or recent) and job.request["capture_id"] == newest:
            return job.inspection_id
        service.jobs.forget_origin(origin, job.inspection_id)
        return None

    def told(inspection_id: str) -> None:
        """A caller of inspect_part is told the outcome: the same call again is a new one."""
        job = service.jobs.find(inspection_id)
        if job is not None and job.origin is not None:
            service.jobs.forget_origin(job.origin, inspection_id)

    def answer(inspection: Inspection, *pictures: bytes) -> Any:
        page = review_page(public_url, inspection.inspection_id) if inspection.report else None
        text = inspection_text(inspection) + (f"\nReview page: {page}" if page else "")
        return _answer(InspectionAnswer.of(inspection).model_copy(update={"page": page}), text, *pictures)

    @server.tool(title="Inspect a part", annotations=_ADDS)
    async def inspect_part(
        ctx: Context[Any, Any],
        part_id: PartId,
        product: Product = None,
        photo_base64: Photo = None,
        scale_mm_per_px: Scale = None,
        request: Annotated[str, Field(description="the request in words, kept with the report", max_length=2000)] = "",
        wait_s: Annotated[
            float,
            Field(
                description=f"longest wait in s, {WAIT_S:g} at most; the inspection continues after it", ge=0, le=600
            ),
        ] = WAIT_S,
    ) -> Annotated[CallToolResult, InspectionAnswer]:
        """Inspect a part against its nearest golden samples and file the report.

        Returns verdict, findings and the photo with the findings drawn in. Not done after wait_s: call get_inspection.
        The same call again finds the inspection that runs.
        """
        began = time.monotonic()

        def submit() -> str:
            photo = None if photo_base64 is None else from_base64(photo_base64, max_bytes)
            sha256 = None if photo is None else hashlib.sha256(photo.data).hexdigest()
            asked = json.dumps([by, normalise_part_id(part_id), product, sha256, scale_mm_per_px, request])
            origin = f"mcp:{hashlib.sha256(asked.encode()).hexdigest()}"
            if (same := again(origin, part_id, product)) is not None:
                return same
            job = service.submit(
                request, by=by, part_id=part_id, product=product, photo=photo, scale_mm_per_px=scale_mm_per_px,
                origin=origin,
            )  # fmt: skip
            return job.inspection_id

        inspection_id = await _off_loop(submit)

        with anyio.move_on_after(min(wait_s, WAIT_S - (time.monotonic() - began))):
            async for progress in progress_of(service, inspection_id):
                if progress is not None:
                    counted = f", {progress.done} of {progress.total}" if progress.total else ""
                    # the number only grows: what is counted (goldens) is a part of the work
                    await ctx.report_progress(float(progress.number), None, progress.message + counted)
        inspection = await _off_loop(service.inspection, inspection_id)
        if inspection.state in ("done", "failed"):
            await _off_loop(told, inspection_id)
        if inspection.error:
            raise ToolError(inspection.error["message"])
        pictures = [await _off_loop(_report_picture, service, inspection_id, "overlay")] if inspection.report else []
        return answer(inspection, *pictures)

    @server.tool(title="Show an inspection", annotations=_READS)
    async def get_inspection(
        inspection_id: InspectionId,
        pictures: Annotated[list[ReportPicture], Field(description="which pictures to send too", max_length=5)] = [],  # noqa: B006
    ) -> Annotated[CallToolResult, InspectionAnswer]:
        """Verdict and findings of an inspection, or its progress."""
        inspection = await _off_loop(service.inspection, inspection_id)
        shown = (
            [await _off_loop(_report_picture, service, inspection_id, p) for p in pictures] if inspection.report else []
        )
        return answer(inspection, *shown)

    @server.tool(title="Read a whole report", annotations=_READS)
    async def get_report(inspection_id: InspectionId) -> Annotated[CallToolResult, DefectReport]:
        """The filed report with all evidence, the tool trace and timings."""
        report = await _off_loop(service.files.report, inspection_id)
        text = await _off_loop(lambda: service.artefact(inspection_id, "markdown").read_text(encoding="utf-8"))
        return _answer(report, text)

    @server.tool(title="List inspections", annotations=_READS)
    async def list_inspections(
        product: Product = None,
        verdict: Verdict | None = None,
        part_id: Annotated[str | None, Field(description="only this part")] = None,
        limit: Annotated[int, Field(ge=1, le=100)] = 20,
    ) -> Annotated[CallToolResult, Rows]:
        """Filed inspections, newest first."""

        def listed() -> Rows:
            page = service.stores.inspections.search(product=product, verdict=verdict, part_id=part_id, limit=limit)
            return Rows(inspections=[Row.of(summary) for summary in page.items])

        return _answer(await _off_loop(listed))

    @server.tool(title="Ask about an inspection", annotations=_READS)
    async def ask_about_inspection(
        inspection_id: InspectionId, question: Annotated[str, Field(min_length=1, max_length=2000)]
    ) -> Annotated[CallToolResult, Said]:
        """Answer a question about a filed report with what the report says, in English, German, Spanish or Chinese."""
        said = await _off_loop(service.ask, inspection_id, question)
        return _answer(Said(answer=said), said)

    @server.tool(title="Keep a photo of a part", annotations=_ADDS)
    async def capture_photo(
        part_id: PartId,
        photo_base64: Annotated[str, Field(description="the image file as base64")],
        product: Product = None,
        scale_mm_per_px: Scale = None,
    ) -> Annotated[CallToolResult, CaptureAnswer]:
        """Store a photo as the newest of a part, without inspecting it."""

        def keep() -> CaptureAnswer:
            photo = from_base64(photo_base64, max_bytes)
            c = service.capture(part_id, photo, product, scale_mm_per_px)
            return CaptureAnswer(
                capture_id=c.capture_id, part_id=c.part_id, product=c.product, scale_mm_per_px=c.scale_mm_per_px
            )

        return _answer(await _off_loop(keep))


def _add_products(server: MCPServer[Any], service: InspectionService) -> None:
    @server.tool(title="List products", annotations=_READS)
    async def list_products() -> Annotated[CallToolResult, Products]:
        """The known products (kinds of part)."""
        return _answer(Products(products=await _off_loop(service.products)))

    @server.tool(title="Show a product", annotations=_READS)
    async def get_product(name: Annotated[str, Field(max_length=128)]) -> Annotated[CallToolResult, ProductAnswer]:
        """Golden samples, acceptance rules and attained false-reject rate of a product."""
        found = await _off_loop(service.product, name)
        return _answer(ProductAnswer.model_validate({k: found[k] for k in ProductAnswer.model_fields}))


def _add_steps(server: MCPServer[Any], sessions: ToolSessions) -> None:
    async def step(bench: str, tool: str, roles: tuple[str, ...], **arguments: Any) -> Any:
        result, evidence = await _off_loop(sessions.run, bench, tool, **arguments)
        return await shown(bench, result, evidence, roles)

    async def shown(bench: str, result: dict[str, Any], evidence: Any, roles: tuple[str, ...]) -> Any:
        wanted = [evidence.images[r] for r in roles if r in evidence.images]
        pictures = [await _off_loop(sessions.picture, bench, sha256, PICTURE_PX) for sha256 in wanted]
        text = f"{evidence.id}: {evidence.summary}\n{json.dumps({'bench': bench} | result, ensure_ascii=False)}"
        return _answer(StepAnswer(bench=bench, result=result, evidence=evidence), text, *pictures)

    @server.tool(title="1. Find the photo of a part", annotations=_READS)
    async def find_part(part_id: PartId, product: Product = None) -> Annotated[CallToolResult, StepAnswer]:
        """Start a step-by-step inspection: returns the newest photo and the bench for the next tools. Files nothing."""
        bench, result, evidence = await _off_loop(sessions.open, part_id, product)
        return await shown(bench, result, evidence, ("query",))

    @server.tool(title="2. Find the nearest golden samples", annotations=_READS)
    async def retrieve_reference(
        bench: Bench, k: Annotated[int, Field(ge=1, le=8)] = 4
    ) -> Annotated[CallToolResult, StepAnswer]:
        """The golden samples most similar to the photo, with the picture of the first one."""
        return await step(bench, "retrieve_reference", ("golden_1",), k=k)

    @server.tool(title="3. Register a golden to the photo", annotations=_READS)
    async def align(
        bench: Bench, golden_id: Annotated[str, Field(max_length=14)]
    ) -> Annotated[CallToolResult, StepAnswer]:
        """Shift, rotation and scale between golden sample and photo, with the residual in px."""
        return await step(bench, "align", (), golden_id=golden_id)

    @server.tool(title="4. Score the difference", annotations=_READS)
    async def score_difference(
        bench: Bench,
        golden_ids: Annotated[list[str], Field(description="empty: the nearest ones", max_length=8)] = [],  # noqa: B006
    ) -> Annotated[CallToolResult, StepAnswer]:
        """Image score, p-value and the regions r1, r2, ... that differ; photo and registered golden as pictures."""
        return await step(bench, "score_difference", ("query", "reference"), golden_ids=golden_ids)

    @server.tool(title="5. Zoom into a region", annotations=_READS)
    async def zoom(bench: Bench, region: Region) -> Annotated[CallToolResult, StepAnswer]:
        """A region of photo and golden, enlarged."""
        return await step(bench, "zoom", ("query", "reference"), region=region)

    @server.tool(title="6. Measure a region", annotations=_READS)
    async def measure(bench: Bench, region: Region) -> Annotated[CallToolResult, StepAnswer]:
        """Length, width and area of a region, in mm where the scale is known."""
        return await step(bench, "measure", (), region=region)
