"""Text to tokens and back, in the harmony format of gpt-oss. No model, no engine, no network."""

from ossia.harmony.builtin import BROWSER, PYTHON
from ossia.harmony.messages import (
    Conversation,
    Developer,
    Message,
    ResponseFormat,
    System,
    Tool,
    ToolNamespace,
    from_openai,
)
from ossia.harmony.parse import Parser
from ossia.harmony.render import render, render_completion, render_training, training_turns
from ossia.harmony.tokenizer import IncrementalDecoder, Tokenizer

__all__ = [
    "BROWSER",
    "PYTHON",
    "Conversation",
    "Developer",
    "IncrementalDecoder",
    "Message",
    "Parser",
    "ResponseFormat",
    "System",
    "Tokenizer",
    "Tool",
    "ToolNamespace",
    "from_openai",
    "render",
    "render_completion",
    "render_training",
    "training_turns",
]
