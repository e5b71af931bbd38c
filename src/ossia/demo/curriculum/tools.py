"""Calling functions: which of the tools on offer fits, which words of the request are its arguments, what came back.

Function names are a verb and a noun, parameters come from one pool, values are numbers, dates, codes and words, one
word in ten invented: what is to be learnt is to match and to copy. The reasoning says what is wanted and goes through
what is there, tool by tool, so that whether any fits is read off and not guessed. Words in small letters stand in
quotes unless they are well known. The nouns in UNSEEN_NOUNS never occur in training.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ossia.demo.curriculum.sample import Effort, Message, Sample, assistant, draw_date, draw_effort, opening, user
from ossia.demo.curriculum.words import CITIES, COLORS, COMMON, FIRST_NAMES, code, invented

ASKING_VERBS = "get find check look_up fetch read count show".split()
DOING_VERBS = (
    "book create cancel send update delete start stop order open reserve schedule save print move share".split()
)
NOUNS = (
    "weather forecast flight hotel room ticket train table meeting event reminder note task message report "
    "order parcel "
    "package payment price rate score game song playlist movie book course lesson recipe menu temperature "
    "humidity light "
    "lamp door heater printer camera file folder document photo contact address account profile password_hint "
    "route map "
    "taxi car bike bus ship station hospital doctor appointment visit sale product stock item cart review comment post "
    "channel ticket_price exchange_rate bank_balance user team project budget contract survey job machine server backup"
).split()
UNSEEN_NOUNS = "alarm invoice museum garden subscription elevator library pizza telescope voucher".split()
RARE_NOUNS = sorted({*COMMON} - {*NOUNS, *UNSEEN_NOUNS})
"""Nouns of the harder exercises, where the name of a tool has to be read from its declaration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter: how it is declared, how a request mentions it, and how a value is drawn."""

    name: str
    type: str
    description: str
    phrase: str
    draw: Callable[[Random], Any]
    enum: tuple[str, ...] = ()


TOPICS = (
    "work school food music art law health war history family money travel weather sport home garden winter summer "
    "friend story water light sound fish bread paper glass wind snow rain"
).split()
FAMILY_NAMES = "Berg Stone Wood Silva Khan Novak Rossi Meyer Larsen Costa Weber Haas Kim Tanaka Lopez".split()
WELL_KNOWN = frozenset((*CITIES, *FIRST_NAMES, *TOPICS))
_INVENTED = 0.1
"""How often a word is one that nobody has seen."""


def _city(rng: Random) -> str:
    return invented(rng).capitalize() if rng.random() < _INVENTED else rng.choice(CITIES)


def _first_name(rng: Random) -> str:
    return invented(rng, 1, 2).capitalize() if rng.random() < _INVENTED else rng.choice(FIRST_NAMES)


def _person(rng: Random) -> str:
    return _first_name(rng) if rng.random() < 0.7 else f"{_first_name(rng)} {rng.choice(FAMILY_NAMES)}"


def _topic(rng: Random) -> str:
    return rng.choice(TOPICS)


def _phrase(rng: Random) -> str:
    return f"{rng.choice(TOPICS)} {rng.choice(TOPICS)}"


def _email(rng: Random) -> str:
    return f"{_first_name(rng).lower()}@example.{rng.choice(('com', 'org', 'net'))}"


def _date(rng: Random) -> str:
    return f"{rng.randint(2024, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _time(rng: Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.choice((0, 15, 30, 45)):02d}"


def _up_to(limit: int) -> Callable[[Random], int]:
    return lambda rng: rng.randint(1, limit)


def _one_of(*values: str) -> Callable[[Random], str]:
    return lambda rng: rng.choice(values)


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(name="city", type="string", description="Name of the city.", phrase="in {v}", draw=_city),
    Parameter(name="location", type="string", description="The place.", phrase="at {v}", draw=_city),
    Parameter(name="origin", type="string", description="Where it starts.", phrase="from {v}", draw=_city),
    Parameter(name="destination", type="string", description="Where it goes.", phrase="to {v}", draw=_city),
    Parameter(name="name", type="string", description="Name of the person.", phrase="for {v}", draw=_person),
    Parameter(name="recipient", type="string", description="Who receives it.", phrase="to {v}", draw=_first_name),
    Parameter(name="owner", type="string", description="Who owns it.", phrase="owned by {v}", draw=_person),
    Parameter(name="email", type="string", description="Email address.", phrase="with email {v}", draw=_email),
    Parameter(name="title", type="string", description="The title.", phrase='called "{v}"', draw=_phrase),
    Parameter(name="text", type="string", description="The text.", phrase='with the text "{v}"', draw=_phrase),
    Parameter(name="id", type="string", description="Reference code.", phrase="with id {v}", draw=code),
    Parameter(name="query", type="string", description="What to search for.", phrase='matching "{v}"', draw=_phrase),
    Parameter(name="topic", type="string", description="The topic.", phrase="about {v}", draw=_topic),
    Parameter(name="user", type="string", description="Name of the user.", phrase="of {v}", draw=_person),
    Parameter(name="amount", type="integer", description="The amount.", phrase="with amount {v}", draw=_up_to(9999)),
    Parameter(name="date", type="string", description="Date, YYYY-MM-DD.", phrase="on {v}", draw=_date),
    Parameter(name="time", type="string", description="Time, HH:MM.", phrase="at {v}", draw=_time),
    Parameter(name="days", type="integer", description="Number of days.", phrase="for {v} days", draw=_up_to(30)),
    Parameter(name="count", type="integer", description="How many.", phrase="with count {v}", draw=_up_to(99)),
    Parameter(name="number", type="integer", description="The number.", phrase="number {v}", draw=_up_to(999)),
    Parameter(name="limit", type="integer", description="At most so many.", phrase="with limit {v}", draw=_up_to(50)),
    Parameter(name="people", type="integer", description="Number of people.", phrase="for {v} people", draw=_up_to(12)),
    Parameter(
        name="unit", type="string", description="Unit of the answer.", phrase="in {v}",
        draw=_one_of("celsius", "fahrenheit"), enum=("celsius", "fahrenheit"),
    ),
    Parameter(
        name="color", type="string", description="The color.", phrase="in {v}", draw=_one_of(*COLORS[:4]),
        enum=tuple(COLORS[:4]),
    ),
    Parameter(
        name="size", type="string", description="The size.", phrase="in size {v}",
        draw=_one_of("small", "medium", "large"), enum=("small", "medium", "large"),
    ),
    Parameter(
        name="priority", type="string", description="How urgent.", phrase="with {v} priority",
        draw=_one_of("low", "normal", "high"), enum=("low", "normal", "high"),
    ),
    Parameter(
        name="currency", type="string", description="The currency.", phrase="in {v}",
        draw=_one_of("EUR", "USD", "GBP"), enum=("EUR", "USD", "GBP"),
    ),
    Parameter(
        name="urgent", type="boolean", description="Whether it is urgent.", phrase="with urgent {v}",
        draw=lambda rng: rng.random() < 0.5,
    ),
    Parameter(
        name="private", type="boolean", description="Whether it is private.", phrase="with private {v}",
        draw=lambda rng: rng.random() < 0.5,
    ),
)  # fmt: skip
_CLASHES = (
    {"city", "location", "time"},
    {"name", "days", "people"},
    {"user", "owner"},
    {"destination", "recipient"},
    {"unit", "color", "currency", "city"},
)
"""Parameters whose phrases could be taken for each other."""

_NAMES = (_city, _person, _first_name)
_WORDED = (*_NAMES, _email, code, _topic)
"""Values made of words that may be unknown."""

QUESTIONS = ("What is the {r}?", "What's the {r}?", "Do you know the {r}?", "Tell me the {r}.")
REQUESTS = (
    "{V} the {r}.", "{V} the {r}.", "{V} the {r}, please.", "Please {v} the {r}.", "Can you {v} the {r}?",
    "Could you {v} the {r}?", "I want you to {v} the {r}.", "I need to {v} the {r}.", "Help me {v} the {r}.",
    "Now {v} the {r}.", "Use a tool to {v} the {r}.", "{v} the {r}", "Would you {v} the {r}?", "Hi! {V} the {r}.",
)  # fmt: skip

DESCRIPTIONS = ("{V} the {n}.", "{V} the {n} for the user.", "A tool to {v} the {n}.")

RESULTS: dict[str, Callable[[Random], Any]] = {
    "status": _one_of("ok", "open", "closed", "ready", "late", "full", "active", "pending"),
    "value": lambda rng: rng.randint(-20, 999),
    "total": lambda rng: rng.randint(0, 9999),
    "price": lambda rng: rng.randint(1, 999),
    "id": code,
    "time": _time,
    "date": _date,
    "place": _city,
    "owner": _person,
    "color": _one_of(*COLORS),
}
ERRORS = ("not found", "no access", "timed out", "service is down", "wrong id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A tool that could be on offer."""

    verb: str
    noun: str
    description: str
    parameters: tuple[Parameter, ...]
    """What a request mentions, in the order in which a call gives it."""
    optional: tuple[Parameter, ...] = ()
    """Declared, but neither required nor mentioned."""
    described: bool = True
    """Whether the parameters have descriptions."""

    @property
    def name(self) -> str:
        return f"{self.verb}_{self.noun}"

    @property
    def action(self) -> str:
        return self.verb.replace("_", " ")

    @property
    def thing(self) -> str:
        return self.noun.replace("_", " ")

    def declaration(self) -> dict[str, Any]:
        """OpenAI's form."""
        properties: dict[str, Any] = {}
        for parameter in (*self.parameters, *self.optional):
            schema: dict[str, Any] = {"type": parameter.type}
            if self.described:
                schema["description"] = parameter.description
            if parameter.enum:
                schema["enum"] = list(parameter.enum)
            properties[parameter.name] = schema
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": [parameter.name for parameter in self.parameters],
                },
            },
        }


