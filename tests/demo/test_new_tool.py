import json

from ossia.demo.curriculum.grading import grade
from ossia.demo.curriculum.tools import NOUNS, RARE_NOUNS, UNSEEN_NOUNS
from ossia.demo.new_tool import NAME, TOOL, conversation, write


def wording(content: str, arguments: dict) -> str:
    text = content.replace(arguments["port"], "{p}").replace(str(arguments["weight"]), "{w}")
    return text.replace(arguments["cargo"], "{c}")


def test_each_conversation_passes_the_grader_and_fits_the_declaration():
    for index in range(300):
        drawn = conversation(3, index)
        assert TOOL in drawn.tools
        (call,) = drawn.messages[-1]["tool_calls"]
        assert grade(drawn, "", [call])
        assert not grade(drawn, "", [{**call, "function": {"name": NAME, "arguments": "{}"}}])
        assert list(drawn.call["arguments"]) == TOOL["function"]["parameters"]["required"]
        for value in drawn.call["arguments"].values():
            assert str(value) in drawn.messages[-2]["content"]


def test_held_out_requests_share_no_wording_and_no_cargo_for_a_port_with_training():
    seen = {"train": [], "heldout": []}
    for split, found in seen.items():
        found += [conversation(seed, index, split) for seed in (0, 1) for index in range(2000)]
    pairs, wordings = (
        {
            split: {get(each) for each in found}
            for split, found in seen.items()
        }
        for get in (
            lambda each: (each.call["arguments"]["cargo"], each.call["arguments"]["port"]),
            lambda each: wording(each.messages[-2]["content"], each.call["arguments"]),
        )
    )  # fmt: skip
    for values in (pairs, wordings):
        assert values["train"] and values["train"].isdisjoint(values["heldout"])
    assert len(wordings["heldout"]) > 100


def test_the_tool_is_none_of_the_curriculum():
    assert "crate" not in {*NOUNS, *RARE_NOUNS, *UNSEEN_NOUNS}


def test_the_files_hold_one_record_a_line(tmp_path):
    train, heldout = write(tmp_path / "data", count=20, heldout=5)
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    assert len(lines) == 20 and len(heldout.read_text().splitlines()) == 5
    assert lines[7]["messages"] == conversation(0, 7).messages
    assert set(lines[0]) == {"messages", "tools", "effort", "date"}
