"""`refdiff mcp`: the tools and whole inspections for other agents, over the Model Context Protocol."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import UnavailableError
from refdiff.model.settings import ModelSettings
from refdiff.server import console
from refdiff.server.settings import ConfigurationError, ServerSettings, load
from refdiff.tools.settings import ToolsSettings


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: refdiff mcp · refdiff mcp --http --port 8010 · claude mcp add refdiff -- refdiff mcp"
    )(mcp)


def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP at /mcp instead of stdin and stdout.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need REFDIFF_MCP_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8010,
) -> None:
    """Let other agents inspect parts (Model Context Protocol): the tools and whole inspections, with pictures.

    Over stdin and stdout it serves the agent that started it. It has the home folder to itself while it runs, as
    `refdiff serve` does. Decisions about a REVIEW are a person's and not among the tools.
    """
    settings = load(ServerSettings)
    from refdiff.server.mcp.http import is_loopback

    token = settings.mcp_token.get_secret_value() if settings.mcp_token else None
    if http and not token and not is_loopback(host):
        raise ConfigurationError(f"--host {host} is open to others: set REFDIFF_MCP_TOKEN, which callers then send")
    from refdiff.agent.settings import AgentSettings
    from refdiff.server.desk import Desk
    from refdiff.server.mcp.service import build_server

    model = load(ModelSettings)
    with Desk.open(load(MemorySettings), model, load(ToolsSettings), load(AgentSettings), settings) as desk:
        server = build_server(desk, by=f"mcp ({settings.user})")
        if not http:
            server.run("stdio")
            return
        import uvicorn

        from refdiff.server.mcp.http import PATH, build_app

        listening = _listen(host, port)
        app = build_app(server, host, token, model.max_bytes * 4 // 3 + 65_536)
        console.say(f"MCP at http://{host}:{port}{PATH}; Ctrl-C ends it")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Raises UnavailableError where the port is taken: before anything is loaded for nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as e:
        listening.close()
        raise UnavailableError(f"{host}:{port} cannot be listened on ({e.strerror}); choose another --port") from e
    return listening
