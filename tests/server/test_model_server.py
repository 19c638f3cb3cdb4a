"""`refdiff serve-model` around vLLM: finding, checking, starting and stopping it, with a stand-in for vLLM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from refdiff.model.errors import InputError, UnavailableError
from refdiff.server import model_server
from refdiff.server.model_server import VllmPython, base_url, check_memory, find_vllm, serving
from refdiff.server.sockets import listen
from refdiff.server.vllm_plugin.command import vllm_arguments, vllm_environment

# As `python`: first it says what is installed, then it serves /health as vLLM does, or ends as told
STAND_IN = """#!{python}
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
if sys.argv[1] == "-I":
    print(json.dumps({{"cpu": "0.32.0", "cuda": None, "plugin": {plugin}}}))
    sys.exit()
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
print("vLLM's log", file=sys.stderr)
if "--end" in flags:
    sys.exit(int(flags["--end"]))
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(json.dumps({{"argv": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY")}}).encode())
    def log_message(self, *args): pass
time.sleep(0.3)
HTTPServer((flags["--host"], int(flags["--port"])), Health).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    return _stand_in(tmp_path / "python", plugin=True)


def _stand_in(path: Path, plugin: bool) -> Path:
    path.write_text(STAND_IN.format(python=sys.executable, plugin=plugin))
    path.chmod(0o755)
    return path


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path("/proc").is_dir() else True
    )


def test_vllm_is_found_at_the_given_interpreter(stand_in: Path) -> None:
    assert find_vllm(stand_in) == VllmPython(stand_in, "0.32.0", cuda=False)


def test_missing_vllm_error_names_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nowhere" / ".venv"))
    with pytest.raises(UnavailableError, match=r"make vllm.*REFDIFF_VLLM_PYTHON"):
        find_vllm(None)
    with pytest.raises(UnavailableError, match="not found"):
        find_vllm(tmp_path / "python")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(UnavailableError, match="does not start"):
        find_vllm(broken)
    with pytest.raises(UnavailableError, match=r"no-deps refdiff"):
        find_vllm(_stand_in(tmp_path / "python", plugin=False))


@pytest.mark.parametrize(
    ("script", "mode", "why"),
    [
        ("#!/bin/sh\nexec sleep 60\n", 0o755, "did not answer within 0.3 s"),
        ("#!/bin/sh\necho hello\n", 0o755, "is not a Python interpreter"),
        ("#!/bin/sh\n", 0o755, "is not a Python interpreter"),
        ("#!/bin/sh\necho '[]'\n", 0o755, "is not a Python interpreter"),
        ("#!/bin/sh\n", 0o644, "cannot be read or started"),
    ],
)
def test_invalid_vllm_interpreter_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, mode: int, why: str
) -> None:
    monkeypatch.setattr(model_server, "_PROBE_S", 0.3 if "sleep" in script else 20)
    (tmp_path / "python").write_text(script)
    (tmp_path / "python").chmod(mode)
    with pytest.raises(UnavailableError, match=why):
        find_vllm(tmp_path / "python")


def test_vllm_interpreter_in_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)  # as a folder without x does it, for everybody but root
    with pytest.raises(UnavailableError, match="cannot be read or started"):
        find_vllm(tmp_path / "python")


def test_taken_port_or_unknown_host_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UnavailableError, match="choose another"):
            listen("127.0.0.1", other.getsockname()[1])
    with pytest.raises(InputError, match="no address of this machine"):
        listen("no.such.host.invalid", 8001)


def test_too_little_memory_for_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", "bfloat16")
    monkeypatch.setattr(model_server, "free_bytes", lambda: 2_500_000_000)
    with pytest.raises(UnavailableError, match=r"2\.5 GB .* needs about 3\.4"):
        check_memory(False, {})
    with pytest.raises(UnavailableError, match=r"needs about 12\.4"):
        check_memory(False, {"VLLM_CPU_KVCACHE_SPACE": "10"})
    check_memory(True, {})  # a GPU has memory of its own


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8001/v1"), ("0.0.0.0", "http://127.0.0.1:8001/v1"), ("::", "http://[::1]:8001/v1"),
     ("fe80::1", "http://[fe80::1]:8001/v1"), ("line3.example", "http://line3.example:8001/v1")],
)  # fmt: skip
def test_base_url_of_any_listen_address_can_be_called(host: str, url: str) -> None:
    assert base_url(host, 8001) == url


