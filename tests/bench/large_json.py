"""How long small requests wait while clients send the largest JSON bodies, without a limit of rate.

    python tests/bench/large_json.py --clients 4 --seconds 15

Makes its own home, starts `refdiff serve`, and asks every 20 ms: /healthz on a new connection (answered at the door),
/healthz on a kept one (by the event loop) and /v1/version (by a thread). Prints milliseconds by kind of body, as JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))
from http_load import Server

from refdiff.server.web.middleware import MAX_JSON, MAX_MEMBERS

_PROBED_EVERY_S = 0.02
_PHOTO = base64.b64encode(os.urandom(3_000_000)).decode() * 9  # of no image: it is decoded in full and then refused


def _body(*messages: str) -> bytes:
    return f'{{"model":"refdiff-inspector","messages":[{",".join(messages)}]}}'.encode()


def _with_photo(text: str) -> bytes:
    url = f'{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{text}"}}}}'
    return _body(f'{{"role":"user","content":[{{"type":"text","text":"inspect part #4412 of board"}},{url}]}}')


def bodies() -> dict[str, bytes]:
    """The largest bodies of each kind."""
    lines = r"\n".join(_PHOTO[i : i + 76] for i in range(0, len(_PHOTO), 76))
    members = ",".join(f'"{i}":1' for i in range(MAX_MEMBERS - 10))
    found = {
        "nothing": b"",
        "photo": _with_photo(_PHOTO),
        "photo, in lines": _with_photo(lines),
        "photo, slashes escaped": _with_photo(_PHOTO.replace("/", r"\/")),
        "photo, percent signs": _with_photo("%41" * 13_000_000),
        "photo, all of it escaped": _with_photo(r"\u0041" * 6_500_000),
        "photo, blanks": _with_photo("A " * 19_000_000),
        "photo, for URLs, not Latin": _with_photo("\u20ac" * 13_000_000),
        "text": _body(f'{{"role":"user","content":"{_PHOTO}"}}'),
        "messages": _body(*(['{"role":"user"}'] * (MAX_MEMBERS - 10)), '{"role":"user","content":"hello"}'),
        "wrong messages": _body(*["1"] * (MAX_MEMBERS - 10)),
        "numbers": _body(f'{{"role":"user","content":[{",".join(["1"] * (MAX_MEMBERS - 10))}]}}'),
        "members": _body(f'{{"role":"user","content":{{"type":"text",{members}}}}}'),
    }  # fmt: skip
    assert all(len(body) < MAX_JSON for body in found.values())
    return found


def _send(url: str, key: str, clients: int, seconds: float, name: str) -> dict[str, int]:
    """Send that body over and over, in a process of its own. Answers by status."""
    body = bodies()[name]
    until, answers = time.monotonic() + seconds, Counter[str]()

    def sending() -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        while time.monotonic() < until:
            try:
                answer = httpx2.post(f"{url}/v1/chat/completions", content=body, headers=headers, timeout=120)
                answers[f"{answer.status_code} {answer.text[:70] if answer.status_code != 200 else ''}".strip()] += 1
            except httpx2.HTTPError as e:
                answers[type(e).__name__] += 1

    senders = [threading.Thread(target=sending) for _ in range(clients if body else 0)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return dict(answers)


def _probe(url: str, key: str, ended: threading.Event) -> dict[str, list[float]]:
    """Waiting times of the answers, in ms."""
    waits: dict[str, list[float]] = {}
    lock = threading.Lock()

    def probing(name: str, path: str, kept: bool) -> None:
        headers = {"Authorization": f"Bearer {key}"} | ({} if kept else {"Connection": "close"})
        waits[name] = []
        with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
            client.get("/v1/version")  # not at the door, where a connection with /healthz stays
            while not ended.is_set():
                begun = time.perf_counter()
                client.get(path).raise_for_status()
                with lock:
                    waits[name].append((time.perf_counter() - begun) * 1000)
                time.sleep(_PROBED_EVERY_S)

    kinds = (("door", "/healthz", False), ("event loop", "/healthz", True), ("thread", "/v1/version", True))
    probers = [threading.Thread(target=probing, args=kind) for kind in kinds]
    for prober in probers:
        prober.start()
    for prober in probers:
        prober.join()
    return waits


def _measured(server: Server, name: str, clients: int, seconds: float) -> dict[str, object]:
    key = server.headers["Authorization"].partition(" ")[2]
    ended, waits = threading.Event(), dict[str, list[float]]()
    prober = threading.Thread(target=lambda: waits.update(_probe(server.url, key, ended)))
    prober.start()
    said = subprocess.run(
        [sys.executable, __file__, "--send", server.url, key, "--clients", str(clients), "--seconds", str(seconds), "--only",
         name],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    if name == "nothing":
        time.sleep(seconds)
    ended.set()
    prober.join()
    figures = {
        kind: [round(f(found), 1) for f in (statistics.median, lambda w: statistics.quantiles(w, n=20)[-1], max)]
        for kind, found in waits.items()
    }
    return {"median, p95, slowest": figures, "answers": json.loads(said), "rss_mb": round(server.rss_mb())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--only", action="append", help="a kind of body; default: all")
    parser.add_argument("--send", nargs=2, metavar=("URL", "KEY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        print(json.dumps(_send(*given.send, given.clients, given.seconds, given.only[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "REFDIFF_HOME": folder,
            "REFDIFF_RATE_PER_MINUTE": "0",
            "REFDIFF_BYTES_PER_MINUTE": "0",
        }
        server = Server(environment, Path(folder) / "server.log")
        try:
            for name in given.only or bodies():
                print(json.dumps({name: _measured(server, name, given.clients, given.seconds)}), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
