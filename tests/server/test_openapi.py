"""The OpenAPI description, tried with what it allows and with what it does not: no answer of 500 or more, and no hang.

OSSIA_OPENAPI_CASES says how many requests are made, 100 unless told.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from tests.server.serving import PATIENCE_SECONDS, Served, serving

CASES = int(os.environ.get("OSSIA_OPENAPI_CASES", "100"))
SOUND = {
    "/v1/chat/completions": {"model": "demo", "messages": [{"role": "user", "content": "What is 17 + 25?"}]},
    "/v1/completions": {"model": "demo", "prompt": "17 + 25 ="},
    "/v1/responses": {"model": "demo", "input": "What is 17 + 25?"},
    "/tokenize": {"text": "17 + 25"},
}
"""Put into half of the bodies: what is drawn for these fields is seldom right, and then nothing else is looked at."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whatever is asked, an answer fits 256 tokens."""
    folder = tmp_path_factory.mktemp("openapi")
    with serving(folder, "--store", str(folder / "responses.sqlite"), "--context", "256") as served:
        yield served


def test_nothing_that_is_described_breaks_the_server(server: Served) -> None:
    root = server.url.removesuffix("/v1")
    schema = schemathesis.openapi.from_url(f"{root}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} >= {"POST /v1/chat/completions", "POST /v1/responses"}
    statuses: Counter[tuple[str, int]] = Counter()
    each = -(-CASES // (2 * sum(bool(operation.body) for operation in operations)))
    for operation in operations:
        for mode in GenerationMode:
            _try(root, operation, mode, each if operation.body else min(each, 20), statuses)
    print(json.dumps({f"{label} {status}": count for (label, status), count in sorted(statuses.items())}))
    assert sum(statuses.values()) >= CASES * 0.9
    assert server.process.poll() is None
    assert "Traceback" not in server.log.read_text()


def _try(
    root: str,
    operation: APIOperation,
    mode: GenerationMode,
    count: int,
    statuses: Counter[tuple[str, int]],
) -> None:
    @settings(max_examples=count, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), repaired=st.booleans())
    def ask(case: Case, repaired: bool) -> None:
        if repaired and isinstance(case.body, dict):
            case.body.update(SOUND.get(operation.path, {}))
        answer = case.call(base_url=root, timeout=PATIENCE_SECONDS)
        statuses[operation.label, answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    # Of what takes nothing, nothing can be wrong.
    with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
        ask()
