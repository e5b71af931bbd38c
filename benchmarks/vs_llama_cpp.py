"""ossia beside llama.cpp, in one run, on the same weights: speed at several depths, and error against float32.

    python benchmarks/vs_llama_cpp.py --model FOLDER --threads 2 --depth 0,4096 --rounds 3

Needs the extra `train` (matplotlib). The model is exported to GGUF (or take --gguf), llama-cpp-python is set up in a
virtual environment of its own (--peer-venv; compiling it takes some minutes once), and the two are timed alternately,
each in a process of its own. Large models take turns: one process loads, is measured and ends before the other begins.
Small ones stay loaded side by side.

Errors are the mean of KL(float32 ‖ engine) over positions, and how often both put the same token first; on a random
2-layer model of the published width, on the same with a few channels of the residual stream a hundredfold larger, and
on answers of the bundled model to held-out questions, then with the questions too. llama.cpp rounds the two bounds of
YaRN to whole components, which the model does not; so its error is given a second time, against a float32 model that
rounds them too: what remains is rounding of numbers.

Prints tables, writes a plot, and ends with one JSON line.
"""

import argparse
import ctypes
import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

RESIDENT_BYTES = 2_000_000_000
"""GGUF files up to this size stay loaded in both engines at once."""
PEER = "llama-cpp-python>=0.3.36"
FILL_BATCH = 512
SCALED_CHANNELS, SCALE = 8, 100.0
BUNDLED_EACH = 2
"""Held-out questions of each family that the bundled model answers."""


# -------------------------------------------------------------------- the processes that are measured


