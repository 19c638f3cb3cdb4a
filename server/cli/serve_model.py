"""`refdiff serve-model`: the RefDiff language model as an OpenAI-compatible endpoint, served by vLLM."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from refdiff.agent.settings import AgentSettings
from refdiff.model.errors import UnavailableError
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import output
from refdiff.server.cli.options import Json
from refdiff.server.cli.output import answer
from refdiff.server.settings import ServerSettings, load
from refdiff.server.sockets import is_loopback


def register(app: typer.Typer) -> None:
    app.command(
        "serve-model",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        epilog="Example: refdiff serve-model --port 8001 --max-num-seqs 32 · then: "
        "REFDIFF_LLM_BASE_URL=http://127.0.0.1:8001/v1 refdiff ask ...",
    )(serve_model)


def serve_model(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then set a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8001,
    wait: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest wait until it answers.")] = 600.0,
    vllm_python: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Python of an environment with vLLM (REFDIFF_VLLM_PYTHON).")
    ] = None,
    _json: Json = False,
) -> None:
    """Serve the RefDiff language model with vLLM, on this machine's GPU or else its CPU, until Ctrl-C. The base URL is
    printed once it answers. Flags that are not listed here are passed on to vLLM (--tensor-parallel-size 2, ...). With
    REFDIFF_LLM_API_KEY set, callers must send that key. `make vllm` installs what is needed.
    """
    from refdiff.model.language.build import build_model
    from refdiff.server.model_server import ending, find_vllm, serving
    from refdiff.server.vllm_plugin.command import MODEL_NAME

    python = find_vllm(load(ServerSettings, vllm_python=vllm_python).vllm_python)
    key = load(AgentSettings).llm_api_key
    if not is_loopback(host) and key is None:
        output.note(
            f"listening on {host} without a key: everybody who reaches the port can ask; set REFDIFF_LLM_API_KEY"
        )
    with output.work("building the model") as told:
        folder = build_model(load(ModelSettings), told)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: shells start background jobs with it ignored
        signal.signal(number, _terminated)
    secret = key.get_secret_value() if key else None
    with ExitStack() as running:
        with output.stages(f"starting vLLM {python.version}") as stage:
            server, process = running.enter_context(
                serving(folder, python, host, port, api_key=secret, wait_s=wait, further=context.args,
                        waiting=lambda s: stage(f"{s:.0f} s", 0, 0))
            )  # fmt: skip
        document = {
            "base_url": server.base_url,
            "model": MODEL_NAME,
            "pid": server.pid,
            "seconds": round(server.seconds, 1),
        }
        answer.give(
            document,
            f"serving the model {MODEL_NAME} at {server.base_url} (ready in {server.seconds:.0f} s); stop: Ctrl-C",
        )
        process.wait()
        raise UnavailableError(f"vLLM ended ({ending(process)}); its last lines say why")


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