def test_further_vllm_flags_come_last_and_vllm_runs_offline() -> None:
    arguments = vllm_arguments(Path("m"), cuda=False, further=["--max-num-seqs", "2"])
    assert arguments[-2:] == ["--max-num-seqs", "2"]
    assert "--enforce-eager" in arguments
    assert "--enforce-eager" not in vllm_arguments(Path("m"), cuda=True)
    environment = vllm_environment({"VLLM_CPU_KVCACHE_SPACE": "4", "PATH": "x"}, cuda=False)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert (environment["HF_HUB_OFFLINE"], environment["VLLM_NO_USAGE_STATS"]) == ("1", "1")


def test_model_server_is_ready_once_healthy_and_stops_with_the_context(
    stand_in: Path, port: int, tmp_path: Path
) -> None:
    python = find_vllm(stand_in)
    with serving(tmp_path, python, "127.0.0.1", port, api_key="sesame", further=["--dtype", "float32"]) as (
        server,
        process,
    ):
        assert server.base_url == f"http://127.0.0.1:{port}/v1"
        seen = httpx2.get(f"http://127.0.0.1:{port}/health").json()
        assert seen["argv"][-6:] == ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        assert (seen["key"], "sesame" in seen["argv"]) == ("sesame", False)
        with pytest.raises(UnavailableError, match="choose another"):
            listen("127.0.0.1", port)
    assert process.returncode == -signal.SIGTERM
    listen("127.0.0.1", port).close()


def test_model_server_that_exits_or_never_answers_is_an_error(stand_in: Path, port: int, tmp_path: Path) -> None:
    python = find_vllm(stand_in)
    with (
        pytest.raises(UnavailableError, match="exit code 3"),
        serving(tmp_path, python, "127.0.0.1", port, further=["--end", "3"]),
    ):
        pass
    with pytest.raises(UnavailableError, match="--wait"), serving(tmp_path, python, "127.0.0.1", port, wait_s=0.1):
        pass
    listen("127.0.0.1", port).close()


def test_serve_model_prints_the_url_and_stops_its_server_on_a_signal(
    stand_in: Path, port: int, model_folder: Path
) -> None:
    environment = {**os.environ, "REFDIFF_CACHE": str(model_folder.parent.parent), "REFDIFF_LLM_API_KEY": "sesame"}
    command = [Path(sys.executable).with_name("refdiff"), "serve-model", "--json", "--port", str(port)]
    for ending in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [*command, "--vllm-python", stand_in, "--max-num-seqs", "2"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lines = ""
            while not lines.endswith("}\n"):
                lines += process.stdout.readline()
            told = json.loads(lines)
            assert told["base_url"] == f"http://127.0.0.1:{port}/v1"
            seen = httpx2.get(f"http://127.0.0.1:{port}/health").json()
            assert seen["argv"][-2:] == ["--max-num-seqs", "2"]
            assert seen["key"] == "sesame"
            process.send_signal(ending)
            assert process.wait(120) == 130
            assert not _alive(told["pid"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
def test_tied_child_process_ends_when_its_parent_is_killed() -> None:
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {model_server._TIED!r}, "-c", "import time; time.sleep(100)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 60
        while b"prctl" in _command(child):  # until it is tied
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.kill()
        parent.wait()
        while _alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_serve_model_ends_when_its_server_dies(stand_in: Path, port: int, model_folder: Path) -> None:
    environment = {**os.environ, "REFDIFF_CACHE": str(model_folder.parent.parent)}
    command = [Path(sys.executable).with_name("refdiff"), "serve-model", "--port", str(port), "--vllm-python", stand_in]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert f"127.0.0.1:{port}/v1" in process.stdout.readline()
        [child] = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        os.kill(child, signal.SIGKILL)
        assert process.wait(120) == 69
        assert "killed by SIGKILL: out of memory?" in process.stderr.read()
