"""Many requests at once, beside llama.cpp on the same weights; and what a shared beginning saves.

    python benchmarks/batch.py --model FOLDER --threads 2 --requests 1,4,8 --rounds 3

The model is exported to GGUF (or take --gguf), and llama-cpp-python has a virtual environment of its own (--peer-venv,
made if missing). Each engine loads in a process of its own, reads all prompts, and then decodes them together, the
likeliest token each time; what is timed is that decoding. Small models stay loaded side by side, large ones take turns.

Then, with ossia alone, one request, and a second one that begins with the same tokens: seconds to each first token.

Prints tables, and ends with one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from vs_llama_cpp import RESIDENT_BYTES, LlamaCpp, Worker, export, peer_python, say, work

OWN = 32
"""Tokens after the shared beginning that only one request has."""


# -------------------------------------------------------------------- the processes that are measured


def random_ids(vocab: int, count: int, seed: int) -> list[int]:
    """Ids that both engines know."""
    return np.random.default_rng(seed).integers(0, vocab * 9 // 10, count).tolist()


class LlamaCppBatch(LlamaCpp):
    """Runs in the other virtual environment."""

    def together(self, *, requests: int, prompt: int, generate: int, seed: int) -> float:
        """Seconds to decode `generate` tokens of each request, after all prompts."""
        lib = self.lib
        lib.llama_memory_clear(self.memory, True)
        batch = lib.llama_batch_init(max(prompt, requests), 0, 1)
        tokens: list[int] = []
        for sequence in range(requests):
            ids = random_ids(self.vocab, prompt, seed + sequence)
            batch.n_tokens = prompt
            for index, token in enumerate(ids):
                self._place(batch, index, token, position=index, sequence=sequence, scored=index == prompt - 1)
            self._check(lib.llama_decode(self.context, batch))
            tokens.append(self._best(prompt - 1))
        batch.n_tokens = requests
        start = time.perf_counter()
        for position in range(prompt, prompt + generate):
            for sequence, token in enumerate(tokens):
                self._place(batch, sequence, token, position=position, sequence=sequence, scored=True)
            self._check(lib.llama_decode(self.context, batch))
            tokens = [self._best(sequence) for sequence in range(requests)]
        seconds = time.perf_counter() - start
        lib.llama_batch_free(batch)
        return seconds

    @staticmethod
    def _place(batch: Any, index: int, token: int, *, position: int, sequence: int, scored: bool) -> None:
        batch.token[index], batch.pos[index], batch.logits[index] = token, position, scored
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence

    def _best(self, row: int) -> int:
        logits = self.lib.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())


class OssiaBatch:
    """Drives the engine itself."""

    def __init__(self, path: str, *, threads: int, context: int, sequences: int = 1) -> None:
        import ossia

        self.llm = ossia.load(path, threads=threads, context=context)

    def together(self, *, requests: int, prompt: int, generate: int, seed: int) -> float:
        """Seconds to decode `generate` tokens of each request, after all prompts."""
        from ossia.engine.engine import Engine
        from ossia.engine.request import Request, Sampling

        read_at_once = requests * prompt
        engine = Engine(self.llm.model, context=self.llm.context, max_batch=requests, chunk=read_at_once)
        sampling = Sampling(temperature=0, max_tokens=generate + 1)
        for index in range(requests):
            ids = random_ids(self.llm.config.vocab_size, prompt, seed + index)
            engine.submit(Request(prompt=tuple(ids), sampling=sampling))
        engine.step()
        assert engine.stats().generated_tokens == requests
        start = time.perf_counter()
        while engine.has_work:
            engine.step()
        seconds = time.perf_counter() - start
        assert engine.stats().generated_tokens == requests * (generate + 1)
        return seconds

    def shared(self, *, prefix: int, seed: int) -> list[float]:
        """Seconds to the first token of a request, and of a second one with the same `prefix` tokens before its own."""
        from ossia.engine.engine import Engine
        from ossia.engine.request import Request, Sampling

        engine = Engine(self.llm.model, context=self.llm.context, max_batch=1)
        vocab = self.llm.config.vocab_size
        beginning, seconds = random_ids(vocab, prefix, seed), []
        for index in range(2):
            prompt = tuple(beginning + random_ids(vocab, OWN, seed + 1 + index))
            start = time.perf_counter()
            engine.submit(Request(prompt=prompt, sampling=Sampling(temperature=0, max_tokens=1)))
            while engine.has_work:
                engine.step()
            seconds.append(time.perf_counter() - start)
        return seconds


ENGINES: dict[str, Callable[..., Any]] = {"llama.cpp": LlamaCppBatch, "ossia": OssiaBatch}


# -------------------------------------------------------------------- the process that measures


def measure(args: argparse.Namespace, gguf: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """Seconds by engine and number of requests, one a round; and those of the shared beginning."""
    paths = {"llama.cpp": str(gguf), "ossia": str(args.model)}
    seconds: dict[str, list[float]] = {}
    shared: list[list[float]] = []

    def load(worker: Worker) -> None:
        context = args.prompt + args.generate + 64
        if worker.engine == "ossia":
            context = max(context, args.prefix + OWN + 64)
        worker.ask(
            "load", path=paths[worker.engine], threads=args.threads, context=context, sequences=max(args.requests)
        )
        worker.ask("together", requests=1, prompt=64, generate=2, seed=0)  # Pages the weights in.

    def run(worker: Worker, round_: int) -> None:
        for requests in args.requests:
            asked = {"requests": requests, "prompt": args.prompt, "generate": args.generate}
            spent = worker.ask("together", **asked, seed=1000 * round_ + 1)
            seconds.setdefault(f"{worker.engine} {requests}", []).append(spent)
            speed = requests * args.generate / spent
            say(f"round {round_ + 1}: {worker.engine:10} {requests:3} requests: {speed:9.2f} tokens/s together")
        if worker.engine == "ossia" and args.prefix:
            shared.append(worker.ask("shared", prefix=args.prefix, seed=1000 * round_ + 500))
            say(f"round {round_ + 1}: first token after {shared[-1][0]:.3f} s, sharing {shared[-1][1]:.3f} s")

    if gguf.stat().st_size <= RESIDENT_BYTES:
        with (
            Worker("llama.cpp", pythons["llama.cpp"], __file__) as peer,
            Worker("ossia", pythons["ossia"], __file__) as ours,
        ):
            for worker in (peer, ours):
                load(worker)
            for round_ in range(args.rounds):
                for worker in (peer, ours):
                    run(worker, round_)
    else:
        for round_ in range(args.rounds):
            for engine in ENGINES:
                with Worker(engine, pythons[engine], __file__) as worker:
                    load(worker)
                    run(worker, round_)
    return {"seconds": seconds, "shared": shared}


def rows(args: argparse.Namespace, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens a second of all requests together, medians, and how many times llama.cpp's ours are."""
    table: list[dict[str, Any]] = []
    for requests in args.requests:
        row: dict[str, Any] = {"requests": requests}
        for engine in ENGINES:
            spent = measured["seconds"][f"{engine} {requests}"]
            row[engine] = requests * args.generate / statistics.median(spent)
            row[f"{engine} all"] = [requests * args.generate / each for each in spent]
        row["ratio"] = row["ossia"] / row["llama.cpp"]
        table.append(row)
    return table


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(ENGINES[sys.argv[2]])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo, or a model folder")
    parser.add_argument("--gguf", type=Path, help="the same weights, already exported")
    parser.add_argument("--peer-venv", type=Path, default=Path(".venv-llama-cpp"), help="made if missing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=lambda text: [int(each) for each in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--generate", type=int, default=32, help="tokens of each answer that are timed")
    parser.add_argument("--prefix", type=int, default=2000, help="tokens of the shared beginning; 0: leave it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for the export; needs as much room as the model")
    args = parser.parse_args()
    pythons = {"llama.cpp": peer_python(args.peer_venv), "ossia": sys.executable}
    asked = [pythons["llama.cpp"], "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if args.scratch:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        gguf = args.gguf or export(args.model, Path(scratch) / "model.gguf")
        measured = measure(args, gguf, pythons)
    table = rows(args, measured)
    print(f"{'requests':>9}{'llama.cpp':>12}{'ossia':>12}{'ratio':>8}   tokens/s together, medians of {args.rounds}")
    for row in table:
        print(f"{row['requests']:9}{row['llama.cpp']:12.2f}{row['ossia']:12.2f}{row['ratio']:8.2f}")
    result: dict[str, Any] = {"benchmark": "batch", "model": str(args.model), "threads": args.threads}
    result |= {"llama_cpp_python": version, "prompt": args.prompt, "generate": args.generate, "together": table}
    if measured["shared"]:
        first, second = (statistics.median(each) for each in zip(*measured["shared"], strict=True))
        print(
            f"\nfirst token of {args.prefix + OWN} tokens: {first:.3f} s; of a second request that shares the first ",
            end="",
        )
        print(f"{args.prefix}: {second:.3f} s, {first / second:.1f} times sooner")
        result["shared"] = {"prefix": args.prefix, "first_s": first, "second_s": second, "ratio": first / second}
        result["shared"]["all"] = measured["shared"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
