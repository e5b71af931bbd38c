"""Rollouts: token ids appended and never rendered again, log-probabilities and experts as they were drawn."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ossia.errors import DataError
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import cpu
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.reply import Reply
from ossia.train.loss import hidden, logprobs
from ossia.train.rl.environment import Outcome, Prompt
from ossia.train.rl.feed import Weighed, collate
from ossia.train.rl.policy import packed
from ossia.train.rl.rollout import Roller, Rollout
from ossia.train.routers import RouterWatch

from .conftest import Parity, Told, attempts

NATIVE = pytest.mark.skipif(not cpu.available(), reason="needs the native kernels")
ACTING = [pytest.param(lambda model: model, id="itself"), pytest.param(packed, id="packed", marks=NATIVE)]


@pytest.fixture
def roller(tokenizer: Tokenizer) -> Roller:
    return Roller(tokenizer=tokenizer, max_tokens=12, context=256, max_batch=4)


def trained_logprobs(model: Transformer, rollouts: list[Rollout], *, replay: bool = True) -> torch.Tensor:
    batch = collate([Weighed(rollout=each, advantage=1.0) for each in rollouts], replay=replay)
    with torch.no_grad(), RouterWatch.of(model, batch.expert_ids):
        return logprobs(model, hidden(model, batch), batch.targets)


def bf16_values(model: Transformer) -> Transformer:
    """With what a checkpoint can hold in all but the experts, which are on the grid of MXFP4 already."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


@pytest.mark.parametrize(
    ("acting", "tolerance"),
    [
        pytest.param(lambda model: model, 1e-5, id="itself"),
        pytest.param(packed, 1e-2, id="packed", marks=NATIVE),  # Which holds keys and values in BF16.
    ],
)
def test_training_computes_the_log_probabilities_that_were_sampled(
    policy: Transformer, roller: Roller, acting: Callable[[Transformer], Transformer], tolerance: float
) -> None:
    rollouts = roller(acting(bf16_values(policy)), attempts(Parity(), problems=3, size=4))
    sampled = torch.tensor([each for rollout in rollouts for each in rollout.logprobs])
    torch.testing.assert_close(trained_logprobs(policy, rollouts), sampled, rtol=0, atol=tolerance)


