"""One exercise of the demo model's curriculum, and the split that keeps held-out prompts out of training.

A `Sample` is a whole conversation in OpenAI form, ending with the assistant turn that is taught or graded, together
with what its grader needs. Whether a prompt is held out depends on its `prompt_key` alone, so no seed, phrasing,
effort or system message can carry a held-out problem into training.
"""

import hashlib
import re
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

Effort = Literal["low", "medium", "high"]
Split = Literal["train", "heldout"]
Check = Literal["integer", "division", "contains", "call", "decline", "comply", "reasoning_gym"]
Message = dict[str, Any]

EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")
HELDOUT_ONE_IN = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A conversation whose last message is the assistant's, and the expectation that grades a reply in its place."""

    family: str
    effort: Effort
    messages: list[Message]
    """OpenAI form; assistant messages carry `reasoning`, `content` and, for a call, `tool_calls`."""
    tools: list[dict[str, Any]]
    """Function tools in OpenAI form; empty when none is offered."""
    check: Check
    """Which rule of `grading.grade` applies."""
    answer: str = ""
    """The expected integer, `quotient remainder`, or puzzle entry."""
    keywords: tuple[str, ...] = ()
    """Texts a right reply contains, compared without case."""
    call: dict[str, Any] | None = None
    """The expected call: `name` and `arguments` (an object)."""
    keys: tuple[str, ...] = ()
    """What makes two prompts the same exercise, where that is not simply the user's text; one entry a turn."""
    date: str | None = None
    """Current date of the system message, YYYY-MM-DD; None leaves it out."""

    @property
    def prompt_keys(self) -> tuple[str, ...]:
        """One key for each request of the user, the graded one last; prompts of equal key share a side of the split."""
        return self.keys or tuple(normalise(m["content"]) for m in self.messages if m["role"] == "user")

    @property
    def prompt_key(self) -> str:
        """All keys as one text: equal for two samples of the same exercise."""
        return ";".join(self.prompt_keys)

    def belongs(self, split: Split) -> bool:
        """Whether a split may have the sample: in training no turn is held out, in evaluation the last one is."""
        if split == "train":
            return not any(map(is_heldout, self.prompt_keys))
        return is_heldout(self.prompt_keys[-1])

    @property
    def prompt(self) -> list[Message]:
        """The messages before the assistant turn that is graded."""
        return self.messages[:-1]


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends: `What is  2 + 2?` and `what is 2 + 2` are one prompt."""
    return re.sub(r"\s+", " ", text).strip(" .?!=\n").lower()


def is_heldout(key: str) -> bool:
    """Whether prompts with this key are kept for evaluation: one in 32, by a hash that no interpreter run changes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % HELDOUT_ONE_IN == 0


# -------------------------------------------------------------------- what every family decides alike

DEVELOPER_INSTRUCTIONS = (
    "You are a helpful assistant.",
    "Be brief.",
    "Answer clearly.",
    "Answer the user.",
    "You are a friendly helper.",
    "Be polite and short.",
    "Keep answers short.",
    "You are a careful assistant. Check your work.",
    "Answer in English.",
    "Help the user with the task.",
)


def draw_effort(rng: Random) -> Effort:
    """Low half of the time: the shortest work teaches the most steps a token."""
    return rng.choices(EFFORTS, (48, 34, 18))[0]


def draw_date(rng: Random) -> str | None:
    """Mostly none; else a day of 2024 to 2027."""
    if rng.random() < 0.75:
        return None
    return f"{rng.randint(2024, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def opening(rng: Random) -> list[Message]:
    """A developer's instruction, in one conversation of seven, else nothing."""
    if rng.random() < 0.15:
        return [{"role": "system", "content": rng.choice(DEVELOPER_INSTRUCTIONS)}]
    return []


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(reasoning: str, final: str) -> Message:
    """An assistant message that thinks, then answers."""
    return {"role": "assistant", "reasoning": reasoning, "content": final}
