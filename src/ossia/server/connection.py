"""A connection of uvicorn's with bounds that it lacks: on the time of a request's head, and on their number."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ossia.server.stream import ABORT

HEAD_SECONDS = 10.0
"""Time in which a request's head must have come, counted from its first byte, or from the opening of the connection."""
MOST_CONNECTIONS = 1000

_FULL = (
    b'{"error":{"message":"there are too many connections: try again later","type":"rate_limit_error",'
    b'"param":null,"code":"too_many_connections"}}'
)
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)


class Connection(HttpToolsProtocol):
    """Closed where a head is not complete in time; a route may cut it off with what the scope has as `ABORT`.

    Where there are too many, one that has not asked for anything yet has to go, the oldest first.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            silent = [each for each in self.connections if isinstance(each, Connection) and each.head_due is not None]
            if not silent:
                transport.write(_REFUSAL)
                transport.close()
                return
            min(silent, key=_due).transport.abort()
        self._expect_head()

    @property
    def head_due(self) -> float | None:
        """When the head that is awaited must be there, by the loop's clock."""
        return None if self._head_timer is None else self._head_timer.when()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[ABORT] = self.transport.abort  # pyright: ignore[reportGeneralTypeIssues]
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._have_head()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _have_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _due(connection: Connection) -> float:
    return connection.head_due or 0.0
