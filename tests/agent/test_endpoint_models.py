"""General models (such as Qwen3-VL) and our own behind an OpenAI-compatible endpoint, by configuration only."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.model.defect_types import READING_TYPES
from refdiff.tools.workspace import Workspace

from .test_agent_run import ASK, Body, _services, good, serve, template

__all__ = ["serve", "template"]


@pytest.fixture(scope="module")
def workspace(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    copy = shutil.copytree(template, tmp_path_factory.mktemp("open") / "home")
    with _services(Path(copy)) as workspace:
        yield workspace


def _run(workspace: Workspace, url: str, model: str, **settings: Any) -> DefectReport:
    given = AgentSettings(llm_base_url=url, llm_model=model, llm_timeout_s=4, llm_retries=0, **settings)
    with Inspector(workspace, given) as inspector:
        return inspector.run(InspectionRequest(ASK, "4412"))


def _shown(body: Body) -> list[list[np.ndarray]]:
    """The pictures of every message that has some."""
    found = []
    for message in body["messages"]:
        blocks = message["content"] if isinstance(message["content"], list) else []
        urls = [b["image_url"]["url"] for b in blocks if b["type"] == "image_url"]
        if urls:
            found.append([np.asarray(Image.open(io.BytesIO(base64.b64decode(u.partition(",")[2])))) for u in urls])
    return found


def _texts(body: Body) -> str:
    return json.dumps([m["content"] for m in body["messages"]])


def test_general_model_drives_with_settings_only(workspace: Workspace, serve: Any) -> None:
    endpoint = serve(good)
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    report = _run(workspace, endpoint.url, "Qwen/Qwen3-VL-8B-Instruct", llm_extra_body=extra, llm_max_tokens=4096,
                  llm_image_px=128)  # fmt: skip
    assert (report.judge.via, report.judge.model, report.verdict) == ("endpoint", "Qwen/Qwen3-VL-8B-Instruct", "FAIL")
    for body in endpoint.requests:
        assert (body["model"], body["max_completion_tokens"]) == ("Qwen/Qwen3-VL-8B-Instruct", 4096)
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert "logprobs" not in body, "not every server has them"
    *driven, read = endpoint.requests
    assert all(t["function"]["description"] for t in driven[0]["tools"]), "a stranger needs the tools explained"
    for pair in [p for body in (driven[-1], read) for p in _shown(body)]:
        assert len(pair) == 2, "reference, then photo"
        assert max(pair[0].shape[:2]) <= 128
        assert pair[0].shape == pair[1].shape
    assert len(_shown(driven[-1])) >= 1
    assert all(kind in _texts(read) for kind in READING_TYPES), "it was not trained on the words"


@pytest.mark.parametrize(
    "said",
    ["{reading}", "```json\n{reading}\n```", "<think>is {{it}} a defect?</think>\n\n{reading}", "```\n{reading}```"],
)
def test_reading_is_parsed_from_fenced_and_thinking_answers(said: str, workspace: Workspace, serve: Any) -> None:
    reading = json.dumps({"defect": True, "type": "missing_component", "confidence": 80})

    def behave(body: Body) -> Any:
        if "response_format" in body:
            return {"role": "assistant", "content": said.format(reading=reading)}
        return good(body)

    found = _run(workspace, serve(behave).url, "qwen").llm_reading
    assert found is not None
    assert (found.defect, found.type, found.confidence) == (True, "missing_component", 0.8)


def test_text_only_model_gets_no_pictures_and_no_reading_request(workspace: Workspace, serve: Any) -> None:
    endpoint = serve(good)
    report = _run(workspace, endpoint.url, "qwen3-text", llm_images=False)
    assert (report.judge.via, report.llm_reading) == ("endpoint", None)
    assert not any(_shown(body) or "response_format" in body for body in endpoint.requests)


@pytest.mark.parametrize("told", [True, False])
def test_own_model_confidence_comes_from_the_logprob_of_its_yes_or_no(
    told: bool, workspace: Workspace, serve: Any
) -> None:
    tokens = [{"token": t, "logprob": p, "bytes": None, "top_logprobs": []} for t, p in (('{"', 0.0), (" true", -0.25))]

    def behave(body: Body) -> Any:
        answer = good(body)
        if "response_format" not in body:
            return answer
        choice = {
            "index": 0,
            "message": answer,
            "finish_reason": "stop",
            "logprobs": {"content": tokens} if told else None,
        }
        return json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        ).encode()

    endpoint = serve(behave)
    found = _run(workspace, endpoint.url, "refdiff").llm_reading
    assert endpoint.requests[-1]["logprobs"] is True
    assert not any(kind in _texts(endpoint.requests[-1]) for kind in ("solder_bridge", "broken_yarn"))
    assert found is not None
    assert found.confidence == pytest.approx(math.exp(-0.25) if told else 0.9, abs=0.01)
    assert found.counts is not told


@pytest.mark.parametrize(
    ("model", "logprob", "believed"), [("refdiff", -0.05, True), ("refdiff", -0.5, False), ("qwen", -0.5, True)]
)
def test_choice_of_an_endpoint_model_comes_first_unless_our_own_is_unsure(
    model: str, logprob: float, believed: bool, workspace: Workspace, serve: Any
) -> None:
    def behave(body: Body) -> Any:
        name = body.get("response_format", {}).get("json_schema", {}).get("name")
        if name != "choice":
            return good(body)
        answer = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"][-2]
        message = {"role": "assistant", "content": json.dumps({"answer": answer})}
        tokens = [
            {"token": t, "logprob": p, "bytes": None, "top_logprobs": []} for t, p in (("{", 0.0), ("x", logprob))
        ]
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
        return json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        ).encode()

    endpoint = serve(behave)
    with Inspector(workspace, AgentSettings(llm_base_url=endpoint.url, llm_model=model)) as inspector:
        report = inspector.run(InspectionRequest(ASK, "4412"))
        said = inspector.answer_about(report.inspection_id, "is it oil or grease?").splitlines()
    assert (said[0] == "The report says:") is (model == "refdiff")
    first = re.compile(r"f\d: ").match(said[1]) if model == "refdiff" else said[0].startswith("Reasoning: ")
    assert bool(first) is believed
    assert ("with one of:" in _texts(endpoint.requests[-1])) is (model == "qwen")
