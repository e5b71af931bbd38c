"""The parser on well-formed harmony, on each malformation seen in the field, and on anything at all."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import openai_harmony
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.harmony.messages import Conversation, Message
from ossia.harmony.parse import Assumed, Delta, Event, MessageEnd, MessageStart, Parser
from ossia.harmony.render import render, render_completion
from ossia.harmony.tokenizer import HARMONY_SPECIALS, O200K_PATTERN, IncrementalDecoder, Tokenizer

NUM_RANDOM_COMPLETIONS = int(os.environ.get("OSSIA_NUM_RANDOM_COMPLETIONS", "100000"))

WORDS = [
    " to=",
    "assistant",
    "analysis",
    "commentary",
    "final",
    "functions",
    "json",
    "code",
    "python",
    " the",
    " is",
    "中",
]


def small_vocabulary() -> Tokenizer:
    """All bytes, the words of headers with the merges that reach them, and special tokens, one of them reserved."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in WORDS:
        for length in range(2, len(word.encode()) + 1):
            ranks.setdefault(word.encode()[:length], len(ranks))
    names = (*HARMONY_SPECIALS, "<|endoftext|>", "<|startoftext|>", "<|reserved_9|>")
    # A hole before the special ids: an id that is in range and yet not in the vocabulary.
    special = {name: len(ranks) + 1 + index for index, name in enumerate(names)}
    return Tokenizer(ranks=ranks, pattern=O200K_PATTERN, special=special, source="small")


TOKENIZER = small_vocabulary()
HOLE = min(TOKENIZER.special_ids) - 1


def ids_of(text: str, tokenizer: Tokenizer = TOKENIZER) -> list[int]:
    """Ids of `text` in which the names of special tokens are those tokens."""
    ids: list[int] = []
    while text:
        found = min(((at, name) for name in tokenizer.special if (at := text.find(name)) >= 0), default=(len(text), ""))
        ids += tokenizer.encode(text[: found[0]])
        if found[1]:
            ids.append(tokenizer.special[found[1]])
        text = text[found[0] + len(found[1]) :]
    return ids


def parsed(ids: list[int]) -> tuple[Parser, list[Event]]:
    parser = Parser(TOKENIZER)
    events = [event for token in ids for event in parser.feed(token)]
    events += parser.finish()
    check_account(parser, events, ids)
    return parser, events


def check_account(parser: Parser, events: list[Event], ids: list[int]) -> None:
    """Every token is somewhere, and the three ways of telling what was read agree."""
    decoder = IncrementalDecoder(TOKENIZER, show_special=True)
    whole = "".join([*map(decoder.feed, ids), decoder.finish()])
    assert "".join(piece.text for piece in parser.transcript) == whole
    assert parser.tokens_seen == len(ids)
    contents = [piece.text for piece in parser.transcript if piece.kind == "content"]
    assert contents == [message.content for message in parser.messages]
    assert parser.messages == list(replayed(events))
    assert parser.assumed == [event.text for event in events if isinstance(event, Assumed)]
    # Outside content there are only headers and special tokens.
    for piece in parser.transcript:
        assert piece.kind != "between" or piece.text in TOKENIZER.special


def replayed(events: list[Event]) -> Iterator[Message]:
    """The messages as a server puts them together from the events."""
    start: MessageStart | None = None
    text = ""
    for event in events:
        match event:
            case MessageStart():
                assert start is None
                start, text = event, ""
            case Delta():
                assert start is not None
                assert event.text
                assert (event.channel, event.recipient) == (start.channel, start.recipient)
                text += event.text
            case MessageEnd():
                assert start is not None
                assert event.message == Message(
                    role=start.role,
                    content=text,
                    channel=start.channel,
                    recipient=start.recipient,
                    content_type=start.content_type,
                    name=start.name,
                )
                yield event.message
                start = None
            case Assumed():
                assert "\n" not in event.text
    assert start is None


def messages_of(text: str) -> list[Message]:
    return parsed(ids_of(text))[0].messages


def final(content: str) -> Message:
    return Message(role="assistant", channel="final", content=content)


def analysis(content: str) -> Message:
    return Message(role="assistant", channel="analysis", content=content)


def call(content: str, *, content_type: str | None = "json", channel: str = "commentary") -> Message:
    return Message(
        role="assistant", channel=channel, recipient="functions.f", content_type=content_type, content=content
    )


# -------------------------------------------------------------------- well-formed


