"""A few held-out prompts that the model answers before and after: figures say how much, samples say what."""

from dataclasses import dataclass

import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.train.data import Batch

_TEXT_PROMPT = 16
"""Tokens of a text that are given; of a conversation it is all that the assistant does not say."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Prompts as tokens, answered greedily and all at once, by plain forward passes: nothing is cached."""

    prompts: list[list[int]]
    tokenizer: Tokenizer
    max_tokens: int = 64

    @classmethod
    def of(cls, batches: list[Batch], tokenizer: Tokenizer, count: int) -> "Samples":
        """The beginnings of the first documents of `batches`."""
        prompts: list[list[int]] = []
        for batch in batches:
            begin = 0
            learnt = set(batch.rows.tolist())
            for length in batch.lengths:
                first = next((row for row in range(begin, begin + length) if row in learnt), begin + length - 1)
                stop = first + 1 if first > begin else begin + min(length, _TEXT_PROMPT)
                prompts.append(batch.token_ids[begin:stop].tolist())
                begin += length
        return cls(prompts[:count], tokenizer)

    @torch.no_grad()
    def answers(self, model: Transformer) -> list[dict[str, str]]:
        """Each prompt with the model's answer to it, as text with special tokens."""
        device = model.embedding.weight.device
        documents = [list(prompt) for prompt in self.prompts]
        open_ones = list(range(len(documents)))
        for _ in range(self.max_tokens):
            if not open_ones:
                break
            lengths = tuple(len(documents[i]) for i in open_ones)
            token_ids = torch.tensor([token for i in open_ones for token in documents[i]], device=device)
            positions = torch.cat([torch.arange(length, device=device) for length in lengths])
            rows = torch.tensor(lengths, device=device).cumsum(0) - 1
            best = model.best(token_ids, positions, Packed(model.kernels, lengths), rows)
            for i, token in zip(list(open_ones), best.tolist(), strict=True):
                documents[i].append(token)
                if token in self.tokenizer.stop_ids:
                    open_ones.remove(i)
        pairs = zip(self.prompts, documents, strict=True)
        decode = self.tokenizer.decode
        return [{"prompt": decode(prompt), "answer": decode(document[len(prompt) :])} for prompt, document in pairs]
