"""Listening to the routers of a model, so that the model itself knows nothing of training.

What they say gives two losses that keep them healthy, a record of their loads, and a loud stop when one collapses.

Shapes: L layers, T tokens, E experts, K experts a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ossia.errors import TrainingError
from ossia.model.transformer import MixtureOfExperts, Transformer
from ossia.train.distributed import World

CHOICES_TO_JUDGE = 8
"""Choices an expert must have had on average before a step says anything about collapse."""


@dataclass(slots=True)
class RouterWatch:
    """Hears every router of a model while it is open: through the forward pass, and the backward pass where that makes
    activations again, which is not counted twice.

    >>> with RouterWatch.of(model) as routers:
    ...     loss = ... + 0.01 * routers.balance() + 0.001 * routers.z()
    ...     loss.backward()

    With `expert_ids` (int64 [L, T, K], -1 where none was recorded) the experts are those, whatever the routers say;
    their weights are the softmax over the logits of these.
    """

    layers: list[MixtureOfExperts]
    expert_ids: Tensor | None = None
    logits: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """[T, E] of each layer, in at least float32."""
    chosen: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """int64 [T, K] of each layer: the experts that did the work."""
    _now: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """The logits of a layer whose experts are about to work, in whichever pass."""
    _handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle])

    @classmethod
    def of(cls, model: Transformer, expert_ids: Tensor | None = None) -> "RouterWatch":
        """Watch all routers of `model`."""
        return cls([module for module in model.modules() if isinstance(module, MixtureOfExperts)], expert_ids)

    def __enter__(self) -> "RouterWatch":
        for layer, module in enumerate(self.layers):
            self._handles.append(module.router.register_forward_hook(self._hear(layer)))
            self._handles.append(module.experts.register_forward_pre_hook(self._choose(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hear(self, layer: int) -> Any:
        def hear(_module: nn.Module, _inputs: Any, logits_TE: Tensor) -> None:
            self._now[layer] = logits_TE
            if layer not in self.logits:
                self.logits[layer] = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))

        return hear

    def _choose(self, layer: int) -> Any:
        def choose(_module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            x_TD, ids_TK, weights_TK = inputs
            logits_TE = self._now.pop(layer)  # Kept no longer: behind it hangs the graph of the whole layer.
            if self.expert_ids is not None:
                recorded_TK = self.expert_ids[layer]
                ids_TK = torch.where(recorded_TK < 0, ids_TK, recorded_TK)
                weights_TK = logits_TE.gather(-1, ids_TK).softmax(dim=-1)
            self.chosen.setdefault(layer, ids_TK)
            return x_TD, ids_TK, weights_TK

        return choose

    # ---------------------------------------------------------------- what was heard

    def counts(self) -> Tensor:
        """float32 [L, E]: how often each expert was chosen."""
        pairs = [(self.chosen[layer], self.logits[layer]) for layer in range(len(self.layers))]
        return torch.stack([ids.flatten().bincount(minlength=logits.shape[-1]).float() for ids, logits in pairs])

    def balance(self, world: World | None = None, *, pooled: bool = False) -> Tensor:
        """A sum over tokens whose mean is 1 where all experts are equally busy, and more where they are not.

        E times the sum over experts of load and mean probability (Fedus et al. 2021), averaged over layers; `pooled`:
        loads and probabilities are averaged over layers first, as transformers does, whose figure is K times this. The
        loads are those of all processes of `world`. Probabilities are those of the full softmax, so that experts that
        were not chosen get a gradient too.
        """
        counts_LE = self.counts() if world is None else world.sum(self.counts())
        load_LE = counts_LE / counts_LE.sum(dim=-1, keepdim=True)
        total_LE = torch.stack([self.logits[layer].softmax(dim=-1).sum(dim=0) for layer in range(len(self.layers))])
        if pooled:
            load_LE = load_LE.mean(dim=0, keepdim=True)
        return (load_LE * total_LE).sum(dim=-1).mean() * total_LE.shape[-1]

    def z(self) -> Tensor:
        """A sum over tokens: the squared log-partition of a router, averaged over layers (Zoph et al. 2022).

        It keeps logits small.
        """
        heard = self.logits.values()
        return torch.stack([logits_TE.logsumexp(dim=-1).square().sum() for logits_TE in heard]).mean()

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """A sum over tokens: the entropy in nats of a router's softmax, averaged over layers; at most ln E a token."""
        heard = [logits_TE.log_softmax(dim=-1) for logits_TE in self.logits.values()]
        return torch.stack([-(log_TE.exp() * log_TE).sum() for log_TE in heard]).mean()


def load_metrics(counts: Tensor) -> dict[str, Any]:
    """What the log says of counts [L, E]: loads where 1 is an even share, their extremes, and experts without work."""
    even_LE = counts / counts.sum(dim=-1, keepdim=True) * counts.shape[-1]
    return {
        "largest_load": float(even_LE.max()),
        "smallest_load": float(even_LE.min()),
        "dead_experts": int((counts == 0).sum()),
        **{f"load/{layer}": [round(load, 4) for load in loads] for layer, loads in enumerate(even_LE.tolist())},
    }


@dataclass(slots=True)
class CollapseAlarm:
    """Stops a run when a router has sent nearly every token to the same experts for `patience` steps; 0 never stops.

    The measure is the number of experts in effect, exp of the entropy of the loads: K where all tokens share their
    experts, E where all are equally busy.
    """

    num_active: int
    patience: int = 20
    streaks: list[int] = field(default_factory=list[int])
    """For each layer the steps in a row that looked like it; part of a saved state."""

    def hear(self, counts: Tensor) -> None:
        """The counts [L, E] of one step. Raises TrainingError that names the layer."""
        num_experts = counts.shape[-1]
        enough = float(counts.sum(dim=-1).min()) >= CHOICES_TO_JUDGE * num_experts
        if not self.patience or not enough or num_experts < 2 * self.num_active:
            return
        load_LE = counts.double() / counts.sum(dim=-1, keepdim=True)
        effective_L = torch.exp(-(load_LE * load_LE.clamp(min=1e-30).log()).sum(dim=-1)).tolist()
        streaks = self.streaks or [0] * len(effective_L)
        self.streaks = [
            streak + 1 if effective < 1.1 * self.num_active else 0
            for streak, effective in zip(streaks, effective_L, strict=True)
        ]
        _refuse_collapse(self.streaks, self.patience, self.num_active, num_experts)


def _refuse_collapse(streaks: Sequence[int], patience: int, num_active: int, num_experts: int) -> None:
    for layer, streak in enumerate(streaks):
        if streak >= patience:
            raise TrainingError(
                f"layer {layer}: the router collapsed: {streak} steps in a row it sent nearly every token to the same "
                f"{num_active} of {num_experts} experts: --resume from the last state with a higher "
                "--balance-coefficient or a lower --learning-rate"
            )