def test_events_of_a_completion() -> None:
    _, events = parsed(
        ids_of("<|channel|>analysis<|message|>中 is<|end|><|start|>assistant<|channel|>final<|message|>x<|return|>")
    )
    assert events == [
        MessageStart(role="assistant", channel="analysis"),
        Delta(text="中", channel="analysis", recipient=None),
        Delta(text=" is", channel="analysis", recipient=None),
        MessageEnd(message=analysis("中 is"), stop="end"),
        MessageStart(role="assistant", channel="final"),
        Delta(text="x", channel="final", recipient=None),
        MessageEnd(message=final("x"), stop="return"),
    ]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("<|channel|>final<|message|>hi<|return|>", [final("hi")]),
        ("<|start|>assistant<|channel|>final<|message|>hi<|return|>", [final("hi")]),
        ("<|channel|>final<|message|><|return|>", [final("")]),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", [call("{}")]),
        ("<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>", [call("{}")]),
        ("<|channel|>commentary to=functions.f <|constrain|> json<|message|>{}<|call|>", [call("{}")]),
        ("<|channel|>commentary to=functions.f json<|message|>{}<|call|>", [call("{}")]),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", [call("{}", content_type=None)]),
        ("<|channel|>to=functions.f commentary<|constrain|>json<|message|>{}<|call|>", [call("{}")]),
        (" to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>", [call("{}")]),
        (" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", [call("{}")]),
        ("<|channel|>commentaryto=functions.f json<|message|>{}<|call|>", [call("{}")]),
        ("<|channel|>commentary  to= functions.f  json <|message|>{}<|call|>", [call("{}")]),
        (
            "<|channel|>analysis to=functions.f code<|message|>1<|call|>",
            [call("1", content_type="code", channel="analysis")],
        ),
        (
            "<|start|>functions.f to=assistant<|channel|>commentary<|message|>3<|end|>",
            [Message(role="tool", name="functions.f", recipient="assistant", channel="commentary", content="3")],
        ),
        (
            "<|start|>user:bob<|message|> hi <|end|><|start|>system<|message|>\n<|end|>",
            [Message(role="user", name="bob", content=" hi "), Message(role="system", content="\n")],
        ),
    ],
)
def test_reads_without_assuming(text: str, messages: list[Message]) -> None:
    parser, _ = parsed(ids_of(text))
    assert parser.messages == messages
    assert parser.assumed == []


NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,12}(\.[a-z_]{1,8})?", fullmatch=True)
CHANNEL = st.sampled_from(["analysis", "commentary", "final"])
TEXT = st.one_of(st.text(), st.sampled_from(["<|end|>", "<|start|>user", "🙂<|call|>", "\r\n", " to=x"]))
MESSAGES = st.one_of(
    st.builds(
        Message,
        role=st.just("assistant"),
        content=TEXT,
        channel=CHANNEL,
        recipient=st.none() | NAMES,
        content_type=st.sampled_from([None, "json", "code", "text"]),
    ),
    st.builds(
        Message,
        role=st.sampled_from(["user", "system", "developer"]),
        content=TEXT,
        name=st.none() | NAMES,
        recipient=st.none() | NAMES,
    ),
    st.builds(
        Message,
        role=st.just("tool"),
        content=TEXT,
        name=NAMES.map("functions.".__add__),
        recipient=st.just("assistant"),
        channel=st.none() | CHANNEL,
        content_type=st.sampled_from([None, "json", "code"]),
    ),
)


USER = Message(role="user", content="?")


def rendered(messages: list[Message]) -> list[int]:
    # Each message in a conversation of its own: a longer history leaves analysis out.
    return [
        token
        for message in messages
        for token in render(Conversation(system=None, messages=(USER, message)), TOKENIZER)
    ]


@given(messages=st.lists(MESSAGES, max_size=4))
def test_parse_inverts_render(messages: list[Message]) -> None:
    parser, _ = parsed(rendered(messages))
    assert parser.messages == [read for message in messages for read in (USER, message)]
    assert parser.assumed == []


def test_reads_a_prompt_and_the_completion_after_it() -> None:
    prompt = render_completion(Conversation(messages=(Message(role="user", content="2+2"),)), TOKENIZER)
    parser, _ = parsed([*prompt, *ids_of("<|channel|>final<|message|>4<|return|>")])
    assert [message.role for message in parser.messages] == ["system", "user", "assistant"]
    assert parser.messages[-1] == final("4")
    assert parser.assumed == []


