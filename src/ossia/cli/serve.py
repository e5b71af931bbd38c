"""`ossia serve`: a model over HTTP, with a page to talk to it."""

import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ossia.cli.loading import loading_options, named_adapters, tell
from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.llm import LLM

SWITCH_SECONDS = 0.0005
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@click.command("serve")
@click.option("--model", "-m", default="demo", show_default=True, help='"demo", a model folder, or a hub id.')
@click.option("--name", help="The model's name in the API.  [default: as --model has it]")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=FOLDER",
    callback=named_adapters,
    help='A LoRA adapter of the model, asked for as "MODEL:NAME"; may be repeated.',
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="OSSIA_API_KEY", show_envvar=True, help="What requests must bring.")
@click.option("--open-to-all", is_flag=True, help="Listen beyond this machine without an API key.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help='A web page that may ask ("*": all); may be repeated.')
@click.option("--max-batch", type=click.IntRange(1, 1024), default=16, show_default=True, help="Answers at a time.")
@click.option("--max-queue", type=click.IntRange(1), default=256, show_default=True, help="Requests that may wait.")
@click.option("--max-prompt", type=click.IntRange(1), help="Tokens of a prompt.  [default: what the context holds]")
@click.option("--max-body", type=click.IntRange(1), default=8 * 2**20, show_default=True, help="Bytes of a body.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds of an answer."
)
@click.option(
    "--grace", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to finish at the end."
)
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), help="File of stored responses.")
@click.option("--no-store", is_flag=True, help="Keep no responses.")
@click.option(
    "--prefix-cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep prefixes of prompts there, so that they survive a restart.",
)
@click.option("--log-prompts", is_flag=True, help="Write what is asked to the log.")
@click.option("--no-page", is_flag=True, help="Serve the API alone.")
@loading_options
def serve(
    model: str,
    name: str | None,
    adapters: dict[str, Path],
    host: str,
    port: int,
    api_key: str | None,
    open_to_all: bool,
    cors: tuple[str, ...],
    max_batch: int,
    max_queue: int,
    max_prompt: int | None,
    max_body: int,
    timeout: float,
    grace: float,
    store: Path | None,
    no_store: bool,
    prefix_cache: Path | None,
    log_prompts: bool,
    no_page: bool,
    loading: dict[str, Any],
) -> None:
    """Serve a model over HTTP: OpenAI's API under /v1, and a page to talk to it at /.

    Ends at an interrupt, when what runs is done; at a second one at once.
    """
    if host not in LOOPBACK and not api_key and not open_to_all:
        raise OssiaError(f"{host} is reached from other machines: give --api-key, or --open-to-all to let everyone in")
    if store is not None and no_store:
        raise click.UsageError("--store and --no-store exclude each other.")
    import ossia
    from ossia.engine.engine import Engine
    from ossia.engine.prefixes import PrefixStore
    from ossia.engine.worker import Worker
    from ossia.server.bridge import Bridge
    from ossia.server.run import Server, listen
    from ossia.server.settings import Settings

    _log_to_stderr()
    # The engine's thread gives way to the loop's and takes its turn back this soon; of many short turns either way, the
    # default of 5 ms would leave the engine waiting for half of the time.
    sys.setswitchinterval(SWITCH_SECONDS)
    with listen(host, port) as bound:  # Refused before the model is loaded, which may take a while.
        llm = ossia.load(model, **loading, adapters=adapters, report=tell)
        prefixes = PrefixStore(prefix_cache, llm.model, cache_type=llm.cache_type) if prefix_cache else None
        engine = Engine(
            llm.model,
            adapters=llm.adapters,
            context=llm.context,
            cache_type=llm.cache_type,
            max_batch=max_batch,
            max_waiting=max_queue,
            prefixes=prefixes,
        )
        worker = Worker(engine)
        bridge = Bridge(llm, worker, max_prompt=max_prompt, time_limit=timeout)
        settings = Settings(
            model_name=name or (Path(model).resolve().name if Path(model).is_dir() else model),
            api_key=api_key,
            hosts=frozenset(LOOPBACK) if host in LOOPBACK else frozenset(),
            cors_origins=frozenset(cors),
            max_body=max_body,
            max_concurrent=max_batch + max_queue + 64,
            store=None if no_store else store or _default_store(),
            page=not no_page,
            log_prompts=log_prompts,
        )
        server = Server(bridge, settings, grace=grace)
        worker.start()
        try:
            gc.collect()
            gc.freeze()  # What is loaded stays: no later collection has to walk through it.
            _introduce(llm, settings, bound.getsockname(), num_blocks=engine.stats().num_blocks)
            server.run(sockets=[bound])
        finally:
            worker.close()
            if prefixes is not None:
                prefixes.close()
            bridge.close()
    if not server.started:
        raise OssiaError("the server could not start: the lines above say why")


def _default_store() -> Path:
    """Where responses are kept if nothing else is said: with the user's data."""
    import os

    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "ossia" / "responses.sqlite"


def _introduce(llm: "LLM", settings: Any, address: tuple[Any, ...], *, num_blocks: int) -> None:
    """What is served and where, in a few lines."""
    host, port = address[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    key = "an API key is asked for" if settings.api_key else "no API key"
    cache = f"cache of {num_blocks:,} blocks in {llm.cache_type}"
    tell(f"model    {settings.model_name}, context of {llm.context:,} tokens, {cache}")
    for adapter in llm.adapters:
        tell(f"adapter  {settings.model_name}:{adapter}")
    tell(f"API      {url}/v1, described at {url}/docs; {key}")
    if settings.store is not None:
        tell(f"store    {settings.store}")
    if settings.page:
        tell(f"page     {url}/")


def _log_to_stderr() -> None:
    """Lines with the time on standard error: what the server and uvicorn have to say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    levels = {"ossia.server": logging.INFO, "ossia.engine": logging.INFO, "uvicorn": logging.WARNING}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
