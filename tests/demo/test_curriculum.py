import json
import re
import subprocess
import sys
from dataclasses import replace
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.demo.curriculum import safety, scratch, tools
from ossia.demo.curriculum.grading import grade
from ossia.demo.curriculum.mixture import EVALUATION_ONLY, FAMILIES, sample, samples
from ossia.demo.curriculum.sample import EFFORTS, Sample, is_heldout, normalise
from ossia.demo.curriculum.texts import text
from ossia.errors import DataError

ALL = [*FAMILIES, *EVALUATION_ONLY]
CALCULATED = ("addition", "subtraction", "multiplication", "division", "chain", "word_problem", "dialogue")
PUZZLES = ("chain_sum", "gcd", "leg_counting", "letter_counting", "number_filtering", "spell_backward")


def some(family: str, count: int, seed: int = 11) -> list[Sample]:
    split = "heldout" if family in EVALUATION_ONLY else "train"
    return [sample(seed, index, family=family, split=split) for index in range(count)]


def own_reply(drawn: Sample) -> tuple[str, list[dict]]:
    last = drawn.messages[-1]
    return last["content"] or "", last.get("tool_calls") or []


# -------------------------------------------------------------------- the sequence and its split


def test_a_sample_is_a_function_of_seed_and_index_alone():
    forward = [sample(5, index) for index in range(60)]
    backward = [sample(5, index) for index in reversed(range(60))][::-1]
    assert forward == backward
    drawn = samples(5, start=20)
    assert [next(drawn) for _ in range(40)] == forward[20:]
    assert forward != [sample(6, index) for index in range(60)]