@given(messages=st.lists(MESSAGES, min_size=1, max_size=3), data=st.data())
def test_any_split_gives_the_same_events(messages: list[Message], data: st.DataObject) -> None:
    ids = rendered(messages)
    for _ in range(data.draw(st.integers(0, 3))):  # some damage, too
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, TOKENIZER.vocab_size)))
    _, one_by_one = parsed(ids)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    parser = Parser(TOKENIZER)
    in_chunks: list[Event] = []
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        in_chunks += parser.feed(ids[begin:end])
    assert in_chunks + parser.finish() == one_by_one


# -------------------------------------------------------------------- malformed


@pytest.mark.parametrize(
    ("text", "messages", "assumed"),
    [
        # headers
        ("<|message|>hi<|end|>", [final("hi")], "no channel: taken as final"),
        ("to=functions.f<|message|>{}<|call|>", [call("{}", content_type=None)], "no channel: taken as commentary"),
        ("assistant<|channel|>final<|message|>hi<|return|>", [final("hi")], "'assistant' stands in a header that has"),
        (
            "<|start|><|channel|>final<|message|>hi<|return|>",
            [final("hi")],
            "no author after <|start|>: taken as assist",
        ),
        (
            "<|start|>assistant analysis<|message|>hi<|end|>",
            [analysis("hi")],
            "'analysis' stands where the author does",
        ),
        (
            "<|channel|>thoughts<|message|>hi<|end|>",
            [Message(role="assistant", channel="thoughts", content="hi")],
            "unknown channel 'thoughts': kept",
        ),
        ("<|channel|>analysis<|channel|>final<|message|>x<|return|>", [final("x")], "'final' replaces 'analysis'"),
        (" to=python<|channel|>commentary to=functions.f json<|message|>{}<|call|>", [call("{}")], "replaces 'python'"),
        (
            "<|channel|>final json is<|message|>x<|return|>",
            [Message(role="assistant", channel="final", content_type="json is", content="x")],
            "a second content type: 'is' joins 'json'",
        ),
        ("<|start|>assistant hm<|channel|>final<|message|>x<|return|>", [final("x")], "'hm' in the header: left aside"),
        (" to=functions.f<|channel|>commentary<|channel|>json<|message|>{}<|call|>", [call("{}")], None),
        ("<|channel|>fin<|reserved_9|>al<|message|>x<|return|>", None, "<|reserved_9|> in a header: left aside"),
        # a header that never ends
        ("The answer is 4.", [final("The answer is 4.")], "the stream ended before <|message|>: what is no header"),
        ("  The answer<|return|>", [final("The answer")], "<|return|> came before <|message|>: what is no header"),
        ("<|channel|>analysis We know<|end|>", [analysis("We know")], "<|end|> came before <|message|>"),
        ("<|channel|>final json is a format<|return|>", [final("json is a format")], "<|return|> came before"),
        ("<|channel|>commentary to=functions.f<|constrain|>json{}<|call|>", None, "<|call|> came before <|message|>"),
        ("<|channel|>commentary to=functions.f json<|call|>", [call("")], "<|call|> came before <|message|>"),
        ("<|channel|>final<|return|>", [final("")], "<|return|> came before <|message|>"),
        ("<|start|>assistant<|end|>", [], "<|end|> came before <|message|>: the header '<|start|>assistant' is left"),
        ("<|channel|>ana", [], "the stream ended before <|message|>: the header '<|channel|>ana' is left aside"),
        ("<|channel|>final 4 it is", [final("4 it is")], "the stream ended before <|message|>: what is no header"),
        ("<|channel|>analysis", [], "the stream ended before <|message|>: the header '<|channel|>analysis' is left"),
        ("<|start|>assistant<|start|>assistant<|channel|>final<|message|>x<|return|>", [final("x")], "<|start|> came"),
        ("word " * 200, [final("word " * 200)], "no <|message|> within 512 characters"),
        ("<|channel|>analysis " + "word " * 200 + "<|end|>", [analysis("word " * 200)], "no <|message|> within 512"),
        # bodies
        ("<|channel|>final<|message|>4", [final("4")], "the stream ended before <|end|>"),
        ("<|channel|>final<|message|>4<|endoftext|>", [final("4")], "<|endoftext|> came before <|end|>"),
        (
            "<|channel|>analysis<|message|>x<|start|>assistant<|channel|>final<|message|>y<|return|>",
            [analysis("x"), final("y")],
            "<|start|> came before <|end|>: the message is taken as complete",
        ),
        (
            "<|channel|>analysis<|message|>x<|channel|>final<|message|>y<|return|>",
            [analysis("x"), final("y")],
            "<|channel|> came before <|end|>: the message is taken as complete",
        ),
        ("<|message|>a<|message|>b<|constrain|>c<|return|>", [final("a<|message|>b<|constrain|>c")], "kept as text"),
        ("<|message|>a<|reserved_9|>b<|return|>", [final("a<|reserved_9|>b")], "<|reserved_9|> in the content: kept"),
        ("<|channel|>final<|message|>x<|call|>", [final("x")], "<|call|> without a recipient"),
        # between messages
        ("<|message|>a<|end|><|channel|>final<|message|>b<|return|>", [final("a"), final("b")], "without <|start|>"),
        (
            "<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
            [final("a"), final("b")],
            "a header with",
        ),
        ("<|message|>a<|end|>so it is<|return|>", [final("a"), final("so it is")], "text after the end of a message"),
        (
            "<|message|>a<|end|>\n<|start|>assistant<|channel|>final<|message|>b<|return|>",
            [final("a"), final("b")],
            "'\\n'",
        ),
        ("<|channel|>final<|message|>a<|end|><|return|>", [final("a")], "<|return|> between messages: left aside"),
        ("<|channel|>final<|message|>a<|end|><|reserved_9|>", [final("a")], "<|reserved_9|> between messages"),
    ],
)
def test_mends(text: str, messages: list[Message] | None, assumed: str | None) -> None:
    parser, _ = parsed(ids_of(text))
    if messages is not None:
        assert parser.messages == messages
    if assumed is None:
        assert parser.assumed == []
    else:
        assert any(assumed in line for line in parser.assumed), parser.assumed


