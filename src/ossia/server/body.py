"""How the body of a request becomes a value: strict JSON, and one clear line where it is not."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ossia.server.errors import ApiError

MOST_LEVELS = 128
"""Brackets in brackets. Schemas in earnest have a dozen, and what recurses over them must not run out of stack."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRoute(APIRoute):
    """A route that reads its body with `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises ApiError for bytes that are neither, for NaN and infinities, for a key that stands twice, for halves of
    surrogate pairs, and for more than `MOST_LEVELS` levels.
    """
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise _malformed("a string holds one half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg.lower()} at line {error.lineno} column {error.colno}") from None
    except ValueError as error:
        raise _malformed(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    _check_levels(value)
    return value


def _malformed(what: str) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {what}", code="invalid_json")


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested more than {MOST_LEVELS} levels deep: flatten it", code="invalid_json")


def _check_levels(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_LEVELS:
            raise _too_deep()
        below: list[Any] = []
        for each in level:
            inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
            below += [one for one in inner if isinstance(one, (dict, list))]
        level = below


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {name[:64]!r} stands twice in an object")
    return read


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:32]} is too large")
    return value