def _function(rng: Random, nouns: Sequence[str], most: int = 4) -> Function:
    chosen: list[Parameter] = []
    for parameter in rng.sample(PARAMETERS, min(most, rng.choices((0, 1, 2, 3), (4, 62, 30, 4))[0])):
        names = {other.name for other in chosen}
        if not any(parameter.name in clash and names & clash for clash in _CLASHES):
            chosen.append(parameter)
    verb, noun = rng.choice(ASKING_VERBS + DOING_VERBS), rng.choice(nouns)
    described = DESCRIPTIONS[rng.choice((0, 0, 0, 1, 2))]
    optional: list[Parameter] = []
    if len(chosen) > 1 and rng.random() < 0.2:
        optional.append(chosen.pop())
    return Function(
        verb=verb,
        noun=noun,
        description=described.format(
            V=verb.replace("_", " ").capitalize(), v=verb.replace("_", " "), n=noun.replace("_", " ")
        ),
        parameters=tuple(chosen),
        optional=tuple(optional),
        described=rng.random() < 0.7,
    )


def functions(rng: Random, count: int, nouns: Sequence[str]) -> list[Function]:
    """Tools of different names; now and then two share their noun, so that the verb has to be read."""
    found: list[Function] = []
    most = 5 - count  # Declarations are the longest part of a prompt.
    while len(found) < count:
        function = _function(rng, nouns if not found or rng.random() < 0.75 else [found[0].noun], most)
        if function.name not in {other.name for other in found}:
            found.append(function)
    rng.shuffle(found)
    return found


