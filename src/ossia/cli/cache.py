"""`ossia cache`: the packed models kept on disk."""

import json
from datetime import datetime
from typing import Any

import click

from ossia.cli.harmless import harmless
from ossia.cli.progress import format_bytes


@click.command("cache")
@click.argument("action", type=click.Choice(["list", "clear", "verify"]), default="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cache(action: str, as_json: bool) -> None:
    """List, remove or verify what is kept of models so that they start fast.

    `list` names every packed model with its size and date, `clear` removes them all, `verify` reads them whole and says
    which are not as they were written. Nothing in there is needed: what is missing is made anew at the next start.
    """
    result = {"list": _list, "clear": _clear, "verify": _verify}[action]()
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(result)
    if damaged := [each["path"] for each in result.get("models", ()) if each.get("damage")]:
        from ossia.errors import StorageError

        raise StorageError(f"{len(damaged)} damaged: {', '.join(damaged)}: `ossia cache clear` removes what is kept")


def _list() -> dict[str, Any]:
    from ossia.model.packed_cache import cache_folder, kept

    models = [
        {
            "path": str(each.path),
            "model": each.model,
            "dense": each.dense,
            "bytes": each.num_bytes,
            "modified": datetime.fromtimestamp(each.modified).astimezone().isoformat(timespec="seconds"),
            "usable": each.usable,
        }
        for each in kept()
    ]
    return {"folder": str(cache_folder()), "models": models}


def _clear() -> dict[str, Any]:
    from ossia.model.packed_cache import cache_folder, clear

    removed, num_bytes = clear()
    return {"folder": str(cache_folder()), "removed": removed, "bytes": num_bytes}


def _verify() -> dict[str, Any]:
    from pathlib import Path

    from ossia.errors import CheckpointError
    from ossia.model.packed_cache import verify

    listed = _list()
    for each in listed["models"]:
        each["damage"] = None
        try:
            verify(Path(each["path"]))
        except CheckpointError as error:
            each["damage"] = str(error)
    return listed


def _print(result: dict[str, Any]) -> None:
    if "removed" in result:
        files = "1 file" if result["removed"] == 1 else f"{result['removed']} files"
        _line(f"{result['folder']}: removed {files}, {format_bytes(result['bytes'])}")
        return
    if not result["models"]:
        _line(f"{result['folder']}: no packed models")
    for each in result["models"]:
        name = each["model"] or "of no known model"
        state = "" if each["usable"] else ", not usable: it is made anew when needed"
        if "damage" in each:
            state = f", {each['damage']}" if each["damage"] else ", as it was written"
        _line(f"{name} ({each['dense'] or '?'}), {format_bytes(each['bytes'])}, {each['modified']}{state}")
        _line(f"    {each['path']}")


def _line(text: str) -> None:
    click.echo(harmless(text))
