"""A loaded model, ready to be asked: where text meets the engine in Python.

llm = ossia.load("demo")
reply = llm.chat("What is 17 + 25?", effort="low")
print(reply.reasoning, reply.final)
"""

import logging
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import ossia
from ossia.config import MXFP4_BLOCK, ModelConfig
from ossia.engine import loop
from ossia.engine.loop import generate
from ossia.engine.request import Sampling, check_prompt
from ossia.errors import CheckpointError, KernelError, OssiaError, RequestError, TokenizerError
from ossia.files import read_json
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import Kernels, cpu, select
from ossia.model import adapt, memory
from ossia.model.adapted import Variant, with_adapter
from ossia.model.adapters import check_base, read_adapter
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.locate import ORIGINAL, resolve_model, tokenizer_file
from ossia.model.packed_cache import Report, packed_model
from ossia.model.transformer import Transformer
from ossia.reply import Reply, Stream

__all__ = ["LLM", "Reply", "Stream", "load"]

log = logging.getLogger(__name__)

SMALL_BYTES = 1_000_000_000
"""Weights below this are kept in the form that is fastest, larger ones in the form that is smallest."""

_DENSE = get_args(adapt.Dense)

_MEMORY_REFUSED = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says of an allocation that failed, where that has no class of its own."""

_VERIFY = "OSSIA_VERIFY"
_VERIFY_GROUPS = {
    "attention": ("attention", "attention_paged"),
    "moe": ("experts", "experts_mxfp4", "experts_packed", "experts_exact"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LLM:
    """A model with its vocabulary; made by `load`."""

    folder: Path
    config: ModelConfig
    model: Transformer
    sampling: Sampling
    """What `chat` uses where the caller says nothing: the checkpoint's own recommendation."""
    context: int
    """Tokens that a prompt and its answer may fill together."""
    cache_type: str
    """How keys and values are held: "bf16" or "q8"."""
    adapters: Mapping[str, Variant] = field(default_factory=dict[str, Variant], repr=False)
    """The model with each adapter that was loaded, by its name."""
    _tokenizer: Tokenizer | str = field(repr=False)
    """The vocabulary, or why there is none."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary. Raises TokenizerError where the model came without one, or with one that is not its own."""
        if isinstance(self._tokenizer, str):
            raise TokenizerError(self._tokenizer)
        return self._tokenizer

    def adapted(self, adapter: str | None) -> Transformer:
        """The model with this adapter, which for None is the model. Raises RequestError where it was not loaded."""
        if adapter is None:
            return self.model
        if adapter not in self.adapters:
            loaded = ", ".join(self.adapters) or "none"
            raise RequestError(f"there is no adapter {adapter!r}: loaded are {loaded}")
        return self.adapters[adapter].model

    def new_cache(self) -> loop.AnyCache:
        """Room for the keys and values of one sequence of up to `context` tokens, empty."""
        return loop.new_cache(self.model, context=self.context, cache_type=self.cache_type)

    def logits(self, token_ids: Sequence[int], *, adapter: str | None = None) -> Tensor:
        """float32 [T, vocab] on the CPU: for each of T tokens the scores of the one after it.

        adapter: name of one that was loaded. Raises RequestError for no tokens, more than the context holds, an id
        outside the vocabulary, or no more memory.
        """
        check_prompt(token_ids, vocab_size=self.config.vocab_size, context=self.context, room=0)
        with _memory_or(RequestError(f"memory ran out for the logits of {len(token_ids)} tokens: give fewer")):
            return loop.score(self.adapted(adapter), token_ids, self.new_cache()).float().cpu()

    def generate(
        self, token_ids: Sequence[int], sampling: Sampling | None = None, *, adapter: str | None = None
    ) -> Iterator[int]:
        """The tokens that follow, one by one; see `engine.loop.generate`. Memory that runs out is a RequestError."""
        model = self.adapted(adapter)
        tokens = generate(model, token_ids, sampling, context=self.context, cache_type=self.cache_type)

        def guarded() -> Iterator[int]:
            with _memory_or(RequestError("memory ran out: shorten the prompt, or the answer with max_tokens")):
                yield from tokens

        return guarded()

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        effort: str = "medium",
        tools: Sequence[Mapping[str, Any]] | None = None,
        date: str | None = None,
        sampling: Sampling | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        adapter: str | None = None,
    ) -> Reply:
        """The model's next turn in a conversation; arguments as in `stream`."""
        stream = self.stream(
            messages,
            effort=effort,
            tools=tools,
            date=date,
            sampling=sampling,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            adapter=adapter,
        )
        for _ in stream:
            pass
        return stream.reply()

    def stream(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        effort: str = "medium",
        tools: Sequence[Mapping[str, Any]] | None = None,
        date: str | None = None,
        sampling: Sampling | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        adapter: str | None = None,
    ) -> Stream:
        """The model's next turn, event by event as it comes, and at the end as a Reply.

        messages are OpenAI chat messages, or one user's text; tools are OpenAI function tools, which the model may call
        and nobody runs; effort is "low", "medium" or "high"; date is what the model is told today is ("2025-06-28");
        adapter is the name of one that was loaded. `sampling` replaces the checkpoint's recommendation, and each of the
        other values the one in it; the answer ends at the vocabulary's own stop tokens, too.
        Raises HarmonyError, RequestError, or TokenizerError where the model has no vocabulary.
        """
        tokenizer = self.tokenizer
        given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        sampling = replace(sampling or self.sampling, **{name: v for name, v in given.items() if v is not None})
        sampling = replace(sampling, stop_ids=sampling.stop_ids | tokenizer.stop_ids)
        prompt = ossia.render(messages, tokenizer=tokenizer, tools=tools, effort=effort, date=date)
        tokens = self.generate(prompt, sampling, adapter=adapter)
        return Stream(tokens, tokenizer, num_prompt_tokens=len(prompt))


