"""What every request passes before it reaches its route: who asks, from where, how much, and how many at a time.

One ASGI layer without a base class, since every event of every stream passes through it. In this order:

    closing 503 · host and origin 403 · API key 401 · concurrent requests 429 · body 413, 408 · then the route
"""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossia.server.errors import RETRY_AFTER, ApiError, answer
from ossia.server.metrics import Metrics
from ossia.server.services import REQUEST_ID as SCOPE_ID
from ossia.server.settings import Settings

log = logging.getLogger("ossia.server.access")

API_PATHS = ("/v1/", "/tokenize", "/detokenize", "/metrics")
"""What needs the key; the page, its description and the probes of health do not."""
ASKING_PATHS = ("/v1/", "/tokenize", "/detokenize")

HEADER_ID = "x-request-id"
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

MOST_DISCARDED = 64 * 2**20
"""Bytes of a body that is too large which are still read, so that its sender hears of it."""

QUIET_SECONDS = 1.0
"""After which its sender is taken to be waiting for that."""

SECURITY_HEADERS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
"""Of every answer that does not bring its own."""

CORS_HEADERS: Mapping[str, str] = {
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": "authorization, content-type, x-request-id, *",
    "access-control-max-age": "600",
}


class Gate:
    """The layer. `close` has it refuse what comes from then on."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.closing = False
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        # Web sockets are not spoken here; the server refuses what returns without an answer.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope[SCOPE_ID] = request_id
        origin = headers.get(b"origin")
        begin, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out[HEADER_ID] = request_id
                for name, value in SECURITY_HEADERS.items():
                    out.setdefault(name, value)
                if origin is not None and self._is_welcome(origin):
                    out["access-control-allow-origin"] = origin
                    out["access-control-expose-headers"] = HEADER_ID
                    out["cross-origin-resource-policy"] = "cross-origin"
                    out.add_vary_header("Origin")
            await send(message)

        asks = _is_at(scope["path"], ASKING_PATHS)
        self._in_flight += asks
        self._metrics.in_flight.inc()
        try:
            await self._pass(scope, headers, receive, send_on)
        finally:
            self._in_flight -= asks
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - begin
            # A route's pattern, not the path, which is the client's to make up.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.request(route, status or 499, seconds)
            log.info("%s %s %s %d %.3fs", request_id, scope["method"], route, status or 499, seconds)

    async def _pass(self, scope: Scope, headers: Mapping[bytes, str], receive: Receive, send: Send) -> None:
        body = _Body(receive, self._settings.max_body, self._settings.body_seconds)
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _preflight(send)
                return
            length = headers.get(b"content-length", "0")
            if length.isdecimal() and int(length[:20]) > self._settings.max_body:
                await body.discard()
                raise _too_large(self._settings.max_body)
        except ApiError as error:
            await answer(error)(scope, receive, send)
            return
        await self._app(scope, body.receive, send)

    def _check(self, scope: Scope, headers: Mapping[bytes, str]) -> None:
        path, settings = scope["path"], self._settings
        asks = _is_at(path, ASKING_PATHS)
        if asks and self.closing:
            raise ApiError(503, "the server is closing: ask again when it is back", type="server_error", code="closing")
        origin = headers.get(b"origin")
        if settings.hosts and _host_name(headers.get(b"host", "")) not in settings.hosts:
            raise ApiError(403, "the server is not known by this host name: start it with --host", code="unknown_host")
        if origin is not None and not self._is_welcome(origin) and not _is_own(origin, headers.get(b"host", "")):
            raise ApiError(403, "web pages of other origins may not ask: start with --cors", code="unknown_origin")
        is_preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        if self._key is not None and _is_at(path, API_PATHS) and not is_preflight:
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not key:
                raise _unauthorized("there is no API key: send it as Authorization: Bearer KEY", "missing_api_key")
            if not hmac.compare_digest(key.strip().encode("utf-8", "surrogatepass"), self._key):
                raise _unauthorized(
                    "the API key is wrong: give the one with which the server was started", "invalid_api_key"
                )
        if asks and self._in_flight > settings.max_concurrent:
            what = f"{settings.max_concurrent} requests are being answered already: try again later"
            raise ApiError(429, what, type="rate_limit_error", code="too_many_requests", headers=RETRY_AFTER)

    def _is_welcome(self, origin: str) -> bool:
        return origin in self._settings.cors_origins or "*" in self._settings.cors_origins


class _Body:
    """Hands on the body of a request while it keeps within its bounds."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._most = most
        self._seconds = seconds
        self._length = 0
        self._deadline: float | None = None
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            what = f"the body was not complete after {self._seconds:g} seconds: send it faster"
            raise ApiError(408, what, code="request_timeout", headers={"connection": "close"}) from None
        if message["type"] == "http.request":
            self._length += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._length > self._most:
                await self.discard()
                raise _too_large(self._most)
        return message

    async def discard(self) -> None:
        """Read on to nowhere, for a while: a client that is still sending would not see an answer."""
        end = asyncio.get_running_loop().time() + self._seconds
        with suppress(TimeoutError):
            while not self._whole and self._length < self._most + MOST_DISCARDED:
                async with asyncio.timeout_at(min(end, asyncio.get_running_loop().time() + QUIET_SECONDS)):
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    return
                self._length += len(message.get("body", b""))
                self._whole = not message.get("more_body", False)


async def _preflight(send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in CORS_HEADERS.items()]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _is_at(path: str, places: tuple[str, ...]) -> bool:
    return path.startswith(places)


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_own(origin: str, host: str) -> bool:
    """Whether a page is the server's own: of the address that the request went to."""
    return urlsplit(origin).netloc.lower() == host.lower()


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, type="authentication_error", code=code, headers={"www-authenticate": "Bearer"})


def _too_large(most: int) -> ApiError:
    what = f"the body is larger than {most:,} bytes: send less"
    return ApiError(413, what, code="body_too_large", headers={"connection": "close"})
