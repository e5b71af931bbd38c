"""Adapters in the API: each is a model with a name of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import openai
import pytest
from tests.server.conftest import Scripted, running
from tests.server.fake import FakeWorker, said, turn_ids

from ossia.llm import LLM
from ossia.model.adapted import Variant
from ossia.server.settings import Settings

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def served(llm: LLM) -> Iterator[Scripted]:
    ids = turn_ids(llm.tokenizer, said("final", "Hi"))
    adapters = {name: Variant(model=cast("Any", None), key=name.encode()) for name in ("blue", "red")}
    worker = FakeWorker(lambda _: ids)
    with running(replace(llm, adapters=adapters), worker, Settings(model_name="demo", page=False)) as scripted:
        yield scripted


def test_all_are_listed(served: Scripted) -> None:
    client = served.client()
    assert [model.id for model in client.models.list().data] == ["demo", "demo:blue", "demo:red"]
    assert client.models.retrieve("demo:red").id == "demo:red"


def test_each_request_goes_to_its_own(served: Scripted) -> None:
    client = served.client()
    served.worker.requests.clear()
    for model in ("demo:blue", "demo", "demo:red"):
        assert client.chat.completions.create(model=model, messages=MESSAGES).model == model
    assert client.completions.create(model="demo:blue", prompt="Hi").model == "demo:blue"
    assert client.responses.create(model="demo:red", input="Hi", store=False).model == "demo:red"
    assert [request.adapter for request in served.worker.requests] == ["blue", None, "red", "blue", "red"]


def test_none_but_these(served: Scripted) -> None:
    for model in ("demo:green", "blue", "demo:", "other:blue"):
        with pytest.raises(openai.NotFoundError, match=rf"there is no model '{model}' here: this is demo, demo:blue"):
            served.client().chat.completions.create(model=model, messages=MESSAGES)
