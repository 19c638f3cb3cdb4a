"""The `refdiff` command: gathers the sub-commands and maps every outcome to an exit code.

0 PASS or done, 1 FAIL, 2 REVIEW (only for a filed verdict), 64 usage, 65 bad input, 69 unavailable, 70 internal,
75 something hung, 130 Ctrl-C. A user's mistake never shows a traceback; that of an internal error goes to
`REFDIFF_HOME/logs`.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import InputError, RefDiffError
from refdiff.server.cli import (
    audit,
    batches,
    captures,
    defects,
    demo,
    export,
    goldens,
    home,
    inspect,
    inspections,
    invocation,
    mcp,
    model,
    output,
    products,
    prune,
    review,
    serve,
    train,
    watch,
    worker,
)
from refdiff.server.cli.output import emit
from refdiff.server.env_files import unread_file
from refdiff.server.settings import ConfigurationError

USAGE, UNAVAILABLE, INTERNAL, INTERRUPTED = 64, 69, 70, 130

_UNAVAILABLE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EACCES, errno.EPERM, errno.EAGAIN,
}  # fmt: skip

app = typer.Typer(
    name="refdiff",
    help="Inspect parts against their nearest golden sample, with evidence.",
    epilog="Start with: refdiff demo · Exit codes: 0 PASS, 1 FAIL, 2 REVIEW, 64 usage, 65 bad input, 69 unavailable, "
    "70 internal, 75 hung",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
goldens.register(app)
inspect.register(app)
captures.register(app)
products.register(app)
demo.register(app)
inspections.register(app)
batches.register(app)
review.register(app)
defects.register(app)
audit.register(app)
home.register(app)
prune.register(app)
train.register(app)
watch.register(app)
export.register(app)
model.register(app)
serve.register(app)
worker.register(app)
mcp.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.out.print(f"refdiff {version('refdiff')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            envvar="REFDIFF_ENV_FILE",
            help="File of settings, a line NAME=value each; the environment beats it.",
        ),
    ] = None,
) -> None:
    """Every command loads the settings when it first needs them."""
    run = invocation.current()
    run.env_file = env_file
    if not run.as_json and (unread := unread_file(env_file)):
        output.note(f"{unread} in this folder is not read; to use its settings: refdiff --env-file {unread} ...")


# Set before torch loads: otherwise its idle threads spin, which slows a busy machine down 20-fold
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# numpy's products are small here, and its own threads spin after each of them
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Every error is reported here, and nowhere else."""
    own = list(arguments)
    as_json = "--json" in (own[: own.index("--")] if "--" in own else own)
    with invocation.begin(as_json):
        output.prepare_streams(as_json)
        code = _guarded(own)
        if (home := invocation.current().new_home) is not None:
            output.note(f"{home} was not there and is a new home folder now; if yours is elsewhere, set REFDIFF_HOME")
        return code


def _guarded(own: list[str]) -> int:
    try:
        code = _command(own)
        output.flush()
        return code
    except RefDiffError as e:
        return _fail(e, str(e), e.exit_code)
    except OSError as e:
        if e.errno in _UNAVAILABLE_ERRNOS:
            return _fail(e, f"{e.filename or 'a file'}: {e.strerror}; free the resource or point REFDIFF_HOME "
                         "elsewhere", UNAVAILABLE)  # fmt: skip
        return _internal(e)
    except MemoryError as e:
        return _fail(e, "not enough memory; close other programs or lower REFDIFF_MAX_PIXELS", UNAVAILABLE)
    except Exception as e:  # the last resort: keep the traceback for debugging
        return _internal(e)


# options of which Click would take the last one, without a word about the others
_ONLY_ONCE = ("--part", "--image", "--product")


def _command(arguments: list[str]) -> int:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for name in _ONLY_ONCE:
        if sum(a == name or a.startswith(f"{name}=") for a in options) > 1:
            return _fail(InputError(name), f"{name} is given more than once; one command takes one", USAGE)
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="refdiff", standalone_mode=False)
    except TyperException as e:
        return _usage(e)
    except typer.Abort:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as e:  # Typer exits with 1 when the reader went away, which here would mean FAIL
        code = 0 if e.code in (None, 1) else e.code
    if code == INTERRUPTED:
        how = invocation.current().goes_on or "what was filed or enrolled before is kept"
        return _fail(KeyboardInterrupt(), f"interrupted; {how}", INTERRUPTED)
    return int(code or 0)


def _usage(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if not invocation.current().as_json:
            return USAGE  # Typer has shown the help
        return _fail(error, "no command given; see refdiff --help", USAGE)
    command = context.command_path if context is not None else "refdiff"
    message = error.format_message().rstrip(".").replace("Value error, ", "")  # pydantic's word, of no use here
    return _fail(error, f"{message}. See: {command} --help", USAGE)


def _fail(error: BaseException, message: str, code: int) -> int:
    kind = "UsageError" if code == USAGE and not isinstance(error, ConfigurationError) else type(error).__name__
    output.say(f"refdiff: {message}", "red")
    run = invocation.current()
    if run.as_json and not run.emitted:
        emit({"error": {"type": kind, "message": message, "exit_code": code}})
    output.flush()
    return code


def _internal(error: Exception) -> int:
    where = _write_log(error)
    kept = f"; see {where} for details" if where else ""
    return _fail(error, f"internal error ({type(error).__name__}: {error}){kept}", INTERNAL)


def _write_log(error: Exception) -> Path | None:
    now = datetime.now(UTC)
    text = f"refdiff {version('refdiff')}, Python {sys.version}, {now.isoformat()}\n"
    text += "".join(traceback.format_exception(error))
    try:
        folders = [MemorySettings().home / "logs"]
    except Exception:  # the settings themselves may be wrong
        folders = []
    for folder in [*folders, Path(tempfile.gettempdir()) / "refdiff-logs"]:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder / f"{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
        except OSError:
            continue
    return None
