import json

import pytest
from click.testing import CliRunner

import ossia
from ossia.cli import cli
from ossia.demo.curriculum.mixture import sample
from ossia.demo.curriculum.sample import is_heldout
from ossia.evals import heldout
from ossia.harmony import from_openai, render_training


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (95, 100, (0.8882, 0.9785)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval_against_published_values(right, count, interval):
    assert heldout.wilson(right, count) == pytest.approx(interval, abs=5e-4)


def test_prompts_are_held_out_distinct_and_repeatable():
    drawn = heldout.draw("addition", 40, seed=5)
    assert len({(one.prompt_key, one.effort) for one in drawn}) == 40
    assert all(is_heldout(one.prompt_key) for one in drawn)
    assert drawn == heldout.draw("addition", 40, seed=5) != heldout.draw("addition", 40, seed=6)


def answer_of(one, tokenizer):
    """What the model would have to generate to give the sample's own answer."""
    conversation = from_openai(one.messages, tools=one.tools or None, effort=one.effort, date=one.date)
    ids, learn = render_training(conversation, tokenizer)
    return [token for token, keep in zip(ids, learn, strict=True) if keep]


@pytest.mark.parametrize("family", heldout.ALL_FAMILIES)
def test_each_outcome_is_told_apart(family, tiny_tokenizer):
    one = sample(0, 0, split="heldout", family=family)
    right = answer_of(one, tiny_tokenizer)
    assert heldout._graded(one, right, tiny_tokenizer).outcome == "right"
    assert heldout._graded(one, right[:-1], tiny_tokenizer).outcome == "cut"
    header = tiny_tokenizer.encode("final")
    special = tiny_tokenizer.special
    empty = [special["<|channel|>"], *header, special["<|message|>"], special["<|return|>"]]
    assert heldout._graded(one, empty, tiny_tokenizer).outcome == "empty"
    wrong = [*empty[:-1], *tiny_tokenizer.encode("no idea: 123456789"), special["<|return|>"]]
    assert heldout._graded(one, wrong, tiny_tokenizer).outcome == "wrong"


def test_a_call_that_was_not_closed_as_one_is_wrong_and_a_refusal_is_counted(tiny_tokenizer):
    one = sample(0, 0, split="heldout", family="tool_call")
    right = answer_of(one, tiny_tokenizer)
    assert right[-1] == tiny_tokenizer.special["<|call|>"]
    returned = [*right[:-1], tiny_tokenizer.special["<|return|>"]]
    assert heldout._graded(one, returned, tiny_tokenizer).outcome != "right"
    misuse = sample(0, 0, split="heldout", family="misuse")
    assert heldout._graded(misuse, answer_of(misuse, tiny_tokenizer), tiny_tokenizer).declined
    assert not heldout._graded(one, right, tiny_tokenizer).declined


def test_a_model_that_says_42_is_right_where_42_is(tiny_model):
    llm = ossia.load(tiny_model)
    (result,) = heldout.evaluate(llm, ["addition"], count=30, seed=0, max_tokens=64)
    expected = sum(one.answer == "42" for one in heldout.draw("addition", 30, seed=0))
    assert result.count == 30
    assert result.outcomes == {k: v for k, v in (("right", expected), ("wrong", 30 - expected)) if v}
    assert result.accuracy == expected / 30


def test_the_command_prints_one_object_with_every_family_asked(tiny_model):
    arguments = [
        "eval",
        "--model",
        str(tiny_model),
        "--family",
        "addition",
        "--family",
        "misuse",
        "--count",
        "3",
        "--json",
    ]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert [row["family"] for row in report["families"]] == ["addition", "misuse"]
    assert all(sum(row["outcomes"].values()) == row["count"] <= 3 for row in report["families"])
    assert report["arithmetic"] == report["families"][0]["accuracy"]


def test_an_unknown_family_is_named(tiny_model):
    result = CliRunner().invoke(cli, ["eval", "--model", str(tiny_model), "--family", "poetry"])
    assert result.exit_code == 2
    assert "unknown family 'poetry'" in result.stderr
    assert result.stderr.count("\n") == 1
