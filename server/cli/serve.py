"""`refdiff serve` and `refdiff keys`: the HTTP server, and who may use it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.memory.kinds import OPERATOR_FILE, Role
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_stores, settings
from refdiff.server.cli.options import AlphaRate, Json, References, clean, minute, period
from refdiff.server.cli.output import emit
from refdiff.server.sockets import check_open_to, listen

if TYPE_CHECKING:  # FastAPI loads only once the port is free
    from refdiff.memory.records.api_keys import ApiKey
    from refdiff.server.web.sign_in import OperatorSignIn

Expires = Annotated[
    timedelta | None,
    typer.Option(
        metavar="TIME", parser=period, help="How long the key is valid: 12h, 90d, 8w. Default: until revoked."
    ),
]
keys = typer.Typer(help="Add, list, rotate or revoke API keys of the HTTP server.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff serve --host 127.0.0.1 --port 8000")(serve)
    app.add_typer(keys, name="keys")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than loopback needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    without_keys: Annotated[
        bool,
        typer.Option(
            "--without-keys", help="Let every account and program of this machine do everything, without a key."
        ),
    ] = False,
    no_inspections: Annotated[
        bool,
        typer.Option("--no-inspections", help="Accept, answer and show only; `refdiff worker` processes inspect."),
    ] = False,
    references: References = None,
    alpha: AlphaRate = None,
    _json: Json = False,
) -> None:
    """Serve the review page and the HTTP API, also for OpenAI clients, until Ctrl-C.

    On loopback it prints a link that signs your browser in, and a key for your programs, until you create other keys.

    It inspects one part after another, and after a crash it resumes everything that it had accepted. With
    --no-inspections it leaves that to `refdiff worker`. It logs to stderr, one JSON document per line.

    Documentation: http://HOST:PORT/docs · health: /healthz · readiness: /readyz · metrics: /metrics
    """
    current().runs_long = True
    chosen = settings(references=references, alpha=alpha)
    with contextlib.closing(listen(host, port)) as listener:  # before the heavy imports
        with open_stores() as stores:
            people = chosen.server.oidc_issuer is not None
            check_open_to(host, stores.keys, without_keys, chosen.behind_a_proxy, people)
        if without_keys:
            output.note(
                "without keys, every account and every program of this machine may do everything under your name"
            )
        from refdiff.server.telemetry import exporting
        from refdiff.server.web.serve import serve as run_server

        def ready(address: str, sign_in: OperatorSignIn | None) -> None:
            lines = [f"serving on {address} (documentation: {address}/docs); Ctrl-C stops"]
            link, text = (sign_in.link(address), sign_in.text) if sign_in else (None, None)
            if sign_in:
                lines += [f"review page:  {link}  (signs one browser in, once)",
                          f"API key:      {text}  (for programs; kept in {chosen.memory.home / OPERATOR_FILE})"]  # fmt: skip
            document = {"address": address, "home": str(chosen.memory.home), "sign_in": link, "api_key": text}
            emit(document, "\n".join(lines))

        with exporting("refdiff-server"):
            run_server(listener, host, chosen, ready, without_keys, "server" if no_inspections else "all")


@keys.command("add", epilog="Example: refdiff keys add 'line 3' --role inspector")
def add_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what uses the key; appears in reports.")],
    role: Annotated[
        Role, typer.Option(help="viewer reads; inspector also inspects and decides; admin may do everything.")
    ],
    expires: Expires = None,
    _json: Json = False,
) -> None:
    """Create an API key. It is shown once; only a digest is stored."""
    with open_stores() as stores:
        key, text = stores.keys.add(clean(name), role, settings().server.user, expires)
    emit(asdict(key) | {"key": text}, text)
    output.note(_about(key))


@keys.command(epilog="Example: refdiff keys rotate 'line 3' --keep 7d")
def rotate(
    which: Annotated[str, typer.Argument(metavar="KEY", help="Key id, like k-1a2b3c4d, or the name of a valid key.")],
    keep: Annotated[
        timedelta, typer.Option(metavar="TIME", parser=period, help="How long the old key stays valid: 0h, 7d, 2w.")
    ] = "7d",  # type: ignore[assignment]
    expires: Expires = None,
    _json: Json = False,
) -> None:
    """Create a new key with the name and role of another one, which stays valid while its users change over.

    Without --expires, the new one is valid as long as the old one was to be. The new key is shown once.
    """
    with open_stores() as stores:
        key, text, old = stores.keys.rotate(clean(which), settings().server.user, keep, expires)
    emit(asdict(key) | {"key": text, "replaces": asdict(old)}, text)
    output.note(_about(key))
    output.note(f"{old.key_id}, which it replaces, is valid until {minute(old.expires_at)} UTC")


def _about(key: ApiKey) -> str:
    until = f", until {minute(key.expires_at)} UTC" if key.expires_at else ""
    return (
        f"{key.key_id} ({output.printable(key.name)}, {key.role}{until}): the key is shown only once; store it safely"
    )


@keys.command("list", epilog="Example: refdiff keys list --json")
def list_keys(
    signed_in: Annotated[
        bool, typer.Option("--signed-in", help="People who are signed in now instead; `keys revoke` signs them out.")
    ] = False,
    _json: Json = False,
) -> None:
    """List all API keys, including revoked and expired ones."""
    with open_stores() as stores:
        found = stores.sign_ins.list() if signed_in else stores.keys.list()
    shown = output.table("Key", "Name", "Role", "Created", "By", "Expires", "Revoked")
    for key in found:
        times = (minute(key.expires_at), minute(key.revoked_at))
        cells = (key.key_id, key.name, key.role, minute(key.created_at), key.created_by, *times)
        shown.add_row(*map(output.printable, cells))
    hint = "nobody is signed in" if signed_in else "no API keys; create one: refdiff keys add NAME --role inspector"
    emit({"keys": [asdict(k) for k in found]}, shown if found else hint)


@keys.command(epilog="Example: refdiff keys revoke k-1a2b3c4d")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Key id, like k-1a2b3c4d; or that of a sign-in, s-...")],
    _json: Json = False,
) -> None:
    """Revoke a key, or sign somebody out, immediately and permanently."""
    with open_stores() as stores:
        ended = stores.keys.revoke(clean(key_id), settings().server.user)
    emit(asdict(ended), f"{ended.key_id} ({output.printable(ended.name)}): revoked")
