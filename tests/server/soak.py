"""A server at overload for a while: what was accepted must end, what was stored stay, what was taken be given back.

    python -m tests.server.soak --seconds 600

Many clients ask at once, more than the batch and the queue hold. Some read to the end, some stop midway, some hang up
before the first word, some have the server keep the response and ask for it later. In the middle the server is killed
and started again. Prints one JSON line, and ends with code 1 where something is wrong.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from tests.server.serving import PATIENCE_SECONDS, Served, free_port, serving

CLIENTS = 40
OPTIONS = ("--max-batch", "4", "--max-queue", "8")
MEMORY_GROWTH = 0.02
FINAL = {"completed", "incomplete", "failed", "cancelled"}
"""Statuses of a stored response that will not change."""
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@dataclass(slots=True)
class Ledger:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    stored: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Responses that ended, by id, as the client got them."""
    begun: set[str] = field(default_factory=set[str])
    """Ids of responses that the server said it keeps, ended or not."""
    wrong: list[str] = field(default_factory=list[str])
    down: bool = False
    """Whether the server was killed; what was under way then may have been cut."""
    memory: list[list[int]] = field(default_factory=list[list[int]])
    """Resident bytes of each life of the server, ten times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it; `wrong` is empty where all is well."""

    seconds: float
    outcomes: dict[str, int]
    stored: int
    memory_growth: list[float]
    """Of each life of the server, from its second quarter to its last, as a part."""
    wrong: list[str]