def load(
    name_or_path: str | Path,
    *,
    kernels: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    context: int | None = None,
    cache_type: str = "bf16",
    dense: str = "q8",
    packed_cache: bool = True,
    isa: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    report: Report | None = None,
) -> LLM:
    """Load a model: "demo", a folder in either published layout, or a hub id that was already downloaded.

    kernels: "auto", "reference", "torch" or "cpu"; which were chosen is logged.
    dtype: of all but packed experts. Where None and torch computes, float32 if those weights take at most 1 GB in it,
    else bfloat16.
    device: a torch device.
    threads: of the computation; default one a physical core.
    context: tokens that prompt and answer may fill together; default what the model has, or less where memory is short.
    cache_type: "bf16", or "q8" for half the memory a token.

    On a CPU with the native kernels, a checkpoint whose experts are in MXFP4 is packed into the form that these read,
    unless `dtype` is given: experts as they are, and for the layers outside them
    dense: "q8", 8 bits a weight, with activations rounded to 8 bits in every product, or "bf16", where neither is.
    packed_cache: whether to keep the packed form in a file that later starts map into memory, and to use what is there
    (see `model.packed_cache`; small models need none).
    isa: "avx512", "avx2" or "plain" instead of the best that the processor has; results do not depend on it.
    adapters: folders of LoRA adapters in PEFT's format, made for this model, by the name under which to ask for them.
    report: is told in lines for people where that file is and what went wrong with it; default the log.

    Elsewhere packed experts stay packed, unless the whole model unpacked takes at most 1 GB: the values are the same,
    and faster. The environment variable OSSIA_VERIFY ("attention,moe") has those operations compared with the reference
    on every call. A model without a vocabulary of its own loads, but cannot chat.

    Raises CheckpointError, ConfigError, KernelError, or RequestError where context and memory do not go together.
    """
    return from_checkpoint(
        open_checkpoint(resolve_model(name_or_path)),
        kernels=kernels,
        dtype=dtype,
        device=device,
        threads=threads,
        context=context,
        cache_type=cache_type,
        dense=dense,
        packed_cache=packed_cache,
        isa=isa,
        adapters=adapters,
        report=report,
    )


def from_checkpoint(
    checkpoint: Checkpoint,
    *,
    kernels: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    context: int | None = None,
    cache_type: str = "bf16",
    dense: str = "q8",
    packed_cache: bool = True,
    isa: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    report: Report | None = None,
) -> LLM:
    """See `load`."""
    chosen = select(kernels, device=_device_type(device), verify=_verified_ops(os.environ.get(_VERIFY, "")))
    log.info("kernels: %s", ", ".join(f"{op} {source}" for op, source in chosen.sources.items()))
    if dense not in _DENSE:
        raise KernelError(f"unknown dense form {dense!r}: choose one of {', '.join(_DENSE)}")
    packs = chosen.native and dtype is None and checkpoint.packed
    if chosen.native and dtype is None and not checkpoint.packed:
        log.info("%s: experts in BF16 are not packed, torch computes with them", checkpoint.folder)
    if packs:
        cpu.configure(threads, isa)
        torch.set_num_threads(1)  # What is left to torch is small, and its threads would be in the way of ours.
    else:
        _configure_torch(threads, isa)
    context = _fitting_context(checkpoint.config, context, cache_type, dense, refuse=packs)
    if cache_type != "bf16" and not chosen.native:
        raise KernelError(f"these kernels have no cache of type {cache_type!r}: leave it out, or use kernels cpu")
    folder, num_bytes = checkpoint.folder, checkpoint.num_bytes
    ran_out = f"{folder}: memory on {device} ran out while {num_bytes:,} bytes of weights were loaded"
    with _memory_or(CheckpointError(f"{ran_out}: choose a smaller model, another device, or torch.bfloat16 as dtype")):
        if packs:
            model = packed_model(checkpoint, chosen, dense=dense, keep=packed_cache, report=report or log.info)
        else:
            # Whoever names the native kernels wants theirs, which read packed weights.
            model = _unpacked(checkpoint, chosen, dtype=dtype, device=device, stay_packed=kernels == "cpu")
    return LLM(
        folder=checkpoint.folder,
        config=checkpoint.config,
        model=model,
        adapters={name: _variant(model, checkpoint, path) for name, path in (adapters or {}).items()},
        sampling=_recommended(checkpoint.folder),
        context=context,
        cache_type=cache_type,
        _tokenizer=_own_tokenizer(checkpoint),
    )


