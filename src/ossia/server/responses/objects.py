"""The objects of the Responses API: those of the `openai` package, narrowed to what is served, and what is added."""

from typing import Any, Literal

from openai.types.responses import (
    FunctionTool,
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from pydantic import BaseModel, Field

OutputItem = ResponseReasoningItem | ResponseOutputMessage | ResponseFunctionToolCall


class ResponseObject(Response):
    """A response."""

    # Whole seconds, as the API documents them: clients in other languages refuse fractions.
    created_at: int  # pyright: ignore[reportIncompatibleVariableOverride]
    completed_at: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    output: list[OutputItem]  # pyright: ignore[reportIncompatibleVariableOverride]
    tools: list[FunctionTool]  # pyright: ignore[reportIncompatibleVariableOverride]
    tool_choice: str | dict[str, Any]  # pyright: ignore[reportIncompatibleVariableOverride]
    instructions: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    store: bool = True
    """Whether it is kept."""
    mended: list[str] | None = None
    """What in the model's output had to be mended or forced, a line each; left out where nothing had."""


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]] = Field(description="Items as in `input`, in their full shape.")
    first_id: str
    last_id: str
    has_more: bool


class DeletedResponse(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
