"""A reply at whatever point the caller leaves the stream, and whatever a call was addressed to."""

import pytest

from ossia.harmony.messages import from_openai
from ossia.harmony.parse import MessageEnd
from ossia.harmony.tokenizer import Tokenizer
from ossia.reply import Stream


def stream(tokenizer: Tokenizer, *pieces: str) -> Stream:
    """Pieces are special tokens by name, or text."""
    ids = [
        token
        for piece in pieces
        for token in ([tokenizer.special[piece]] if piece in tokenizer.special else tokenizer.encode(piece))
    ]
    return Stream(iter(ids), tokenizer, num_prompt_tokens=1)


@pytest.mark.parametrize(
    ("header", "stop", "reason"),
    [("final", "<|return|>", "stop"), ("commentary to=functions.f", "<|call|>", "tool_calls")],
)
def test_a_caller_that_leaves_after_the_last_message_was_not_early(
    tiny_tokenizer: Tokenizer, header: str, stop: str, reason: str
) -> None:
    answer = stream(tiny_tokenizer, "<|channel|>", header, "<|message|>", "42", stop)
    for event in answer:
        if isinstance(event, MessageEnd):
            break
    assert answer.reply().finish_reason == reason


@pytest.mark.parametrize("recipient", ["functions.", "functions.functions.", "functions.a/b"])
def test_a_call_to_what_is_no_name_is_text(tiny_tokenizer: Tokenizer, recipient: str) -> None:
    answer = stream(tiny_tokenizer, "<|channel|>", f"commentary to={recipient}", "<|message|>", "{}", "<|call|>")
    list(answer)
    reply = answer.reply()
    assert (reply.tool_calls, reply.commentary, reply.finish_reason) == ((), "{}", "stop")
    assert f"a call to {recipient!r} names no function: taken as text" in reply.assumed
    from_openai([reply.message])
