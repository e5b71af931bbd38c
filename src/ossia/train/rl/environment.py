"""What a policy practises on: a problem that is a function of its index, and a reward for what it does about it.

    environment.reset(index) → episode            episode.prompt          the conversation that the policy answers
                                                  episode.step(reply)     → reward, and either the end or new messages

An environment of one's own is a class with `reset`, made as `Class(split=..., seed=...)`; it names itself as
`module:Class` or `path/to/file.py:Class`. Its problems of split "heldout" must not be among those of "train".
"""

import importlib
import importlib.util
import math
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from ossia.demo.curriculum.grading import grade
from ossia.demo.curriculum.mixture import EVALUATION_ONLY, FAMILIES, sample
from ossia.demo.curriculum.sample import Sample, is_heldout, normalise
from ossia.errors import ConfigError, DataError, OssiaError
from ossia.reply import Reply

Split = Literal["train", "heldout"]

SOLVED = 1.0
"""An episode whose rewards add up to this is solved."""
GYM = "reasoning-gym"
_MOST_DRAWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The conversation that an episode opens with."""

    messages: Sequence[Mapping[str, Any]]
    """OpenAI form, the user's turn last."""
    tools: Sequence[Mapping[str, Any]] = ()
    """OpenAI's function tools, which the environment answers for."""
    effort: str = "medium"
    date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a reply."""

    reward: float
    """Finite; those of an episode add up, and a sum of 1 is a solved problem."""
    done: bool = True
    messages: Sequence[Mapping[str, Any]] = ()
    """Where the episode goes on: results of the calls, each with the call's id, or a new message of the user."""


class Episode(Protocol):
    """One attempt at a problem."""

    @property
    def prompt(self) -> Prompt:
        """How it begins."""
        ...

    def step(self, reply: Reply) -> Outcome:
        """What the policy's next turn is worth and how it goes on. `finish_reason` "length" is a turn that was cut off:
        nothing follows it, whatever the outcome says."""
        ...


class Environment(Protocol):
    """Problems without end."""

    def reset(self, index: int) -> Episode:
        """A new attempt at the problem of this index, from 0 on; the same index is the same problem."""
        ...


def environment_of(specs: Sequence[str], *, split: Split, seed: int) -> "Checked":
    """The environment that the specs name; of several, each gives every n-th problem.

    A spec is a family of the demo curriculum ("gcd"), "reasoning-gym:NAME" with settings of that dataset if need be
    ("reasoning-gym:gcd?max_value=60&effort=low"), or a class of one's own ("module:Class", "file.py:Class").
    Raises ConfigError for a spec that names none of these.
    """
    if not specs:
        raise ConfigError("environment names nothing: give a family of the demo curriculum, or module:Class")
    return Checked(parts=tuple((spec, _environment(spec, split, seed)) for spec in specs))


def _environment(spec: str, split: Split, seed: int) -> Environment:
    name, colon, rest = spec.rpartition(":")
    if not colon:
        if spec not in (*FAMILIES, *EVALUATION_ONLY):
            raise ConfigError(
                f"environment {spec!r} is no family of the demo curriculum: give one of {', '.join(FAMILIES)}, "
                f"{GYM}:NAME, or module:Class"
            )
        return Curriculum(family=spec, split=split, seed=seed)
    if name == GYM:
        return ReasoningGym.of(rest, split=split, seed=seed)
    return _own(spec, name, rest, split, seed)


# -------------------------------------------------------------------- families of the demo curriculum


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """Exercises of one family, at all efforts; 1 for what its grader calls right."""

    family: str
    split: Split
    seed: int

    def reset(self, index: int) -> "CurriculumEpisode":
        """See `Environment`. A family for evaluation alone is a DataError in training."""
        return CurriculumEpisode(sample(self.seed, index, split=self.split, family=self.family))


@dataclass(frozen=True, slots=True)
class CurriculumEpisode:
    """One exercise, one turn."""

    sample: Sample

    @property
    def prompt(self) -> Prompt:
        """See `Episode`."""
        one = self.sample
        return Prompt(messages=one.prompt, tools=one.tools, effort=one.effort, date=one.date)

    def step(self, reply: Reply) -> Outcome:
        """See `Episode`."""
        ended = reply.finish_reason != "length"
        right = ended and grade(self.sample, reply.final, [dict(call) for call in reply.tool_calls])
        return Outcome(reward=float(right))


