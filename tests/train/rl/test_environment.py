"""Problems, what they are worth, and one clear line for what goes wrong in them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ossia.errors import ConfigError, DataError
from ossia.reply import Reply, Timings, Usage
from ossia.train.rl.environment import Checked, Outcome, Prompt, environment_of

REPLY = Reply(
    reasoning="",
    final="",
    commentary="",
    tool_calls=(),
    finish_reason="stop",
    usage=Usage(prompt_tokens=0, completion_tokens=1, reasoning_tokens=0),
    timings=Timings(prompt_seconds=0.0, answer_seconds=0.0, tokens_per_second=0.0),
    assumed=(),
)


def answered(final: str) -> Reply:
    return replace(REPLY, final=final)


def questions(spec: str, split: Any, count: int = 300) -> set[str]:
    environment = environment_of([spec], split=split, seed=0)
    return {environment.reset(index).prompt.messages[-1]["content"].strip().lower() for index in range(count)}


@pytest.mark.parametrize("spec", ["gcd", "reasoning-gym:gcd?max_value=60"])
def test_a_right_answer_is_worth_one_and_a_wrong_or_missing_one_nothing(spec: str) -> None:
    environment = environment_of([spec], split="train", seed=0)
    for index in range(5):
        episode = environment.reset(index)
        numbers = [
            int(word.strip(".,"))
            for word in episode.prompt.messages[-1]["content"].split()
            if word.strip(".,").isdigit()
        ]
        right = str(math.gcd(*numbers))
        assert episode.step(answered(right)) == Outcome(reward=1.0)
        assert episode.step(answered("1000")).reward == 0
        assert episode.step(answered("")).reward == 0
        assert episode.step(replace(answered(right), finish_reason="length")).reward == 0


def test_a_problem_is_a_function_of_its_index_and_the_seed() -> None:
    first, again, other = (environment_of(["gcd"], split="train", seed=seed) for seed in (0, 0, 1))
    prompts = [[each.reset(index).prompt for index in range(20)] for each in (first, again, other)]
    assert prompts[0] == prompts[1] != prompts[2]


@pytest.mark.parametrize("spec", ["gcd", "reasoning-gym:gcd?max_value=60"])
def test_held_out_problems_are_never_practised(spec: str) -> None:
    assert not questions(spec, "train") & questions(spec, "heldout")


def test_calls_of_tools_are_graded() -> None:
    episode = environment_of(["tool_call"], split="train", seed=0).reset(0)
    assert episode.prompt.tools
    expected = episode.episode.sample.call  # type: ignore[attr-defined]
    call = {"id": "1", "type": "function", "function": {"name": expected["name"], "arguments": "{}"}}
    assert episode.step(replace(REPLY, tool_calls=(call,))).reward == 0


def test_several_take_turns() -> None:
    mixed = environment_of(["gcd", "addition"], split="train", seed=0)
    alone = environment_of(["addition"], split="train", seed=0)
    assert mixed.reset(5).prompt == alone.reset(2).prompt


def test_reasoning_gym_takes_settings_and_an_effort() -> None:
    environment = environment_of(["reasoning-gym:gcd?max_value=60&effort=low"], split="train", seed=0)
    assert environment.reset(0).prompt.effort == "low"


OWN = """
from ossia.train.rl.environment import Outcome, Prompt

class Double:
    def __init__(self, split, seed):
        self.add = seed + (split == "heldout")

    def reset(self, index):
        self.index = index + self.add
        return self

    @property
    def prompt(self):
        return Prompt(messages=[{"role": "user", "content": f"Double {self.index}."}])

    def step(self, reply):
        return Outcome(reward=float(reply.final == str(2 * self.index)))
"""


def test_an_environment_of_ones_own_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "double.py"
    path.write_text(OWN)
    episode = environment_of([f"{path}:Double"], split="heldout", seed=3).reset(4)
    assert episode.prompt.messages[0]["content"] == "Double 8."
    assert episode.step(answered("16")).reward == 1


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("gdc", "environment 'gdc' is no family of the demo curriculum: give one of addition"),
        ("reasoning-gym:nothing", "environment reasoning-gym:nothing: "),
        ("reasoning-gym:gcd?size_of=3", "environment reasoning-gym:gcd?size_of=3: "),
        ("no_such_module:Thing", "environment no_such_module:Thing cannot be made: ModuleNotFoundError"),
        ("math:pi", "environment math:pi cannot be made: TypeError"),
        ("fractions:Absent", "environment fractions:Absent cannot be made: AttributeError"),
    ],
)
def test_a_spec_that_names_nothing_is_refused_in_one_line(spec: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        environment_of([spec], split="train", seed=0)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_no_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="environment names nothing"):
        environment_of([], split="train", seed=0)


def test_a_family_for_evaluation_alone_is_not_practised() -> None:
    with pytest.raises(DataError, match=r"environment tool_call_invented, problem 0: .* for evaluation alone"):
        environment_of(["tool_call_invented"], split="train", seed=0).reset(0)


class Bad:
    """An environment that does as it is told."""

    prompt: Any = Prompt(messages=[{"role": "user", "content": "Hi"}])

    def __init__(self, result: Any, prompt: Any = None) -> None:
        self.result = result
        self.prompt = prompt or self.prompt

    def reset(self, index: int) -> "Bad":
        if self.result is RuntimeError:
            raise RuntimeError("the simulator\nis away")
        return self

    def step(self, reply: Reply) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (ValueError("no\nway"), "step failed with ValueError: no"),
        (KeyError(), "step failed with KeyError"),
        (None, "step gave NoneType: give an Outcome"),
        (1.0, "step gave float: give an Outcome"),
        (Outcome(reward=math.nan), "the reward is nan: give a finite number"),
        (Outcome(reward=-math.inf), "the reward is -inf: give a finite number"),
        (Outcome(reward=None), "the reward is None: give a finite number"),  # type: ignore[arg-type]
        (Outcome(reward=0, done=False), "the episode goes on without a message: give one, or done=True"),
    ],
)
def test_what_goes_wrong_in_a_step_is_one_line(result: Any, line: str) -> None:
    episode = Checked(parts=(("mine:Bad", Bad(result)),)).reset(7)
    with pytest.raises(DataError) as error:
        episode.step(REPLY)
    assert str(error.value) == f"environment mine:Bad, problem 7: {line}"


def test_what_goes_wrong_in_a_reset_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^environment a, problem 2: reset failed with RuntimeError: the simulator$"):
        Checked(parts=(("a", Bad(RuntimeError)),)).reset(2)
    with pytest.raises(DataError, match=r"^environment a, problem 0: its prompt is str: give a Prompt$"):
        Checked(parts=(("a", Bad(None, prompt="Hello")),)).reset(0)
