"""What goes wrong, as the API says it: {"error": {"message", "type", "param", "code"}} and a status, for everything."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ossia.errors import BusyError, HarmonyError, OssiaError, RequestError
from ossia.server.bridge import ClosingError, GenerationError, GenerationTimeoutError, PromptTooLongError

log = logging.getLogger(__name__)

RETRY_AFTER = {"retry-after": "1"}
MOST_MESSAGE, MOST_PARAM = 500, 200
"""Characters: what is told back of what was sent has bounds."""
_PLACE = re.compile(r"[a-z_]+(?:(?:\[\d+\]|\.[A-Za-z0-9_$-]+)+(?=[ :]|$)|(?= (?:is|has|of) |: ))")
"""A parameter or a place in one at the beginning of a message: `temperature is 3`, `messages[3].content is missing`."""


class ApiError(HTTPException):
    """An answer that is an error. param: the parameter that is wrong; code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.message = _brief(" ".join(message.split()), MOST_MESSAGE)
        self.type = type
        self.param = None if param is None else _brief(param, MOST_PARAM)
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def event(self) -> bytes:
        """The same inside a stream that has begun already."""
        return b"data: " + json.dumps(self.body(), separators=(",", ":")).encode() + b"\n\n"


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The answer to a request that could not be honoured."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request is malformed or asks for what cannot be had; `param` names where.",
        401: "The API key is missing or wrong.",
        403: "The request comes from another web page, or under another host's name.",
        404: "There is no such model or object.",
        409: "What this request builds on is not finished.",
        408: "The request came too slowly.",
        413: "The body is too large.",
        429: "The queue is full: try again after the time in Retry-After.",
        500: "The engine failed.",
        503: "The server is closing.",
        504: "The answer took too long.",
    }.items()
}
"""For the OpenAPI description of every route that asks something of the model."""


STREAMED: dict[int | str, dict[str, Any]] = {
    **RESPONSES,
    200: {
        "description": "The answer, whole or as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}
"""The same of a route whose answer may come as server-sent events."""


def api_error(error: OssiaError) -> ApiError:
    """An error of the library as one of the API."""
    message = str(error)
    match error:
        case GenerationTimeoutError():
            return ApiError(504, message, type="timeout_error", code="timeout")
        case ClosingError():
            return ApiError(503, message, type="server_error", code="closing")
        case GenerationError():
            return ApiError(500, message, type="server_error", code="generation_failed")
        case BusyError():
            return ApiError(429, message, type="rate_limit_error", code="queue_full", headers=RETRY_AFTER)
        case PromptTooLongError():
            return ApiError(400, message, param="messages", code="context_length_exceeded")
        case HarmonyError() | RequestError():
            place = _PLACE.match(message)
            return ApiError(400, message, param=place[0] if place else None, code="invalid_value")
        case _:
            log.error("%s", message)
            return ApiError(500, message, type="server_error")


def install(app: FastAPI) -> None:
    """Have every error of this application answered in the one shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(OssiaError, _ossia)
    app.add_exception_handler(Exception, _unforeseen)


def answer(error: ApiError) -> JSONResponse:
    """The response that tells of an error."""
    return JSONResponse(error.body(), error.status_code, error.headers)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return answer(error)
    # The framework's own: no such path, or no such method on it.
    known = {404: "there is nothing at this path", 405: "this path does not take this method"}
    message = known.get(error.status_code, str(error.detail))
    return answer(ApiError(error.status_code, message, headers=error.headers))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(validation_error(cast("Sequence[Mapping[str, Any]]", error.errors())))


async def _ossia(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OssiaError)
    return answer(api_error(error))


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    return answer(ApiError(500, "an error in the server, which its log describes", type="server_error"))


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """pydantic's findings as one error, told of the first of them.

    A validator of ours raises PydanticCustomError with `param` in its context where it names the field itself.
    """
    first = errors[0]
    place = [part for part in first["loc"] if part not in ("body", "query", "path", "header")]
    context = cast("Mapping[str, Any]", first.get("ctx") or {})
    param = context.get("param") or path(place)
    kind = first["type"]
    if kind == "extra_forbidden":
        return ApiError(400, f"unknown parameter {param}: remove it", param=param, code="unknown_parameter")
    if kind == "missing":
        what = f"{param} is missing" if param else "the body is missing: send a JSON object as application/json"
        return ApiError(400, what, param=param or None, code="missing_required_parameter")
    if not place and not context.get("param"):
        return ApiError(400, "the body is no JSON object: send one as application/json", code="invalid_value")
    message = str(first["msg"])
    if kind in ("unsupported_parameter", "invalid_parameter"):
        return ApiError(400, message, param=param, code=kind)
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None, code="invalid_value")


def _brief(text: str, most: int) -> str:
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def path(place: Sequence[Any]) -> str:
    """`stop[3]`, `stream_options.include_usage` for the parts of a place."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_]\w*", part):
            text += f".{part}" if text else part
    return text
