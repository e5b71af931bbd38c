"""Many clients at once against an OpenAI-compatible address: throughput, and how long people wait.

    python benchmarks/serve_load.py --concurrency 8                        # starts `ossia serve` on the bundled model
    python benchmarks/serve_load.py --url http://127.0.0.1:8000/v1 --model NAME --rate 2 --requests 100
    python benchmarks/serve_load.py --peer --model FOLDER --api completions --concurrency 4
    python benchmarks/serve_load.py --overhead

Requests arrive one after another at `--rate` a second (a Poisson process, whatever the server manages), or each of
`--concurrency` clients asks again when it has its answer. Some begin with one of a few shared prefixes, and the rest
with words of their own; then comes a sum to be worked out. Every answer is streamed.

--peer runs the same load against llama-cpp-python's server too, by turns: the model is exported to GGUF (or take
--gguf), and the server set up in a virtual environment of its own. It does not batch: requests wait for each other. For
random weights take --api completions, whose answers reach --max-tokens.

--overhead compares the server, asked by 8 streaming clients, with its engine driven directly on the same prompts in a
process of its own, by turns, and says what part of the engine's own speed is lost between it and the clients.

Prints a table, writes a plot (extra `train`), and ends with one JSON line.
"""

import argparse
import asyncio
import json
import os
import queue
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load_client import Address, Answer, ask

PEER = "llama-cpp-python[server]>=0.3.36"
PERCENTILES = (50, 95, 99)
START_SECONDS = 600
WORDS = (
    "apple bread chair cloud door earth field fish flower garden glass green hand heart house island kitchen lake "
    "letter light market minute morning mountain music night number ocean orange paper people picture place rain "
    "river road school ship silver snow song star stone story street summer sun table time train tree village "
    "wall water weather week wind window winter woman wood world year yellow"
).split()


# -------------------------------------------------------------------- what is asked