# -------------------------------------------------------------------- reasoning-gym


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGym:
    """Questions of one dataset of reasoning-gym, each kept for one split by a hash of its text; its own scorer."""

    dataset: Any
    effort: str
    split: Split
    seed: int

    @classmethod
    def of(cls, query: str, *, split: Split, seed: int) -> "ReasoningGym":
        """From "NAME?setting=value&...". Raises ConfigError for an unknown dataset or setting."""
        try:
            import reasoning_gym
        except ImportError:
            raise ConfigError(f"{GYM} is not installed: pip install 'ossia[train]'") from None
        name, _, tail = query.partition("?")
        settings: dict[str, Any] = {}
        for pair in filter(None, tail.split("&")):
            key, _, value = pair.partition("=")
            try:
                settings[key] = literal_eval(value)
            except (ValueError, SyntaxError):
                settings[key] = value
        effort = str(settings.pop("effort", "medium"))
        try:
            dataset = reasoning_gym.create_dataset(name, size=2**31, seed=2025, **settings)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"environment {GYM}:{query}: {error}") from None
        return cls(dataset=dataset, effort=effort, split=split, seed=seed)

    def reset(self, index: int) -> "GymEpisode":
        """See `Environment`."""
        rng = Random(f"{self.seed}/{self.split}/{index}")
        for _ in range(_MOST_DRAWS):
            entry = self.dataset[rng.getrandbits(30)]
            if is_heldout(normalise(entry["question"])) == (self.split == "heldout"):
                return GymEpisode(dataset=self.dataset, entry=entry, effort=self.effort)
        raise DataError(f"there is no question of split {self.split} in {_MOST_DRAWS:,} draws: widen its settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class GymEpisode:
    """One question, one turn."""

    dataset: Any
    entry: Any
    effort: str

    @property
    def prompt(self) -> Prompt:
        """See `Episode`."""
        return Prompt(messages=[{"role": "user", "content": self.entry["question"].strip()}], effort=self.effort)

    def step(self, reply: Reply) -> Outcome:
        """See `Episode`."""
        if reply.finish_reason == "length" or not reply.final:
            return Outcome(reward=0.0)
        return Outcome(reward=float(self.dataset.score_answer(answer=reply.final.strip(), entry=self.entry)))


# -------------------------------------------------------------------- one's own


def _own(spec: str, place: str, name: str, split: Split, seed: int) -> Environment:
    try:
        made = getattr(_module(place), name)(split=split, seed=seed)
    except Exception as error:  # The boundary to code that is not ours.
        raise ConfigError(f"environment {spec} cannot be made: {_said(error)}") from error
    if not callable(getattr(made, "reset", None)):
        raise ConfigError(f"environment {spec} has no method reset(index): see ossia.train.rl.environment")
    return made


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Environments in turn; what goes wrong in one is a DataError that names it, the problem, and what it did."""

    parts: tuple[tuple[str, Environment], ...]

    def reset(self, index: int) -> "CheckedEpisode":
        """See `Environment`."""
        inner, place = divmod(index, len(self.parts))
        name, environment = self.parts[place]
        where = f"environment {name}, problem {inner}"
        try:
            episode = environment.reset(inner)
            prompt = episode.prompt
        except OssiaError as error:
            raise DataError(f"{where}: {error}") from None
        except Exception as error:  # The boundary to code that is not ours.
            raise DataError(f"{where}: reset failed with {_said(error)}") from error
        if not isinstance(prompt, Prompt):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"{where}: its prompt is {type(prompt).__name__}: give a Prompt")
        return CheckedEpisode(episode=episode, prompt=prompt, where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedEpisode:
    """See `Checked`."""

    episode: Episode
    prompt: Prompt
    where: str
    """The environment and the problem, for messages."""

    def step(self, reply: Reply) -> Outcome:
        """See `Episode`. Raises DataError where the step fails, gives no Outcome, or a reward that is not finite."""
        try:
            outcome = self.episode.step(reply)
        except Exception as error:  # The boundary to code that is not ours.
            raise DataError(f"{self.where}: step failed with {_said(error)}") from error
        if not isinstance(outcome, Outcome):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"{self.where}: step gave {type(outcome).__name__}: give an Outcome")
        reward: Any = outcome.reward
        if not isinstance(reward, (int, float)) or not math.isfinite(reward):
            raise DataError(f"{self.where}: the reward is {reward!r}: give a finite number")
        if not outcome.done and not outcome.messages:
            raise DataError(f"{self.where}: the episode goes on without a message: give one, or done=True")
        return outcome


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
