"""The built page is that of the sources, and fit to travel: found out without Node."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server.web.fake import WEB

SOURCES = Path(__file__).parents[3] / "web"
BUILT_FROM: dict[str, dict[str, str]] = json.loads((WEB / "built-from.json").read_text(encoding="utf-8"))
NOT_BUILT_FROM = {"README.md", ".npmrc", ".gitignore"}


def files(folder: Path) -> Iterator[str]:
    """The files below a folder, but for those that others made."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "node_modules" not in name.parts:
            yield name.as_posix()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_page_was_built_from_these_sources() -> None:
    now = {name: digest(SOURCES / name) for name in files(SOURCES) if name not in NOT_BUILT_FROM}
    then = BUILT_FROM["sources"]
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    assert changed == [], "the built page is out of date: make web"


def test_nobody_has_written_into_the_built_page() -> None:
    assert {name: digest(WEB / name) for name in files(WEB) if name != "built-from.json"} == BUILT_FROM["built"]


def test_it_is_text_and_small_and_carries_its_licences() -> None:
    size = 0
    for name in files(WEB):
        content = (WEB / name).read_bytes()
        assert b"\0" not in content, name
        assert b"sourceMappingURL" not in content, name
        content.decode()
        size += len(content)
    assert size < 1_500_000
    licences = (WEB / "licenses.md").read_text(encoding="utf-8")
    bundled = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert [name for name in bundled if name not in licences] == []


def test_the_page_names_only_files_beside_it() -> None:
    html = (WEB / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(named) >= 4
    for address in named:
        assert address.startswith("./"), address
        assert (WEB / address).is_file(), address
    assert "<style" not in html
    assert not re.search(r"<script(?![^>]* src=)", html), "the page's policy runs no script within the page"


def test_the_lock_pins_everything_and_names_no_registry() -> None:
    lock = (SOURCES / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    packages = json.loads(lock)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)
    own = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))
    wanted = own["dependencies"] | own["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())


def test_the_types_of_the_sources_are_right() -> None:
    compiler = SOURCES / "node_modules" / ".bin" / "tsc"
    if shutil.which("node") is None or not compiler.exists():
        pytest.skip("THE TYPES OF THE PAGE ARE NOT CHECKED: they need Node and web/node_modules, make web")
    done = subprocess.run([compiler, "--noEmit"], cwd=SOURCES, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
