"""A connection of uvicorn's with two bounds that it lacks: on the time of a request's head, and on unread answers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ossia.server.stream import ABORT

HEAD_SECONDS = 20.0
"""Time in which a request's head must have come, counted from its first byte, or from the opening of the connection."""


class Connection(HttpToolsProtocol):
    """Closed where a head is not complete in time; a route may cut it off with what the scope has as `ABORT`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

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
