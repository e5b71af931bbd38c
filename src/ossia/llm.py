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
from typing import Any

import torch
from torch import Tensor

import ossia
from ossia.config import MXFP4_BLOCK, ModelConfig
from ossia.engine.engine import generate
from ossia.engine.request import Sampling, check_prompt
from ossia.errors import CheckpointError, KernelError, OssiaError, RequestError, TokenizerError
from ossia.files import read_json
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import select
from ossia.model import adapt
from ossia.model.attention import Packed
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.locate import ORIGINAL, resolve_model, tokenizer_file
from ossia.model.transformer import Transformer
from ossia.reply import Reply, Stream

__all__ = ["LLM", "Reply", "Stream", "load"]

log = logging.getLogger(__name__)

SMALL_BYTES = 1_000_000_000
"""Weights below this are kept in the form that is fastest, larger ones in the form that is smallest."""

_MEMORY_REFUSED = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says of an allocation that failed, where that has no class of its own."""

_VERIFY = "OSSIA_VERIFY"
_VERIFY_GROUPS = {"moe": ("experts", "experts_mxfp4")}


@dataclass(frozen=True, slots=True, kw_only=True)
class LLM:
    """A model with its vocabulary; made by `load`."""

    folder: Path
    config: ModelConfig
    model: Transformer
    sampling: Sampling
    """What `chat` uses where the caller says nothing: the checkpoint's own recommendation."""
    _tokenizer: Tokenizer | str = field(repr=False)
    """The vocabulary, or why there is none."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary. Raises TokenizerError where the model came without one, or with one that is not its own."""
        if isinstance(self._tokenizer, str):
            raise TokenizerError(self._tokenizer)
        return self._tokenizer

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """float32 [T, vocab] on the CPU: for each of T tokens the scores of the one after it.

        Raises RequestError for no tokens, more than the context holds, an id outside the vocabulary, or no more memory.
        """
        context = self.config.max_position_embeddings
        check_prompt(token_ids, vocab_size=self.config.vocab_size, context=context, room=0)
        device = self.model.embedding.weight.device
        ids_T = torch.tensor(list(token_ids), device=device)
        positions_T = torch.arange(len(token_ids), device=device)
        with _memory_or(RequestError(f"memory ran out for the logits of {len(token_ids)} tokens: give fewer")):
            return self.model(ids_T, positions_T, Packed(self.model.kernels, (len(token_ids),))).float().cpu()

    def generate(self, token_ids: Sequence[int], sampling: Sampling | None = None) -> Iterator[int]:
        """The tokens that follow, one by one; see `engine.engine.generate`. Memory that runs out is a RequestError."""
        tokens = generate(self.model, token_ids, sampling)

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
    ) -> Stream:
        """The model's next turn, event by event as it comes, and at the end as a Reply.

        messages are OpenAI chat messages, or one user's text; tools are OpenAI function tools, which the model may call
        and nobody runs; effort is "low", "medium" or "high"; date is what the model is told today is ("2025-06-28").
        `sampling` replaces the checkpoint's recommendation, and each of the other values the one in it; the answer ends
        at the vocabulary's own stop tokens, too.
        Raises HarmonyError, RequestError, or TokenizerError where the model has no vocabulary.
        """
        tokenizer = self.tokenizer
        given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        sampling = replace(sampling or self.sampling, **{name: v for name, v in given.items() if v is not None})
        sampling = replace(sampling, stop_ids=sampling.stop_ids | tokenizer.stop_ids)
        prompt = ossia.render(messages, tokenizer=tokenizer, tools=tools, effort=effort, date=date)
        return Stream(self.generate(prompt, sampling), tokenizer, num_prompt_tokens=len(prompt))


def load(
    name_or_path: str | Path,
    *,
    kernels: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LLM:
    """Load a model: "demo", a folder in either published layout, or a hub id that was already downloaded.

    kernels: "auto", "reference", "torch" or "cpu"; which were chosen is logged.
    dtype: of all but packed experts. Where None, float32 if those weights take at most 1 GB in it, else bfloat16.
    device: a torch device.
    Packed experts stay packed, unless the whole model unpacked takes at most 1 GB: the values are the same, and faster.
    The environment variable OSSIA_VERIFY ("attention,moe") has those operations compared with the reference on every
    call. A model without a vocabulary of its own loads, but cannot chat.

    Raises CheckpointError, ConfigError or KernelError.
    """
    folder = resolve_model(name_or_path)
    checkpoint = open_checkpoint(folder)
    chosen = select(kernels, device=_device_type(device), verify=_verified_ops(os.environ.get(_VERIFY, "")))
    log.info("kernels: %s", ", ".join(f"{op} {source}" for op, source in chosen.sources.items()))
    num_floats = sum(math.prod(spec.shape) for spec in checkpoint.specs.values() if spec.dtype.is_floating_point)
    dtype = dtype or (torch.float32 if num_floats * torch.float32.itemsize <= SMALL_BYTES else torch.bfloat16)
    packed, tensors = checkpoint.packed, checkpoint.tensors()
    memory = f"{folder}: memory on {device} ran out while {checkpoint.num_bytes:,} bytes of weights were loaded"
    with _memory_or(CheckpointError(f"{memory}: choose a smaller model, another device, or torch.bfloat16 as dtype")):
        # Whoever names the native kernels wants theirs, which read packed weights.
        if packed and kernels != "cpu" and _unpacked_values(checkpoint) * dtype.itemsize <= SMALL_BYTES:
            packed, tensors = False, adapt.dequantized(dict(tensors), dtype).items()
        model = adapt.build(checkpoint.config, chosen, experts="mxfp4" if packed else "dense")
        adapt.fill(model, tensors, dtype=dtype, device=device)
    return LLM(
        folder=checkpoint.folder,
        config=checkpoint.config,
        model=model,
        sampling=_recommended(checkpoint.folder),
        _tokenizer=_own_tokenizer(checkpoint),
    )


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
