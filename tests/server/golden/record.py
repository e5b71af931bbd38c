"""Records what the server answers to each of the cases, a file each, with ids and times made alike.

    python -m tests.server.golden.record [NAME ...]

Look at the difference before it is kept: `tests/server/test_golden.py` holds the server to it byte for byte.
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tests.server.fake import fake_llm
from tests.server.golden.cases import BUSY, CASES, FAILS, Case

from ossia.engine.engine import Stats
from ossia.engine.request import Drawn, Finish, Output, Request
from ossia.engine.worker import Deliver
from ossia.errors import BusyError
from ossia.files import write_whole
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import LLM
from ossia.server.app import create_app
from ossia.server.bridge import Bridge, Generation
from ossia.server.settings import Settings

FOLDER = Path(__file__).parent
LOGPROBS = (-0.125, -2.5, -3.75)
_SPECIAL = re.compile(r"(<\|\w+\|>)")
_IDS = re.compile(r"\b(chatcmpl|cmpl|resp|msg|rs|fc|call|req)_?-?([0-9a-f]{12,})\b")
_TIMES = re.compile(r'"(created|created_at|completed_at)":\d+')
_VERSION = re.compile(r'"system_fingerprint":"[^"]*"')


@dataclass(slots=True)
class _Running:
    outputs: Iterator[Output]
    generation: Generation
    cancelled: bool = False
    ended: bool = False

    @property
    def is_awaited(self) -> bool:
        """Whether the server has sent on all that it has, and waits for more."""
        waiter = self.generation._waiter
        return waiter is not None and not waiter.done()


class ScriptedWorker:
    """Writes what it is told to, in the loop's own thread: a token of each turn by turns, once all are asked for.

    The next token comes when the one before has been sent on, so that the pieces of a stream are always the same.
    """

    def __init__(self, tokenizer: Tokenizer, turns: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        self._tokenizer = tokenizer
        self._turns = list(turns)
        self._loop = loop
        self._running: list[_Running] = []

    def submit(self, request: Request, deliver: Deliver) -> int:
        if not self._turns:
            raise AssertionError("the server asks for a generation that nobody wrote")
        turn = self._turns.pop(0)
        if turn == BUSY:
            raise BusyError("the queue is full: try again later")
        generation: Any = deliver
        self._running.append(_Running(self._outputs(turn, request), generation.__self__))
        if not self._turns:
            self._loop.call_soon_threadsafe(self._pump, 0)
        return len(self._running) - 1

    def _pump(self, number: int) -> None:
        one = self._running[number]
        if not (one.ended or one.cancelled or one.is_awaited):
            self._loop.call_later(0.001, self._pump, number)
            return
        if not one.ended:
            output = Output(finish="cancelled") if one.cancelled else next(one.outputs)
            one.ended = output.finish is not None
            one.generation.put(output)
            one.generation.collect()
        if not all(each.ended for each in self._running):
            self._loop.call_soon(self._pump, (number + 1) % len(self._running))

    def _outputs(self, turn: str, request: Request) -> Iterator[Output]:
        tokens = [
            token
            for part in _SPECIAL.split(turn.removesuffix(FAILS))
            for token in ([self._tokenizer.special[part]] if _SPECIAL.match(part) else self._tokenizer.encode(part))
        ]
        limit = min(request.sampling.max_tokens or len(tokens), len(tokens))
        for index, token in enumerate(tokens[:limit]):
            finish: Finish | None = None
            if token in request.sampling.stop_ids:
                finish = "stop"
            elif index == limit - 1 and not turn.endswith(FAILS):
                finish = "length"
            yield Output(drawn=(self._drawn(token, request),), cached_tokens=3, finish=finish)
            if finish is not None:
                return
        yield Output(drawn=(), cached_tokens=3, finish="error", error="the logits are not numbers: check the weights")

    def _drawn(self, token: int, request: Request) -> Drawn:
        most = request.sampling.logprobs
        if most is None:
            return Drawn(token=token, logprob=None, top=())
        likely = (token, *self._tokenizer.encode(" a b"))
        return Drawn(token=token, logprob=LOGPROBS[0], top=tuple(zip(likely, LOGPROBS, strict=False))[:most])

    def cancel(self, request_id: int) -> None:
        self._running[request_id].cancelled = True

    def stats(self) -> Stats:
        raise AssertionError("no case asks for numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An answer with its ids and times made alike."""

    status: int
    content_type: str
    body: bytes