def test_a_message_complete_before_the_damage_is_kept() -> None:
    ids = ids_of("<|channel|>analysis<|message|>x<|end|><|start|><|end|><|constrain|>")
    assert parsed(ids)[0].messages[0] == analysis("x")


@pytest.mark.parametrize("token", [HOLE, TOKENIZER.vocab_size, 10**12, -1])
def test_an_id_outside_the_vocabulary_is_marked(token: int) -> None:
    ids = ids_of("<|channel|>final<|message|>a b<|return|>")
    parser, _ = parsed([*ids[:-2], token, *ids[-2:]])
    assert parser.messages == [final("a \ufffdb")]
    assert parser.assumed == [f"id {token} is outside the vocabulary: kept as U+FFFD"]


def test_a_character_that_is_never_finished_is_marked() -> None:
    parser, _ = parsed([*ids_of("<|channel|>final<|message|>a"), 0xF0, 0x9F, *ids_of("<|return|>")])
    assert parser.messages == [final("a\ufffd")]


def test_text_that_spells_special_tokens_is_text() -> None:
    text = "<|end|><|start|>assistant<|channel|>final<|message|>"
    ids = [*ids_of("<|channel|>analysis<|message|>"), *TOKENIZER.encode(text), *ids_of("<|end|>")]
    parser, _ = parsed(ids)
    assert parser.messages == [analysis(text)]
    assert parser.assumed == []


def test_a_flood_of_one_mistake_is_noted_once_a_message() -> None:
    parser, _ = parsed(ids_of("<|channel|>final<|message|>" + "<|reserved_9|>" * 100 + "<|return|>"))
    assert len(parser.assumed) == 1
    parser, _ = parsed(ids_of("<|start|>assistant<|channel|>final<|message|><|reserved_9|><|end|>" * 3))
    assert len(parser.assumed) == 3


def test_finish_twice_and_nothing_at_all() -> None:
    parser, events = parsed([])
    assert (events, parser.messages, parser.assumed) == ([], [], [])
    parser, _ = parsed(ids_of("<|channel|>final<|message|>a"))
    assert parser.finish() == []
    assert parser.messages == [final("a")]


# -------------------------------------------------------------------- anything at all


@given(ids=st.lists(st.integers(-1, TOKENIZER.vocab_size + 1), max_size=60))
def test_any_tokens_are_survived_and_accounted_for(ids: list[int]) -> None:
    parsed(ids)


STRUCTURES = [
    "<|channel|>analysis<|message|>the code is 中<|end|><|start|>assistant<|channel|>final<|message|>is it<|return|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
    " to=python<|channel|>analysis code<|message|>1<|call|>",
    "<|start|>assistant<|channel|>commentary<|message|>the<|end|><|channel|>analysis to=python<|message|>1<|call|>",
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>3<|end|><|start|>assistant",
]


