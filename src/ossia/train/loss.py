"""What is minimised: cross-entropy of the tokens to be learnt, and two terms that keep the router healthy.

Shapes: R tokens to be learnt, V vocabulary, T tokens, E experts, K experts a token.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossia.model.transformer import MixtureOfExperts, Transformer


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of targets [R] under logits [R, V], in float32."""
    return F.cross_entropy(logits.float(), targets)


@dataclass(slots=True)
class RouterWatch:
    """Listens to every router of a model while it is open, so that the model itself knows nothing of training.

    >>> with RouterWatch.of(model) as routers:
    ...     logits = model(...)
    ...     loss = ... + 0.01 * routers.balance_loss() + 0.001 * routers.z_loss()
    """

    routers: list[nn.Module]
    num_active: int
    logits: list[Tensor] = field(default_factory=list["Tensor"])
    """[T, E] of each layer, in order."""
    _handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list["torch.utils.hooks.RemovableHandle"])

    @classmethod
    def of(cls, model: Transformer) -> "RouterWatch":
        """Watch all routers of `model`."""
        routers = [module.router for module in model.modules() if isinstance(module, MixtureOfExperts)]
        return cls(routers=list(routers), num_active=model.config.experts_per_token)

    def __enter__(self) -> "RouterWatch":
        self.logits.clear()
        for router in self.routers:
            self._handles.append(router.register_forward_hook(lambda _m, _i, out: self.logits.append(out.float())))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def loads(self) -> Tensor:
        """[L, E]: the share of choices that each expert of each layer got; a row sums to 1."""
        shares: list[Tensor] = []
        for logits_TE in self.logits:
            ids = logits_TE.detach().topk(self.num_active, dim=-1).indices.flatten()
            shares.append(ids.bincount(minlength=logits_TE.shape[-1]).float() / ids.numel())
        return torch.stack(shares)

    def balance_loss(self) -> Tensor:
        """E times the sum over experts of load and mean probability, averaged over layers: 1 when all are even.

        Probabilities of the full softmax, so that experts that were not chosen get a gradient too (Fedus et al. 2021).
        """
        mean_LE = torch.stack([logits_TE.softmax(dim=-1).mean(dim=0) for logits_TE in self.logits])
        return (self.loads() * mean_LE).sum(dim=-1).mean() * mean_LE.shape[-1]

    def z_loss(self) -> Tensor:
        """Mean squared log-partition of the routers, which keeps their logits small (Zoph et al. 2022)."""
        return torch.stack([logits_TE.logsumexp(dim=-1).square().mean() for logits_TE in self.logits]).mean()
