"""A browser, a page in it, and a server that answers as a test says. After every test: did the page keep its bounds?"""

import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from tests.server.web.fake import WEB, Fake

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

PATIENCE = 10_000
"""Milliseconds after which something that should be seen counts as missing."""


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium without a window. Of a module: while Playwright runs, nothing else can use asyncio in this thread."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="THE PAGE IS NOT TESTED: playwright is missing, pip install playwright"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("THE PAGE IS NOT TESTED: there is no Chromium, apt-get install chromium")
    assert (WEB / "index.html").is_file(), "the page was not built: make web"
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def options() -> dict[str, Any]:
    """Of the browser's window; a test module may say others."""
    return {"viewport": {"width": 1200, "height": 800}, "color_scheme": "light"}


@pytest.fixture
def failures() -> list[str]:
    """What the page did that it may not do, as it is heard of."""
    return []


@pytest.fixture
def page(browser: "Browser", options: dict[str, Any], failures: list[str]) -> "Iterator[Page]":
    """An empty page. At the end: no script failed, no policy was broken, no other host asked, no dialog opened."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    addresses: list[str] = []

    def heard(message: "ConsoleMessage") -> None:
        # A status of 401 or a connection that broke is for the page to speak of.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            failures.append(message.text)

    def asked(text: Any) -> None:
        failures.append(f"a dialog: {text.message}")
        text.dismiss()

    context.on("console", heard)
    context.on("weberror", lambda error: failures.append(str(error.error)))
    context.on("dialog", asked)
    context.on("request", lambda request: addresses.append(request.url))
    yield page
    context.close()
    assert failures == []
    hosts = {urlsplit(address).hostname for address in addresses if urlsplit(address).scheme not in ("data", "blob")}
    assert hosts <= {"127.0.0.1"}, "the page asked another host"


@pytest.fixture
def chat(page: "Page", fake: Fake) -> "Page":
    """The page, loaded from the fake server and ready."""
    page.goto(fake.url)
    page.locator(".welcome button:enabled").first.wait_for()
    return page
