import math

import torch
from tests.train.small import run, small_model

from ossia.train.loss import RouterWatch, cross_entropy


def test_cross_entropy_is_the_mean_surprise_in_nats():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(7.0), 0.0]])
    expected = -(math.log(3 / 4) + math.log(1 / 8)) / 2
    assert math.isclose(float(cross_entropy(logits, torch.tensor([1, 1]))), expected, rel_tol=1e-6)


def test_balance_is_one_where_routers_are_indifferent_and_more_where_they_are_not():
    routers = RouterWatch(routers=[], num_active=2)
    torch.manual_seed(0)
    routers.logits = [torch.randn(20_000, 4) * 1e-3]
    assert abs(float(routers.balance_loss()) - 1) < 0.01
    routers.logits = [torch.randn(1000, 4) + torch.tensor([9.0, 9.0, 0.0, 0.0])]
    assert float(routers.balance_loss()) > 1.9
    assert routers.loads().tolist()[0][:2] == [0.5, 0.5]


def test_balance_and_z_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    routers = RouterWatch(routers=[], num_active=1)
    routers.logits = [logits]
    probabilities = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in logits.tolist()]
    load = [0.5, 0.5, 0.0]
    balance = 3 * sum(f * (a + b) / 2 for f, a, b in zip(load, *probabilities, strict=True))
    z = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits.tolist()) / 2
    assert math.isclose(float(routers.balance_loss()), balance, rel_tol=1e-6)
    assert math.isclose(float(routers.z_loss()), z, rel_tol=1e-6)


def test_watching_changes_no_logit_and_leaves_nothing_behind():
    model = small_model()
    plain = run(model)
    with RouterWatch.of(model) as routers:
        watched = run(model)
    assert torch.equal(plain, watched)
    assert [tuple(logits.shape) for logits in routers.logits] == [(50, 4), (50, 4)]
    run(model)
    assert len(routers.logits) == 2
    assert torch.allclose(routers.loads().sum(dim=-1), torch.ones(2))


def test_gradient_of_the_balance_loss_reaches_experts_that_were_not_chosen():
    logits = torch.tensor([[5.0, 0.0, -5.0]], requires_grad=True)
    routers = RouterWatch(routers=[], num_active=1)
    routers.logits = [logits]
    routers.balance_loss().backward()
    assert float(logits.grad[0, 0]) > 0
    assert float(logits.grad[0, 1]) < 0 and float(logits.grad[0, 2]) < 0
