"""The application: routes, the layer before them, and what they share."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from ossia import __version__
from ossia.server import chat, completions, errors, health, models
from ossia.server.bridge import Bridge
from ossia.server.limits import Gate
from ossia.server.memory import Memory
from ossia.server.metrics import Metrics
from ossia.server.reference import reference_page
from ossia.server.responses import routes as responses
from ossia.server.responses.run import Runs
from ossia.server.services import Services
from ossia.server.settings import Settings
from ossia.server.store import ResponseStore

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"
"""The built page."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The page runs its own scripts, speaks with its own server, and turns no text into HTML, whatever a model writes."""

DOCS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

DESCRIPTION = """The model over HTTP, in the shapes of OpenAI's API.

Reasoning comes as `reasoning` beside the answer. What cannot be honoured is refused by name, never ignored."""


def create_app(bridge: Bridge, settings: Settings) -> FastAPI:
    """The application that serves `bridge`'s model. The bridge and its worker are closed by who made them.

    Raises StorageError where the file of responses cannot be used.
    """
    metrics = Metrics(bridge.worker.stats)
    bridge.on_end = metrics.generation
    of = Services(bridge=bridge, settings=settings, metrics=metrics, memory=Memory())

    store = None if settings.store is None else ResponseStore.open(settings.store)
    runs = Runs(store, of.memory)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await runs.close()
            if store is not None:
                store.close()

    app = FastAPI(
        title="ossia",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # The framework's page loads its scripts from another host.
        redoc_url=None,
        telemetry={"tracing": False},
    )
    app.state.services = of
    app.state.bridge = bridge
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.memory = of.memory
    app.state.store = store
    app.state.runs = runs
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    errors.install(app)
    for router in (chat.router, responses.router, completions.router, models.router, health.router):
        app.include_router(router)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference_page(app.openapi()), headers={"content-security-policy": DOCS_POLICY})

    if settings.page:
        _add_page(app, WEB)

    class OwnGate(Gate):
        """Known to the application, which says when to close."""

        def __init__(self, inner: ASGIApp) -> None:
            super().__init__(inner, settings, metrics)
            app.state.gate = self

    app.add_middleware(OwnGate)
    return app


def _description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, without the framework's own answer to what is malformed: ours is 400."""
    if app.openapi_schema is None:
        whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for methods in whole["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            whole["components"]["schemas"].pop(name, None)
        app.openapi_schema = whole
    return app.openapi_schema


def _add_page(app: FastAPI, folder: Path) -> None:
    """Routes to the page's files, one each, so that a path of the API is never taken for one of them."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            # Their names hold a hash of what they are.
            app.mount(f"/{path.name}", _Files(directory=path, cache="public, max-age=31536000, immutable"))
        elif path.suffix != ".json":
            address = "/" if path.name == "index.html" else f"/{path.name}"
            app.add_route(address, partial(_file, path), include_in_schema=False)


async def _file(path: Path, _: Request) -> Response:
    return FileResponse(path, headers={"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"})


class _Files(StaticFiles):
    def __init__(self, *, directory: Path, cache: str) -> None:
        super().__init__(directory=directory)
        self._cache = cache

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = PAGE_POLICY
        response.headers["cache-control"] = self._cache
        return response
