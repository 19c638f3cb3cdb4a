"""`refdiff mcp`: tools and whole inspections for other agents, over the Model Context Protocol."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import Annotated

import typer

from refdiff.memory.kinds import OPERATOR_FILE
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_stores, settings
from refdiff.server.extras import require_extra
from refdiff.server.settings import ConfigurationError
from refdiff.server.signals import end_if_hung, ending_if_hung
from refdiff.server.sockets import address, check_open_to, is_loopback, listen

_STOP_S = 10  # how long open requests may take after a stop signal
_END_S = 40.0  # how long its end may take if something hangs


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: refdiff mcp · refdiff mcp --http --port 8010 · claude mcp add refdiff -- refdiff mcp"
    )(mcp)


def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP at /mcp instead of stdin and stdout.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than loopback needs REFDIFF_MCP_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on, with --http.")] = 8010,
    without_keys: Annotated[
        bool,
        typer.Option("--without-keys", help="Serve every account and program of this machine, without a key."),
    ] = False,
) -> None:
    """Let other agents inspect parts, over the Model Context Protocol.

    They get the tools and whole inspections, with pictures. A REVIEW is decided by people, not by a tool.
    On stdin and stdout it serves the agent that started it, until stdin closes, SIGTERM or Ctrl-C. With --http, callers send
    REFDIFF_MCP_TOKEN, or, where none is set, the key that it prints.
    Like `refdiff serve`, it owns the home folder while it runs.
    """
    require_extra("mcp")
    current().runs_long = True
    chosen = settings()
    token = chosen.server.mcp_token.get_secret_value() if chosen.server.mcp_token else None
    if http and not token and not is_loopback(host):
        raise ConfigurationError(
            f"--host {host} is reachable from other machines; set REFDIFF_MCP_TOKEN, which callers must send"
        )
    if http and without_keys:
        with open_stores() as stores:
            proxy = "REFDIFF_MCP_TOKEN" if token else chosen.behind_a_proxy
            check_open_to(host, stores.keys, without_keys, proxy)
        output.note("without keys, every account and every program of this machine may inspect under your name")
    with ExitStack() as running:
        # before the heavy imports
        listener = running.enter_context(closing(listen(host, port))) if http else None
        from refdiff.agent.service import InspectionService
        from refdiff.server.mcp.server import build_server

        service = running.enter_context(InspectionService.open(chosen.memory, chosen.model, chosen.tools, chosen.agent))
        running.enter_context(ending_if_hung(lambda: service.hung, _END_S))
        server = build_server(service, f"mcp ({chosen.server.user})", chosen.chat.public_url)
        if listener is None:
            from refdiff.server.mcp.stdio import ended_by_signals

            with ended_by_signals(service.drain) as ctrl_c:
                server.run("stdio")
            interrupted = ctrl_c()
        else:
            import uvicorn

            from refdiff.server.mcp.http import PATH, build_app, known_to, same_text
            from refdiff.server.web.connections import most_connections, patient
            from refdiff.server.web.routes.health import health_of
            from refdiff.server.web.serve import GracefulServer, many_threads

            many_threads()

            def health() -> tuple[int, bytes]:
                return health_of(service)

            at = f"{address(host, listener)}{PATH}"
            said = f"MCP at {at}; Ctrl-C ends it"
            accepts = same_text(token) if token else None
            if token is None and not without_keys:
                keys = service.stores.keys
                operator = keys.operator(chosen.server.user, make=not keys.any_good())
                accepts = known_to(keys)
                if operator:
                    said += f"\nAPI key: {operator[1]}  (for callers; kept in {chosen.memory.home / OPERATOR_FILE})"
            app = build_app(server, host, accepts, chosen.model.max_bytes * 4 // 3 + 65_536, health)
            config = uvicorn.Config(
                app, log_level="warning", server_header=False, timeout_graceful_shutdown=_STOP_S, ws="none", loop="asyncio",
                http=patient(most_connections()),
            )  # fmt: skip
            web = GracefulServer(config, lambda: output.say(said), service.drain, health)
            web.run([listener])
            interrupted = web.interrupted
    end_if_hung(service.hung)
    if interrupted:
        raise KeyboardInterrupt
