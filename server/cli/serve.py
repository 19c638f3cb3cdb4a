"""`refdiff serve` and `refdiff keys`: the HTTP server, and who may use it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from refdiff.memory.records.api_keys import KeyStore
from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_stores, settings
from refdiff.server.cli.options import AlphaRate, Json, References, clean
from refdiff.server.cli.output import emit
from refdiff.server.sockets import check_open_to, listen

keys = typer.Typer(help="API keys of the HTTP server: add, list, revoke.", no_args_is_help=True)


class RoleName(StrEnum):
    viewer = "viewer"
    inspector = "inspector"
    admin = "admin"


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff serve --host 127.0.0.1 --port 8000")(serve)
    app.add_typer(keys, name="keys")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    references: References = None,
    alpha: AlphaRate = None,
    _json: Json = False,
) -> None:
    """Serve the HTTP API, and any OpenAI client, until Ctrl-C.

    One process works on a home folder at a time: it holds the golden bank, inspects one part after the other, and goes on
    after a kill with all that it had accepted. Its log is one JSON document a line on stderr.

    Documentation: http://HOST:PORT/docs · health: /healthz · metrics: /metrics
    """
    chosen = settings(references=references, alpha=alpha)
    with contextlib.closing(listen(host, port)) as listener:  # before anything heavy loads
        with open_stores() as stores, KeyStore(stores.settings.home) as kept:
            check_open_to(host, kept)
        from refdiff.server.web.serve import serve as run_server

        def ready(address: str) -> None:
            line = f"serving on {address} (documentation: {address}/docs); Ctrl-C stops"
            emit({"address": address, "home": str(chosen.memory.home)}, line)

        run_server(listener, host, chosen, ready)


@keys.command("add", epilog="Example: refdiff keys add 'line 3' --role inspector")
def add_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use it; written into reports.")],
    role: Annotated[RoleName, typer.Option(help="viewer reads, inspector also inspects and decides, admin does all.")],
    _json: Json = False,
) -> None:
    """Make an API key. Its text is shown once; only a digest is kept."""
    with open_stores() as stores, KeyStore(stores.settings.home) as kept:
        key, text = kept.add(clean(name), role.value, settings().server.user)
    emit(asdict(key) | {"key": text}, text)
    output.note(f"{key.key_id} ({output.printable(key.name)}, {key.role}): the key is shown only now; keep it safe")


@keys.command("list", epilog="Example: refdiff keys list --json")
def list_keys(_json: Json = False) -> None:
    """List the API keys, also revoked ones."""
    with open_stores() as stores, KeyStore(stores.settings.home) as kept:
        found = kept.list()
    shown = output.table("Key", "Name", "Role", "Made", "By", "Revoked")
    for key in found:
        times = [(t or "")[:16].replace("T", " ") for t in (key.created_at, key.revoked_at)]
        shown.add_row(
            key.key_id, output.printable(key.name), key.role, times[0], output.printable(key.created_by), times[1]
        )
    hint = "no API keys; make one: refdiff keys add NAME --role inspector"
    emit({"keys": [asdict(k) for k in found]}, shown if found else hint)


@keys.command(epilog="Example: refdiff keys revoke k-1a2b3c4d")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, like k-1a2b3c4d.")], _json: Json = False
) -> None:
    """End a key, at once and for good."""
    with open_stores() as stores, KeyStore(stores.settings.home) as kept:
        ended = kept.revoke(clean(key_id))
    emit(asdict(ended), f"{ended.key_id} ({output.printable(ended.name)}): revoked")
