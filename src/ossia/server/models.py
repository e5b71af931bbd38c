"""/v1/models, and the tokens of a text: what the server's model is and how it reads."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from openai.types import Model
from pydantic import BaseModel

from ossia.harmony.messages import from_openai
from ossia.harmony.render import render_completion
from ossia.llm import LLM
from ossia.server.body import JsonRoute
from ossia.server.bridge import Bridge
from ossia.server.errors import RESPONSES, ApiError
from ossia.server.protocol import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from ossia.server.services import Services, services

router = APIRouter(route_class=JsonRoute, responses=RESPONSES, tags=["model"])


class ServedModel(Model):
    """The model that is served, as it is or with an adapter."""

    max_model_len: int
    """Tokens that a prompt and its answer may fill together."""


class Models(BaseModel):
    """The model and, under names of their own, its adapters."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


@router.get("/v1/models", summary="The models that are served")
async def models(of: Annotated[Services, Depends(services)]) -> Models:
    return Models(data=[served_model(of, name) for name in of.models])


@router.get("/v1/models/{model:path}", summary="One model")
async def one_model(model: str, of: Annotated[Services, Depends(services)]) -> ServedModel:
    of.adapter(model)
    return served_model(of, model)


def served_model(of: Services, name: str) -> ServedModel:
    llm = of.bridge.llm
    return ServedModel(
        id=name,
        object="model",
        created=_written(llm.folder),
        owned_by="ossia",
        max_model_len=llm.context,
    )


def _written(folder: Path) -> int:
    try:
        return int(folder.stat().st_mtime)
    except OSError:
        return 0


@router.post("/tokenize", summary="Text, or a conversation, as token ids")
async def tokenize(body: TokenizeRequest, of: Annotated[Services, Depends(services)]) -> Tokens:
    of.adapter(body.model)
    tokens = await of.bridge.in_background(partial(_tokens, body, of.bridge))
    return Tokens(tokens=tokens, count=len(tokens))


def _tokens(body: TokenizeRequest, bridge: Bridge) -> list[int]:
    if body.text is not None:
        return bridge.tokenizer.encode(body.text)
    conversation = from_openai(body.messages or [], tools=body.tools, effort=body.reasoning_effort or "medium")
    return render_completion(conversation, bridge.tokenizer)


@router.post("/detokenize", summary="Token ids as text")
async def detokenize(body: DetokenizeRequest, of: Annotated[Services, Depends(services)]) -> Detokenized:
    of.adapter(body.model)
    return Detokenized(text=await of.bridge.in_background(partial(_decoded, body.tokens, of.bridge.llm)))


def _decoded(tokens: list[int], llm: LLM) -> str:
    tokenizer = llm.tokenizer
    for index, token in enumerate(tokens):
        if token not in tokenizer:
            what = f"tokens[{index}] is {token}, no id of the vocabulary: give ids below {tokenizer.vocab_size}"
            raise ApiError(400, what, param=f"tokens[{index}]", code="invalid_value")
    return tokenizer.decode(tokens)
