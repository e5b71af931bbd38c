import subprocess
import sys

import numpy as np
import pytest

from ossia.engine.request import Sampling, answer_limit, check_prompt
from ossia.errors import RequestError


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -0.1, "temperature is -0.1: give a number at least 0"),
        ("temperature", float("nan"), "temperature is nan: give a finite number"),
        ("temperature", float("inf"), "temperature is inf: give a finite number"),
        ("temperature", "hot", "temperature is 'hot': give a finite number"),
        ("top_p", 0, "top_p is 0: give a number above 0"),
        ("top_p", 1.01, "top_p is 1.01: give a number between 0 and 1"),
        ("min_p", -1, "min_p is -1: give a number between 0 and 1"),
        ("top_k", -1, "top_k is -1: give a whole number of at least 0"),
        ("top_k", 2.5, "top_k is 2.5: give a whole number"),
        ("seed", -1, "seed is -1: give a whole number from 0"),
        ("seed", 2**63, "seed is 9223372036854775808: give a whole number from 0"),
        ("max_tokens", 0, "max_tokens is 0: give a whole number of at least 1"),
        ("max_tokens", True, "max_tokens is True: give a whole number"),
        ("repetition_penalty", 0, "repetition_penalty is 0: give a number above 0"),
        ("presence_penalty", 2.5, "presence_penalty is 2.5: give a number between -2 and 2"),
        ("frequency_penalty", -3, "frequency_penalty is -3: give a number between -2 and 2"),
        ("logit_bias", {5: 101}, "logit_bias of token 5 is 101: give a number between -100 and 100"),
        ("logit_bias", {"5": 1}, "a token of logit_bias is '5': give a whole number"),
        ("logprobs", 21, "logprobs is 21: give a whole number from 0 to 20"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        Sampling(**{field: value})
    assert str(caught.value).startswith(says)


def test_the_edges_of_each_range_are_allowed() -> None:
    Sampling(temperature=0, top_p=1, min_p=0, top_k=0, seed=0, max_tokens=1)
    Sampling(temperature=100, top_p=1e-9, min_p=1, top_k=10**9, seed=2**63 - 1)
    Sampling(
        repetition_penalty=1e-3, presence_penalty=-2, frequency_penalty=2, logit_bias={0: -100, 1: 100}, logprobs=0
    )
    given = {1: 2.0}
    kept = Sampling(logit_bias=given, logprobs=20)
    given[1] = 3.0
    assert kept.logit_bias == {1: 2.0}
    assert Sampling(stop_ids=[3, 3]).stop_ids == frozenset({3})


def test_prompts_are_checked() -> None:
    check_prompt([0, 9], vocab_size=10, context=3)
    check_prompt([0, 9, 1], vocab_size=10, context=3, room=0)
    check_prompt(np.array([0, 9]), vocab_size=10, context=3)  # An array has no truth of its own.
    with pytest.raises(RequestError, match="the prompt is empty"):
        check_prompt([], vocab_size=10, context=3)
    with pytest.raises(RequestError, match="the prompt has 3 tokens and the context 3, answer included: shorten"):
        check_prompt([0, 1, 2], vocab_size=10, context=3)
    with pytest.raises(RequestError, match="the prompt has 4 tokens and the context 3: shorten"):
        check_prompt([0, 1, 2, 3], vocab_size=10, context=3, room=0)
    with pytest.raises(RequestError, match="token id 10 at index 1 is outside the vocabulary of 10"):
        check_prompt([0, 10], vocab_size=10, context=9)
    with pytest.raises(RequestError, match="token id -1 at index 0"):
        check_prompt([-1], vocab_size=10, context=9)


def test_an_answer_fits_into_the_context() -> None:
    assert answer_limit(Sampling(), 4, 10) == 6
    assert answer_limit(Sampling(max_tokens=2), 4, 10) == 2
    assert answer_limit(Sampling(max_tokens=20), 4, 10) == 6


def test_no_torch_is_needed() -> None:
    code = "import sys, ossia.engine.request; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