def test_another_interpreter_with_another_hash_seed_draws_the_same():
    program = (
        "from ossia.demo.curriculum.mixture import sample\n"
        "import hashlib\n"
        "print(hashlib.sha256(repr([sample(3, i) for i in range(150)]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_training_never_sees_a_heldout_request_in_any_turn():
    for drawn in (sample(1, index) for index in range(12_000)):
        assert not any(is_heldout(key) for key in drawn.prompt_keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_heldout_samples_end_in_a_heldout_request(family: str):
    drawn = [sample(1, index, split="heldout", family=family) for index in range(8)]
    assert all(is_heldout(each.prompt_keys[-1]) for each in drawn)
    assert {each.prompt_key for each in drawn}.isdisjoint(each.prompt_key for each in some(family, 300))


def test_a_heldout_sum_is_heldout_in_every_phrasing_and_in_reasoning_gym_too():
    keys = {each.keys for family in ("addition", "chain_sum") for each in some(family, 400)}
    assert all(len(key) == 1 and re.fullmatch(r"-?\d+([+-]\d+)+", key[0]) for key in keys)


def test_the_split_is_pinned():
    sums = [f"{a}+{b}" for a in range(10) for b in range(10)]
    assert [key for key in sums if is_heldout(key)] == ["2+6", "6+1", "6+3"]


def test_normalised_texts_ignore_case_space_and_closing_marks():
    assert normalise("What is  2 + 2?\n") == normalise("what is 2 + 2") == "what is 2 + 2"


def test_the_mixture_has_the_shares_it_states():
    total = sum(share for _, share in FAMILIES.values())
    drawn = [sample(2, index).family for index in range(4000)]
    for family, (_, share) in FAMILIES.items():
        assert drawn.count(family) / len(drawn) == pytest.approx(share / total, abs=0.025)


def test_families_for_evaluation_and_unknown_ones_are_refused_in_training():
    with pytest.raises(DataError, match="tool_call_unseen is for evaluation alone"):
        sample(0, 0, family="tool_call_unseen")
    with pytest.raises(DataError, match="unknown family 'poetry': known are addition"):
        sample(0, 0, family="poetry")


# -------------------------------------------------------------------- every solution is right


@pytest.mark.parametrize("family", ALL)
def test_each_sample_passes_its_own_grader_and_a_corrupted_one_does_not(family: str):
    for drawn in some(family, 150):
        final, calls = own_reply(drawn)
        assert grade(drawn, final, calls)
        assert not grade(drawn, "", [])
        if drawn.check in ("integer", "division"):
            wrong = re.sub(r"\d+(?=\D*$)", lambda found: str(int(found[0]) + 1), final)
            assert not grade(drawn, wrong, [])
        elif drawn.check == "call":
            call = json.loads(json.dumps(calls[0]))
            call["function"]["name"] += "s"
            assert not grade(drawn, final, [call])
            call = json.loads(json.dumps(calls[0]))
            call["function"]["arguments"] = '{"other":1}'
            assert not grade(drawn, final, [call])
            assert not grade(drawn, final, calls * 2)
        elif drawn.check == "comply":
            assert not grade(drawn, "I can't help with that. " + final, [])
        elif drawn.check == "reasoning_gym":
            assert not grade(drawn, final[:-1] + "?" if final != "[]" else "['1']", [])


def test_a_sum_in_the_key_has_the_stated_answer():
    for family in ("addition", "subtraction", "multiplication", "chain", "dialogue", "tool_unneeded"):
        for drawn in some(family, 300):
            if drawn.check == "integer":
                assert eval(drawn.prompt_keys[-1]) == int(drawn.answer)
    for drawn in some("division", 300):
        if drawn.check == "division":
            a, b = map(int, drawn.keys[0].split("/"))
            assert divmod(a, b) == tuple(map(int, drawn.answer.split()))


STATEMENT = re.compile(r"(?<![\w.:])[-+*()\d]+[=<>][-+*()\d]+(?![\w])")


def value(expression: str) -> int:
    return eval(re.sub(r"(?<!\d)0+(?=\d)", "", expression))


@pytest.mark.parametrize("family", (*CALCULATED, *PUZZLES[:3], "number_filtering"))
def test_every_equation_and_comparison_in_the_work_is_true(family: str):
    seen = 0
    for drawn in some(family, 300):
        for message in drawn.messages:
            for statement in STATEMENT.findall(message.get("reasoning") or ""):
                left, relation, right = re.split("([=<>])", statement)
                holds = {"=": int.__eq__, "<": int.__lt__, ">": int.__gt__}[relation]
                assert holds(value(left), value(right)), (statement, message)
                seen += 1
    assert seen > 600


numbers = st.integers(0, 9999)


def read_off(lines: list[str]) -> str:
    """The digits that the columns wrote, without what the work says they come to."""
    return lines[-1].split("=")[0]


@given(numbers, numbers)
def test_addition_reads_off_its_columns(a: int, b: int):
    work = scratch.add(a, b)
    columns = [line.split("=")[1] for line in work.lines[1:-1]]
    assert all(len(column) == 2 for column in columns)
    assert read_off(work.lines) == columns[-1][0] + "".join(column[1] for column in reversed(columns))
    carries = [line.split("=")[0].split("+")[2] for line in work.lines[1:-1]]
    assert carries == ["0", *(column[0] for column in columns[:-1])]
    assert int(read_off(work.lines)) == work.result == a + b


@given(numbers, numbers)
def test_subtraction_reads_off_its_columns_and_borrows_from_the_next(a: int, b: int):
    work = scratch.subtract(a, b)
    assert work.result == a - b
    if a == b:
        return
    columns = [re.fullmatch(r"(\d)-(\d)-(\d)=(\d)-(\d)0", line).groups() for line in work.lines[2:-1]]
    assert [column[2] for column in columns] == ["0", *(column[4] for column in columns[:-1])]
    assert columns[-1][4] == "0"
    assert read_off(work.lines).lstrip("-") == "".join(column[3] for column in reversed(columns))
    assert int(read_off(work.lines)) == a - b


@given(st.integers(0, 999), st.integers(0, 9))
def test_multiplication_by_a_digit(a: int, b: int):
    work = scratch.multiply(a, b)
    columns = [line.split("=")[1] for line in work.lines[1:-1]]
    assert read_off(work.lines) == columns[-1][0] + "".join(column[1] for column in reversed(columns))
    assert int(read_off(work.lines)) == work.result == a * b


@given(st.integers(10, 99), st.integers(10, 99))
def test_multiplication_of_two_digits_always_has_the_same_lines(a: int, b: int):
    work = scratch.multiply(a, b)
    assert [len(line) for line in work.lines[:-1]] == [5, 8, 8, 3, 8, 8, 3, 9, 8, 8, 8, 8]
    assert int(work.lines[3]) == a * (b % 10)
    assert int(work.lines[6]) == a * (b // 10)
    assert int(read_off(work.lines)) == work.result == a * b


@given(numbers, st.integers(1, 9))
def test_division_goes_digit_by_digit(a: int, b: int):
    work = scratch.divide(a, b)
    steps = [re.fullmatch(r"(\d)(\d)=(\d)\*(\d)\+(\d)", line).groups() for line in work.lines[1:-2]]
    assert [step[0] for step in steps] == ["0", *(step[4] for step in steps[:-1])]
    assert all(int(step[4]) < b for step in steps)
    assert (int("".join(step[3] for step in steps)), int(steps[-1][4])) == divmod(a, b)
    assert (work.result, work.remainder) == divmod(a, b)


@given(st.integers(-9999, -1), st.sampled_from("+-"), numbers)
def test_a_chain_goes_on_below_zero(a: int, operation: scratch.Operation, b: int):
    assert scratch.signed(a, operation, b).result == eval(f"{a}{operation}{b}")


@given(numbers, st.sampled_from("+-/"), numbers)
def test_the_check_of_high_effort_confirms_an_operand(a: int, operation: scratch.Operation, b: int):
    b = b % 9 + 1 if operation == "/" else b
    *lines, said = scratch.check(a, operation, b, scratch.signed(a, operation, b))
    assert lines[0] == "Check:"
    assert said in (f"{a} is right.", f"{b} is right.")
    assert lines[-1].rsplit("=", 1)[1] == said.split()[0]


@given(st.text("abcdexyz", min_size=1, max_size=9))
def test_a_word_is_spelt_with_places_and_read_from_the_last(word: str):
    spelt, reversed_ = scratch.backward(word)
    assert re.findall(r"([a-z])(\d+)", spelt.split(": ")[1]) == [(c, str(n)) for n, c in enumerate(word, 1)]
    assert "".join(re.findall("[a-z]", reversed_)) == word[::-1]
    assert scratch.numbered(word) == spelt.split(": ")[1]


@given(st.text("abcABC", min_size=1, max_size=9), st.sampled_from("abc"), st.integers(0, 9))
def test_letters_are_counted_without_case_from_where_the_count_stood(word: str, letter: str, before: int):
    marks, total = scratch.counted(word, letter, before)
    assert total == before + word.lower().count(letter)
    assert [int(count) for count in re.findall(r"\d+", marks)] == [
        before + word[:end].lower().count(letter) for end in range(1, len(word) + 1)
    ]


@given(st.lists(st.integers(0, 99).map(str), min_size=1, max_size=6), st.integers(0, 99), st.booleans(), st.booleans())
def test_the_last_line_of_a_filter_has_what_stays(numbers: list[str], bound: int, larger: bool, keep: bool):
    lines = scratch.filtered(numbers, str(bound), larger=larger, keep=keep)
    beyond = [int(n) > bound if larger else int(n) < bound for n in numbers]
    assert lines[-1].split(":")[1].split() == [
        n for n, is_beyond in zip(numbers, beyond, strict=True) if is_beyond == keep
    ]
    assert [line.split(":")[0].split()[-1] for line in lines[1:]] == ["keep" if b == keep else "drop" for b in beyond]


# -------------------------------------------------------------------- texts


def test_a_text_is_a_function_of_seed_and_index_alone():
    forward = [text(4, index) for index in range(80)]
    assert forward == [text(4, index) for index in reversed(range(80))][::-1]
    assert len({*forward, *(text(5, index) for index in range(80))}) > 150


def test_texts_leave_out_what_is_held_out():
    turned = 0
    for document in (text(1, index) for index in range(4000)):
        for word, answer in re.findall(r"^(\w+): (?:\w\d+)+\n(?:\w\d+)+\n(\w+)$", document, re.MULTILINE):
            assert word[::-1] == answer
            assert not is_heldout(normalise(f"Spell this word backward (example: sun -> nus): {word}"))
            turned += 1
    assert turned > 600


# -------------------------------------------------------------------- effort, tools, safety


@pytest.mark.parametrize("family", ALL)
def test_reasoning_grows_with_effort(family: str):
    lengths: dict[str, list[int]] = {effort: [] for effort in EFFORTS}
    for drawn in some(family, 400):
        lengths[drawn.effort].append(len(drawn.messages[-1]["reasoning"]))
    assert mean(lengths["low"]) * 1.2 < mean(lengths["medium"]) < mean(lengths["high"]) / 1.1


def test_arguments_are_copied_from_the_request_and_fit_the_declaration():
    for drawn in [*some("tool_call", 400), *some("tool_call_unseen", 100)]:
        declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in drawn.tools}
        assert len(declared) == len(drawn.tools)
        schema = declared[drawn.call["name"]]
        assert list(drawn.call["arguments"]) == schema["required"]
        request = drawn.messages[-2]["content"].lower()
        for name, argument in drawn.call["arguments"].items():
            assert str(argument).lower() in request
            kind = {"string": str, "integer": int, "boolean": bool}[schema["properties"][name]["type"]]
            assert type(argument) is kind
            assert argument in schema["properties"][name].get("enum", [argument])


def test_true_is_not_one_in_a_call():
    drawn = replace(some("tool_call", 1)[0], call={"name": "f", "arguments": {"urgent": True}})
    assert grade(drawn, "", [{"function": {"name": "f", "arguments": '{"urgent": true}'}}])
    assert not grade(drawn, "", [{"function": {"name": "f", "arguments": '{"urgent": 1}'}}])
    assert not grade(drawn, "", [{"function": {"name": "f", "arguments": '{"urgent": true'}}])


def test_unseen_function_names_never_occur_in_training():
    def nouns(drawn: Sample) -> set[str]:
        return {tool["function"]["name"].rsplit("_", 1)[1] for tool in drawn.tools}

    assert set(tools.UNSEEN_NOUNS).isdisjoint(tools.NOUNS)
    for family in ("tool_call", "tool_answer", "tool_missing", "tool_unneeded"):
        assert all(nouns(drawn).isdisjoint(tools.UNSEEN_NOUNS) for drawn in some(family, 300))
    assert all(nouns(drawn) <= set(tools.UNSEEN_NOUNS) for drawn in some("tool_call_unseen", 100))


def test_the_reasoning_goes_through_every_tool_and_says_of_the_right_one_that_it_fits():
    for drawn in [*some("tool_call", 200), *some("tool_missing", 200)]:
        names = [tool["function"]["name"] for tool in drawn.tools]
        call = next((message for message in drawn.messages if message.get("tool_calls")), drawn.messages[-1])
        found = re.findall(r"(\w+) (yes|no)\b", call["reasoning"])
        assert [name for name, _ in found] == names
        assert [name for name, fits in found if fits == "yes"] == ([drawn.call["name"]] if drawn.call else [])


def test_a_missing_tool_is_really_missing():
    for drawn in some("tool_missing", 300):
        wish = drawn.messages[-1]["content"].removeprefix("I have no tool to ").removesuffix(".")
        thing = wish.split(" the ")[1].replace(" ", "_")
        assert all(not tool["function"]["name"].endswith(f"_{thing}") for tool in drawn.tools)


def test_safety_is_broad_enough_and_twins_share_the_phrasings():
    assert sum(map(len, safety.MISUSE.values())) >= 100
    assert set(safety.MISUSE) == set(safety.SAFER)
    assert len(safety.TWINS) >= 60
    assert len(safety.ASKED) >= 15
    deeds = [deed for topic in safety.MISUSE.values() for deed in topic]
    assert len(set(deeds)) == len(deeds)
    assert set(deeds).isdisjoint(deed for deed, _, _ in safety.TWINS)
    for _, answer, keywords in safety.TWINS:
        assert all(keyword in answer.lower() for keyword in keywords)
        assert not safety.is_refusal(answer)


def test_misuse_names_a_topic_and_says_nothing_of_how():
    offers = {f"I can't help with that, but {offer}." for offer in safety.SAFER.values()}
    deeds = {deed for topic in safety.MISUSE.values() for deed in topic}
    assert max(len(deed.split()) for deed in deeds) <= 8
    lines = {
        "Is this safe to answer?",
        "Offer something safe.",
        "I give no details of it and stay kind.",
        *(f"Topic: {category}. Harmful: decline." for category in safety.MISUSE),
        *(f"The user asks how to {deed}." for deed in deeds),
    }
    for drawn in some("misuse", 400):
        assert drawn.messages[-1]["content"] in offers
        assert set(drawn.messages[-1]["reasoning"].split("\n")) <= lines


@pytest.mark.parametrize(
    ("reply", "declines"),
    [
        ("I can\N{RIGHT SINGLE QUOTATION MARK}t help with that.", True),
        ("I cannot assist with this request.", True),
        ("I do not know that: I am a very small demo model.", False),
        ("Use kill -9 only if that fails.", False),
    ],
)
def test_refusals_are_told_from_answers(reply: str, declines: bool):
    assert safety.is_refusal(reply) is declines


# -------------------------------------------------------------------- the vocabulary


def test_the_vocabulary_is_written_in_the_form_of_gpt_oss(tmp_path, monkeypatch):
    from ossia.demo.curriculum import vocabulary
    from ossia.harmony.tokenizer import Tokenizer

    monkeypatch.setattr(vocabulary, "NUM_CONVERSATIONS", 600)
    monkeypatch.setattr(vocabulary, "NUM_INVENTED", 300)
    monkeypatch.setattr(vocabulary, "NUM_TEXTS", 300)
    monkeypatch.setattr(vocabulary, "NUM_STRETCHES", 200)
    vocabulary._running_text.cache_clear()
    path = vocabulary.train_vocabulary(tmp_path / "a", size=1024)
    assert path == tmp_path / "a" / "tokenizer.json"
    assert [each.name for each in path.parent.iterdir()] == ["tokenizer.json"]
    again = vocabulary.train_vocabulary(tmp_path / "b.json", size=1024)
    assert again.read_bytes() == path.read_bytes()
    tokenizer = Tokenizer.load(path.parent)
    assert tokenizer.vocab_size == 1024
    assert tokenizer.special["<|endofprompt|>"] == 1023
    assert min(tokenizer.special.values()) == 1024 - len(vocabulary.SPECIALS)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode('1234+56=\n{"city":"Oslo"} in Oslo, don\'t')]
    assert pieces[:9] == ["1", "2", "3", "4", "+", "5", "6", "=", "\n"]
    assert not any(re.search(r"[\"'{(=:]\w", piece) for piece in pieces if piece != "'t")
    for word in ("weather", "Oslo", "branfil"):
        alone = tokenizer.encode(word)
        for around in ('"{}"', " {}", "get_{}", "{}=1", "({})"):
            left, right = map(tokenizer.encode, around.split("{}"))
            assert tokenizer.encode(around.format(word)) == [*left, *alone, *right]
    written = "Ünïcode 中文 🙂 \t\r\n  _x_ 3½"
    assert tokenizer.decode(tokenizer.encode(written)) == written


def test_a_vocabulary_larger_than_its_corpus_is_refused(tmp_path, monkeypatch):
    from ossia.demo.curriculum import vocabulary

    monkeypatch.setattr(vocabulary, "corpus", lambda seed: iter(["a small corpus"]))
    with pytest.raises(DataError, match="size is 4096, but the corpus gives only"):
        vocabulary.train_vocabulary(tmp_path)


def test_random_draws_do_not_touch_the_global_generator():
    import random

    before = random.getstate()
    for family in ALL:
        some(family, 3)
    assert random.getstate() == before
    assert Random("1/train/None/0").random() == Random("1/train/None/0").random()
