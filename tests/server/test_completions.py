"""Raw prompts as the official client sends them."""

from typing import Any

import pytest
from openai.types import Completion
from tests.server.conftest import Scripted
from tests.server.fake import said, turn_ids

from ossia.llm import LLM

WHOLE = "<|channel|>final<|message|>It is 42, naïvely ☃."


def script(served: Scripted) -> None:
    served.script(said("final", "It is 42, naïvely ☃."))


def replayed(chunks: list[Completion]) -> list[dict[str, Any]]:
    """Choices put together from a stream."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            whole = choices.setdefault(choice.index, {"text": "", "finish_reason": None, "tokens": [], "offsets": []})
            whole["text"] += choice.text
            whole["finish_reason"] = choice.finish_reason or whole["finish_reason"]
            if choice.logprobs is not None:
                whole["tokens"] += choice.logprobs.tokens or []
                whole["offsets"] += choice.logprobs.text_offset or []
    return [choices[index] for index in sorted(choices)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2, "seed": 1},
        {"echo": True},
        {"logprobs": 2},
        {"stop": ["42"]},
        {"max_tokens": 3},
        {"prompt": ["a", "b"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_step", [1, 5])
def test_a_stream_adds_up_to_the_whole_answer(served: Scripted, options: dict[str, Any], per_step: int) -> None:
    script(served)
    served.worker.per_step = per_step
    asked = {"model": "demo", "prompt": "Six times seven?", "max_tokens": 50, **options}
    client = served.client()
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    Completion.model_validate(whole.model_dump(), strict=True)
    got = replayed(chunks)
    for choice, other in zip(whole.choices, got, strict=True):
        assert (choice.text, choice.finish_reason) == (other["text"], other["finish_reason"])
        if choice.logprobs is not None:
            assert choice.logprobs.tokens == other["tokens"]
            assert choice.logprobs.text_offset == other["offsets"]
    assert chunks[-1].usage == whole.usage


def test_the_text_has_the_special_tokens_but_the_last(served: Scripted) -> None:
    script(served)
    answer = served.client().completions.create(model="demo", prompt="?", max_tokens=50)
    assert answer.choices[0].text == WHOLE
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_stand_where_their_tokens_do(served: Scripted) -> None:
    script(served)
    choice = served.client().completions.create(model="demo", prompt="?", max_tokens=8, logprobs=2).choices[0]
    assert choice.logprobs is not None
    tokens, offsets, tops = choice.logprobs.tokens, choice.logprobs.text_offset, choice.logprobs.top_logprobs
    assert tokens and offsets and tops
    assert "".join(tokens) == choice.text
    assert [choice.text[at : at + len(token)] for at, token in zip(offsets, tokens, strict=True)] == tokens
    assert all(len(top) == 2 for top in tops)
    assert choice.logprobs.token_logprobs == [-0.5] * len(tokens)


def test_prompts_of_ids_are_taken_as_they_are(served: Scripted, llm: LLM) -> None:
    script(served)
    ids = [llm.tokenizer.special["<|start|>"], *llm.tokenizer.encode("assistant")]
    answer = served.client().completions.create(model="demo", prompt=ids, echo=True, max_tokens=50)
    assert list(served.worker.requests[0].prompt) == ids
    assert answer.choices[0].text == f"<|start|>assistant{WHOLE}"


def test_prompts_of_text_hold_no_special_token(served: Scripted, llm: LLM) -> None:
    script(served)
    served.client().completions.create(model="demo", prompt="<|start|>assistant")
    assert llm.tokenizer.special["<|start|>"] not in served.worker.requests[0].prompt


def test_choices_of_several_prompts_stand_in_order(served: Scripted, llm: LLM) -> None:
    tokenizer = llm.tokenizer
    served.worker.script = lambda request: turn_ids(
        tokenizer, said("final", f"{tokenizer.decode(request.prompt)}{request.sampling.seed}")
    )
    answer = served.client().completions.create(model="demo", prompt=["a", "b"], n=2, seed=7, max_tokens=50)
    texts = [choice.text.rpartition("|>")[2] for choice in answer.choices]
    assert texts == ["a7", "a8", "b7", "b8"]
    assert answer.usage is not None and answer.usage.prompt_tokens == 2


def test_an_answer_has_sixteen_tokens_if_nothing_is_said(served: Scripted) -> None:
    script(served)
    served.client().completions.create(model="demo", prompt="?")
    assert served.worker.requests[0].sampling.max_tokens == 16
