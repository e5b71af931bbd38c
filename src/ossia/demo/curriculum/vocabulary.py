"""The demo model's vocabulary: byte-level BPE learnt from the curriculum, in the file format gpt-oss uses.

    python -m ossia.demo.curriculum.vocabulary OUT      writes OUT/tokenizer.json

Digits stand alone, so that arithmetic sees columns. A word has the same tokens after a space, in JSON and in the name
of a tool, so that copying is one thing to learn and not one for each word: the space is a token of its own, except
before the words in BOUND, which hold sentences and harmony's headers together. Rare words fall into short pieces, whose
letters are quickly learnt. Special tokens come last, as in gpt-oss.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from ossia.demo.curriculum import words
from ossia.demo.curriculum.mixture import samples
from ossia.demo.curriculum.puzzles import dataset
from ossia.demo.curriculum.sample import Sample
from ossia.demo.curriculum.texts import declared, text
from ossia.errors import DataError, StorageError
from ossia.files import write_whole

SIZE = 4096
NUM_CONVERSATIONS = 12_000
NUM_TEXTS = 6_000
NUM_INVENTED = 6_000
NUM_STRETCHES = 2_000

BOUND = (
    "the to must by a for are final model tools these date trained every cutoff channels analysis be included is any "
    "from string of you with rest answer in columns and it wants this digit me do can not how fits have that "
    "remainder legs safe am help know as but has what need your please then give boolean does decline something asked "
    "out size at make myself assistant keep very if on my over answered nothing only when so divided topic nor one "
    "careful first compute friendly helper asks i all answers they them some about than someone get because would "
    "could was were he she said his her we our there which who will their been more its into also other large "
    "language go commentary low medium high functions namespace yes no user channel message"
).split()
"""Words that keep the space before them."""

PATTERN = "|".join(
    (
        r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})",
        rf" (?:{'|'.join(BOUND)})(?!\p{{L}})",
        r"\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_0|>",
    "<|reserved_1|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_2|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_3|>",
    "<|reserved_4|>",
    "<|call|>",
    "<|reserved_5|>",
    "<|endofprompt|>",
)

# What harmony writes around a conversation; repeated, so that it costs few tokens.
SCAFFOLD = (
    "You are ChatGPT, a large language model trained by OpenAI.",
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\nReasoning: low\nReasoning: medium\nReasoning: high",
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.",
    "Calls to these tools must go to the commentary channel: 'functions'.",
    "# Instructions\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n} // namespace functions",
    "system\ndeveloper\nuser\nassistant\ntool\nanalysis\ncommentary\nfinal\njson\nto=functions.",
    "# Response Formats",
)
PROSE = (
    "The quick answer is not always the right one, but it is often good enough to begin with. She said that he would "
    "come back before the end of the week, because there was nothing else to do. Where were you when they called? "
    "Most people think about money, work and family; some of them also think about music, books and the sea. "
    "It is possible to read this without knowing what it means. If you have time, please write to me, and tell me "
    "which of these things you would rather keep. There are many ways to say the same thing, and only a few of them "
    "are short. A small model cannot know much, however long it is trained; what it knows, it should know well. "
    "We could see the lights of the town from here, if only the weather were better. Every number has its place."
)


def _texts(conversation: Sample) -> Iterator[str]:
    yield from map(declared, conversation.tools)
    for message in conversation.messages:
        for part in (message.get("reasoning"), message["content"]):
            if part:
                yield part
        for call in message.get("tool_calls", ()):
            yield f"functions.{call['function']['name']}"
            yield call["function"]["arguments"]


def corpus(seed: int) -> Iterator[str]:
    """Text to learn merges from: conversations and texts of the training split, words to copy, ordinary English."""
    drawn = samples(seed)
    for number in range(NUM_CONVERSATIONS):
        if number % 10 == 0:
            yield from SCAFFOLD
        yield from _texts(next(drawn))
    for number in range(NUM_TEXTS):
        yield text(seed, number)
    rng = Random(f"{seed}/vocabulary")
    for number in range(NUM_INVENTED):
        yield f"{words.first_name(rng)} {words.person(rng)} {words.city(rng)} {words.invented(rng)} {words.email(rng)}"
        yield f" {rng.choice(words.COMMON)}\n{rng.choice(words.COMMON)}\n {rng.choice(words.OBJECTS)}"
        if number % 100 == 0:
            yield PROSE
    yield from _running_text(seed)


@cache
def _running_text(seed: int) -> tuple[str, ...]:
    """Stretches of the novel that reasoning-gym counts letters in (public domain), as samples of English."""
    rng = Random(f"{seed}/text")
    return tuple(
        dataset("letter_counting")[rng.getrandbits(30)]["question"].rsplit(":", 1)[1] for _ in range(NUM_STRETCHES)
    )


def train_vocabulary(path: str | Path, size: int = SIZE, seed: int = 0) -> Path:
    """Learn the vocabulary and write `tokenizer.json`; the same file for the same arguments.

    `path` is the folder to write into, or the file itself if it ends in .json; `size` counts special tokens too.
    Raises DataError if the corpus has too few merges for `size`, StorageError if the file cannot be written.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    if tokenizer.get_vocab_size() != size - len(SPECIALS):
        found = tokenizer.get_vocab_size() + len(SPECIALS)
        raise DataError(f"size is {size}, but the corpus gives only {found} tokens: ask for fewer")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    target = Path(path)
    target = target if target.suffix == ".json" else target / "tokenizer.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror}); choose another folder") from None
    write_whole(target, json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1) + "\n")
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ossia.demo.curriculum.vocabulary OUT")
    print(train_vocabulary(sys.argv[1]))
