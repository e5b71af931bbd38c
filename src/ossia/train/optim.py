"""Masters in float32, a model that always holds what would be exported, and the rules that move the masters.

The model's parameters are the masters as a checkpoint would store them: expert matrices through the MXFP4 quantiser,
everything else rounded to BF16. The gradient of a stored value is applied to its master as it is (the straight-through
estimator), so what is trained is, bit for bit, what is shipped.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ossia.errors import ConfigError, TrainingError
from ossia.kernels.mxfp4 import fake_quantize
from ossia.model.transformer import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, constant, linear decay to zero over the last `decay_steps`."""

    steps: int
    warmup_steps: int
    decay_steps: int

    def __call__(self, step: int) -> float:
        """The factor on the learning rate at `step`, counted from 0."""
        warmup = (step + 1) / max(1, self.warmup_steps)
        decay = (self.steps - step) / max(1, self.decay_steps)
        return max(0.0, min(1.0, warmup, decay))


def initial_weights(model: Transformer, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Float32 masters of a new model: unit-scale projections, small output projections, zero biases and sinks.

    Outputs into the residual stream are smaller by sqrt(2 * layers), so that its scale does not grow with depth.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = (2 * model.config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith(".scale"):
            yield name, torch.ones(parameter.shape)
        elif name.endswith(("bias", "sinks")):
            yield name, torch.zeros(parameter.shape)
        else:
            std = parameter.shape[-1] ** -0.5
            if name.endswith((".o.weight", ".experts.down")):
                std *= residual
            elif name.startswith("unembedding"):
                std *= 0.25  # Near uniform at first: the loss starts at log(V).
            yield name, torch.randn(parameter.shape, generator=generator) * std


@dataclass(slots=True)
class Masters:
    """The float32 copy of each parameter of a model, and the two optimisers that move them.

    Matrices inside the layers move by Muon where it is chosen, everything else by AdamW; biases, scales and sinks
    have no weight decay. An expert matrix is one matrix for each expert.
    """

    model: Transformer
    weights: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    quantize_experts: bool
    _views: list[tuple[str, int | None, nn.Parameter]]

    @classmethod
    def of(
        cls,
        model: Transformer,
        weights: dict[str, Tensor],
        *,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        quantize_experts: bool,
    ) -> "Masters":
        """Take `weights` (float32, by parameter name) as masters of `model`. `optimizer` is "adamw" or "muon"."""
        views: list[tuple[str, int | None, nn.Parameter]] = []
        matrices: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in weights.items():
            stacked = weight.ndim == 3
            slices = [(e, weight[e]) for e in range(len(weight))] if stacked else [(None, weight)]
            for e, part in slices:
                view = nn.Parameter(part, requires_grad=False)
                views.append((name, e, view))
                is_matrix = stacked or name.endswith(".weight")
                inside = name.startswith("layers.") and not name.endswith("router.weight")
                (matrices if is_matrix and inside else decayed if is_matrix else others).append(view)
        if optimizer not in ("adamw", "muon"):
            raise ConfigError(f"optimizer is {optimizer!r}: give adamw or muon")
        optimizers: list[torch.optim.Optimizer] = []
        if optimizer == "muon":
            optimizers.append(
                torch.optim.Muon(
                    matrices, lr=learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
                )
            )
        else:
            decayed = matrices + decayed
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizers.append(torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-10, foreach=True))
        for chosen in optimizers:
            for group in chosen.param_groups:
                group["base_lr"] = learning_rate
        masters = cls(model, weights, optimizers, quantize_experts, views)
        masters.publish()
        return masters

    @torch.no_grad()
    def publish(self) -> None:
        """Write into the model what a checkpoint would hold."""
        parameters = dict(self.model.named_parameters())
        for name, weight in self.weights.items():
            packed = self.quantize_experts and weight.ndim == 3
            parameters[name].copy_(fake_quantize(weight) if packed else weight.bfloat16())

    @torch.no_grad()
    def step(self, factor: float, *, clip: float) -> float:
        """Move the masters by the model's gradients, which are then dropped; returns their norm before clipping.

        `factor` scales the learning rate, `clip` bounds the norm of all gradients together. Raises TrainingError, and
        moves nothing, where that norm is not finite.
        """
        gradients = {name: p.grad.float() for name, p in self.model.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the norm of the gradients is {norm}: resume from the last state, with a lower --learning-rate"
            )
        scale = min(1.0, clip / (norm + 1e-12))
        for name, e, view in self._views:
            gradient = gradients[name] * scale
            view.grad = gradient if e is None else gradient[e]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.publish()
        return norm

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs of this."""
        return {"weights": self.weights, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, into masters of the same shapes."""
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rate = optimizer.param_groups[0]["base_lr"]  # That of this run, which may be another than the saved one's.
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group["base_lr"] = rate
        self.publish()
