"""The model, its tokens, and what keeps a server running."""

import json

import openai
import pytest
from tests.server.conftest import Scripted, Serve
from tests.server.fake import FakeWorker, said, turn_ids

import ossia
from ossia.llm import LLM


def test_the_model_is_listed(served: Scripted) -> None:
    models = served.client().models.list().data
    assert [model.id for model in models] == ["demo"]
    assert (models[0].model_extra or {})["max_model_len"] == 4096
    assert served.client().models.retrieve("demo") == models[0]


def test_no_other_model_is_known(served: Scripted) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here: this is demo"):
        served.client().models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError) as caught:
        served.client().chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_tokens_of_a_text_and_back(served: Scripted, llm: LLM) -> None:
    text = "naïve <|start|> ☃"
    status, _, content = served.ask("POST", "/tokenize", {"text": text})
    assert status == 200
    tokens = json.loads(content)["tokens"]
    assert tokens == llm.tokenizer.encode(text)
    assert json.loads(content)["count"] == len(tokens)
    _, _, content = served.ask("POST", "/detokenize", {"tokens": tokens})
    assert json.loads(content) == {"text": text}


def test_tokens_of_a_conversation(served: Scripted, llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    _, _, content = served.ask("POST", "/tokenize", {"messages": messages, "reasoning_effort": "low"})
    assert json.loads(content)["tokens"] == ossia.render(messages, tokenizer=llm.tokenizer, effort="low")


def test_ids_outside_the_vocabulary_are_no_text(served: Scripted) -> None:
    status, error = served.error("/detokenize", {"tokens": [1, 10**6]})
    assert (status, error["param"]) == (400, "tokens[1]")
    assert "tokens[1] is 1000000, no id of the vocabulary" in error["message"]


def test_health_and_readiness(serve: Serve, llm: LLM) -> None:
    served = serve(FakeWorker(lambda _: ()))
    assert served.ask("GET", "/health")[0] == served.ask("GET", "/ready")[0] == 200
    served.worker.close()
    status, _, content = served.ask("GET", "/ready")
    assert (status, json.loads(content)["error"]["code"]) == (503, "closing")
    assert served.ask("GET", "/health")[0] == 200


def metric(served: Scripted, name: str) -> float:
    _, headers, content = served.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    return sum(float(line.rpartition(" ")[2]) for line in content.decode().splitlines() if line.startswith(name))


def test_metrics_count(serve: Serve, llm: LLM) -> None:
    ids = turn_ids(llm.tokenizer, said("analysis", "Hm"), said("final", "Hi"))
    served = serve(FakeWorker(lambda _: ids))
    for _ in range(2):
        served.client().chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hi"}])
    served.error("/v1/chat/completions", {})
    route = 'ossia_http_requests_total{route="/v1/chat/completions",status='
    assert metric(served, f'{route}"200"}}') == 2
    assert metric(served, f'{route}"400"}}') == 1
    assert metric(served, 'ossia_generations_total{end="stop"}') == 2
    assert metric(served, "ossia_generated_tokens_total") == 2 * len(ids)
    assert metric(served, "ossia_reasoning_tokens_total") == 2 * len(llm.tokenizer.encode("Hm"))
    assert metric(served, "ossia_time_to_first_token_seconds_count") == 2
    assert metric(served, "ossia_queue_requests") == 0


def test_paths_that_clients_make_up_are_counted_together(served: Scripted) -> None:
    before = metric(served, 'ossia_http_requests_total{route="none",status="404"}')
    for index in range(3):
        assert served.ask("GET", f"/made/up/{index}")[0] == 404
    assert metric(served, 'ossia_http_requests_total{route="none",status="404"}') == before + 3


def test_the_description_page_asks_nobody_else(served: Scripted) -> None:
    status, headers, content = served.ask("GET", "/docs")
    page = content.decode()
    assert status == 200
    assert "/v1/chat/completions" in page and "reasoning_effort" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_description_for_programs(served: Scripted) -> None:
    description = json.loads(served.ask("GET", "/openapi.json")[2])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/metrics"} <= set(
        description["paths"]
    )
    chat = description["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(chat)
    assert "422" not in chat
