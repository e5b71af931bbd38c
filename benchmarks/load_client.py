"""One streamed request to an OpenAI-compatible address over a plain socket, timed.

Cheap, because it shares the machine with the server that is measured: while the answer comes, its events are only kept
with their times; they are read afterwards.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_LINE = b"\r\n"
_PIECES = ("content", "reasoning", "reasoning_content", "text", "tool_calls")
"""Keys of a chunk's delta (of a chunk's choice in /v1/completions) that carry something the model wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to ask."""

    host: str
    port: int
    path: str
    """Before the endpoint: "/v1"."""
    tls: bool = False
    key: str | None = None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> "Address":
        """From "http://127.0.0.1:8000/v1". Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address: give one like http://127.0.0.1:8000/v1")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(host=parts.hostname, port=port, path=parts.path.rstrip("/"), tls=tls, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one request; times are of time.perf_counter."""

    begin: float
    end: float
    status: int | None
    error: str | None
    """What went wrong, as a kind that can be counted; None where the answer is whole."""
    pieces: tuple[float, ...]
    """When each piece of text came."""
    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    """By the server's usage; where it sends none, the pieces are counted."""
    finish: str | None

    @property
    def first(self) -> float | None:
        """Seconds to the first piece."""
        return self.pieces[0] - self.begin if self.pieces else None

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between pieces."""
        return tuple(later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False))


@dataclass(slots=True)
class _Raw:
    """What has come so far."""

    status: int | None = None
    body: list[tuple[float, bytes]] = field(default_factory=list[tuple[float, bytes]])


async def ask(
    address: Address, endpoint: str, body: Mapping[str, Any], *, timeout: float, leave_after: int | None = None
) -> Answer:
    """Send `body`, which asks for a stream, and take the answer; never raises on what the server does.

    leave_after: hang up after so many parts of the body, as a client does that vanishes.
    """
    raw, error = _Raw(), None
    begin = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            await _exchange(address, endpoint, json.dumps(body).encode(), raw, leave_after)
    except TimeoutError:
        error = "timeout"
    except ConnectionRefusedError:
        error = "refused"
    except (OSError, EOFError, ValueError) as problem:
        error = f"broken connection ({type(problem).__name__})"
    return _read(raw, begin, time.perf_counter(), error, left=leave_after is not None)


async def _exchange(address: Address, endpoint: str, body: bytes, raw: _Raw, leave_after: int | None) -> None:
    context = ssl.create_default_context() if address.tls else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    try:
        head = [
            f"POST {address.path}/{endpoint} HTTP/1.1",
            f"Host: {address.host}:{address.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if address.key:
            head.append(f"Authorization: Bearer {address.key}")
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        raw.status = int((await reader.readuntil(_LINE)).split()[1])
        headers: dict[str, str] = {}
        while (line := await reader.readuntil(_LINE)) != _LINE:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(_LINE)).partition(b";")[0], 16):
                raw.body.append((time.perf_counter(), await reader.readexactly(size)))
                await reader.readexactly(len(_LINE))
                if leave_after is not None and len(raw.body) >= leave_after:
                    return
        else:
            length = int(headers.get("content-length", -1))
            raw.body.append((time.perf_counter(), await (reader.read() if length < 0 else reader.readexactly(length))))
    finally:
        writer.close()


def _read(raw: _Raw, begin: float, end: float, error: str | None, *, left: bool) -> Answer:
    pieces: list[float] = []
    text: list[str] = []
    usage: Mapping[str, Any] = {}
    finish, done = None, False
    if raw.status is not None and raw.status != 200:
        error = error or f"status {raw.status}"
    else:
        for arrived, data in _events(raw.body):
            if data == b"[DONE]":
                done = True
                continue
            try:
                event = json.loads(data)
            except ValueError:
                error = error or "event that is no JSON"
                continue
            if "error" in event:
                error = error or f"error event ({(event['error'] or {}).get('type')})"
                continue
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                delta = choice.get("delta", choice)
                said = [delta[key] for key in _PIECES if delta.get(key)]
                if said:
                    pieces.append(arrived)
                    text.extend(each for each in said if isinstance(each, str))
                finish = choice.get("finish_reason") or finish
        if error is None and not done and not left:
            error = "cut short"
    return Answer(
        begin=begin,
        end=end,
        status=raw.status,
        error=error,
        pieces=tuple(pieces),
        text="".join(text),
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        completion_tokens=usage.get("completion_tokens", len(pieces)),
        finish=finish,
    )


def _events(body: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each server-sent event, with the time at which its last byte came."""
    rest = b""
    for arrived, part in body:
        *whole, rest = (rest + part).replace(_LINE, b"\n").split(b"\n\n")
        for event in whole:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield arrived, b"\n".join(lines)
