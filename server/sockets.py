"""The socket of a server and what must be known before anything heavy loads: is the port free, may others come in."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from refdiff.model.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from refdiff.memory.records.api_keys import KeyStore

# headers by which proxies, balancers and tunnels say for whom they call
_PROXY = re.compile(
    r"forwarded|via|cdn-loop|x-forwarded.*|(x-original|x-real|x-envoy|x-amzn|x-azure|cf|fly|fastly)-.*|(.*-)?(client)?(ip|addr)"
)


def is_loopback(host: str) -> bool:
    """Whether the host is a loopback address, or the name localhost."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_header(names: Iterable[str]) -> str | None:
    """The first of the (lower-case) header names that a proxy, balancer or tunnel adds; None if there is none."""
    return next((name for name in names if _PROXY.fullmatch(name)), None)


def check_open_to(
    host: str, keys: KeyStore, without_keys: bool = False, proxy: str | None = None, people: bool = False
) -> None:
    """Raises InputError if strangers could connect without a key.

    without_keys: callers from this machine need none. proxy: the setting that says that others call through a proxy.
    people: an identity provider lets people in, so that no key is needed to begin with.
    """
    if without_keys:
        why = (
            f"--host {host} is reachable from other machines"
            if not is_loopback(host)
            else "this home has API keys (refdiff keys list), and whoever has none is to stay outside"
            if keys.any_good()
            else f"with {proxy}, others call through a proxy"
            if proxy
            else None
        )
        if why:
            raise InputError(f"--without-keys is not possible here: {why}; leave it out")
    elif not is_loopback(host) and not people and not keys.any_good():
        raise InputError(
            f"--host {host} is reachable from other machines, but there is no API key yet; create one first: "
            "refdiff keys add NAME --role admin (or serve on 127.0.0.1)"
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. port: 0 picks a free one. Raises InputError (host), UnavailableError (port in use or refused)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise InputError(f"--host {host!r}: no address of this machine ({e})") from e
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"port {port} on {host} is in use, perhaps by another server; choose another: --port {port + 1}"
            ) from e
        raise UnavailableError(
            f"{host}:{port} cannot be listened on ({e.strerror}); choose another --host or --port"
        ) from e
    return listener


def address(host: str, listener: socket.socket) -> str:
    """The URL of a listening socket, with the host as given."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
