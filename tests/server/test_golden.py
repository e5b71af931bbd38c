"""The recorded set: to each request the same bytes as when it was recorded, but for ids and times."""

import json
from pathlib import Path

import pytest
from tests.server.fake import fake_llm
from tests.server.golden.cases import CASES, Case
from tests.server.golden.record import FOLDER, answer, body_of, to_file

from ossia.llm import LLM


@pytest.fixture(scope="module")
def llm() -> LLM:
    return fake_llm()


def test_the_set_is_complete() -> None:
    assert len(CASES) >= 40
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(case.name for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_is_the_recorded_one(case: Case, llm: LLM, tmp_path: Path) -> None:
    text = (FOLDER / f"{case.name}.json").read_text(encoding="utf-8")
    recorded = json.loads(text)
    assert recorded["request"] == {"method": case.method, "path": case.path, "body": case.body}
    assert recorded["model_writes"] == list(case.turns)
    got = answer(llm, case, tmp_path)
    assert got.status == recorded["response"]["status"]
    assert got.content_type == recorded["response"]["content_type"]
    assert got.body.decode() == body_of(recorded["response"]).decode()
    assert to_file(case, got) == text
