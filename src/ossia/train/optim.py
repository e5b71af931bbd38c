"""Masters in float32, a model that always holds what would be exported, and the rules that move the masters.

The model's parameters are the masters as a checkpoint would store them: expert matrices through the MXFP4 quantiser,
everything else rounded to BF16. The gradient of a stored value is applied to its master as it is (the straight-through
estimator), so what is trained is, bit for bit, what is shipped.

Every tensor may be a DTensor: then each process moves its own part.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ossia.errors import TrainingError
from ossia.kernels import Kernels
from ossia.kernels.mxfp4 import ScaleRule
from ossia.model.transformer import Transformer
from ossia.model.write import TensorSource
from ossia.train.distributed import World, joined, local, part, whole

Optimizer = Literal["adamw", "muon"]

SCALE_RULE: ScaleRule = "even"
"""Under which a block of stored values stays what it is until it has moved some way."""
BETAS, EPS = (0.9, 0.95), 1e-10
MOMENTUM = 0.95
"""Of Muon, with Nesterov's step."""
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
"""Of Newton and Schulz, with coefficients whose slope at zero is steep (Jordan et al. 2024)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, constant, linear decay to zero over the last `decay_steps`, or over all if there are fewer."""

    steps: int
    warmup_steps: int = 0
    decay_steps: int = 0

    def __call__(self, step: int) -> float:
        """The factor on the learning rate at `step`, counted from 0."""
        warmup = (step + 1) / max(1, self.warmup_steps)
        decay = (self.steps - step) / max(1, min(self.decay_steps, self.steps))
        return max(0.0, min(1.0, warmup, decay))


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one step did."""

    gradient_norm: float
    """Of all gradients together, before clipping."""
    flips: float | None
    """The share of expert values whose stored MXFP4 value changed; None where none are quantised."""


@dataclass(slots=True, kw_only=True)
class Masters:
    """The float32 copy of each trainable parameter of a model, and the optimiser that moves them.

    Matrices inside the layers move by Muon where it is chosen, everything else by AdamW; biases, scales and sinks
    have no weight decay. An expert matrix is one matrix for each expert.
    """

    kernels: Kernels
    parameters: dict[str, nn.Parameter]
    """Those of the model that train, by name."""
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    """`exp_avg` and `exp_avg_sq` of what AdamW moves, `momentum` of what Muon does."""
    learning_rate: float
    weight_decay: float
    stored: torch.dtype
    """What a checkpoint stores everything in but the experts; float32: masters are published as they are."""
    qat: bool
    """Whether a checkpoint stores expert matrices in MXFP4."""
    world: World
    updates: int = 0
    gradients: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """This process's part of the float32 gradients collected since the last step."""

    @classmethod
    def of(
        cls,
        model: Transformer,
        weights: TensorSource,
        *,
        optimizer: Optimizer = "adamw",
        learning_rate: float,
        weight_decay: float = 0.0,
        qat: bool = False,
        stored: torch.dtype = torch.bfloat16,
        world: World | None = None,
    ) -> "Masters":
        """Masters of every parameter of `model` that requires a gradient, at `weights` (copied), published at once.

        Where a parameter holds its master as it is, in float32, the two share their storage.
        """
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}, "momentum": {}}
        copies: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            mine = part(weights[name].detach(), parameter)
            if stored == parameter.dtype == torch.float32 and not (qat and is_expert_matrix(name)):
                local(parameter.data).copy_(mine)
                copies[name] = parameter.detach()  # Master and parameter are one.
            else:
                copies[name] = joined(mine.to(parameter.device, torch.float32, copy=True), parameter)
            kinds = ("momentum",) if optimizer == "muon" and _is_inner_matrix(name) else ("exp_avg", "exp_avg_sq")
            for kind in kinds:
                moments[kind][name] = torch.zeros_like(copies[name])
        masters = cls(
            kernels=model.kernels,
            parameters=parameters,
            weights=copies,
            moments=moments,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            stored=stored,
            qat=qat,
            world=world or World.single(),
        )
        masters.publish()
        return masters

    # ---------------------------------------------------------------- what the model holds

    @torch.no_grad()
    def publish(self) -> float | None:
        """Write into the model what a checkpoint would hold; returns the share of MXFP4 values that this changed."""
        changed = torch.zeros(2, dtype=torch.float64)
        for name, weight in self.weights.items():
            mine, published = local(weight), local(self.parameters[name])
            if self.qat and is_expert_matrix(name):
                flips = self.kernels.store_mxfp4(mine, published, SCALE_RULE)
                changed += torch.tensor([float(flips), float(mine.numel())], dtype=torch.float64)
            else:
                published.copy_(mine.to(self.stored))
        if not self.qat:
            return None
        flipped, total = self.world.sum(changed).tolist()
        return flipped / max(1.0, total)

    # ---------------------------------------------------------------- a step

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of one backward pass, in float32, and drop them from the model."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradient = local(parameter.grad).float()
                held = self.gradients.get(name)
                self.gradients[name] = gradient if held is None else held.add_(gradient)
                parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float, *, clip: float = math.inf) -> Update:
        """Move the masters by the gradients that were collected, which are then dropped, and publish them.

        `factor` scales the learning rate, `clip` bounds the norm of all gradients together. Raises TrainingError, and
        moves nothing, where that norm is not finite.
        """
        self.collect()
        # In float32 the norm of a large matrix is off in the fourth digit, otherwise so on each number of processes.
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in self.gradients.values()]
        squares = torch.tensor([float(norm) ** 2 for norm in norms], dtype=torch.float64).sum()
        norm = math.sqrt(float(self.world.sum(squares)))
        if not math.isfinite(norm):
            self.gradients.clear()
            raise TrainingError(
                f"the norm of the gradients is {norm} at step {self.updates + 1}: --resume from the last state, with a "
                "lower --learning-rate"
            )
        scale = min(1.0, clip / (norm + 1e-12))
        if scale < 1:
            for gradient in self.gradients.values():
                gradient.mul_(scale)
        self.updates += 1
        rate = self.learning_rate * factor
        for name, buffer in self.moments["momentum"].items():
            self._muon(self.weights[name], buffer, self._gradient(name), rate)
        for decayed in (True, False):
            names = [name for name in self.moments["exp_avg"] if _is_matrix(name) == decayed]
            self._adamw(names, rate, self.weight_decay if decayed else 0.0)
        self.gradients.clear()
        return Update(gradient_norm=norm, flips=self.publish())

    def _gradient(self, name: str) -> Tensor:
        """Zero where no loss depended on the parameter, as for an expert that nobody chose."""
        found = self.gradients.get(name)
        return torch.zeros_like(local(self.weights[name])) if found is None else found

    def _adamw(self, names: list[str], rate: float, weight_decay: float) -> None:
        steps = torch.full((len(names),), float(self.updates - 1))
        adamw(
            [local(self.weights[name]) for name in names],
            [self._gradient(name) for name in names],
            [local(self.moments["exp_avg"][name]) for name in names],
            [local(self.moments["exp_avg_sq"][name]) for name in names],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=EPS,
            maximize=False,
        )

    def _muon(self, weight: Tensor, buffer: Tensor, gradient: Tensor, rate: float) -> None:
        """Momentum made orthogonal, as large as a step of AdamW (Liu et al. 2025)."""
        mine = local(buffer).lerp_(gradient, 1 - MOMENTUM)
        direction = whole(joined(gradient.lerp(mine, MOMENTUM), weight))
        size = 0.2 * math.sqrt(max(direction.shape[-2:]))
        step = part(orthogonal(direction), weight)
        local(weight).mul_(1 - rate * self.weight_decay).add_(step, alpha=-rate * size)

    # ---------------------------------------------------------------- stopping and going on

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs of this but the number of updates, by stable names, in place."""
        named = {"weights": self.weights, **self.moments}
        return {f"{kind}.{name}": tensor for kind, tensors in named.items() for name, tensor in tensors.items()}

    def resume(self, updates: int) -> None:
        """Go on after `tensors` were filled from a saved state."""
        self.updates = updates
        self.publish()


def orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal factor of each matrix [..., A, B], roughly: singular values between about 0.7 and 1.2, in BF16."""
    a, b, c = _QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices.bfloat16() if wide else matrices.bfloat16().mT
    x = x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).reshape(matrices.shape)


def is_expert_matrix(name: str) -> bool:
    """Whether a checkpoint may store this parameter in MXFP4."""
    return name.endswith((".experts.gate_up", ".experts.down"))


def _is_matrix(name: str) -> bool:
    """Whether it has weight decay: every weight of a product, adapters too, and no bias, scale or sink."""
    return not name.endswith(("bias", ".scale", ".sinks"))


def _is_inner_matrix(name: str) -> bool:
    return _is_matrix(name) and name.startswith("layers.") and not name.endswith("router.weight")


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