def offer(rng: Random, count: int) -> list[dict[str, Any]]:
    """Declarations of so many tools, for conversations that need none of them."""
    return [function.declaration() for function in functions(rng, count, NOUNS)]


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mentioned(rng: Random, parameter: Parameter, value: Any) -> str:
    """A value as a request gives it: unknown words in small letters in quotes, others now and then."""
    said = _said(value)
    if parameter.draw not in _WORDED:
        return said
    unknown = said[0].islower() and said not in WELL_KNOWN
    return f'"{said}"' if unknown or rng.random() < 0.2 else said


def request(rng: Random, function: Function, arguments: dict[str, Any], offered: list[Function]) -> tuple[str, str]:
    """The user's words, which name each argument in an order of their own; and in short what they want.

    Where only one tool on offer has the noun, something may be asked for without its verb: "What is the weather in …?"
    """
    phrases = [
        parameter.phrase.format(v=_mentioned(rng, parameter, arguments[parameter.name]))
        for parameter in function.parameters
    ]
    rng.shuffle(phrases)
    rest = " ".join([function.thing, *phrases])
    alone = not any(other.noun == function.noun for other in offered if other is not function)
    if alone and function.verb in ("get", "find", "check", "look_up", "fetch", "show") and rng.random() < 0.3:
        return rng.choice(QUESTIONS).format(r=rest), f"know the {function.thing}"
    text = rng.choice(REQUESTS).format(V=function.action.capitalize(), v=function.action, r=rest)
    return text, f"{function.action} the {function.thing}"