class LlamaCpp:
    """Runs in the other virtual environment; knows nothing of ossia."""

    def __init__(self, path: str, *, threads: int, context: int, sequences: int = 1) -> None:
        """context: tokens of each sequence."""
        import llama_cpp

        self.lib = lib = llama_cpp
        self.quiet = lib.llama_log_callback(lambda *_: None)  # Kept: the library calls it.
        lib.llama_log_set(self.quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_seq_max = sequences
        params.n_ctx = params.n_batch = context * sequences
        params.n_ubatch = FILL_BATCH
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = False  # As its own programs have it: windowed layers keep a window.
        params.no_perf = True
        self.context = lib.llama_init_from_model(self.model, params)
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.filled: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        """Caches by depth, so that each is computed once."""

    def prefill(self, tokens: int, depth: int, seed: int) -> float:
        self._go_to(depth)
        ids = self._ids(tokens, seed)
        start = time.perf_counter()
        self._decode(ids)
        return time.perf_counter() - start

    def decode(self, tokens: int, depth: int, seed: int) -> float:
        self._go_to(depth)
        self._decode(self._ids(1, seed))
        ids = self._ids(tokens, seed + 1)
        start = time.perf_counter()
        for token in ids:
            self._decode([token])
        return time.perf_counter() - start

    def logits(self, ids: list[int], out: str) -> float:
        lib, num = self.lib, len(ids)
        lib.llama_memory_clear(self.memory, True)
        batch = lib.llama_batch_init(num, 0, 1)
        batch.n_tokens = num
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        start = time.perf_counter()
        self._check(lib.llama_decode(self.context, batch))
        scores = np.ctypeslib.as_array(lib.llama_get_logits(self.context), shape=(num, self.vocab))
        np.save(out, scores)
        lib.llama_batch_free(batch)
        return time.perf_counter() - start

    def _ids(self, num: int, seed: int) -> list[int]:
        return [(7919 * (index + seed) + 13) % (self.vocab * 9 // 10) for index in range(num)]

    def _decode(self, ids: list[int]) -> None:
        lib = self.lib
        array = (lib.llama_token * len(ids))(*ids)
        self._check(lib.llama_decode(self.context, lib.llama_batch_get_one(array, len(ids))))
        lib.llama_synchronize(self.context)

    def _go_to(self, depth: int) -> None:
        """Make the cache hold `depth` tokens."""
        lib = self.lib
        lib.llama_memory_clear(self.memory, True)
        if not depth:
            return
        if depth not in self.filled:
            for begin in range(0, depth, FILL_BATCH):
                self._decode(self._ids(min(FILL_BATCH, depth - begin), begin))
            size = lib.llama_state_seq_get_size(self.context, 0)
            self.filled[depth] = (ctypes.c_uint8 * size)()
            lib.llama_state_seq_get_data(self.context, self.filled[depth], size, 0)
            return
        saved = self.filled[depth]
        if not lib.llama_state_seq_set_data(self.context, saved, len(saved), 0):
            raise SystemExit("llama.cpp does not take its own state back")

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise SystemExit(f"llama_decode failed with {code}")


class Ossia:
    """Drives the public face; `dtype` and `rounded` serve the float32 reference."""

    def __init__(
        self, path: str, *, threads: int, context: int, kernels: str = "auto", dtype: str = "", rounded: bool = False
    ) -> None:
        import torch

        import ossia

        if rounded:
            _round_yarn_bounds()
        # The reference is torch's own arithmetic, with torch's threads.
        if dtype:
            torch.set_num_threads(threads)
            self.llm = ossia.load(path, kernels=kernels, dtype=getattr(torch, dtype))
        else:
            self.llm = ossia.load(path, kernels=kernels, threads=threads, context=context)

    def prefill(self, tokens: int, depth: int, seed: int) -> float:
        return importlib.import_module("ossia.bench").timed_prefill(self.llm, tokens, depth=depth, seed=seed)

    def decode(self, tokens: int, depth: int, seed: int) -> float:
        return importlib.import_module("ossia.bench").timed_decode(self.llm, tokens, depth=depth, seed=seed)

    def logits(self, ids: list[int], out: str) -> float:
        start = time.perf_counter()
        np.save(out, self.llm.logits(ids).numpy())
        return time.perf_counter() - start


def _round_yarn_bounds() -> None:
    """Have this process compute rotary embeddings as llama.cpp does: bounds of the blend rounded outwards."""
    import torch

    from ossia.config import ModelConfig
    from ossia.model import rope

    def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
        half = config.head_dim // 2
        index = torch.arange(half, dtype=torch.float64)
        frequency = config.rope_theta ** (-index / half)
        turns = (config.rope_beta_fast, config.rope_beta_slow)
        low, high = (
            half * math.log(config.initial_context_length / (each * 2 * math.pi)) / math.log(config.rope_theta)
            for each in turns
        )
        first, last = max(0, math.floor(low)), min(config.head_dim - 1, math.ceil(high))
        slowed = ((index - first) / max(0.001, last - first)).clamp(0, 1)
        return frequency * (1 - slowed) + frequency / config.rope_scaling_factor * slowed

    rope.inverse_frequencies = inverse_frequencies


ENGINES: dict[str, Callable[..., Any]] = {"llama.cpp": LlamaCpp, "ossia": Ossia}


def work(serve: Callable[..., Any]) -> None:
    """Serve the engine that `serve` loads: a JSON object a line on standard input, an answer on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    served: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        do = asked.pop("do")
        if do == "load":
            start = time.perf_counter()
            served = serve(**asked)
            answer = time.perf_counter() - start
        elif do == "peak":
            answer = peak_bytes()
        else:
            answer = getattr(served, do)(**asked)
        print(json.dumps(answer), file=answers, flush=True)


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: there a process begins with its parent's peak.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


# -------------------------------------------------------------------- the process that measures


class Worker:
    """One engine in its own process; use it in a `with`, at whose end it is gone."""

    def __init__(self, engine: str, python: str, script: str = __file__) -> None:
        """script: what serves the engine when it is run with "--worker ENGINE"."""
        self.engine = engine
        self.process = subprocess.Popen(
            [python, script, "--worker", engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.engine} ended while asked to {do} (exit code {self.process.wait()}): see above")
        return json.loads(answer)


def peer_python(folder: Path) -> str:
    """The interpreter of a virtual environment with llama-cpp-python, made now if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        say(f"making {folder}")
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import llama_cpp, numpy"], capture_output=True).returncode:
        say(f"compiling llama-cpp-python for this processor into {folder}; this takes some minutes, once")
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER, "numpy"], check=True)
    return str(python)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def export(model: Path | str, path: Path) -> Path:
    """The GGUF file of `model`, with dense weights in Q8_0 as is usual."""
    from ossia.model.checkpoint import open_checkpoint
    from ossia.model.locate import resolve_model
    from ossia.release.export import export_gguf

    say(f"exporting {model} to {path}")
    export_gguf(open_checkpoint(resolve_model(model)), path, name=Path(model).name)
    return path


# -------------------------------------------------------------------- speed


def needed_context(args: argparse.Namespace) -> int:
    """Tokens of cache that the deepest measurement takes, with some to spare for the peer's batches."""
    return max(args.depth) + max(args.prompt, args.generate) + 64


def check_context(args: argparse.Namespace) -> None:
    from ossia.model.checkpoint import open_checkpoint
    from ossia.model.locate import resolve_model

    most = open_checkpoint(resolve_model(args.model)).config.max_position_embeddings
    if needed_context(args) > most:
        raise SystemExit(f"depth {max(args.depth):,} does not fit the model's context of {most:,}: give less --depth")


def measure_speed(args: argparse.Namespace, gguf: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """Seconds of every measurement by engine, depth and kind; seconds to load; peak resident bytes."""
    paths = {"llama.cpp": str(gguf), "ossia": str(args.model)}
    context = needed_context(args)
    seconds: dict[str, list[float]] = {}
    loads: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    peaks: dict[str, float] = dict.fromkeys(ENGINES, 0)

    def load(worker: Worker) -> None:
        options = {"kernels": args.kernels} if worker.engine == "ossia" else {}
        asked = {"path": paths[worker.engine], "threads": args.threads, "context": context}
        loads[worker.engine].append(worker.ask("load", **asked, **options))
        worker.ask("prefill", tokens=64, depth=0, seed=0)  # Pages the weights in.

    def measure(worker: Worker, round_: int) -> None:
        for depth in args.depth:
            for kind, tokens in (("prefill", args.prompt), ("decode", args.generate)):
                spent = worker.ask(kind, tokens=tokens, depth=depth, seed=1000 * round_ + 1)
                seconds.setdefault(f"{worker.engine} {kind} {depth}", []).append(spent)
                say(f"round {round_ + 1}: {worker.engine:10} {kind:8} depth {depth:6}: {tokens / spent:9.2f} tokens/s")
        peaks[worker.engine] = max(peaks[worker.engine], worker.ask("peak"))

    if gguf.stat().st_size <= RESIDENT_BYTES:
        with Worker("llama.cpp", pythons["llama.cpp"]) as peer, Worker("ossia", pythons["ossia"]) as ours:
            for worker in (peer, ours):
                load(worker)
            for round_ in range(args.rounds):
                for worker in (peer, ours):
                    measure(worker, round_)
    else:
        for round_ in range(args.rounds):
            for engine in ENGINES:
                with Worker(engine, pythons[engine]) as worker:
                    load(worker)
                    measure(worker, round_)
    return {"seconds": seconds, "load_s": loads, "peak_rss_bytes": peaks}


def speed_rows(args: argparse.Namespace, measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Tokens a second, medians, and how many times llama.cpp's ours are."""
    for kind, tokens in (("prefill", args.prompt), ("decode", args.generate)):
        for depth in args.depth:
            row: dict[str, Any] = {"what": kind, "tokens": tokens, "depth": depth}
            for engine in ENGINES:
                spent = measured["seconds"][f"{engine} {kind} {depth}"]
                row[engine] = tokens / statistics.median(spent)
                row[f"{engine} all"] = [tokens / each for each in spent]
            row["ratio"] = row["ossia"] / row["llama.cpp"]
            yield row


# -------------------------------------------------------------------- error


class ScaledChannels:
    """Random weights whose embedding has a few columns a hundredfold larger, as residual streams of real models do."""

    def __init__(self, weights: Any, hidden: int) -> None:
        self.weights = weights
        self.columns = [(index + 1) * hidden // (SCALED_CHANNELS + 1) for index in range(SCALED_CHANNELS)]

    def keys(self) -> Any:
        return self.weights.keys()

    def __getitem__(self, name: str) -> Any:
        tensor = self.weights[name]
        if name == "embedding.weight":
            tensor = tensor.clone()
            tensor[:, self.columns] *= SCALE
        return tensor


def error_models(
    args: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, Path | str, list[tuple[list[int], int]]]]:
    """Name, model, and sequences of each comparison: their tokens, and how many of those are a prompt."""
    import ossia
    from ossia.config import GPT_OSS_20B
    from ossia.evals.heldout import FAMILIES, draw
    from ossia.model.random_weights import RandomWeights
    from ossia.model.write import write_checkpoint

    config = replace(GPT_OSS_20B, num_hidden_layers=2, layer_types=(), vocab_size=args.error_vocab)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, args.error_tokens).tolist()
    weights = RandomWeights(config, 0)
    for name, source in (("random", weights), ("random, scaled", ScaledChannels(weights, config.hidden_size))):
        say(f"writing the {name} model of full width")
        write_checkpoint(folder / "random", config, source, overwrite=True)
        yield name, folder / "random", [(ids, 0)]
    demo = ossia.load("demo")
    sampling = ossia.Sampling(temperature=0, max_tokens=200, stop_ids=demo.tokenizer.stop_ids)
    written: list[tuple[list[int], int]] = []
    for one in [each for family in FAMILIES for each in draw(family, BUNDLED_EACH, seed=0)]:
        given = {"tools": one.tools or None, "effort": one.effort, "date": one.date}
        prompt = ossia.render(one.prompt, tokenizer=demo.tokenizer, **given)
        written.append((prompt + list(demo.generate(prompt, sampling)), len(prompt)))
    yield "bundled, answers", "demo", written
    # A small model never learnt to write prompts: what it would put there is decided by a hair.
    yield "bundled, all", "demo", [(ids, 0) for ids, _ in written]


def measure_errors(args: argparse.Namespace, folder: Path, pythons: dict[str, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, model, sequences in error_models(args, folder):
        gguf = export(model, folder / "error.gguf")
        runs: dict[str, dict[str, Any]] = {
            "float32": {"engine": "ossia", "kernels": "torch", "dtype": "float32"},
            "float32, rounded": {"engine": "ossia", "kernels": "torch", "dtype": "float32", "rounded": True},
            "ossia": {"engine": "ossia", "kernels": args.kernels},
            "llama.cpp": {"engine": "llama.cpp"},
        }
        context = max(len(ids) for ids, _ in sequences) + 64
        for run, options in runs.items():
            engine = options.pop("engine")
            with Worker(engine, pythons[engine]) as worker:
                path = str(gguf if engine == "llama.cpp" else model)
                worker.ask("load", path=path, threads=args.threads, context=context, **options)
                for index, (ids, _) in enumerate(sequences):
                    worker.ask("logits", ids=ids, out=str(folder / f"{run} {index}.npy"))
        gguf.unlink()
        prompts = [prompt for _, prompt in sequences]
        row: dict[str, Any] = {"model": name, "tokens": sum(len(ids) - prompt for ids, prompt in sequences)}
        for key, run, reference in (
            ("ossia", "ossia", "float32"),
            ("llama.cpp", "llama.cpp", "float32"),
            ("llama.cpp, its YaRN", "llama.cpp", "float32, rounded"),
        ):
            kl, agreement = distance(folder, reference, run, prompts)
            row[key] = {"mean_kl": kl, "top1_agreement": agreement}
        rows.append(row)
    return rows


def distance(folder: Path, reference: str, other: str, prompts: list[int]) -> tuple[float, float]:
    """Mean KL(reference ‖ other) over what follows each prompt, in nats, and the share of the same best token there."""
    kl, same, count = 0.0, 0, 0
    for index, prompt in enumerate(prompts):
        p_TV, q_TV = (np.load(folder / f"{run} {index}.npy", mmap_mode="r") for run in (reference, other))
        if p_TV.shape != q_TV.shape:
            raise SystemExit(f"logits {p_TV.shape} and {q_TV.shape} cannot be compared")
        first = max(prompt - 1, 0)  # The row before a token is what it was drawn from.
        for p_row, q_row in zip(p_TV[first:], q_TV[first:], strict=True):
            p_V, q_V = log_softmax(p_row), log_softmax(q_row)
            kl += float((np.exp(p_V) * (p_V - q_V)).sum())
            same += int(p_row.argmax() == q_row.argmax())
            count += 1
    return kl / count, same / count


def log_softmax(scores: Any) -> Any:
    scores = scores.astype(np.float64)
    scores -= scores.max()
    return scores - np.log(np.exp(scores).sum())


# -------------------------------------------------------------------- showing


def show_speed(rows: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    print(f"{'tokens/s, median':20}{'depth':>8}{'llama.cpp':>12}{'ossia':>12}{'ratio':>8}")
    for row in rows:
        what = f"{row['what']} {row['tokens']}"
        print(f"{what:20}{row['depth']:8}{row['llama.cpp']:12.2f}{row['ossia']:12.2f}{row['ratio']:8.2f}")
    load = {engine: statistics.median(each) for engine, each in measured["load_s"].items()}
    peak = {engine: each / 1e9 for engine, each in measured["peak_rss_bytes"].items()}
    print(f"{'load, s':28}{load['llama.cpp']:12.2f}{load['ossia']:12.2f}")
    print(f"{'peak resident, GB':28}{peak['llama.cpp']:12.2f}{peak['ossia']:12.2f}")


def show_errors(rows: list[dict[str, Any]]) -> None:
    engines = [key for key in rows[0] if key not in ("model", "tokens")]
    print("\nmean KL from float32, nats (same best token)")
    print(f"{'model':16}{'tokens':>8}" + "".join(f"{engine:>26}" for engine in engines))
    for row in rows:
        cells = [f"{row[each]['mean_kl']:.3e} ({row[each]['top1_agreement']:.1%})" for each in engines]
        print(f"{row['model']:16}{row['tokens']:8}" + "".join(f"{cell:>26}" for cell in cells))


def plot(path: Path, speed: list[dict[str, Any]], errors: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: list[tuple[str, str, list[str], dict[str, list[float]]]] = []
    for what in ("prefill", "decode"):
        rows = [row for row in speed if row["what"] == what]
        if rows:
            bars = {engine: [row[engine] for row in rows] for engine in ENGINES}
            panels.append((f"{what}, tokens/s", "linear", [f"depth {row['depth']:,}" for row in rows], bars))
    if errors:
        engines = [key for key in errors[0] if key not in ("model", "tokens")]
        bars = {engine: [max(row[engine]["mean_kl"], 1e-9) for row in errors] for engine in engines}
        panels.append(("mean KL from float32, nats", "log", [row["model"] for row in errors], bars))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4), squeeze=False)
    colours = {"llama.cpp": "#9a9a9a", "llama.cpp, its YaRN": "#cfcfcf", "ossia": "#1f6f8b"}
    for axis, (title, scale, ticks, bars) in zip(axes[0], panels, strict=True):
        width = 0.8 / len(bars)
        for number, (engine, heights) in enumerate(bars.items()):
            where = [tick + number * width for tick in range(len(ticks))]
            axis.bar(where, heights, width, label=engine, color=colours[engine])
        axis.set_xticks([tick + (len(bars) - 1) * width / 2 for tick in range(len(ticks))], ticks)
        axis.set_yscale(scale)
        axis.set_title(title)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(ENGINES[sys.argv[2]])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo, or a model folder")
    parser.add_argument("--gguf", type=Path, help="the same weights, already exported")
    parser.add_argument("--peer-venv", type=Path, default=Path(".venv-llama-cpp"), help="made if missing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", default="auto", help="of ossia")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a timed prefill")
    parser.add_argument("--generate", type=int, default=48, help="tokens of a timed decode")
    parser.add_argument("--depth", type=lambda text: [int(each) for each in text.split(",")], default=[0, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-speed", action="store_true", help="errors alone")
    parser.add_argument("--no-errors", action="store_true", help="speed alone")
    parser.add_argument("--error-tokens", type=int, default=256)
    parser.add_argument("--error-vocab", type=int, default=201_088)
    parser.add_argument("--plot", type=Path, default=Path("vs_llama_cpp.png"))
    parser.add_argument("--scratch", type=Path, help="folder for exports; needs as much room as the model")
    args = parser.parse_args()
    if not args.no_speed:
        check_context(args)
    pythons = {"llama.cpp": peer_python(args.peer_venv), "ossia": sys.executable}
    asked = [pythons["llama.cpp"], "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    result: dict[str, Any] = {"benchmark": "vs_llama_cpp", "model": str(args.model), "threads": args.threads}
    result |= {"llama_cpp_python": version, "rounds": args.rounds, "kernels": args.kernels}
    speed: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    if args.scratch:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        if not args.no_speed:
            gguf = args.gguf or export(args.model, Path(scratch) / "model.gguf")
            measured = measure_speed(args, gguf, pythons)
            speed = list(speed_rows(args, measured))
            result |= {"speed": speed, "load_s": measured["load_s"], "peak_rss_bytes": measured["peak_rss_bytes"]}
            show_speed(speed, measured)
            if not args.gguf:
                gguf.unlink()
        if not args.no_errors:
            errors = measure_errors(args, Path(scratch), pythons)
            result["errors"] = errors
            show_errors(errors)
    if speed or errors:
        plot(args.plot, speed, errors)
        result["plot"] = str(args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
