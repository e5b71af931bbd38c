"""Plan → tensors → model → tokens: the pages themselves, one forward pass over many sequences, and what is drawn.

Shapes: T tokens of all chunks end to end, B chunks, M pages of a table, R chunks after which a token is drawn, D
hidden, V vocabulary.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.engine.blocks import most_blocks, num_blocks
from ossia.engine.paged import Paged, holds_pages
from ossia.engine.request import Drawn, Mask
from ossia.engine.sampler import Sampler
from ossia.engine.scheduler import Chunk
from ossia.errors import KernelError
from ossia.kernels import ops
from ossia.kernels.pages import Pages, empty_pages, page_bytes, plain_pages
from ossia.model.adapted import Variant
from ossia.model.transformer import NOT_NUMBERS, Transformer

log = logging.getLogger(__name__)

_REMEMBERED_SHARE = 4
"""Of the pages that see everything, one in so many has a windowed companion beyond what running sequences hold: enough
to go on at the end of every prefix in use, and in the middle of those read lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many pages there are, by window (None: none), and what they take."""

    num_pages: Mapping[int | None, int]
    num_bytes: int


def room(
    config: ModelConfig, *, cache_tokens: int, max_batch: int, chunk: int, cache_type: str = "bf16", itemsize: int = 2
) -> Room:
    """Pages for `cache_tokens` tokens in layers that see everything, and what windowed layers need beside them.

    max_batch sequences run together, with up to `chunk` tokens of prompts a step. itemsize: bytes of a value where
    pages hold keys and values as they come.
    """
    full = num_blocks(cache_tokens)
    counts: dict[int | None, int] = {}
    total = 0
    for layer in range(config.num_hidden_layers):
        window = config.window(layer)
        if window is None:
            counts[window] = full
        else:
            # Those that decode hold what the window sees; the chunk may belong to any of them, cut at any page.
            running = max_batch * (most_blocks(1, window) + 1) + num_blocks(chunk)
            counts[window] = running + max(full // _REMEMBERED_SHARE, most_blocks(chunk, window))
        size = page_bytes(config.num_key_value_heads, config.head_dim, cache_type)
        total += counts[window] * (size if cache_type == "q8" else size * itemsize // 2)
    return Room(num_pages=counts, num_bytes=total)


class Runner:
    """Owns the pages and calls the model."""

    def __init__(
        self,
        model: Transformer,
        num_pages: Mapping[int | None, int],
        cache_type: str = "bf16",
        *,
        variants: Iterable[Variant] = (),
    ) -> None:
        """num_pages: by window; variants: of the model, by whose keys jobs name them.

        Raises KernelError where the machine refuses the memory.
        """
        config = model.config
        self.model = model
        self._models = {b"": model} | {each.key: each.model for each in variants}
        self._device = model.embedding.weight.device
        groups, head_dim, scale = config.num_key_value_heads, config.head_dim, model.norm.scale
        native = holds_pages(model)
        self._layers: list[Pages] = []
        for layer in range(config.num_hidden_layers):
            count = num_pages[config.window(layer)]
            self._layers.append(
                empty_pages(count, groups, head_dim, cache_type)
                if native
                else plain_pages(count, groups, head_dim, scale.detach())
            )
        # Native kernels read pages in float32 on a CPU alone.
        self._attention = model.kernels.attention_paged
        if model.kernels.native and not native:
            self._attention = ops.load("attention_paged", "torch")

    # ---------------------------------------------------------------- pages as bytes

    def page_bytes(self, window: int | None) -> int:
        """Bytes of one page, all layers with this window together."""
        return sum(each.nbytes for each in self._memory(window, 0))

    def read_page(self, window: int | None, page: int) -> bytes:
        """What is in it."""
        return b"".join(each.cpu().numpy().tobytes() for each in self._memory(window, page))

    def write_page(self, window: int | None, page: int, content: memoryview) -> None:
        """Put back what `read_page` gave."""
        for each in self._memory(window, page):
            each.copy_(torch.from_numpy(np.frombuffer(content[: each.nbytes], np.uint8).copy()))
            content = content[each.nbytes :]

    def _memory(self, window: int | None, page: int) -> list[Tensor]:
        return [
            tensor[page].view(-1).view(torch.uint8)
            for layer, pages in enumerate(self._layers)
            if self.model.config.window(layer) == window
            for tensor in (pages.keys, pages.values, pages.key_scales, pages.value_scales)
            if tensor is not None
        ]

    # ---------------------------------------------------------------- a step

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run the chunks; [R, D]: what the unembedding reads after each that draws a token, in their order.

        The chunks of each variant of the model go through it by themselves.
        """
        variants = list(dict.fromkeys(chunk.job.variant for chunk in chunks))
        if len(variants) == 1:
            return self._pass(self._models[variants[0]], chunks)
        order: list[int] = []
        parts: list[Tensor] = []
        for variant in variants:
            own = [(index, chunk) for index, chunk in enumerate(chunks) if chunk.job.variant == variant]
            order += [index for index, chunk in own if chunk.draws]
            parts.append(self._pass(self._models[variant], [chunk for _, chunk in own]))
        return torch.cat(parts)[torch.tensor(order, dtype=torch.long, device=self._device).argsort()]

    def _pass(self, model: Transformer, chunks: Sequence[Chunk]) -> Tensor:
        """One forward pass; returns as `forward`."""
        token_ids = list(chain.from_iterable(c.job.tokens[c.start : c.stop] for c in chunks))
        positions = list(chain.from_iterable(range(c.start, c.stop) for c in chunks))
        lengths = [c.stop - c.start for c in chunks]
        attend = Paged(
            self._attention,
            self._layers,
            tables={
                window: self._tables([c.job.tables[index].pages for c in chunks])
                for index, window in enumerate(table.window for table in chunks[0].job.tables)
            },
            starts=torch.tensor([c.start for c in chunks]),
            lengths=torch.tensor(lengths),
        )
        x_TD = model.hidden(
            torch.tensor(token_ids, device=self._device), torch.tensor(positions, device=self._device), attend
        )
        rows = [end - 1 for end, c in zip(accumulate(lengths), chunks, strict=True) if c.draws]
        return x_TD if len(rows) == len(x_TD) else x_TD[torch.tensor(rows, dtype=torch.long, device=self._device)]

    def _tables(self, pages: Sequence[Sequence[int]]) -> Tensor:
        """int32 [B, M]; what lies beyond the end of a table is page 0, and never read."""
        tables_BM = np.zeros((len(pages), max(map(len, pages))), np.int32)
        for row_M, each in zip(tables_BM, pages, strict=True):
            row_M[: len(each)] = each
        return torch.from_numpy(tables_BM)

    @torch.inference_mode()
    def draw(
        self, x: Tensor, samplers: Sequence[Sampler], masks: Sequence[Mask | Exception | None]
    ) -> list[Drawn | Exception]:
        """The next token after each row of x [R, D], or why there is none: for one, because its mask says so.

        Where nobody asks for more than the likeliest tokens, the logits of the others are not computed.
        """
        drawn: list[Drawn | Exception] = [KernelError(NOT_NUMBERS)] * len(samplers)
        plain: list[int] = []
        others: list[tuple[int, Mask | None]] = []
        for row, (sampler, mask) in enumerate(zip(samplers, masks, strict=True)):
            if isinstance(mask, Exception):
                drawn[row] = mask
            elif mask is None and sampler.greedy_only:
                plain.append(row)
            else:
                others.append((row, mask))
        if plain:
            ids_R, logits_R = self.model.unembedding.best(x if len(plain) == len(x) else x[plain])
            for row, token, broken in zip(plain, ids_R.tolist(), logits_R.isnan().tolist(), strict=True):
                if not broken:
                    drawn[row] = Drawn(token=token)
        if others:
            logits_RV = self.model.unembedding(x if len(others) == len(x) else x[[row for row, _ in others]])
            for (row, mask), logits_V in zip(others, logits_RV, strict=True):
                try:
                    drawn[row] = samplers[row].draw(logits_V, mask)
                except Exception as error:  # The boundary: it ends its own request alone.
                    log.exception("a token could not be drawn")
                    drawn[row] = error
        return drawn
