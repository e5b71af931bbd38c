"""The README tells the truth: its tree is the tree, its commands exist, its links lead somewhere."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import ossia

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))

PACKAGE = "src/ossia/"
# Folders at the top that hold no sources, besides those whose name starts with a dot.
MADE_HERE = {"build", "dist", "runs"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in a language, "" for those that name none."""
    fenced = README.split("```")[1::2]
    return [text for first, _, text in (block.partition("\n") for block in fenced) if first == language]


def listed() -> list[str]:
    """The paths of the tree in the README, folders with a slash at the end."""
    (tree,) = blocks("")
    paths: list[str] = []
    for line in tree.splitlines():
        indent, name = re.fullmatch(r"( *)(\S+)(?:  .*)?", line).groups()  # type: ignore[union-attr]
        paths.append((PACKAGE if indent else "") + name)
    return paths


def existing() -> list[str]:
    """What there is to list: the folders at the top, and all that lies in the package, one level deep."""
    top = [f"{folder.name}/" for folder in ROOT.iterdir() if folder.name not in MADE_HERE and has_sources(folder)]
    package = [
        f"{PACKAGE}{path.name}{'/' * path.is_dir()}"
        for path in (ROOT / PACKAGE).iterdir()
        if path.suffix == ".py" or has_sources(path)
    ]
    return [PACKAGE if name == "src/" else name for name in top] + package


def has_sources(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith((".", "__")):
        return False
    return any(path.is_file() and "__pycache__" not in path.parts for path in folder.rglob("*"))


def commands(text: str) -> dict[str, set[str]]:
    """Each `ossia COMMAND` in a text with the options that are given to it on the same line."""
    found: dict[str, set[str]] = {}
    for command, rest in re.findall(r"(?:bin/|`|^    )ossia (train [a-z]+|[a-z]+)([^`#\n]*)", text, re.MULTILINE):
        found.setdefault(command, set()).update(re.findall(r"--[a-z][a-z-]*", rest))
    return found


def test_the_tree_is_the_tree() -> None:
    assert sorted(listed()) == sorted(existing())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make(?: [A-Z]+=\S+)* ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets


def test_the_two_commands_are_named() -> None:
    assert "    make run " in README
    assert "    make test " in README


@pytest.mark.parametrize("command", sorted(commands(README)))
def test_commands_exist_and_know_their_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ossia.cli import main

    monkeypatch.setattr(sys, "argv", ["ossia", *command.split(), "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert commands(README)[command] <= known


def test_options_given_by_themselves_exist_somewhere() -> None:
    """An option named without its command, as in "give `--device cuda`", belongs to some command."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / PACKAGE / "cli").rglob("*.py"))
    named = set(re.findall(r"`(--[a-z][a-z-]*)", README))
    assert {option for option in named if f'"{option}"' not in sources} == set()


def test_there_is_one_version() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert metadata["project"]["version"] == ossia.__version__
    assert ossia.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_python_in_it_parses() -> None:
    assert blocks("python")
    for block in blocks("python"):
        ast.parse(block)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    paths = set(re.findall(r"`((?:src|tests|csrc|docs|examples)/[\w./-]*)`", text))
    assert {path for path in links | paths if not (ROOT / path).exists()} == set()