def _matched(wish: str, offered: list[Function], function: Function | None, effort: Effort) -> list[str]:
    """What is wanted, and of each tool on offer whether it is that."""
    fits = [f"{other.name} {'yes' if other is function else 'no'}" for other in offered]
    if effort == "low":
        return [f"{wish}? {', '.join(fits)}"]
    lines = [f"The user wants to {wish}."]
    if effort == "medium":
        return [*lines, f"Tools: {', '.join(fits)}."]
    return [*lines, "Tools:", *(f"{fit}: {'this fits' if fit.endswith('yes') else 'not this'}." for fit in fits)]


def _reason(wish: str, offered: list[Function], function: Function, arguments: dict[str, Any], effort: Effort) -> str:
    named = ", ".join(f"{name}={_said(value)}" for name, value in arguments.items()) or "nothing"
    lines = [*_matched(wish, offered, function, effort), f"Use {function.name}: {named}"]
    if effort == "high":
        lines += [f"{each.name} is {each.type}: {_said(arguments[each.name])}." for each in function.parameters]
    return "\n".join(lines)


def _call(function: Function, arguments: dict[str, Any], reasoning: str) -> Message:
    return {
        "role": "assistant",
        "reasoning": reasoning,
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": function.name, "arguments": json.dumps(arguments, separators=(",", ":"))},
            }
        ],
    }


def _answer(rng: Random, function: Function, effort: Effort) -> tuple[Message, Message, tuple[str, ...]]:
    """The tool's result, the final answer made of it, and what that answer must contain."""
    if rng.random() < 0.1:
        error = rng.choice(ERRORS)
        result: dict[str, Any] = {"error": error}
        final, keywords = f"I could not {function.action} the {function.thing}: {error}.", (error,)
        thought = "The tool failed."
    else:
        result = {name: RESULTS[name](rng) for name in rng.sample(sorted(RESULTS), rng.choice((1, 1, 2)))}
        told = " and ".join(f"{name} is {value}" for name, value in result.items())
        opened = f"Here is the {function.thing}" if function.verb in ASKING_VERBS else f"Done with the {function.thing}"
        final, keywords = f"{opened}: {told}.", tuple(str(value) for value in result.values())
        thought = "The tool answered."
    if effort != "low":
        thought += " " + ", ".join(f"{name}={value}" for name, value in result.items())
    if effort == "high":
        thought += f"\nI tell the user what {function.name} gave, no more."
    reply: Message = {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": json.dumps(result, separators=(",", ":")),
    }
    return reply, assistant(thought, final), keywords