def bodies(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The requests of one round; another seed has other words, so that no cache remembers them."""
    rng = random.Random(seed)
    prefixes = [words(rng, args.prefix_words) for _ in range(args.prefixes)]
    made: list[dict[str, Any]] = []
    for _ in range(args.requests):
        shared = rng.choice(prefixes) if prefixes and rng.random() < args.shared else words(rng, args.prefix_words)
        own = words(rng, args.prompt_words)
        question = f"What is {rng.randint(100, 9999)} + {rng.randint(100, 9999)}?"
        body: dict[str, Any] = {"model": args.model, "stream": True, "temperature": args.temperature}
        body |= {"stream_options": {"include_usage": True}, "max_tokens": args.max_tokens}
        if args.api == "chat":
            system = [{"role": "system", "content": shared}] if shared else []
            body["messages"] = [*system, {"role": "user", "content": f"{own} {question}".strip()}]
            if args.effort:
                body["reasoning_effort"] = args.effort
        else:
            body["prompt"] = " ".join(part for part in (shared, own, question) if part)
        made.append(body)
    return made


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


# -------------------------------------------------------------------- asking


async def load(args: argparse.Namespace, address: Address, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """All answers, in the order of the requests."""
    endpoint = "chat/completions" if args.api == "chat" else "completions"

    def one(body: Mapping[str, Any]) -> Any:
        return ask(address, endpoint, body, timeout=args.timeout)

    if args.rate:
        rng, tasks = random.Random(args.seed), list[asyncio.Task[Answer]]()
        begin, due = time.perf_counter(), 0.0
        for body in requests:
            due += rng.expovariate(args.rate)
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(body)))
        return list(await asyncio.gather(*tasks))

    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(requests))

    async def client() -> None:
        for index, body in waiting:
            answers[index] = await one(body)

    await asyncio.gather(*(client() for _ in range(args.concurrency)))
    return [answers[index] for index in range(len(requests))]


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99; the largest of few values stands for the high ones."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {f"p{each}": ordered[min(len(ordered) - 1, len(ordered) * each // 100)] for each in PERCENTILES}


def summary(rounds: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """What one server did; rates are medians of the rounds, percentiles are over all answers."""
    every = [answer for round_ in rounds for answer in round_]
    whole = [answer for answer in every if answer.error is None]

    def rate(count: Callable[[Answer], float]) -> float:
        each: list[float] = []
        for round_ in rounds:
            seconds = max(answer.end for answer in round_) - min(answer.begin for answer in round_)
            each.append(sum(count(answer) for answer in round_ if answer.error is None) / seconds)
        return statistics.median(each)

    return {
        "requests": len(every),
        "answered": len(whole),
        "errors": dict(Counter(answer.error for answer in every if answer.error)),
        "requests_per_s": rate(lambda _: 1),
        "completion_tokens_per_s": rate(lambda answer: answer.completion_tokens),
        "prompt_tokens": sum(answer.prompt_tokens for answer in whole),
        "cached_tokens": sum(answer.cached_tokens for answer in whole),
        "completion_tokens": sum(answer.completion_tokens for answer in whole),
        "first_piece_s": percentiles([answer.first for answer in whole if answer.first is not None]),
        "gap_s": percentiles([gap for answer in whole for gap in answer.gaps]),
        "whole_answer_s": percentiles([answer.end - answer.begin for answer in whole]),
    }


# -------------------------------------------------------------------- servers


@contextmanager
def served(command: Sequence[str], port: int) -> Iterator[Address]:
    """A server in a process of its own, ready; gone at the end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            address = Address(host="127.0.0.1", port=port, path="/v1")
            for _ in range(10 * START_SECONDS):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} ended:\n{log.read()[-4000:].decode(errors='replace')}")
                if is_ready(address):
                    break
                time.sleep(0.1)
            else:
                raise SystemExit(f"{' '.join(command)} was not ready after {START_SECONDS} s")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_ready(address: Address) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address.host}:{address.port}{address.path}/models", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ours(args: argparse.Namespace) -> tuple[list[str], int]:
    """The command that serves the model with ossia, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "ossia", "serve", "--model", args.model, "--port", str(port), "--no-store"]
    command += ["--max-batch", str(args.max_batch)]
    command += ["--context", str(args.context)] if args.context else []
    command += ["--threads", str(args.threads)] if args.threads else []
    return command, port


def theirs(args: argparse.Namespace, python: str, gguf: Path) -> tuple[list[str], int]:
    """The same for llama-cpp-python, told not to drop an answer when the next request comes."""
    port = free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port), "--n_gpu_layers", "0"]
    command += ["--interrupt_requests", "false", "--model_alias", args.model, "--n_ctx", str(args.context or 4096)]
    if args.threads:
        command += ["--n_threads", str(args.threads), "--n_threads_batch", str(args.threads)]
    return command, port


def peer_python(folder: Path) -> str:
    """The interpreter of a virtual environment with llama-cpp-python's server, made now if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        say(f"making {folder}")
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import llama_cpp.server.app"], capture_output=True).returncode:
        say(f"compiling llama-cpp-python for this processor into {folder}; this takes some minutes, once")
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=True)
    return str(python)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(args: argparse.Namespace) -> dict[str, list[list[Answer]]]:
    """Answers of every round by server. Servers that are started here take turns, and run one at a time."""
    if args.url:
        address = Address.of(args.url, args.key)
        return {args.url: [asyncio.run(load(args, address, bodies(args, args.seed + n))) for n in range(args.rounds)]}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        commands: dict[str, Callable[[], tuple[list[str], int]]] = {"ossia": lambda: ours(args)}
        if args.peer:
            python = peer_python(args.peer_venv)
            gguf = args.gguf or exported(args.model, Path(scratch) / "model.gguf")
            commands["llama-cpp-python"] = lambda: theirs(args, python, gguf)
        answers: dict[str, list[list[Answer]]] = {name: [] for name in commands}
        for round_ in range(args.rounds):
            for name, command in commands.items():
                with served(*command()) as address:
                    asyncio.run(load(args, address, bodies(args, args.seed - 1)[:1]))  # Pages the weights in.
                    answers[name].append(asyncio.run(load(args, address, bodies(args, args.seed + round_))))
                speed = summary(answers[name][-1:])["completion_tokens_per_s"]
                say(f"round {round_ + 1}: {name:18}{speed:9.1f} tokens/s")
        return answers


