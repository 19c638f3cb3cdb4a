"""Run the HTTP server: the inspection service, its bots and uvicorn, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType

import uvicorn

from refdiff.agent.service import InspectionService, Role
from refdiff.memory.records.api_keys import KeyStore
from refdiff.memory.records.sign_ins import SignInStore
from refdiff.server.chat.bots import bots
from refdiff.server.settings import ConfigurationError, ServerSettings, Settings
from refdiff.server.signals import end_if_hung, ending_if_hung, handled_by
from refdiff.server.sockets import address, check_open_to, is_loopback
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.connections import LoopErrors, PatientProtocol, most_connections, patient
from refdiff.server.web.doorkeeper import POSSIBLE, Doorkeeper
from refdiff.server.web.identity_provider import IdentityProvider, is_secure
from refdiff.server.web.json_logs import log_json
from refdiff.server.web.middleware import REQUESTS
from refdiff.server.web.routes.health import health_of
from refdiff.server.web.sign_in import OperatorSignIn, PeopleSignIn

_QUEUE = 2048
_M_ARENA_MAX = -8  # of mallopt(3)
_STOP_S = 10  # how long open requests may take after a stop signal
_END_S = 40.0  # how long its end may take if something hangs


def serve(
    listener: socket.socket,
    host: str,
    settings: Settings,
    ready: Callable[[str, OperatorSignIn | None], None],
    without_keys: bool = False,
    role: Role = "all",
) -> None:
    """Serve until SIGTERM or Ctrl-C; Ctrl-C raises KeyboardInterrupt at the end. If something hangs, the process ends with
    exit code HUNG.

    host: the address that the listener is bound to. ready: called with the URL once requests are accepted, and with the
    operator's sign-in if there is one. without_keys: whoever calls from this machine may do everything.
    role: whether this process inspects (see InspectionService.open). Raises
    UnavailableError if another server owns the home, InputError if strangers could connect without a key.
    """
    many_threads()
    with contextlib.ExitStack() as running:
        service = running.enter_context(
            InspectionService.open(settings.memory, settings.model, settings.tools, settings.agent, role)
        )
        running.enter_context(ending_if_hung(lambda: service.hung, _END_S))
        if role == "all":  # else workers do
            service.fit_by_itself()
        keys = service.stores.keys
        people = people_sign_in(settings, host, service.stores.sign_ins)
        check_open_to(host, keys, without_keys, settings.behind_a_proxy, people is not None)
        access = access_to(keys, host, settings.server, without_keys, people)
        log_json(settings.server.log_level)
        most = most_connections()
        app = create_app(
            service, access, settings.server, settings.chat.public_url, requests=min(REQUESTS, most * 3 // 4)
        )
        running.enter_context(bots(app, service, settings.chat))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False,
            lifespan="off", timeout_graceful_shutdown=_STOP_S, ws="none", loop="asyncio", http=patient(most),
        )  # fmt: skip
        server = GracefulServer(
            config,
            lambda: ready(address(host, listener), access.sign_in),
            service.drain,
            lambda: health_of(service),
        )
        gc.collect()
        gc.freeze()  # 400,000 objects of libraries: looking through them stops every thread for 0.2 to 0.4 s
        server.run([listener])
    end_if_hung(service.hung)
    if server.interrupted:
        raise KeyboardInterrupt


def people_sign_in(settings: Settings, host: str, sign_ins: SignInStore) -> PeopleSignIn | None:
    """How people sign in; None without an identity provider. host: the address that the server listens on.

    Raises ConfigurationError, UnavailableError.
    """
    server, public_url = settings.server, settings.chat.public_url
    if server.oidc_issuer is None:
        return None
    if public_url is None and not is_loopback(host):
        raise ConfigurationError(
            "setting REFDIFF_PUBLIC_URL is missing: with REFDIFF_OIDC_ISSUER, give the address at which browsers reach this "
            "server (https://qa.example.com), to which the provider sends them back"
        )
    if public_url is not None and not is_secure(public_url):
        raise ConfigurationError(
            f"setting REFDIFF_PUBLIC_URL={public_url}: with REFDIFF_OIDC_ISSUER the address must begin with https://, as "
            "everybody on the way could otherwise take over who signs in"
        )
    return PeopleSignIn(
        IdentityProvider(server), sign_ins, public_url, timedelta(hours=server.oidc_session_h), (server.user,)
    )


def access_to(
    keys: KeyStore,
    host: str,
    settings: ServerSettings,
    without_keys: bool = False,
    people: PeopleSignIn | None = None,
) -> Access:
    """The access rules that follow from host and settings.

    On loopback the operator signs in with a key of their own, made here unless others were given out.
    """
    loopback = is_loopback(host)
    operator = keys.operator(settings.user, make=not keys.any_good()) if loopback and not without_keys else None
    return Access(
        keys, loopback=loopback, user=settings.user, hosts=tuple(settings.allowed_hosts), without_keys=without_keys,
        sign_in=OperatorSignIn(*operator) if operator else None, people=people,
    )  # fmt: skip


class GracefulServer(uvicorn.Server):
    """uvicorn with graceful shutdown: the service is closed before a signal is raised again.

    ready: called once requests are accepted. ending: called before open requests are awaited; must be quick.
    health: status and body of /healthz, which a Doorkeeper answers.
    interrupted: whether Ctrl-C stopped it.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        ending: Callable[[], None],
        health: Callable[[], tuple[int, bytes]],
    ) -> None:
        super().__init__(config)
        self._ready, self._ending, self._health = ready, ending, health
        self._doors: list[Doorkeeper] = []
        self.interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but no signal is raised again here: the caller closes the service first."""
        with handled_by(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted |= sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        listeners = list(sockets or ())
        await super().startup([] if POSSIBLE else listeners)
        for listener in listeners if POSSIBLE else ():
            listener.listen(_QUEUE)
            self._doors.append(Doorkeeper(listener, self._health, self._protocol, _QUEUE // 2))
            self._doors[-1].start()
        self._ready()

    def _protocol(self) -> asyncio.Protocol:
        protocol: type[PatientProtocol] = self.config.http_protocol_class  # type: ignore[assignment]
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await asyncio.gather(*(door.stop() for door in self._doors))
        for _ in range(2):  # what has been sent is read: connections without a request are closed next
            await asyncio.sleep(0)
        await super().shutdown(sockets)


def many_threads() -> None:
    """Let the event loop have its turn soon beside forty threads of uploads, and let those share memory.

    A thread that wants to run Python waits 5 ms for each that does, by default. glibc gives each thread an arena of its own
    that keeps what it was once given: eight large uploads at a time then hold two gigabytes for good.
    """
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
