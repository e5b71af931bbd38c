"""How the server is to behave."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may be asked of the server, by whom, and how much of it."""

    model_name: str
    """The id of the model in the API."""
    api_key: str | None = None
    """What a request must bring; None lets everyone in."""
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    """Names by which the server may be called, so that no foreign page's own name leads here; empty lets any pass."""
    cors_origins: frozenset[str] = frozenset()
    """Web pages of other origins that may use the API; "*" for all."""
    max_body: int = 8 * 2**20
    """Bytes."""
    body_seconds: float = 30.0
    """Time in which a body must have come."""
    max_concurrent: int = 512
    """Requests to the API that are answered at a time."""
    patience: float = 30.0
    """Seconds that a client may leave what was sent unread."""
    store: Path | None = None
    """Where responses are kept; None keeps none."""
    page: bool = True
    """Whether the page is served."""
    log_prompts: bool = False
    """Whether the log may hold what was asked and answered."""
