"""A server's life: it listens, answers until it is told to stop, and lets what it has begun come to an end."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ossia.errors import OssiaError
from ossia.server.app import create_app
from ossia.server.bridge import Bridge
from ossia.server.connection import Connection
from ossia.server.settings import Settings

log = logging.getLogger(__name__)

LAST_SECONDS = 5
"""What an answer that was interrupted or has come to its end has to be sent."""
BACKLOG = 256


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, port 0 for any free one. Raises OssiaError where that is not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise OssiaError(f"{host!r} is no address of this machine ({error}): give --host another") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OssiaError(f"cannot listen on {host} port {port} ({reason}): choose another with --port") from None
    return bound


class Server(uvicorn.Server):
    """Ends at the first signal when what runs is done, or after `grace` seconds; at the second one at once."""

    def __init__(self, bridge: Bridge, settings: Settings, *, grace: float) -> None:
        self.app = create_app(bridge, settings)
        self._bridge = bridge
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            self.app,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, refuse what comes on open connections, and wait for what runs."""
        self.app.state.gate.closing = True
        if running := self._bridge.num_running:
            log.info("closing: %d answers have %g seconds to come to their end", running, self._grace)
        self._loop = asyncio.get_running_loop()
        timer = self._loop.call_later(self._grace, self._bridge.interrupt)
        try:
            # Answers that are made in the background have no connection on which the rest could wait.
            while self._bridge.num_running and not self.force_exit:
                await asyncio.sleep(0.05)
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take SIGINT and SIGTERM, which only the main thread can, without raising them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal."""
        if self.should_exit:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut_off)
        self.should_exit = True

    def _cut_off(self) -> None:
        self._bridge.interrupt()
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.transport.abort()
