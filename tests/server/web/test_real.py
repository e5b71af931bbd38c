"""The page on the real server, with the bundled model: what the fake one stands for is so."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.server.serving import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def served(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`browser` first: without one there is nothing to serve."""
    with serving(tmp_path_factory.mktemp("server"), "--no-store", key="a key") as served:
        yield served


def test_the_bundled_model_is_talked_to(page: "Page", served: Served) -> None:
    answer = page.goto(f"http://127.0.0.1:{served.port}/")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "connect-src 'self'"):
        assert part in policy
    page.get_by_role("textbox", name="API key").fill("a key")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="What is 4213 + 2789?").click()
    page.locator(".facts").wait_for()
    assert page.locator(".prose").inner_text() == "4213 + 2789 = 7002"
    page.locator(".fold", has_text="Thought for").click()
    assert "carry 1" in page.locator(".thoughts").inner_text()
    assert "of 4,096 tokens of context" in page.locator(".context").inner_text()
    page.get_by_role("button", name="New chat").first.click()
    page.get_by_role("button", name="What is the weather in Oslo?").click()
    page.get_by_label("Result").fill('{"status":"sunny"}')
    assert page.locator(".call .name").inner_text() == "get_weather"
    page.get_by_role("button", name="Continue").click()
    page.locator(".facts").nth(1).wait_for()
    assert page.locator(".prose").inner_text() != ""
    assert page.locator(".failure").count() == 0
