"""Text to train on before any conversation: what conversations find hard, without their wrapping.

A document is a few exercises with their work, or a drill: the same words in prose, in JSON and in lists; words spelt,
counted and turned round; numbers compared and divided; tools whose names and arguments nobody has seen. Every token is
learnt, so a drill teaches copying many times as fast as a conversation with one call in it.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from ossia.demo.curriculum import scratch, tools, words
from ossia.demo.curriculum.mixture import sample
from ossia.demo.curriculum.puzzles import dataset
from ossia.demo.curriculum.sample import Sample, is_heldout, normalise


def text(seed: int, index: int) -> str:
    """The document at one place of an endless sequence: a function of its arguments alone.

    Whatever is held out for evaluation is left out here too.
    """
    rng = Random(f"{seed}/text/{index}")
    phase = int(index >= _LATER)
    kind = rng.choices(tuple(_KINDS), [shares[phase] for shares in _KINDS.values()])[0]
    return kind(rng)


# -------------------------------------------------------------------- exercises


def declared(tool: dict[str, Any]) -> str:
    """A tool's declaration, in about the form in which the renderer writes it."""
    function = tool["function"]
    lines = [f"// {function['description']}", f"type {function['name']} = (_: {{"]
    for name, schema in function["parameters"]["properties"].items():
        kind = " | ".join(f'"{value}"' for value in schema.get("enum", ()))
        kind = kind or schema["type"].replace("integer", "number")
        if "description" in schema:
            lines.append(f"// {schema['description']}")
        lines.append(f"{name}: {kind},")
    return "\n".join([*lines, "}) => any;"])


def _told(drawn: Sample) -> str:
    """A conversation as plain lines."""
    lines = [*map(declared, drawn.tools), f"Reasoning: {drawn.effort}"]
    for message in drawn.messages:
        lines += [part for part in (message.get("reasoning"), message["content"]) if part]
        for call in message.get("tool_calls", ()):
            lines.append(f"functions.{call['function']['name']} json{call['function']['arguments']}")
    return "\n".join(lines)


def _exercises(rng: Random) -> str:
    return "\n\n".join(_told(sample(rng.getrandbits(32), rng.getrandbits(32))) for _ in range(rng.choice((1, 2, 2, 3))))


def _made_up_tools(rng: Random) -> str:
    while True:
        drawn = (tools.tool_call_made_up if rng.random() < 0.75 else tools.tool_missing_made_up)(rng)
        if drawn.belongs("train"):
            return _told(drawn)


# -------------------------------------------------------------------- copying


def _word(rng: Random) -> str:
    """A word to copy, most often one that nobody has seen."""
    chance = rng.random()
    if chance < 0.45:
        return words.invented(rng)
    return rng.choice(tools.RARE_NOUNS) if chance < 0.7 else words.invented(rng).capitalize()


_VALUES: tuple[Callable[[Random], Any], ...] = (
    _word,
    _word,
    _word,
    lambda rng: f"{_word(rng)} {_word(rng)}",
    words.person,
    words.city,
    words.code,
    words.email,
    lambda rng: rng.randint(0, 10 ** rng.randint(1, 4)),
    lambda rng: f"{rng.randint(2024, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
)
_NAMES = tuple(parameter.name for parameter in tools.PARAMETERS)
_JSON = (",", ":")
_FORMS: tuple[Callable[[dict[str, Any]], str], ...] = (
    lambda record: json.dumps(record, separators=_JSON),
    lambda record: ", ".join(f"{name}={value}" for name, value in record.items()),
    lambda record: "\n".join(f"{name}: {value}" for name, value in record.items()),
    lambda record: " and ".join(f"the {name} is {value}" for name, value in record.items()),
    lambda record: " ".join(f'with {name} "{value}"' for name, value in record.items()),
    lambda record: json.dumps(list(record.values()), separators=_JSON),
    lambda record: " ".join(f"{value}" for value in record.values()),
    lambda record: ", ".join(f'"{value}"' for value in record.values()),
)
"""Ways to write one record; the first four give the names too."""