class Client:
    """Asks again and again, in ways drawn by chance."""

    def __init__(self, served: Served, ledger: Ledger, rng: random.Random) -> None:
        self.http = httpx2.AsyncClient(
            base_url=served.url, timeout=PATIENCE_SECONDS, headers={"Authorization": f"Bearer {served.key}"}
        )
        self.ledger = ledger
        self.rng = rng
        self.last: str | None = None
        """A response to go on from."""

    async def run(self, until: float) -> None:
        ways = (self.chat, self.chat_streamed, self.vanish, self.hang_up, self.respond, self.respond_streamed)
        async with self.http:
            while time.monotonic() < until and not self.ledger.down:
                way = self.rng.choice((*ways, self.background))
                try:
                    outcome = await way()
                except httpx2.TimeoutException:
                    outcome = "no answer"
                    self.ledger.wrong.append(f"{way.__name__}: nothing came for {PATIENCE_SECONDS} s")
                except (httpx2.TransportError, json.JSONDecodeError) as error:
                    outcome = "cut by the kill"
                    if not self.ledger.down:
                        self.ledger.wrong.append(f"{way.__name__}: {type(error).__name__}: {error}")
                self.ledger.outcomes[f"{way.__name__}: {outcome}"] += 1
                if outcome == "refused, busy":
                    await asyncio.sleep(self.rng.uniform(0.01, 0.3))

    # ---------------------------------------------------------------- ways to ask

    async def chat(self) -> str:
        answer = await self.http.post("/chat/completions", json=self._chat(stream=False))
        if answer.status_code != 200:
            return self._refused(answer)
        choice = answer.json()["choices"][0]
        return f"ended with {choice['finish_reason']}"

    async def chat_streamed(self) -> str:
        async with self.http.stream("POST", "/chat/completions", json=self._chat(stream=True)) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return self._refused(answer)
            finish = None
            async for data in _events(answer):
                if data == "[DONE]":
                    return f"ended with {finish}"
                event = json.loads(data)
                if "error" in event:
                    return f"ended with an error ({event['error']['code']})"
                finish = next((c["finish_reason"] for c in event["choices"]), None) or finish
        raise httpx2.RemoteProtocolError("the stream ended without [DONE]")

    async def vanish(self) -> str:
        pieces = self.rng.randint(1, 20)
        way, body = self.rng.choice((("/chat/completions", self._chat), ("/responses", self._respond)))
        async with self.http.stream("POST", way, json=body(stream=True)) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return self._refused(answer)
            async for data in _events(answer):
                pieces -= 1
                if '"response.created"' in data:
                    self._begun(json.loads(data)["response"])
                if not pieces:
                    break
        return "left midway"

    async def hang_up(self) -> str:
        patience = httpx2.Timeout(PATIENCE_SECONDS, read=self.rng.uniform(0.001, 0.05))
        try:
            answer = await self.http.post("/chat/completions", json=self._chat(stream=False), timeout=patience)
        except httpx2.ReadTimeout:
            return "left before the answer"
        return "answered at once" if answer.status_code == 200 else self._refused(answer)

    async def respond(self) -> str:
        answer = await self.http.post("/responses", json=self._respond(stream=False))
        if answer.status_code != 200:
            return self._refused(answer)
        return self._ended(answer.json())

    async def respond_streamed(self) -> str:
        async with self.http.stream("POST", "/responses", json=self._respond(stream=True)) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return self._refused(answer)
            async for data in _events(answer):
                event = json.loads(data)
                if event["type"] == "response.created":
                    self._begun(event["response"])
                if event["type"] == "error":
                    return f"ended with an error ({event.get('code')})"
                if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
                    return self._ended(event["response"])
        raise httpx2.RemoteProtocolError("the stream ended without its last event")

    async def background(self) -> str:
        answer = await self.http.post("/responses", json={**self._respond(stream=False), "background": True})
        if answer.status_code != 200:
            return self._refused(answer)
        response = answer.json()
        self._begun(response)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while response["status"] not in FINAL:
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("a background response did not end")
            await asyncio.sleep(0.05)
            answer = await self.http.get(f"/responses/{response['id']}")
            if answer.status_code != 200:
                return self._refused(answer)
            response = answer.json()
        return self._ended(response)

    # ---------------------------------------------------------------- bodies and what came

    def _chat(self, *, stream: bool) -> dict[str, Any]:
        body = {"model": "demo", "messages": [{"role": "user", "content": self._question()}], "stream": stream}
        return {**body, "reasoning_effort": self.rng.choice(("low", "medium", "high")), "max_tokens": 200}

    def _respond(self, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": "demo", "input": self._question(), "stream": stream, "store": True}
        body |= {"reasoning": {"effort": "low"}, "max_output_tokens": 200}
        if self.rng.random() < 0.3:
            body |= {"input": "What is the weather in Paris?", "tools": [WEATHER]}
        elif self.last and self.rng.random() < 0.5:
            body["previous_response_id"] = self.last
            self.last = None  # No conversation grows for ever.
        return body

    def _question(self) -> str:
        return f"What is {self.rng.randint(1, 9999)} + {self.rng.randint(1, 9999)}?"

    def _refused(self, answer: httpx2.Response) -> str:
        error = answer.json()["error"]
        if answer.status_code in (429, 503) and error["message"]:
            return "refused, busy"
        self.ledger.wrong.append(f"status {answer.status_code}: {error}")
        return f"refused, {answer.status_code}"

    def _begun(self, response: dict[str, Any]) -> None:
        self.ledger.begun.add(response["id"])

    def _ended(self, response: dict[str, Any]) -> str:
        if response["status"] not in FINAL:
            self.ledger.wrong.append(f"{response['id']} ended as {response['status']}")
        self.ledger.stored[response["id"]] = response
        called = any(item["type"] == "function_call" for item in response["output"])
        self.last = response["id"] if response["status"] == "completed" and not called else self.last
        return f"ended as {response['status']}"


async def _events(answer: httpx2.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line[6:]


# -------------------------------------------------------------------- the whole


def soak(folder: Path, *, seconds: float, clients: int = CLIENTS, seed: int = 0) -> Report:
    """Two lives of a server, with a kill between them, and all that is wrong."""
    ledger, begin, port = Ledger(), time.monotonic(), free_port()
    options = (*OPTIONS, "--store", str(folder / "responses.sqlite"))
    for life in range(2):
        with serving(folder, *options, key="soak", port=port) as served:
            _check_stored(served, ledger)
            asyncio.run(_live(served, ledger, clients, seconds / 2, seed + life, kill=life == 0))
            if life == 1:
                _check_idle(served, ledger)
                _check_stored(served, ledger)
    _check_end(served, ledger)
    growth = [_growth(samples) for samples in ledger.memory]
    _check_outcomes(ledger)
    return Report(
        seconds=round(time.monotonic() - begin, 1),
        outcomes=dict(sorted(ledger.outcomes.items())),
        stored=len(ledger.stored),
        memory_growth=growth,
        wrong=ledger.wrong,
    )


async def _live(served: Served, ledger: Ledger, clients: int, seconds: float, seed: int, *, kill: bool) -> None:
    until = time.monotonic() + seconds
    ledger.down = False
    ledger.memory.append([])
    asking = [
        Client(served, ledger, random.Random(f"{seed} {n}")).run(math.inf if kill else until) for n in range(clients)
    ]
    tasks = [asyncio.create_task(each) for each in asking]
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        if served.process.poll() is not None:
            ledger.wrong.append(f"the server ended with {served.process.returncode}")
            break
        ledger.memory[-1].append(resident_bytes(served.process.pid))
    if kill:
        ledger.down = True
        served.kill()
    done, late = await asyncio.wait(tasks, timeout=2 * PATIENCE_SECONDS)
    for task in late:
        ledger.wrong.append("a client still waits")
        task.cancel()
    for task in done:
        task.result()


def _check_stored(served: Served, ledger: Ledger) -> None:
    """Every response that the server kept is there, and those that ended are as they were."""
    for response_id in ledger.begun | set(ledger.stored):
        reply = served.request("GET", f"/v1/responses/{response_id}")
        known = ledger.stored.get(response_id)
        if reply.status != 200:
            ledger.wrong.append(f"{response_id} is lost: status {reply.status}")
        elif reply.json()["status"] not in FINAL:
            ledger.wrong.append(f"{response_id} is still {reply.json()['status']}")
        elif known is not None and reply.json() != known:
            ledger.wrong.append(f"{response_id} has changed: {json.dumps(known)} is now {reply.body.decode()}")


def _check_idle(served: Served, ledger: Ledger) -> None:
    """With no client left, nothing runs and no block is held."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    names = ("ossia_running_requests", "ossia_queue_requests", "ossia_cache_blocks_used")
    while held := {name: value for name in names if (value := served.metric(name))}:
        if time.monotonic() > deadline:
            ledger.wrong.append(f"held with no client left: {held}")
            return
        time.sleep(0.1)


def _check_end(served: Served, ledger: Ledger) -> None:
    """It ended as it was told to, and its log knows of no error: the engine checks its books when it ends, too."""
    if served.process.returncode != 0:
        ledger.wrong.append(f"the server ended with {served.process.returncode}")
    lines = served.log.read_text(encoding="utf-8", errors="replace").splitlines()
    ledger.wrong.extend(f"in the log: {line}" for line in lines if "Traceback" in line or " ERROR " in line)


def _check_outcomes(ledger: Ledger) -> None:
    """The load was what it is meant to be."""
    for way in ("chat", "chat_streamed", "respond", "respond_streamed", "background"):
        if not any(name.startswith(f"{way}: ended") for name in ledger.outcomes):
            ledger.wrong.append(f"no {way} was answered")
    for outcome in ("refused, busy", "left midway", "left before the answer"):
        if not any(name.endswith(outcome) for name in ledger.outcomes):
            ledger.wrong.append(f"nobody was or did: {outcome}")


def _growth(samples: list[int]) -> float:
    quarter = len(samples) // 4
    early, late = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[3 * quarter :])
    return round(late / early - 1, 4)


def resident_bytes(pid: int) -> int:
    """Memory that a process has resident; 0 where this system does not say."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return 0
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), seconds=args.seconds, clients=args.clients, seed=args.seed)
    wrong = [*report.wrong, *(f"memory grew by {g:.1%}" for g in report.memory_growth if g > MEMORY_GROWTH)]
    print(json.dumps({**asdict(report), "wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
