"""Worked arithmetic, written so that each step needs one small look-up and every line is true as it stands.

Columns run from the right, with the carry always written and results always two digits wide, so that the same digit
of each line stands the same number of tokens apart:

    037+158        padded to one width      100-098>0       which is larger
                                            100-098
    7+8+0=15       digit + digit + carry    0-8-0=2-10      2 less a borrowed ten
    3+5+1=09                                0-9-1=0-10
    0+1+0=01                                1-0-1=0-00
    0195=195       read off, then trimmed   002=2

Low effort is these lines alone; medium says at each what is written and carried; high also checks by the inverse.
"""

from dataclasses import dataclass
from typing import Literal

from ossia.demo.curriculum.sample import Effort

Operation = Literal["+", "-", "*", "/"]
PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The lines of a calculation and what it came to."""

    lines: list[str]
    result: int
    remainder: int = 0


def _column(place: int, line: str, digit: int, word: str, carried: int, spoken: bool) -> str:
    return f"{PLACES[place]}: {line}, write {digit}, {word} {carried}." if spoken else line


def add(a: int, b: int, *, spoken: bool = False, negative: bool = False) -> Work:
    """a + b for a, b >= 0 by columns; `negative` flips the sign of the sum read off (for -a - b)."""
    width = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(width), str(b).zfill(width)
    lines, digits, carry = [f"{x}+{y}"], "", 0
    for place in range(width):
        p, q = x[-1 - place], y[-1 - place]
        total = int(p) + int(q) + carry
        line = f"{p}+{q}+{carry}={total:02d}"
        digits, carry = f"{total % 10}{digits}", total // 10
        lines.append(_column(place, line, total % 10, "carry", carry, spoken))
    sign, total = "-" if negative else "", a + b
    lines.append(f"{sign}{carry}{digits}={sign}{total}")
    return Work(lines=lines, result=-total if negative else total)


def subtract(a: int, b: int, *, spoken: bool = False) -> Work:
    """a - b for a, b >= 0 by columns, the smaller taken from the larger and the sign put back."""
    width = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(width), str(b).zfill(width)
    if a == b:
        return Work(lines=[f"{x}-{y}=0"], result=0)
    sign = "-" if a < b else ""
    lines = [f"{x}-{y}{'<' if a < b else '>'}0"]
    if a < b:
        x, y = y, x
    lines.append(f"{x}-{y}")
    digits, borrow = "", 0
    for place in range(width):
        p, q = x[-1 - place], y[-1 - place]
        left = int(p) - int(q) - borrow
        next_borrow = int(left < 0)
        line = f"{p}-{q}-{borrow}={left % 10}-{next_borrow}0"
        digits, borrow = f"{left % 10}{digits}", next_borrow
        lines.append(_column(place, line, left % 10, "borrow", borrow, spoken))
    lines.append(f"{sign}{digits}={a - b}")
    return Work(lines=lines, result=a - b)


def _times_digit(x: str, digit: str, spoken: bool) -> tuple[list[str], str]:
    """Lines for x times one digit, and the product one digit wider than x."""
    lines, digits, carry = [], "", 0
    for place in range(len(x)):
        total = int(x[-1 - place]) * int(digit) + carry
        line = f"{x[-1 - place]}*{digit}+{carry}={total:02d}"
        digits, carry = f"{total % 10}{digits}", total // 10
        lines.append(_column(place, line, total % 10, "carry", carry, spoken))
    return lines, f"{carry}{digits}"


def multiply(a: int, b: int, *, spoken: bool = False) -> Work:
    """a * b for a, b >= 0, the longer number first; a second factor of two digits takes two products and a sum."""
    if len(str(b)) > len(str(a)):
        a, b = b, a
    x, y = str(a), str(b)
    lines = [f"{x}*{y}"]
    if len(y) == 1:
        columns, product = _times_digit(x, y, spoken)
        return Work(lines=[*lines, *columns, f"{product}={a * b}"], result=a * b)
    ones, low = _times_digit(x, y[1], spoken)
    tens, high = _times_digit(x, y[0], spoken)
    lines += [*ones, low, *tens, high]
    width = len(x) + 2
    x, y = low.zfill(width), f"{high}0"
    lines.append(f"{x}+{y}")
    digits, carry = "", 0
    for place in range(width):
        total = int(x[-1 - place]) + int(y[-1 - place]) + carry
        line = f"{x[-1 - place]}+{y[-1 - place]}+{carry}={total:02d}"
        digits, carry = f"{total % 10}{digits}", total // 10
        lines.append(_column(place, line, total % 10, "carry", carry, spoken))
    lines.append(f"{carry}{digits}={a * b}")
    return Work(lines=lines, result=a * b)


def divide(a: int, b: int, *, spoken: bool = False) -> Work:
    """a / b with remainder for a >= 0 and one digit b > 0: from the left, `remainder digit = b * quotient + rest`."""
    lines, digits, rest = [f"{a}/{b}"], "", 0
    for digit in str(a):
        value = 10 * rest + int(digit)
        quotient, next_rest = divmod(value, b)
        line = f"{rest}{digit}={b}*{quotient}+{next_rest}"
        digits, rest = f"{digits}{quotient}", next_rest
        lines.append(f"{line}, write {quotient}, rest {rest}." if spoken else line)
    lines.append(f"{digits}={a // b}")
    lines.append(f"rest {rest}")
    return Work(lines=lines, result=a // b, remainder=rest)


def signed(a: int, operation: Operation, b: int, *, spoken: bool = False) -> Work:
    """One step of a chain: b >= 0, and a of either sign where the operation is + or -."""
    if operation == "*":
        return multiply(a, b, spoken=spoken)
    if operation == "/":
        return divide(a, b, spoken=spoken)
    if a >= 0:
        return add(a, b, spoken=spoken) if operation == "+" else subtract(a, b, spoken=spoken)
    if operation == "+":
        work = subtract(b, -a, spoken=spoken)
        return Work(lines=[f"{a}+{b}={b}-{-a}", *work.lines], result=work.result)
    work = add(-a, b, spoken=spoken, negative=True)
    return Work(lines=[f"{a}-{b}=-({-a}+{b})", *work.lines], result=work.result)


def check(a: int, operation: Operation, b: int, work: Work) -> list[str]:
    """The inverse operation in short lines and what it confirms; casting out nines where both factors are long."""
    if operation == "+" and a >= 0:
        return ["Check:", *subtract(work.result, b).lines, f"{a} is right."]
    if operation == "-" and a >= 0 and work.result >= 0:
        return ["Check:", *add(work.result, b).lines, f"{a} is right."]
    if operation == "-" and a >= 0:
        return ["Check:", *add(a, -work.result).lines, f"{b} is right."]
    if operation == "*" and min(a, b) < 10:
        small, large = min(a, b), max(a, b)
        if small == 0:
            return ["Check:", "0 times a number is 0."]
        return ["Check:", *divide(work.result, small).lines, f"{large} is right."]
    if operation == "*":
        return ["Check by nines:", *_nines(a, b, work.result)]
    if operation == "/":
        product = multiply(work.result, b)
        return ["Check:", *product.lines, *add(product.result, work.remainder).lines, f"{a} is right."]
    return []


def _nines(a: int, b: int, product: int) -> list[str]:
    lines: list[str] = []
    for value in (a, b, product):
        total = sum(map(int, str(value)))
        lines.append(f"{value}: {'+'.join(str(value))}={total}, mod 9 is {total % 9}")
    p, q, r = a % 9, b % 9, product % 9
    lines.append(f"{p}*{q}={p * q}, mod 9 is {r}")
    lines.append(f"{r} is right.")
    return lines


INTRODUCTIONS: dict[Operation, str] = {
    "+": "Add by columns from the right.",
    "-": "Subtract by columns from the right.",
    "*": "Multiply by columns from the right.",
    "/": "Divide digit by digit from the left.",
}


def worked(a: int, operation: Operation, b: int, effort: Effort) -> Work:
    """One operation as the model should write it at this effort."""
    spoken = effort != "low"
    work = signed(a, operation, b, spoken=spoken)
    lines = [INTRODUCTIONS[operation], *work.lines] if spoken else work.lines
    if effort == "high":
        lines = [*lines, *check(a, operation, b, work)]
    return Work(lines=lines, result=work.result, remainder=work.remainder)


# -------------------------------------------------------------------- letters and lists


def numbered(word: str) -> str:
    """A word letter by letter, each with its place: s1u2n3. Between digits every letter is a token of its own."""
    return "".join(f"{letter}{place}" for place, letter in enumerate(word, 1))


def backward(word: str) -> list[str]:
    """The letters with their places, and from the last place to the first: s1u2n3, n3u2s1."""
    places = [f"{letter}{place}" for place, letter in enumerate(word, 1)]
    return [f"{word}: {''.join(places)}", "".join(reversed(places))]


def counted(word: str, letter: str, total: int = 0) -> tuple[str, int]:
    """A word letter by letter, each with how often `letter` has come so far, and the last count."""
    marks: list[str] = []
    for character in word:
        total += character.lower() == letter
        marks.append(f"{character}{total}")
    return "".join(marks), total


def filtered(numbers: list[str], bound: str, *, larger: bool, keep: bool, spoken: bool = False) -> list[str]:
    """What becomes of each relation, then one line a number: how it compares, and all that stayed so far.

    The fate of a number is so read off the first line, and the answer off the last.
    """
    wanted = ">" if larger else "<"
    fates = {relation: "keep" if (relation == wanted) == keep else "drop" for relation in "><="}
    kept: list[str] = []
    lines = [", ".join(f"{relation} {fate}" for relation, fate in fates.items())]
    for number in numbers:
        relation = ">" if int(number) > int(bound) else "<" if int(number) < int(bound) else "="
        if fates[relation] == "keep":
            kept.append(number)
        reason = f", {'' if relation == wanted else 'not '}{'larger' if larger else 'smaller'}" if spoken else ""
        lines.append(f"{number}{relation}{bound}{reason} {fates[relation]}: {' '.join(kept)}".rstrip())
    return lines