def _records(rng: Random) -> str:
    names = [rng.choice(_NAMES) if rng.random() < 0.6 else _word(rng).lower() for _ in range(rng.randint(1, 4))]
    record = {name: rng.choice(_VALUES)(rng) for name in names}
    first = rng.choice(_FORMS[1:5])(record)
    others = [form(record) for form in rng.sample(_FORMS, rng.randint(2, 3))]
    return "\n".join([first, *others])


def _functions(rng: Random) -> str:
    """Deeds as words and as names of tools, and which of several is meant."""
    deeds: dict[str, str] = {}
    for _ in range(rng.randint(2, 5)):
        verb = rng.choice(tools.ASKING_VERBS + tools.DOING_VERBS)
        noun = rng.choice(tools.NOUNS) if rng.random() < 0.3 else _word(rng).lower()
        deeds[f"{verb}_{noun}"] = f"{verb} the {noun}".replace("_", " ")
    lines = [", ".join(deeds)]
    for name, deed in rng.sample(sorted(deeds.items()), len(deeds)):
        fits = (f"{other} {'yes' if other == name else 'no'}" for other in deeds)
        lines += [f"{deed}? {', '.join(fits)}", name]
    return "\n".join(lines)


# -------------------------------------------------------------------- letters


def _to_spell(rng: Random) -> str:
    """A word of one of the lists that puzzles draw from, or a made-up one."""
    chance = rng.random()
    if chance < 0.5:
        return dataset("spell_backward")[rng.getrandbits(30)]["question"].rsplit(" ", 1)[1]
    if chance < 0.75:
        return dataset("letter_counting")[rng.getrandbits(30)]["question"].rsplit('"', 2)[1].split()[0]
    return _word(rng)


def _letters(rng: Random) -> str:
    lines: list[str] = []
    for _ in range(rng.randint(3, 6)):
        word = _to_spell(rng)
        chance = rng.random()
        if chance < 0.5 and not is_heldout(normalise(f"Spell this word backward (example: sun -> nus): {word}")):
            lines += [*scratch.backward(word), word[::-1]]
        elif chance < 0.75:
            letter = rng.choice(word).lower() if rng.random() < 0.8 else rng.choice("aeinorst")
            if not is_heldout(normalise(f'How many times does the letter "{letter}" appear in the text: "{word}"?')):
                marks, total = scratch.counted(word, letter)
                lines += [f'"{letter}" in "{word}"', f"{word}: {marks}", f"{letter}={total}"]
        else:
            lines += [f"{scratch.numbered(word)}: {word}"]
    return "\n".join(lines)


# -------------------------------------------------------------------- numbers


def _numbers(rng: Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        pairs = [(rng.randint(2, 60), rng.randint(2, 60)) for _ in range(rng.randint(4, 10))]
        return "\n".join(f"{a}={b}*{a // b}+{a % b}" for a, b in ((max(pair), min(pair)) for pair in pairs))
    bound, larger, keep = str(rng.randint(0, 99)), rng.random() < 0.5, rng.random() < 0.5
    numbers = [str(rng.randint(0, 99)) for _ in range(rng.randint(2, 8))]
    lines = scratch.filtered(numbers, bound, larger=larger, keep=keep)
    kept = lines[-1].split(":")[1].split()
    asked = f"{'keep' if keep else 'remove'} {'>' if larger else '<'}{bound}"
    return "\n".join([f"{numbers}", asked, *lines, f"{kept}"])


_LATER = 34_500
"""Index from which the later shares count: copying is learnt first, all at once; letters come word by word."""
_KINDS: dict[Callable[[Random], str], tuple[float, float]] = {
    _exercises: (40.0, 30.0),
    _made_up_tools: (14.0, 12.0),
    _records: (18.0, 10.0),
    _functions: (8.0, 8.0),
    _letters: (14.0, 30.0),
    _numbers: (6.0, 10.0),
}
"""Kind of document → its shares of them, at first and later; only the ratios count."""
