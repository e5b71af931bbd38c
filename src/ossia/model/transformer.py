"""gpt-oss, whole: tokens in, logits out, in one sitting.

A pre-norm transformer. Attention is grouped-query with rotary positions and a learned sink a head; even layers see a
window, odd ones everything. The feed-forward part is a mixture of experts: a linear router picks K of E, the softmax is
over the chosen, each expert is a clamped SwiGLU. All sequences of a call lie end to end, so a packed training batch, a
ragged prefill and a decode step are the same shape; how tokens find each other's keys is the business of `Attend`.

Shapes: T tokens, D hidden, N query heads, G key/value heads, H head size, E experts, K experts a token, V vocabulary,
R rows of which logits are wanted.
"""

import torch
from torch import Tensor, nn

from ossia.config import ModelConfig
from ossia.errors import KernelError
from ossia.kernels import Kernels
from ossia.model.attention import Attend
from ossia.model.experts import DenseExperts, Experts
from ossia.model.linear import Unembedding
from ossia.model.rope import angles

NOT_NUMBERS = "the model's logits are not numbers: the checkpoint is damaged, or its type overflows (try float32)"


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, in float32."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.eps = config.rms_norm_eps
        self.scale = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, D]."""
        return self.kernels.rms_norm(x, self.scale, self.eps)


class Attention(nn.Module):
    """Queries, keys and values with biases, rotary positions, a sink logit a head, and the output projection."""

    def __init__(self, config: ModelConfig, kernels: Kernels, layer: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.layer = layer
        self.window = config.window(layer)
        self.head_dim = config.head_dim
        self.q = nn.Linear(config.hidden_size, config.q_dim)
        self.k = nn.Linear(config.hidden_size, config.kv_dim)
        self.v = nn.Linear(config.hidden_size, config.kv_dim)
        self.o = nn.Linear(config.q_dim, config.hidden_size)
        self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, D]; cos, sin [T, H/2] → [T, D]."""
        q_TNH, k_TGH, v_TGH = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q, self.k, self.v))
        q_TNH, k_TGH = self.kernels.rope(q_TNH, cos, sin), self.kernels.rope(k_TGH, cos, sin)
        out_TNH = attend.attend(self.layer, q_TNH, k_TGH, v_TGH, self.sinks, self.window)
        return self.o(out_TNH.flatten(-2))


class MixtureOfExperts(nn.Module):
    """The router and its experts."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.num_active = config.experts_per_token
        self.router = nn.Linear(config.hidden_size, config.num_experts)
        self.experts: Experts = DenseExperts(config, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, D]."""
        logits_TK, ids_TK = self.router(x).topk(self.num_active, dim=-1)
        return self.experts(x, ids_TK, logits_TK.softmax(dim=-1))


class Block(nn.Module):
    """One layer: attention, then experts, each behind a norm and beside the residual stream."""

    def __init__(self, config: ModelConfig, kernels: Kernels, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config, kernels)
        self.attention = Attention(config, kernels, layer)
        self.mlp_norm = RMSNorm(config, kernels)
        self.mlp = MixtureOfExperts(config, kernels)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, D]; cos, sin [T, H/2] → [T, D]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """The model. Parameters are uninitialised: `model.adapt` builds one and fills it, `train` initialises a new one."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        # Not nn.Embedding(...): that draws values, for which the meta device imports a compiler, in seconds.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config, kernels, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config, kernels)
        self.unembedding = Unembedding(config.hidden_size, config.vocab_size)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Logits [R, V] of the token after each of `rows` (int64 [R]; every row where None).

        token_ids and positions are int64 [T]; positions count from 0 within each sequence.
        """
        x_TD = self.hidden(token_ids, positions, attend)
        return self.unembedding(x_TD if rows is None else x_TD[rows])

    def best(self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """The likeliest token after each of `rows`, int64 [R]: the first largest of the logits that `forward` gives.

        Raises KernelError where a logit is NaN.
        """
        x_TD = self.hidden(token_ids, positions, attend)
        ids_R, logits_R = self.unembedding.best(x_TD if rows is None else x_TD[rows])
        if logits_R.isnan().any():
            raise KernelError(NOT_NUMBERS)
        return ids_R

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The normed residual stream [T, D] that the unembedding reads."""
        cos_TH, sin_TH = angles(self.config, positions)
        x_TD = self.embedding(token_ids)
        for block in self.layers:
            x_TD = block(x_TD, cos_TH, sin_TH, attend)
        return self.norm(x_TD)
