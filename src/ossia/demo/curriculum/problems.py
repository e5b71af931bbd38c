"""Word problems: a short story, the sum it hides, and the work in columns."""

from random import Random

from ossia.demo.curriculum.arithmetic import chain_work, number
from ossia.demo.curriculum.sample import Sample, assistant, draw_date, draw_effort, opening, user
from ossia.demo.curriculum.scratch import Operation, worked
from ossia.demo.curriculum.words import OBJECTS, first_name

# {n} {m}: names; {o}: objects; {a} {b} {c}: numbers.
ONE_STEP: tuple[tuple[Operation, str], ...] = (
    ("+", "{n} has {a} {o} and gets {b} more. How many {o} does {n} have now?"),
    ("+", "{n} has {a} {o}. {m} has {b} {o}. How many {o} do they have together?"),
    ("+", "There are {a} {o} in a box and {b} {o} in a bag. How many {o} are there in all?"),
    ("+", "{n} bought {a} {o} on Monday and {b} {o} on Tuesday. How many {o} did {n} buy?"),
    ("-", "{n} has {a} {o} and gives {b} to {m}. How many {o} are left?"),
    ("-", "There were {a} {o} in a shop. {b} were sold. How many {o} remain?"),
    ("-", "{n} needs {a} {o} and has {b}. How many more {o} does {n} need?"),
    ("-", "{n} had {a} {o} but lost {b} of them. How many {o} does {n} have now?"),
    ("*", "{n} has {b} boxes with {a} {o} in each. How many {o} is that?"),
    ("*", "Each bag holds {a} {o}. How many {o} are in {b} bags?"),
    ("*", "{n} buys {a} {o} every day for {b} days. How many {o} is that?"),
    ("/", "{n} shares {a} {o} equally among {b} friends. How many does each get, and how many are left over?"),
    ("/", "{a} {o} are packed in boxes of {b}. How many full boxes are there, and how many {o} are left over?"),
)
TWO_STEPS: tuple[tuple[Operation, Operation, str], ...] = (
    ("+", "-", "{n} has {a} {o}, gets {b} more and gives away {c}. How many {o} are left?"),
    ("+", "+", "{n} has {a} {o}, {m} has {b} and {l} has {c}. How many {o} do they have together?"),
    ("-", "-", "There are {a} {o}. {n} takes {b} and {m} takes {c}. How many {o} remain?"),
    ("*", "+", "{n} has {b} boxes of {a} {o} and {c} more. How many {o} does {n} have?"),
    ("*", "-", "{n} buys {b} bags of {a} {o} and gives {c} to {m}. How many {o} are left?"),
)


def word_problem(rng: Random) -> Sample:
    """One step twice out of three, two steps otherwise; the outcome is never negative."""
    effort = draw_effort(rng)
    names = {"n": first_name(rng), "m": first_name(rng), "l": first_name(rng), "o": rng.choice(OBJECTS)}
    if rng.random() < 0.65:
        operation, template = rng.choice(ONE_STEP)
        a, b = _operands(rng, operation)
        work = worked(a, operation, b, effort)
        numbers, lines = {"a": a, "b": b}, work.lines
        told = f"{work.result} {names['o']}"
        if operation == "/":
            told = f"{work.result} remainder {work.remainder}"
    else:
        first, second, template = rng.choice(TWO_STEPS)
        a, b = _operands(rng, first)
        reached = {"+": a + b, "-": a - b, "*": a * b}[first]
        c = rng.randint(0, min(reached, 999)) if second == "-" else number(rng, rng.randint(1, 3))
        work = chain_work([a, b, c], [first, second], effort)
        numbers, lines = {"a": a, "b": b, "c": c}, work.lines
        told = f"{work.result} {names['o']}"
        operation = first
    return Sample(
        family="word_problem",
        effort=effort,
        messages=[
            *opening(rng),
            user(template.format(**names, **numbers)),
            assistant("\n".join(lines), f"The answer is {told}."),
        ],
        tools=[],
        check="division" if operation == "/" else "integer",
        answer=f"{work.result} {work.remainder}" if operation == "/" else str(work.result),
        date=draw_date(rng),
    )


def _operands(rng: Random, operation: Operation) -> tuple[int, int]:
    if operation == "*":
        return number(rng, rng.randint(1, 2)), rng.randint(2, 9)
    if operation == "/":
        return number(rng, rng.randint(1, 3)), rng.randint(2, 9)
    a, b = number(rng, rng.randint(1, 3)), number(rng, rng.randint(1, 3))
    return (max(a, b), min(a, b)) if operation == "-" else (a, b)
