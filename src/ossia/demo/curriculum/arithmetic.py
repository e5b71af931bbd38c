"""Integer arithmetic: one operation, or a chain of two, in many phrasings; the work in columns."""

from random import Random

from ossia.demo.curriculum import scratch
from ossia.demo.curriculum.sample import Effort, Sample, assistant, draw_date, draw_effort, opening, user
from ossia.demo.curriculum.scratch import Operation

SPOKEN_OPERATIONS: dict[Operation, tuple[str, ...]] = {
    "+": ("{a} + {b}", "{a} + {b}", "{a}+{b}", "{a} plus {b}", "the sum of {a} and {b}"),
    "-": ("{a} - {b}", "{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} take away {b}"),
    "*": ("{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} times {b}", "{a} × {b}", "the product of {a} and {b}"),
    "/": ("{a} / {b}", "{a}/{b}", "{a} divided by {b}", "{a} ÷ {b}", "{a} over {b}"),
}
ASKED = (
    "What is {e}?", "What is {e}?", "{e}", "{e} =", "{e}?", "{e}=?", "Compute {e}.", "Calculate {e}.",
    "How much is {e}?", "Find {e}.", "Please compute {e}.", "Can you calculate {e}?", "what's {e}",
    "Tell me {e}.", "Work out {e}.", "Solve {e}.", "Evaluate {e}.", "I need {e}.", "Could you work out {e}, please?",
    "What do you get for {e}?", "Hi, what is {e}?", "Give me {e}.", "What does {e} make?", "compute {e}",
)  # fmt: skip
ORDERED: dict[Operation, tuple[str, ...]] = {
    "+": ("Add {a} and {b}.", "Add {b} to {a}.", "Sum {a} and {b}."),
    "-": ("Subtract {b} from {a}.", "Take {b} away from {a}."),
    "*": ("Multiply {a} by {b}.", "Multiply {a} and {b}."),
    "/": (
        "Divide {a} by {b}.",
        "Divide {a} by {b} with remainder.",
        "What are the quotient and remainder of {a} / {b}?",
        "How many times does {b} go into {a}?",
    ),
}


def ask(rng: Random, a: int, operation: Operation, b: int) -> str:
    """One request for `a operation b`."""
    if rng.random() < 0.15:
        return rng.choice(ORDERED[operation]).format(a=a, b=b)
    return wrap(rng, rng.choice(SPOKEN_OPERATIONS[operation]).format(a=a, b=b))


def wrap(rng: Random, expression: str) -> str:
    """An expression asked for; now and then carelessly typed."""
    text = rng.choice(ASKED).format(e=expression)
    if rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.08:
        text = text.rstrip(".?")
    return text


