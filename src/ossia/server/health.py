"""/health, /ready and /metrics: for those who keep the server running."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from ossia.server.errors import RESPONSES, ApiError
from ossia.server.metrics import CONTENT_TYPE
from ossia.server.services import Services, services

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """That all is well."""

    status: Literal["ok"] = "ok"


@router.get("/health", summary="Whether the server answers")
async def health() -> Health:
    return Health()


@router.get("/ready", summary="Whether the server takes requests", responses={503: RESPONSES[503]})
async def ready(request: Request, of: Annotated[Services, Depends(services)]) -> Health:
    """503 while it closes, and where the engine has ended."""
    if request.app.state.gate.closing or not of.bridge.worker.is_open:
        raise ApiError(503, "the server is closing", type="server_error", code="closing")
    return Health()


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: RESPONSES[401]},
)
async def metrics(of: Annotated[Services, Depends(services)]) -> Response:
    return Response(of.metrics.text(), media_type=CONTENT_TYPE)