def answer(llm: LLM, case: Case, folder: Path) -> Recorded:
    """What the server answers. folder: for the store."""
    return asyncio.run(_answer(llm, case, folder))


async def _answer(llm: LLM, case: Case, folder: Path) -> Recorded:
    worker: Any = ScriptedWorker(llm.tokenizer, case.turns, asyncio.get_running_loop())
    bridge = Bridge(llm, worker)
    app = create_app(bridge, Settings(model_name="demo", store=folder / "responses.sqlite", page=False))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        asyncio.timeout(60),
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport) as client,
    ):
        got = await client.request(case.method, f"http://127.0.0.1{case.path}", json=case.body)
        body = normalised(got.content)
    return Recorded(status=got.status_code, content_type=got.headers["content-type"], body=body)


def normalised(body: bytes) -> bytes:
    """With ids numbered in the order in which they come, and all times the same."""
    known: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        kind = match[1]
        of_kind = sum(name.startswith(f"{kind}_") for name in known.values())
        return known.setdefault(match[0], f"{kind}_{of_kind + 1}")

    text = _IDS.sub(number, body.decode())
    text = _TIMES.sub(r'"\1":1700000000', text)
    return _VERSION.sub('"system_fingerprint":"fp_1"', text).encode()


def to_file(case: Case, recorded: Recorded) -> str:
    """The text of the case's file: JSON to be read by people, from which `body_of` has the bytes again."""
    content: dict[str, Any] = {"request": {"method": case.method, "path": case.path, "body": case.body}}
    content["model_writes"] = list(case.turns)
    content["response"] = {"status": recorded.status, "content_type": recorded.content_type}
    if b"\\u" in recorded.body:
        content["response"]["escaped"] = True  # What is not ASCII.
    if recorded.content_type.startswith("text/event-stream"):
        content["response"]["events"] = [_event(block) for block in recorded.body.decode().split("\n\n")[:-1]]
    else:
        content["response"]["body"] = json.loads(recorded.body)
    return _readable(content) + "\n"


def body_of(response: Mapping[str, Any]) -> bytes:
    """The bytes that a file stands for."""
    escaped = response.get("escaped", False)
    if "body" in response:
        return _compact(response["body"], escaped).encode()
    blocks: list[str] = []
    for event in response["events"]:
        head = f"event: {event['event']}\n" if "event" in event else ""
        data = event["data"] if isinstance(event["data"], str) else _compact(event["data"], escaped)
        blocks.append(f"{head}data: {data}\n\n")
    return "".join(blocks).encode()


def _event(block: str) -> dict[str, Any]:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    data = fields["data"]
    return {**fields, "data": data if data == "[DONE]" else json.loads(data)}


def _compact(value: Any, escaped: bool) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=escaped)


def _readable(value: Any, indent: str = "") -> str:
    """JSON with what fits on a line on one line, and so every event of a stream."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= 118 or not isinstance(value, (dict, list)) or not value or "data" in value:
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(name)}: {_readable(each, deeper)}" for name, each in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{deeper}{_readable(each, deeper)}" for each in value) + f"\n{indent}]"


def main() -> None:
    import tempfile

    asked = sys.argv[1:]
    if unknown := set(asked) - {case.name for case in CASES}:
        sys.exit(f"no case {', '.join(sorted(unknown))}")
    llm = fake_llm()
    for case in CASES:
        if asked and case.name not in asked:
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = to_file(case, answer(llm, case, Path(folder)))
        path = FOLDER / f"{case.name}.json"
        known = path.read_text(encoding="utf-8") if path.is_file() else None
        if text != known:
            print(f"{path.name}: {'new' if known is None else 'changed'}")
            write_whole(path, text)


if __name__ == "__main__":
    main()
