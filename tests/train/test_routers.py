import math

import pytest
import torch
from tests.train.small import SMALL, batch_of, run, small_model

from ossia.errors import TrainingError
from ossia.train.loop import recompute
from ossia.train.loss import cross_entropy
from ossia.train.routers import CollapseAlarm, RouterWatch, load_metrics


def heard(logits, num_active):
    """A watch of one layer that heard this."""
    routers = RouterWatch(layers=[None])
    routers.logits = {0: logits}
    routers.chosen = {0: logits.topk(num_active, dim=-1).indices}
    return routers


def test_balance_is_one_where_routers_are_indifferent_and_more_where_they_are_not():
    torch.manual_seed(0)
    even = heard(torch.randn(20_000, 4) * 1e-3, 2)
    assert abs(float(even.balance()) / 20_000 - 1) < 0.01
    uneven = heard(torch.randn(1000, 4) + torch.tensor([9.0, 9.0, 0.0, 0.0]), 2)
    assert float(uneven.balance()) / 1000 > 1.9
    assert uneven.counts().tolist() == [[1000, 1000, 0, 0]]


def test_balance_z_and_entropy_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    routers = heard(logits, 1)
    rows = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in logits.tolist()]
    load = [0.5, 0.5, 0.0]
    assert float(routers.balance()) == pytest.approx(3 * sum(f * (a + b) for f, a, b in zip(load, *rows, strict=True)))
    assert float(routers.z()) == pytest.approx(
        sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits.tolist())
    )
    assert float(routers.entropy()) == pytest.approx(-sum(p * math.log(p) for row in rows for p in row))


def test_pooling_lets_layers_make_up_for_one_another():
    routers = RouterWatch(layers=[None, None])
    opposite = torch.tensor([[9.0, 0.0]] * 10), torch.tensor([[0.0, 9.0]] * 10)
    routers.logits = dict(enumerate(opposite))
    routers.chosen = {layer: logits.topk(1, dim=-1).indices for layer, logits in routers.logits.items()}
    assert float(routers.balance()) / 10 == pytest.approx(2, rel=1e-3)
    assert float(routers.balance(pooled=True)) / 10 == pytest.approx(1, rel=1e-3)


def test_watching_changes_no_logit_and_leaves_nothing_behind():
    model = small_model()
    plain = run(model)
    with RouterWatch.of(model) as routers:
        watched = run(model)
    assert torch.equal(plain, watched)
    assert [tuple(logits.shape) for logits in routers.logits.values()] == [(50, 4), (50, 4)]
    assert routers.counts().sum(dim=-1).tolist() == [100, 100]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradient_of_the_balance_loss_reaches_experts_that_were_not_chosen():
    logits = torch.tensor([[5.0, 0.0, -5.0]], requires_grad=True)
    heard(logits, 1).balance().backward()
    assert float(logits.grad[0, 0]) > 0
    assert float(logits.grad[0, 1]) < 0 and float(logits.grad[0, 2]) < 0


def gradients(model, batch, expert_ids=None):
    with RouterWatch.of(model, expert_ids) as routers:
        total, _ = cross_entropy(model, batch, routers)
        (total + 0.1 * routers.balance() + 0.1 * routers.z()).backward()
        counts = routers.counts()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return float(total.detach()), counts, found


@pytest.mark.parametrize("replay", [False, True])
def test_activations_made_again_count_once_and_change_no_gradient(replay):
    """The trunk knows nothing of it: the same names, the same bits; with replay the second pass is replayed too."""
    batch = batch_of((12, 7), 0)
    ids = torch.randint(0, 4, (2, 19, 1)).repeat(1, 1, 2) + torch.tensor([0, 1])
    expert_ids = ids % 4 if replay else None
    kept = gradients(small_model(), batch, expert_ids)
    model = small_model()
    recompute(model)
    again = gradients(model, batch, expert_ids)
    assert kept[0] == again[0]
    assert torch.equal(kept[1], again[1])
    assert kept[2].keys() == again[2].keys()
    assert all(torch.equal(gradient, again[2][name]) for name, gradient in kept[2].items())


def test_recorded_routing_is_replayed():
    model, batch = small_model(), batch_of((12, 7), 0)
    with RouterWatch.of(model) as routers:
        before, _ = cross_entropy(model, batch, routers)
    recorded = torch.stack([routers.chosen[0], routers.chosen[1]])
    with torch.no_grad():
        for block in model.layers:
            block.mlp.router.bias.add_(torch.tensor([3.0, -3.0, 3.0, -3.0]))
    with RouterWatch.of(model, recorded) as routers:
        cross_entropy(model, batch, routers)
    assert torch.equal(torch.stack([routers.chosen[0], routers.chosen[1]]), recorded)
    with torch.no_grad():
        for block in model.layers:
            block.mlp.router.bias.sub_(torch.tensor([3.0, -3.0, 3.0, -3.0]))
    with RouterWatch.of(model, recorded) as routers:
        same, _ = cross_entropy(model, batch, routers)
    assert float(same.detach()) == float(before.detach())


def test_what_was_not_recorded_is_chosen():
    model, batch = small_model(), batch_of((12, 7), 0)
    plain = gradients(model, batch)
    nothing = gradients(model, batch, torch.full((2, 19, 2), -1))
    assert plain[0] == nothing[0] and torch.equal(plain[1], nothing[1])


def test_loads_in_the_log():
    metrics = load_metrics(torch.tensor([[4.0, 4.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    assert metrics["load/0"] == [2, 2, 0, 0] and metrics["load/1"] == [1, 1, 1, 1]
    assert metrics["dead_experts"] == 2
    assert (metrics["largest_load"], metrics["smallest_load"]) == (2, 0)


HEALTHY, COLLAPSED = [30.0, 30.0, 30.0, 30.0], [60.0, 59.0, 1.0, 0.0]


def test_a_router_that_collapses_stops_the_run_by_name():
    alarm = CollapseAlarm(SMALL.experts_per_token, patience=3)
    for _ in range(2):
        alarm.hear(torch.tensor([HEALTHY, COLLAPSED]))
    with pytest.raises(TrainingError, match=r"layer 1: the router collapsed: 3 steps in a row .* the same 2 of 4 exp"):
        alarm.hear(torch.tensor([HEALTHY, COLLAPSED]))


def test_a_router_that_recovers_begins_anew_and_few_tokens_say_nothing():
    alarm = CollapseAlarm(SMALL.experts_per_token, patience=2)
    for counts in (COLLAPSED, HEALTHY, COLLAPSED, [5.0, 5.0, 0.0, 0.0], HEALTHY, COLLAPSED):
        alarm.hear(torch.tensor([counts]))
    assert alarm.streaks == [1]
    never = CollapseAlarm(SMALL.experts_per_token, patience=0)
    for _ in range(50):
        never.hear(torch.tensor([COLLAPSED]))
