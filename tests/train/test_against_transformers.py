"""Twenty steps of AdamW side by side with transformers' own model, loss and auxiliary loss, in float32.

Ours go through the loop; theirs are `GptOssForCausalLM` with labels and `output_router_logits`, and torch's AdamW.
"""

from dataclasses import replace

import pytest
import torch
from tests.model.oracles import random_tensors, small, transformers_model, transformers_name
from tests.train.small import batch_of, loop_of

from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.train.optim import BETAS, EPS

CONFIG = small(num_hidden_layers=2)
STEPS, RATE, DECAY = 20, 1e-3, 0.01
COEFFICIENT = 0.02
LIMIT = 1e-5


class Given:
    """One sequence a step; the last eight of its tokens count twice as much where weighted."""

    def __init__(self):
        self.batches = [batch_of((40,), seed, vocab_size=CONFIG.vocab_size) for seed in range(STEPS)]

    def next(self, step):
        return [self.batches[step]]

    def state(self):
        return {}

    def accounting(self):
        return {}


def ours_named(name, tensor):
    return tensor.transpose(1, 2) if name.endswith((".gate_up", ".down")) else tensor


def theirs(tensors):
    """Losses and gradients of each step, and the weights at the end, under our names."""
    model = transformers_model(CONFIG, tensors).train()
    model.router_aux_loss_coef = COEFFICIENT
    named = {name: model.get_parameter(transformers_name(name)) for name in tensors}
    decayed = [p for name, p in named.items() if not name.endswith(("bias", "scale", "sinks"))]
    others = [p for name, p in named.items() if name.endswith(("bias", "scale", "sinks"))]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)
    steps = []
    for batch in Given().batches:
        ids = batch.token_ids[None]
        out = model(ids, labels=ids, output_router_logits=True, use_cache=False)
        out.loss.backward()
        gradients = {name: ours_named(name, p.grad).clone() for name, p in named.items()}
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        steps.append((float(out.loss.detach()), float(out.aux_loss.detach()), norm, gradients))
        adamw.step()
        adamw.zero_grad()
    return steps, {name: ours_named(name, p.detach()) for name, p in named.items()}


def ours(tensors, out):
    """The same of the loop."""
    copies = [(name, tensor.clone()) for name, tensor in tensors.items()]
    model = fill(build(CONFIG, select("torch")), copies, dtype=torch.float32).requires_grad_(True)
    lines = []
    loop = loop_of(
        out,
        model=model,
        rate=RATE,
        qat=False,
        stored=torch.float32,
        feed=Given(),
        clip=1.0,
        report=lines.append,
        balance_pooled=True,
        balance_coefficient=COEFFICIENT * CONFIG.experts_per_token,  # transformers' figure is K times ours.
        z_coefficient=0.0,
        save_every=100,
    )
    loop.schedule = replace(loop.schedule, steps=STEPS, warmup_steps=0, decay_steps=0)
    gradients, step = [], loop.masters.step

    def spy(factor, *, clip):
        gradients.append({name: gradient.clone() for name, gradient in loop.masters.gradients.items()})
        return step(factor, clip=clip)

    loop.masters = Spied(loop.masters, spy)
    loop.run()
    logged = [line for line in lines if "loss" in line]
    return logged, gradients, {name: parameter.detach() for name, parameter in model.named_parameters()}


class Spied:
    """Masters whose steps are looked at first."""

    def __init__(self, masters, step):
        self._masters, self.step = masters, step

    def __getattr__(self, name):
        return getattr(self._masters, name)


def test_losses_gradients_and_weights_over_twenty_steps(tmp_path):
    tensors = random_tensors(CONFIG)
    expected, their_weights = theirs(tensors)
    logged, gradients, weights = ours(tensors, tmp_path)
    assert len(logged) == len(gradients) == len(expected) == STEPS
    off_loss, off_gradient = 0.0, 0.0
    for line, gradient, (loss, auxiliary, norm, right) in zip(logged, gradients, expected, strict=True):
        balance = line["balance"] * CONFIG.experts_per_token
        off_loss = max(off_loss, abs(line["loss"] + COEFFICIENT * balance - loss) / loss)
        assert balance == pytest.approx(auxiliary, rel=LIMIT)
        assert line["gradient_norm"] == pytest.approx(norm, rel=LIMIT)
        for name, their in right.items():
            largest = float(their.abs().max())
            assert largest > 0, name
            off_gradient = max(off_gradient, float((gradient[name] - their).norm() / their.norm()))
    off_weight = max(float((weights[name] - w).norm() / w.norm()) for name, w in their_weights.items())
    print(f"loss {off_loss:.1e}, gradients {off_gradient:.1e}, weights {off_weight:.1e}")
    assert off_loss <= LIMIT and off_gradient <= LIMIT and off_weight <= LIMIT
    assert logged[-1]["loss"] < logged[0]["loss"]
    moved = min(float((their_weights[name] - tensors[name]).norm() / tensors[name].norm()) for name in tensors)
    assert moved > 100 * LIMIT  # Against weights that stood still the comparison would mean nothing.