def _exercise(rng: Random, family: str, kind: str, nouns: Sequence[str], *, unknown_words: float = 0.0) -> Sample:
    effort = draw_effort(rng)
    count = rng.choices((1, 2, 3), (60, 35, 5))[0]
    offered = functions(rng, count, nouns)
    function = rng.choice(offered)
    arguments = {parameter.name: parameter.draw(rng) for parameter in function.parameters}
    arguments |= {
        each.name: invented(rng).capitalize() if each.draw in _NAMES else invented(rng)
        for each in function.parameters
        if each.draw in _WORDED and rng.random() < unknown_words
    }
    asked, wish = request(rng, function, arguments, offered)
    messages = [
        *opening(rng),
        user(asked),
        _call(function, arguments, _reason(wish, offered, function, arguments, effort)),
    ]
    keywords: tuple[str, ...] = ()
    if kind == "answer":
        reply, final, keywords = _answer(rng, function, effort)
        messages += [reply, final]
    return Sample(
        family=family,
        effort=effort,
        messages=messages,
        tools=[other.declaration() for other in offered],
        check="contains" if kind == "answer" else "call",
        keywords=keywords,
        call={"name": function.name, "arguments": arguments} if kind == "call" else None,
        date=draw_date(rng),
    )


def tool_call(rng: Random) -> Sample:
    """A request that a tool on offer serves; ends with the call."""
    return _exercise(rng, "tool_call", "call", NOUNS)


def tool_call_rare(rng: Random) -> Sample:
    """The same with nouns that seldom name a tool and, one time in three, words that nobody has seen."""
    return _exercise(rng, "tool_call_rare", "call", RARE_NOUNS, unknown_words=1 / 3)


def tool_call_unseen(rng: Random) -> Sample:
    """The same with functions whose noun was never seen in training; for evaluation alone."""
    return _exercise(rng, "tool_call_unseen", "call", UNSEEN_NOUNS)


def tool_call_invented(rng: Random) -> Sample:
    """The same where every word to be copied is one that nobody has seen; for evaluation alone."""
    return _exercise(rng, "tool_call_invented", "call", NOUNS, unknown_words=1.0)


def tool_answer(rng: Random) -> Sample:
    """A call, what the tool gave, and the final answer made of it."""
    return _exercise(rng, "tool_answer", "answer", NOUNS)


def tool_call_made_up(rng: Random) -> Sample:
    """The same where the nouns are made up too; for texts."""
    return _exercise(rng, "tool_call", "call", _made_up(rng), unknown_words=0.5)


def tool_missing(rng: Random) -> Sample:
    """A request that no tool on offer serves."""
    return _missing(rng, NOUNS)


def tool_missing_made_up(rng: Random) -> Sample:
    """The same where the nouns are made up; for texts."""
    return _missing(rng, _made_up(rng))


def _made_up(rng: Random) -> list[str]:
    return [rng.choice(RARE_NOUNS) if rng.random() < 0.4 else invented(rng) for _ in range(6)]


def _missing(rng: Random, nouns: Sequence[str]) -> Sample:
    effort = draw_effort(rng)
    wanted = _function(rng, nouns)
    offered = functions(rng, rng.choice((1, 1, 2)), [noun for noun in nouns if noun != wanted.noun])
    arguments = {parameter.name: parameter.draw(rng) for parameter in wanted.parameters}
    asked, wish = request(rng, wanted, arguments, offered)
    lines = [*_matched(wish, offered, None, effort), "No tool fits."]
    if effort == "high":
        lines.append("So I say what is missing.")
    return Sample(
        family="tool_missing",
        effort=effort,
        messages=[
            *opening(rng),
            user(asked),
            assistant("\n".join(lines), f"I have no tool to {wish}."),
        ],
        tools=[other.declaration() for other in offered],
        check="contains",
        keywords=("no tool to",),
        date=draw_date(rng),
    )
