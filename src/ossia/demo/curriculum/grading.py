"""Whether a reply is right: one short rule for each kind of exercise."""

import json
import re
from typing import Any

from ossia.demo.curriculum import puzzles
from ossia.demo.curriculum.safety import is_refusal
from ossia.demo.curriculum.sample import Sample

_INTEGER = re.compile(r"(?<![\w.])-?\d+(?!\.?\d)")


def grade(sample: Sample, reply_final: str, reply_tool_calls: list[dict[str, Any]]) -> bool:
    """Whether a reply in place of the sample's last message is right.

    `reply_final` is the text of the final channel ("" if none), `reply_tool_calls` the calls in OpenAI form. A call
    where none is wanted is wrong, and a final where a call is wanted counts for nothing.
    """
    if sample.check == "call":
        return sample.call is not None and len(reply_tool_calls) == 1 and _same_call(sample.call, reply_tool_calls[0])
    if reply_tool_calls:
        return False
    if sample.check == "reasoning_gym":
        return puzzles.score(sample.family, int(sample.answer), reply_final)
    if sample.check == "decline":
        return is_refusal(reply_final)
    if sample.check == "integer":
        found = _INTEGER.findall(reply_final)
        return bool(found) and found[-1] == sample.answer
    if sample.check == "division":
        return _quotient_and_remainder(reply_final) == tuple(map(int, sample.answer.split()))
    text = reply_final.lower()
    told = all(keyword.lower() in text for keyword in sample.keywords)
    return told and not (sample.check == "comply" and is_refusal(reply_final))


def _quotient_and_remainder(text: str) -> tuple[int, int] | None:
    """From `… = 234 remainder 1`, or `… = 234` for no remainder."""
    quotient, _, remainder = text.partition("remainder")
    found, left = _INTEGER.findall(quotient), _INTEGER.findall(remainder)
    if not found:
        return None
    return int(found[-1]), int(left[0]) if left else 0


def _same_call(expected: dict[str, Any], call: dict[str, Any]) -> bool:
    function = call.get("function", {})
    try:
        arguments = json.loads(function.get("arguments") or "")
    except (ValueError, RecursionError):
        return False
    # 1 == True in Python but not in JSON, so the texts are compared.
    return function.get("name") == expected["name"] and _canonical(arguments) == _canonical(expected["arguments"])


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