def number(rng: Random, digits: int) -> int:
    """A number of exactly so many digits; zero counts as one digit."""
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def operands(rng: Random, operation: Operation) -> tuple[int, int]:
    """Operands of evenly drawn lengths."""
    if operation == "*":
        m, n = rng.choice(((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (2, 2), (2, 2)))
        return number(rng, m), number(rng, n)
    if operation == "/":
        divisor = rng.randint(2, 9) if rng.random() < 0.96 else 1
        if rng.random() < 0.25:  # Exact quotients come up in life more often than by chance.
            return number(rng, rng.randint(1, 3)) * divisor, divisor
        return number(rng, rng.randint(1, 4)), divisor
    m, n = rng.randint(1, 4), rng.randint(1, 4)
    a, b = number(rng, m), number(rng, n)
    if operation == "-":
        chance = rng.random()
        if chance < 0.2:  # Close numbers: the comparison has to look past the first digit.
            b = max(0, a + rng.randint(-(10 ** max(0, m - 1)), 10 ** max(0, m - 1)))
            b = min(b, 9999)
        elif a < b and chance < 0.6:
            a, b = b, a
    if rng.random() < 0.05:
        a = -a
    return a, b


def stated(a: int, operation: Operation, b: int, work: scratch.Work) -> str:
    """The final answer: the problem and its result on one line."""
    tail = f" remainder {work.remainder}" if work.remainder else ""
    return f"{a} {operation} {b} = {work.result}{tail}"


def operation_sample(rng: Random, operation: Operation, family: str) -> Sample:
    """One operation, asked and worked."""
    effort = draw_effort(rng)
    if operation == "/" and rng.random() < 0.015:
        return _by_zero(rng, effort)
    a, b = operands(rng, operation)
    work = scratch.worked(a, operation, b, effort)
    return Sample(
        family=family,
        effort=effort,
        messages=[
            *opening(rng),
            user(ask(rng, a, operation, b)),
            assistant("\n".join(work.lines), stated(a, operation, b, work)),
        ],
        tools=[],
        check="division" if operation == "/" else "integer",
        answer=f"{work.result} {work.remainder}" if operation == "/" else str(work.result),
        keys=(f"{a}{operation}{b}",),
        date=draw_date(rng),
    )


def _by_zero(rng: Random, effort: Effort) -> Sample:
    a = number(rng, rng.randint(1, 4))
    thought = f"{a}/0" if effort == "low" else f"{a}/0\nThe divisor is 0."
    if effort == "high":
        thought += "\nNo number times 0 gives a number other than 0."
    return Sample(
        family="division",
        effort=effort,
        messages=[
            *opening(rng),
            user(ask(rng, a, "/", 0)),
            assistant(thought + "\nundefined", f"{a} / 0 is undefined: one cannot divide by zero."),
        ],
        tools=[],
        check="contains",
        keywords=("undefined",),
        keys=(f"{a}/0",),
        date=draw_date(rng),
    )


def addition(rng: Random) -> Sample:
    """a + b, up to four digits each."""
    return operation_sample(rng, "+", "addition")


def subtraction(rng: Random) -> Sample:
    """a - b, up to four digits each, below zero too."""
    return operation_sample(rng, "-", "subtraction")


def multiplication(rng: Random) -> Sample:
    """a * b: up to three digits by one, or two by two."""
    return operation_sample(rng, "*", "multiplication")


def division(rng: Random) -> Sample:
    """a / b with remainder: up to four digits by one."""
    return operation_sample(rng, "/", "division")


# -------------------------------------------------------------------- chains of two operations


def chain_work(terms: list[int], operations: list[Operation], effort: Effort) -> scratch.Work:
    """Lines for a chain from the left; a product, of which there is at most one among two operations, comes first."""
    text = str(terms[0]) + "".join(f"{op}{term}" for op, term in zip(operations, terms[1:], strict=True))
    lines = [text]
    if effort != "low":
        lines.insert(0, "Products first, then from the left." if "*" in operations else "Step by step from the left.")
    terms, operations = list(terms), list(operations)
    total = terms[0]
    product_at = operations.index("*") if "*" in operations else -1
    if product_at > 0:  # a + b*c and a - b*c
        product = scratch.signed(terms[1], "*", terms[2], spoken=effort != "low")
        lines += product.lines
        terms, operations = [terms[0], product.result], operations[:1]
    for operation, term in zip(operations, terms[1:], strict=True):
        before = total
        work = scratch.signed(total, operation, term, spoken=effort != "low")
        lines += work.lines
        if effort == "high":
            lines += scratch.check(before, operation, term, work)
        total = work.result
    return scratch.Work(lines=lines, result=total)


def chain(rng: Random) -> Sample:
    """Two operations: a + b - c and its kin, a * b + c, a + b * c."""
    effort = draw_effort(rng)
    operations: list[Operation] = rng.choice(
        (["+", "-"], ["+", "+"], ["-", "+"], ["-", "-"], ["*", "+"], ["*", "-"], ["+", "*"], ["-", "*"])
    )
    if "*" in operations:
        first = operations[0] == "*"
        m, n = rng.choice(((1, 1), (2, 1), (1, 2)))
        p, q, r = number(rng, m), number(rng, n), number(rng, rng.randint(1, 3))
        terms = [p, q, r] if first else [r, p, q]
    else:
        terms = [number(rng, rng.randint(1, 3)) for _ in range(3)]
        if operations[0] == "-" and terms[0] < terms[1] and rng.random() < 0.6:
            terms[0], terms[1] = terms[1], terms[0]
    work = chain_work(terms, operations, effort)
    plain = f"{terms[0]} {operations[0]} {terms[1]} {operations[1]} {terms[2]}"
    style = rng.random()
    if style < 0.15:
        asked = plain.replace(" ", "")
    elif style < 0.35:
        words = {"+": "plus", "-": "minus", "*": "times"}
        asked = " ".join(words.get(part, part) for part in plain.split())
    elif style < 0.45:
        asked = plain.replace("*", rng.choice("x×"))
    else:
        asked = plain
    return Sample(
        family="chain",
        effort=effort,
        messages=[*opening(rng), user(wrap(rng, asked)), assistant("\n".join(work.lines), f"{plain} = {work.result}")],
        tools=[],
        check="integer",
        answer=str(work.result),
        keys=(plain.replace(" ", ""),),
        date=draw_date(rng),
    )