def _variant(model: Transformer, checkpoint: Checkpoint, folder: str | Path) -> Variant:
    """The model with the adapter in this folder, which was made for it."""
    adapter = read_adapter(folder, checkpoint.config)
    check_base(adapter, checkpoint, str(folder))
    return with_adapter(model, adapter)


def _unpacked(
    checkpoint: Checkpoint,
    kernels: Kernels,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device,
    stay_packed: bool,
) -> Transformer:
    """The model in the tensors of the checkpoint, for torch; small ones with their experts unpacked."""
    num_floats = sum(math.prod(spec.shape) for spec in checkpoint.specs.values() if spec.dtype.is_floating_point)
    dtype = dtype or (torch.float32 if num_floats * torch.float32.itemsize <= SMALL_BYTES else torch.bfloat16)
    packed, tensors = checkpoint.packed, checkpoint.tensors()
    if packed and not stay_packed and _unpacked_values(checkpoint) * dtype.itemsize <= SMALL_BYTES:
        packed, tensors = False, adapt.dequantized(dict(tensors), dtype).items()
    model = adapt.build(checkpoint.config, kernels, experts="mxfp4" if packed else "dense")
    return adapt.fill(model, tensors, dtype=dtype, device=device)


def _configure_torch(threads: int | None, isa: str | None) -> None:
    if isa is not None:
        raise KernelError(f"isa {isa!r} is for the native CPU kernels, which are not used here: leave it out")
    if threads is not None:
        if not 1 <= threads <= cpu.MOST_THREADS:
            raise KernelError(f"threads is {threads}: give 1 to {cpu.MOST_THREADS}")
        torch.set_num_threads(threads)


def _fitting_context(config: ModelConfig, context: int | None, cache_type: str, dense: str, *, refuse: bool) -> int:
    """The context to give room to. Raises RequestError where there is none such, or, if `refuse`, no memory for it."""
    most = config.max_position_embeddings
    plan = memory.plan(config, context=most if context is None else context, cache_type=cache_type, dense=dense)
    if not refuse:
        return plan.context
    available = memory.available_memory()
    if context is None and (fits := plan.largest_context(available)) < most:
        log.info("memory allows a context of %d tokens of the model's %d", fits, most)
        plan = replace(plan, context=fits or 1)
    if line := memory.refusal(plan, available):
        raise RequestError(line)
    return plan.context


@contextmanager
def _memory_or(error: OssiaError) -> Generator[None]:
    """Raises `error` where memory runs out."""
    try:
        yield
    except MemoryError:
        raise error from None
    except RuntimeError as reason:  # torch.OutOfMemoryError is one.
        if not any(words in str(reason) for words in _MEMORY_REFUSED):
            raise
        raise error from None


def _device_type(device: str | torch.device) -> str:
    try:
        return torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise KernelError(f"device {str(device)!r} cannot be used here ({reason}): give cpu, cuda or mps") from None


def _verified_ops(value: str) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    return tuple(op for name in names for op in _VERIFY_GROUPS.get(name, (name,)))


def _unpacked_values(checkpoint: Checkpoint) -> int:
    """Weights of the model, each packed value counted as one."""
    sizes = {name: math.prod(spec.shape) for name, spec in checkpoint.specs.items()}
    packed = sum(size * MXFP4_BLOCK for name, size in sizes.items() if name.endswith("_scales"))
    return packed + sum(size for name, size in sizes.items() if not name.endswith(("_blocks", "_scales")))


def _own_tokenizer(checkpoint: Checkpoint) -> Tokenizer | str:
    """The vocabulary beside the weights, or what is wrong with it."""
    path = tokenizer_file(checkpoint.folder)
    if path is None:
        return f"{checkpoint.folder} has no tokenizer.json and no o200k_base.tiktoken: put the model's own one there"
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        return str(error)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        return (
            f"{path} has ids up to {tokenizer.vocab_size - 1} and the model a vocabulary of "
            f"{checkpoint.config.vocab_size}: put the model's own one there"
        )
    return tokenizer


def _recommended(folder: Path) -> Sampling:
    """What generation_config.json recommends; as published (temperature 1, all tokens) where it is silent.

    Its stop tokens are not read: an early published file lacked one, and the vocabulary knows them all.
    """
    candidates = [folder, folder.parent] if folder.name == ORIGINAL else [folder]
    path = next((p for each in candidates if (p := each / "generation_config.json").is_file()), None)
    if path is None:
        return Sampling()
    raw = read_json(path, CheckpointError)
    if raw.get("do_sample") is False:
        return Sampling(temperature=0)
    known = ("temperature", "top_p", "top_k", "min_p")
    try:
        return Sampling(**{name: raw[name] for name in known if raw.get(name) is not None})
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}") from None
