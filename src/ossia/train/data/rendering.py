"""A record as documents: its tokens, and which of them the model is to learn."""

from dataclasses import dataclass, replace
from typing import Literal

from ossia.errors import DataError, HarmonyError
from ossia.harmony import Conversation, from_openai, render, render_training, training_turns
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.data.accounting import Accounting
from ossia.train.data.packing import Document
from ossia.train.data.records import Record, Records

TooLong = Literal["error", "cut", "drop"]
Fitted = tuple[Document | None, Accounting]
"""A document or a piece of one, None where it was dropped, and what became of its tokens."""

_KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    "messages": {"messages": (list,), "tools": (list, type(None)), "effort": (str,), "date": (str, type(None))},
    "prompt": {"prompt": (str, list), "completion": (str, list)},
    "text": {"text": (str,)},
}
"""The field that tells a kind of record → its fields and their types."""


def documents(record: Record, tokenizer: Tokenizer, *, every_token: bool = False) -> list[Document]:
    """The documents of one record, whatever their length.

    A text is one document that ends with `<|endoftext|>`, learnt but for its first token. A conversation gives one for
    each assistant turn, rendered as when the model runs, earlier reasoning left out; what the model must produce in
    that turn is learnt: headers, content, `<|end|>`, `<|call|>`, `<|return|>`. With `every_token` what others say is
    learnt too, each message once, and such a document is as divisible as a text.
    Raises DataError or HarmonyError that names the field.
    """
    kind = _checked(record)
    if kind == "text":
        return [_text(record["text"], tokenizer)]
    turns = training_turns(_conversation(record, kind))
    if not turns:
        raise DataError("field messages has no finished assistant turn, so there is nothing to learn")
    if not every_token:
        return [Document(*render_training(turn, tokenizer)) for turn in turns]
    out: list[Document] = []
    known = 1
    for turn in turns:
        token_ids, _ = render_training(turn, tokenizer)
        out.append(Document(token_ids, [False] * known + [True] * (len(token_ids) - known), divisible=True))
        known = len(render(turn, tokenizer))  # As the next turn's prompt has it.
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How records become documents that are not too long."""

    tokenizer: Tokenizer
    max_length: int
    """Most tokens of a document, 2 or more."""
    too_long: TooLong = "error"
    every_token: bool = False
    vocab_size: int | None = None
    """Ids the model has, against which all are checked; None: no check."""

    def fitted(self, records: Records, index: int) -> list[Fitted]:
        """The documents of one record and what became of their tokens.

        Raises DataError, naming place and field, where the record does not render, where a document is too long and
        that is an error, and where a token is outside the model's vocabulary.
        """
        record = records.read(index)
        try:
            return [
                piece
                for document in documents(record, self.tokenizer, every_token=self.every_token)
                for piece in fit(self._known(document), self.max_length, self.too_long)
            ]
        except (DataError, HarmonyError) as error:
            raise DataError(f"{records.where(index)}: {error}") from None

    def _known(self, document: Document) -> Document:
        largest = max(document.token_ids)
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise DataError(
                f"token id {largest} is outside the model's vocabulary of {self.vocab_size}: "
                f"give the model its own tokenizer"
            )
        return document


def fit(document: Document, max_length: int, too_long: TooLong) -> list[Fitted]:
    """The document in pieces of at most `max_length` tokens.

    A divisible one goes on in the next piece, which opens with the last token of the one before, so that nothing is
    lost. Another is cut at its end, dropped, or a DataError; it is also dropped where the cut leaves nothing to learn.
    """
    length = len(document)
    if length <= max_length:
        return [_kept(document, rendered=length)]
    if document.divisible:
        first, *others = (_slice(document, start, start + max_length) for start in range(0, length - 1, max_length - 1))
        continued = [_kept(piece, rendered=len(piece) - 1, repeated=1) for piece in others]
        return [_kept(first, rendered=len(first)), *continued]
    if too_long == "error":
        raise DataError(
            f"{length} tokens, more than --max-length {max_length}: shorten it, raise the limit, "
            f"or have it cut or dropped with --too-long"
        )
    kept = _slice(document, 0, max_length)
    if too_long == "drop" or not any(kept.learn):
        return [(None, Accounting(rendered=length, dropped=length, dropped_documents=1))]
    return [_kept(kept, rendered=length, cut=length - max_length, cut_documents=1)]


def _kept(document: Document, **counts: int) -> Fitted:
    kept, learnt = len(document), sum(document.learn)
    return document, Accounting(documents=1, kept=kept, learnt=learnt, masked=kept - learnt, **counts)


def _slice(document: Document, start: int, end: int) -> Document:
    """Tokens `start` to `end`, the first of them for context alone."""
    learn = [False, *document.learn[start + 1 : end]]
    return replace(document, token_ids=document.token_ids[start:end], learn=learn)


def _text(text: str, tokenizer: Tokenizer) -> Document:
    token_ids = tokenizer.encode(text)
    if not token_ids:
        raise DataError("field text is empty, so there is nothing to learn")
    token_ids.append(tokenizer.special["<|endoftext|>"])
    return Document(token_ids, [False] + [True] * (len(token_ids) - 1), divisible=True)


def _checked(record: Record) -> str:
    """The kind of a record, its fields checked."""
    kind = next((kind for kind in _KINDS if kind in record), None)
    if kind is None:
        raise DataError("field messages is missing (or prompt and completion, or text)")
    fields = _KINDS[kind]
    for name, value in record.items():
        if name not in fields:
            raise DataError(f"unknown field {name}; beside {kind} are known {', '.join(fields)}")
        if not isinstance(value, fields[name]):
            given = type(value).__name__
            raise DataError(f"field {name} is {given}; give {' or '.join(t.__name__ for t in fields[name] if t)}")
    if kind == "prompt" and "completion" not in record:
        raise DataError("field completion is missing")
    return kind


def _conversation(record: Record, kind: str) -> Conversation:
    if kind == "prompt":
        prompt, completion = record["prompt"], record["completion"]
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return from_openai([*messages, *answer])
    return from_openai(
        record["messages"],
        tools=record.get("tools") or None,
        effort=record.get("effort", "medium"),
        date=record.get("date"),
    )
