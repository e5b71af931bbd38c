"""ossia: a complete codebase for gpt-oss models, from text to tokens to logits to answers.

    llm = ossia.load("demo")
    print(llm.chat("What is 17 + 25?").final)

Nothing is imported before it is used: `import ossia` loads no torch.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ossia import harmony
    from ossia.config import ModelConfig
    from ossia.engine.request import Sampling
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.llm import LLM, Reply, load

__version__ = "0.1.0"
__all__ = ["LLM", "ModelConfig", "Reply", "Sampling", "__version__", "harmony", "load", "render"]

_LAZY = {
    "LLM": "ossia.llm",
    "ModelConfig": "ossia.config",
    "Reply": "ossia.llm",
    "Sampling": "ossia.engine.request",
    "load": "ossia.llm",
}
"""Public name → the module that has it."""


def render(
    messages: "str | Sequence[Mapping[str, Any]]",
    *,
    tokenizer: "Tokenizer",
    tools: Sequence[Mapping[str, Any]] | None = None,
    effort: str = "medium",
    date: str | None = None,
) -> list[int]:
    """Ids of the prompt that asks for the next turn of a conversation.

    messages are OpenAI chat messages (with reasoning, tool calls and their results), or one user's text; tools are
    OpenAI function tools; effort is "low", "medium" or "high"; date is what the model is told today is ("2025-06-28"),
    nothing where None. Raises HarmonyError that names the message and field.
    """
    from ossia.harmony import from_openai, render_completion

    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return render_completion(from_openai(messages, tools=tools, effort=effort, date=date), tokenizer)


def __getattr__(name: str) -> Any:
    if name == "harmony":
        return import_module("ossia.harmony")
    if name not in _LAZY:
        raise AttributeError(f"module 'ossia' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