def exported(model: str, path: Path) -> Path:
    say(f"exporting {model} to {path}")
    command = [sys.executable, "-m", "ossia", "export", str(path), "--model", model, "--to", "gguf"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return path


# -------------------------------------------------------------------- the engine by itself


def drive(model: str, options: dict[str, Any], max_batch: int) -> None:
    """Serve rounds to `overhead`: a JSON list of requests a line on standard input, {seconds, tokens} a line back.

    As many requests are in the engine as there are clients; when one ends, the next is submitted.
    """
    import ossia
    from ossia.engine.engine import Engine
    from ossia.engine.request import Output, Request, Sampling
    from ossia.engine.worker import Worker
    from ossia.harmony import from_openai, render_completion

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    llm = ossia.load(model, **options)
    worker = Worker(Engine(llm.model, context=llm.context, cache_type=llm.cache_type, max_batch=max_batch))
    worker.start()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        requests: list[Request] = []
        for body in asked["requests"]:
            conversation = from_openai(body["messages"], effort=body.get("reasoning_effort", "medium"))
            sampling = Sampling(
                temperature=body["temperature"], max_tokens=body["max_tokens"], stop_ids=llm.tokenizer.stop_ids
            )
            prompt = tuple(render_completion(conversation, llm.tokenizer))
            requests.append(Request(prompt=prompt, sampling=sampling))
        delivered: queue.SimpleQueue[Output] = queue.SimpleQueue()
        waiting, running, tokens = iter(requests), 0, 0
        begin = time.perf_counter()
        for _, request in zip(range(asked["clients"]), waiting, strict=False):
            worker.submit(request, delivered.put)
            running += 1
        while running:
            output = delivered.get()
            tokens += len(output.drawn)
            if output.finish:
                running -= 1
                if (request := next(waiting, None)) is not None:
                    worker.submit(request, delivered.put)
                    running += 1
        print(json.dumps({"seconds": time.perf_counter() - begin, "tokens": tokens}), file=answers, flush=True)
    worker.close()


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """How much of the engine's own speed is lost between it and the clients: both do the same work, by turns."""
    command = [sys.executable, __file__, "--drive", json.dumps(loading(args)), "--model", args.model]
    command += ["--max-batch", str(args.max_batch)]
    with (
        served(*ours(args)) as address,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine,
    ):
        assert engine.stdin
        assert engine.stdout

        def by_engine(requests: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
            asked = {"requests": requests, "clients": args.concurrency}
            print(json.dumps(asked), file=engine.stdin, flush=True)
            answer = json.loads(engine.stdout.readline())
            return answer["seconds"], answer["tokens"]

        def by_server(requests: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
            begin = time.perf_counter()
            answers = asyncio.run(load(args, address, requests))
            seconds = time.perf_counter() - begin
            if errors := Counter(answer.error for answer in answers if answer.error):
                raise SystemExit(f"the server did not answer all: {dict(errors)}")
            return seconds, sum(answer.completion_tokens for answer in answers)

        engine.stdout.readline()
        lost: list[float] = []
        speeds: dict[str, list[float]] = {"engine": [], "server": []}
        for round_ in range(-1, args.rounds):
            requests = bodies(args, args.seed + round_)
            # The one that goes first changes, so that a slow minute does not always hit the same.
            turns = [("engine", by_engine), ("server", by_server)][:: 1 if round_ % 2 else -1]
            took = {name: turn(requests) for name, turn in turns}
            if took["engine"][1] != took["server"][1]:
                raise SystemExit(f"engine and server did not do the same: {took} (seconds, tokens)")
            if round_ < 0:  # Warms both up.
                continue
            for name, (seconds, tokens) in took.items():
                speeds[name].append(tokens / seconds)
            lost.append(1 - took["engine"][0] / took["server"][0])
            say(f"round {round_ + 1}: {' '.join(f'{n} {s[-1]:.0f} tokens/s' for n, s in speeds.items())}")
        engine.stdin.close()
    return {
        "clients": args.concurrency,
        "engine_tokens_per_s": statistics.median(speeds["engine"]),
        "server_tokens_per_s": statistics.median(speeds["server"]),
        "overhead_percent": 100 * statistics.median(lost),
        "overhead_percent_all": [100 * each for each in lost],
    }


def loading(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in ("threads", "context") if (value := getattr(args, name))}


# -------------------------------------------------------------------- showing


def show(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    def row(name: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        print(f"{name:34}" + "".join(f"{cell(each):>28}" for each in summaries.values()))

    def seconds(key: str, which: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda each: f"{each[key][which]:.4f}" if each[key] else "-"

    print(f"{'':34}" + "".join(f"{name[-27:]:>28}" for name in summaries))
    row("requests answered", lambda each: f"{each['answered']} of {each['requests']}")
    row("tokens/s of answers", lambda each: f"{each['completion_tokens_per_s']:.1f}")
    row("requests/s", lambda each: f"{each['requests_per_s']:.2f}")
    row("prompt tokens (found in a cache)", lambda each: f"{each['prompt_tokens']} ({each['cached_tokens']})")
    for key, name in (("first_piece_s", "first piece"), ("gap_s", "between pieces"), ("whole_answer_s", "answer")):
        for which in (f"p{each}" for each in PERCENTILES):
            row(f"{name}, s, {which}", seconds(key, which))
    for name, each in summaries.items():
        for kind, count in each["errors"].items():
            print(f"{name}: {count} times {kind}")


def plot(path: Path, answers: Mapping[str, Sequence[Sequence[Answer]]], summaries: Mapping[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (first, gaps, speed) = plt.subplots(1, 3, figsize=(13, 4))
    colours = dict(zip(answers, ("#1f6f8b", "#9a9a9a"), strict=False))
    for name, rounds in answers.items():
        whole = [answer for round_ in rounds for answer in round_ if answer.error is None]
        cumulative(first, [answer.first for answer in whole if answer.first is not None], name, colours[name])
        cumulative(gaps, [gap for answer in whole for gap in answer.gaps], name, colours[name])
    first.set_title("seconds to the first piece")
    gaps.set_title("seconds between pieces")
    names = list(summaries)
    heights = [summaries[name]["completion_tokens_per_s"] for name in names]
    speed.bar(names, heights, 0.5, color=[colours[name] for name in names])
    speed.set_title("tokens/s of all answers together")
    for axis in (first, gaps):
        axis.set_xscale("log")
        axis.set_ylabel("share below")
        axis.legend(frameon=False, fontsize=8)
    for axis in (first, gaps, speed):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def cumulative(axis: Any, seconds: Iterable[float], name: str, colour: str) -> None:
    ordered = sorted(seconds)
    axis.plot(ordered, [(n + 1) / len(ordered) for n in range(len(ordered))], label=name, color=colour)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a server that runs already, like http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY"), help="API key  [default: OPENAI_API_KEY]")
    parser.add_argument("--model", default="demo", help="demo, a model folder, or with --url the name it has there")
    parser.add_argument("--api", choices=("chat", "completions"), default="chat")
    parser.add_argument("--requests", type=int, help="of a round  [default: 64; with --overhead 96]")
    parser.add_argument("--rounds", type=int, help="[default: 1; with --overhead 5]")
    parser.add_argument("--rate", type=float, help="arrivals a second, instead of --concurrency")
    parser.add_argument("--concurrency", type=int, default=8, help="clients that ask again when answered")
    parser.add_argument("--prompt-words", type=int, default=32, help="of each request's own")
    parser.add_argument("--prefix-words", type=int, default=64, help="before them")
    parser.add_argument("--prefixes", type=int, default=4, help="shared prefixes that there are")
    parser.add_argument("--shared", type=float, default=0.5, help="part of the requests that have a shared prefix")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--effort", choices=("low", "medium", "high"), help="of chat")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a client waits for its whole answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("serve_load.png"))
    parser.add_argument("--overhead", action="store_true", help="compare with the engine alone")
    parser.add_argument("--peer", action="store_true", help="ask llama-cpp-python's server too")
    parser.add_argument("--peer-venv", type=Path, default=Path(".venv-llama-cpp"), help="made if missing")
    parser.add_argument("--gguf", type=Path, help="the same weights, already exported")
    parser.add_argument("--scratch", type=Path, help="folder for the export; needs as much room as the model")
    parser.add_argument("--threads", type=int, help="of servers that are started here")
    parser.add_argument("--context", type=int, help="the same")
    parser.add_argument("--max-batch", type=int, default=16, help="of ossia")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.requests = args.requests or (96 if args.overhead else 64)
    args.rounds = args.rounds or (5 if args.overhead else 1)
    if args.overhead:
        # Prompts as the bundled model met them, whose answers are long: what is compared is decoding.
        args.prompt_words = args.prefix_words = args.prefixes = 0
        args.effort = args.effort or "high"
        args.api = "chat"
    for name in ("requests", "rounds", "concurrency", "max_tokens", "max_batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.rate is not None and args.rate <= 0:
        parser.error("--rate must be above 0")
    if args.url and (args.peer or args.overhead):
        parser.error("--url is for a server that runs already: leave it out with --peer and --overhead")
    return args


def main() -> None:
    args = parsed()
    if args.drive:
        drive(args.model, json.loads(args.drive), args.max_batch)
        return
    result: dict[str, Any] = {"benchmark": "serve_load", "model": args.model}
    if args.overhead:
        result |= overhead(args)
        print(f"engine alone   {result['engine_tokens_per_s']:9.1f} tokens/s")
        print(f"through HTTP   {result['server_tokens_per_s']:9.1f} tokens/s, {args.concurrency} clients streaming")
        print(
            f"overhead       {result['overhead_percent']:9.1f} % of the engine's speed, median of {args.rounds} rounds"
        )
    else:
        try:
            answers = measure(args)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        summaries = {name: summary(rounds) for name, rounds in answers.items()}
        show(summaries)
        keys = ("api", "requests", "rounds", "rate", "concurrency", "prompt_words", "prefix_words", "prefixes")
        result |= {key: getattr(args, key) for key in (*keys, "shared", "max_tokens", "threads")}
        result["servers"] = summaries
        if any(each["answered"] for each in summaries.values()):
            plot(args.plot, answers, summaries)
            result["plot"] = str(args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
