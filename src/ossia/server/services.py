"""What the routes work with, and how they get at it."""

import logging
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from ossia.server.bridge import Bridge
from ossia.server.errors import ApiError
from ossia.server.memory import Memory
from ossia.server.metrics import Metrics
from ossia.server.settings import Settings

log = logging.getLogger(__name__)

REQUEST_ID = "ossia.request_id"
"""Key of the scope under which a request's id is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One application's; `services(request)` finds them."""

    bridge: Bridge
    settings: Settings
    metrics: Metrics
    memory: Memory

    @property
    def models(self) -> dict[str, str | None]:
        """The names under which the model answers, and the adapter of each: "demo", "demo:adapter"."""
        base = self.settings.model_name
        return {base: None} | {f"{base}:{adapter}": adapter for adapter in self.bridge.llm.adapters}

    def adapter(self, name: str | None) -> str | None:
        """The adapter that is meant by the name of a model; no name is the model itself.

        Raises ApiError for the name of a model that is not served.
        """
        models = self.models
        if name is not None and name not in models:
            what = f"there is no model {name[:100]!r} here: this is {', '.join(models)}"
            raise ApiError(404, what, param="model", code="model_not_found")
        return None if name is None else models[name]

    def tell_of(self, request: Request, asked: Any) -> None:
        """Write what was asked to the log, where that is wanted."""
        if self.settings.log_prompts:
            log.info("%s asked %r", request.scope.get(REQUEST_ID), asked)


async def services(request: Request) -> Services:
    """A dependency of the routes; asynchronous, because others are called in a thread of their own."""
    return request.app.state.services