def mutated(ids: list[int], rng: random.Random) -> list[int]:
    """Ids after one to six accidents, which prefer special tokens."""
    ids = list(ids)
    special = sorted(TOKENIZER.special_ids)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(ids) + 1)
        match rng.randrange(6):
            case 0:
                ids.insert(at, rng.choice(special))
            case 1:
                ids.insert(at, rng.randint(-1, TOKENIZER.vocab_size + 1))
            case 2:
                del ids[at : at + rng.randint(1, 3)]
            case 3:
                ids[at:at] = ids[at : at + rng.randint(1, 8)]
            case 4:
                end = at + rng.randint(2, 8)
                ids[at:end] = rng.sample(ids[at:end], len(ids[at:end]))
            case _:
                ids = (
                    ids[:at] if rng.random() < 0.3 else [rng.choice(special) if rng.random() < 0.1 else i for i in ids]
                )
    return ids


def test_random_and_mutated_completions_lose_nothing() -> None:
    rng = random.Random(0)
    sound = [ids_of(text) for text in STRUCTURES]
    special = sorted(TOKENIZER.special_ids)
    num_assumed = 0
    for index in range(NUM_RANDOM_COMPLETIONS):
        if index % 4:
            ids = mutated(rng.choice(sound), rng)
        else:
            length = rng.randrange(24)
            ids = [
                rng.choice(special) if rng.random() < 0.4 else rng.randint(-1, TOKENIZER.vocab_size + 1)
                for _ in range(length)
            ]
        try:
            parser, _ = parsed(ids)
        except Exception as error:
            raise AssertionError(f"completion {index}: {ids}") from error
        num_assumed += bool(parser.assumed)
    assert num_assumed > NUM_RANDOM_COMPLETIONS / 2, "the mutations are too gentle to test anything"


def test_messages_before_the_damage_are_the_same() -> None:
    """Whatever follows, what was complete stays as it was."""
    rng = random.Random(1)
    head = ids_of(STRUCTURES[0])
    complete = parsed(head)[0].messages
    assert len(complete) == 2
    for _ in range(500):
        tail = mutated(ids_of(rng.choice(STRUCTURES)), rng)
        assert parsed([*head, *tail])[0].messages[:2] == complete


# -------------------------------------------------------------------- against the official library


@pytest.fixture(scope="module")
def official(o200k_path: Path) -> Iterator[openai_harmony.HarmonyEncoding]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(o200k_path.parent))
        yield openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def official_messages(encoding: openai_harmony.HarmonyEncoding, ids: list[int]) -> list[Message]:
    parser = openai_harmony.StreamableParser(encoding, role=openai_harmony.Role.ASSISTANT)
    for token in ids:
        parser.process(token)
    parser.process_eos()
    out: list[Message] = []
    for message in parser.messages:
        raw = message.to_dict()
        out.append(
            Message(
                role=str(raw["role"].value),
                content="".join(part["text"] for part in raw["content"]),
                channel=raw.get("channel"),
                recipient=raw.get("recipient"),
                content_type=(raw.get("content_type") or "").removeprefix("<|constrain|>") or None,
            )
        )
    return out


CALLS = [
    "",
    " to=python code",
    " to=functions.get_weather <|constrain|>json",
    " to=functions.f<|constrain|>json",
    " to=f json",
]
COMPLETION = st.lists(
    st.tuples(
        CHANNEL,
        st.sampled_from(CALLS),
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
        st.sampled_from(["<|end|>", "<|call|>", "<|return|>"]),
    ),
    min_size=1,
    max_size=4,
)


@given(parts=COMPLETION, in_role=st.booleans())
def test_well_formed_completions_as_the_official_parser(
    official: openai_harmony.HarmonyEncoding,
    o200k: Tokenizer,
    parts: list[tuple[str, str, str, str]],
    in_role: bool,
) -> None:
    ids: list[int] = []
    for index, (channel, to, content, stop) in enumerate(parts):
        recipient, _, rest = to[1:].partition(" ")
        header = f" {recipient}<|channel|>{channel} {rest}" if in_role and rest else f"<|channel|>{channel}{to}"
        ids += ids_of("<|start|>assistant" * (index > 0) + header + "<|message|>", o200k)
        ids += [*o200k.encode(content), o200k.special[stop]]
    parser = Parser(o200k)
    parser.feed(ids)
    parser.finish()
    assert parser.messages == official_messages(official, ids)