def test_replayed_experts_are_those_that_compute(policy: Transformer, roller: Roller) -> None:
    rollouts = roller(policy, attempts(Parity(), size=2))
    others = [replace(each, expert_ids=(each.expert_ids + 1) % 4) for each in rollouts]
    assert (trained_logprobs(policy, others) - trained_logprobs(policy, rollouts)).abs().max() > 1e-3
    without = trained_logprobs(policy, others, replay=False)
    torch.testing.assert_close(without, trained_logprobs(policy, rollouts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("acting", ACTING)
def test_the_experts_of_every_token_that_was_read_are_recorded(
    policy: Transformer, roller: Roller, acting: Callable[[Transformer], Transformer]
) -> None:
    for rollout in roller(acting(bf16_values(policy)), attempts(Parity(), problems=3, size=4)):
        length = len(rollout.token_ids)
        with torch.no_grad(), RouterWatch.of(policy) as routers:
            policy.hidden(torch.tensor(rollout.token_ids), torch.arange(length), Packed(policy.kernels, (length,)))
        expected = torch.stack([routers.chosen[layer] for layer in range(2)])
        assert rollout.expert_ids.shape == (2, length, 2)
        assert torch.equal(rollout.expert_ids[:, :-1].sort(dim=-1).values, expected[:, :-1].sort(dim=-1).values)
        assert (rollout.expert_ids[:, -1] == -1).all()


@NATIVE
def test_a_rollout_does_not_depend_on_what_runs_beside_it(policy: Transformer, roller: Roller) -> None:
    model = packed(policy)
    together = roller(model, attempts(Parity(), problems=2, size=3))
    alone = [roller(model, [one])[0] for one in attempts(Parity(), problems=2, size=3)]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert [each.logprobs for each in together] == [each.logprobs for each in alone]
    assert len({tuple(each.token_ids) for each in together}) == 6


def test_turns_are_appended_and_never_rendered_again(
    scripted: Callable[..., Transformer], roller: Roller, tokenizer: Tokenizer, said: Callable[..., list[int]]
) -> None:
    """Odd spaces and a header in an unusual order would not survive being parsed and rendered again."""
    call = said(
        "<|channel|>", "analysis", "<|message|>", "I  ask. ", "<|end|>",
        "<|start|>", "assistant", "<|channel|>", "commentary to=functions.dice ", "<|constrain|>", "json",
        "<|message|>", '{ "n" :1}', "<|call|>",
    )  # fmt: skip
    final = said("<|channel|>", "final", "<|message|>", "Six.", "<|return|>")

    def result(reply: Reply) -> Outcome:
        assert [each["function"] for each in reply.tool_calls] == [{"name": "dice", "arguments": '{ "n" :1}'}]
        message = {"role": "tool", "tool_call_id": reply.tool_calls[0]["id"], "content": "6"}
        return Outcome(reward=0.25, done=False, messages=[message])

    again = Outcome(reward=0.0, done=False, messages=[{"role": "user", "content": "Sure?"}])
    told = Told([result, again, Outcome(reward=0.75)])
    model = scripted([*call, *final, *final])
    rollout = replace(roller, max_tokens=40)(model, attempts(told))[0]
    dice = said(
        "<|start|>", "functions.dice", " to=assistant", "<|channel|>", "commentary", "<|message|>", "6", "<|end|>"
    )
    sure = said("<|start|>", "user", "<|message|>", "Sure?", "<|end|>")
    begin = said("<|start|>", "assistant")
    expected = [*call, *dice, *begin, *final, *sure, *begin, *final]
    prompt = len(rollout.token_ids) - len(expected)
    assert rollout.token_ids[prompt:] == expected
    drawn = [(call, True), (dice, False), (begin, False), (final, True), (sure, False), (begin, False), (final, True)]
    assert rollout.drawn == [False] * prompt + [flag for ids, flag in drawn for _ in ids]
    assert rollout.logprobs == pytest.approx([0.0] * (len(call) + 2 * len(final)))
    assert (rollout.reward, rollout.turns, rollout.cut, rollout.solved) == (1.0, 3, False, True)
    assert [reply.final for reply in told.replies] == ["", "Six.", "Six."]
    assert (rollout.expert_ids[:, :-1] >= 0).all()


def test_a_call_counts_only_where_it_ends_as_one(
    scripted: Callable[..., Transformer], roller: Roller, said: Callable[..., list[int]]
) -> None:
    turn = said("<|channel|>", "commentary to=functions.dice", "<|message|>", "{}", "<|return|>")
    told = Told([Outcome(reward=0.0)])
    roller(scripted(turn), attempts(told))
    assert told.replies[0].tool_calls == ()


@pytest.mark.parametrize(
    ("change", "turns"), [({"max_tokens": 3}, 1), ({"max_turns": 2}, 2), ({"context": 94}, 1)], ids=str
)
def test_an_episode_that_does_not_end_is_cut(
    scripted: Callable[..., Transformer],
    roller: Roller,
    said: Callable[..., list[int]],
    change: dict[str, Any],
    turns: int,
) -> None:
    final = said("<|channel|>", "final", "<|message|>", "Yes", "<|return|>")
    more = Outcome(reward=0.0, done=False, messages=[{"role": "user", "content": "And now? " * 5}])
    rollout = replace(roller, **change)(scripted(final * 9), attempts(Told([more] * 9)))[0]
    assert (rollout.cut, rollout.turns) == (True, turns)
    assert len(rollout.token_ids) <= replace(roller, **change).context


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([{"role": "assistant", "content": "I am you."}], "its messages speak as the assistant"),
        (
            [{"role": "tool", "tool_call_id": "x", "content": ""}],
            "tool_call_id is 'x': no earlier tool call has that id",
        ),
        ([{"role": "elf", "content": ""}], "role is 'elf'"),
    ],
)
def test_messages_that_cannot_be_rendered_are_refused(
    scripted: Callable[..., Transformer], roller: Roller, said: Callable[..., list[int]], messages: Any, line: str
) -> None:
    final = said("<|channel|>", "final", "<|message|>", "Yes", "<|return|>")
    told = Told([Outcome(reward=0.0, done=False, messages=messages)])
    with pytest.raises(DataError, match=rf"^environment toy, problem 0: .*{line}"):
        roller(scripted(final), attempts(told))


def test_a_prompt_without_room_for_an_answer_is_refused(policy: Transformer, roller: Roller) -> None:
    told = Told([], prompt=Prompt(messages=[{"role": "user", "content": "word " * 300}]))
    with pytest.raises(DataError, match=r"^environment toy, problem 0: the prompt has \d+ tokens, no room"):
        roller(policy, attempts(told))
