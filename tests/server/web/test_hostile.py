"""What a model writes is shown, and never does anything: no script, no picture, no link but to the web or to mail."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.server.web.fake import Fake, call, reasoning, stop, text

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>press</a>",
    "<style>body { display: none }</style>",
    "</div></article><form action=//evil.example><input name=key autofocus onfocus=alert(1)>",
    "[press](javascript:alert(1))",
    "[press](  JaVaScRiPt:alert(1) )",
    "[press](data:text/html,<script>alert(1)</script>)",
    "[press](vbscript:alert(1))",
    "[press](//evil.example/x)",
    "[press](file:///etc/passwd)",
    "<javascript:alert(1)>",
    "![picture](http://evil.example/track.png)",
    "![picture](/v1/models)",
    '[x]: javascript:alert(1) "t"\n\n[x]',
    "`<script>alert(1)</script>`",
    "```html\n<script>alert(1)</script><img src=x onerror=alert(1)>\n```",
    '```"><img src=x onerror=alert(1)>\ntext\n```',
    "$\\href{javascript:alert(1)}{x}$",
    "$$\\htmlStyle{position:fixed}{x}\\includegraphics{http://evil.example/x.png}$$",
    "$\\fcolorbox{red}{blue}{x} \\pmb{x} \\url{javascript:alert(1)}$",
    "$$\\def\\a{\\a\\a}\\a$$",
    "| <img src=x onerror=alert(1)> | <b>b</b> |\n|--|--|\n| <script>alert(1)</script> | y |",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=alert(1)&#62;",
    "\u202ereversed\u202c \u0000 \ud83d broken",
]

FORBIDDEN = (
    "script, img, iframe, object, embed, form, style, link, video, audio, foreignObject, "
    "[onerror], [onload], [onfocus], [style]:not(textarea)"
)


def test_hostile_output_is_text(chat: "Page", fake: Fake) -> None:
    everything = "\n\n".join(HOSTILE)
    fake.answer = lambda _: [
        reasoning(everything),
        text(everything),
        call(HOSTILE[1], json.dumps({HOSTILE[0]: HOSTILE[1]})),
        call(HOSTILE[0], HOSTILE[1], index=1),
        stop("tool_calls"),
    ]
    chat.get_by_label("Message", exact=True).fill(HOSTILE[1])
    chat.keyboard.press("Enter")
    chat.locator(".facts").wait_for()
    chat.locator(".fold").click()
    chat.locator("math").first.wait_for()
    chat.locator(".hljs-tag").first.wait_for()
    thread = chat.locator(".thread")
    assert thread.locator(FORBIDDEN).evaluate_all("found => found.map(e => e.outerHTML)") == []
    assert chat.locator(".sidebar a").first.inner_text() == HOSTILE[1]  # The title of the conversation.
    assert chat.locator(".said").inner_text() == HOSTILE[1]
    assert chat.locator(".call .name").all_inner_texts() == [HOSTILE[1], HOSTILE[0]]
    links = chat.locator(".prose a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert all(link.startswith(("http://", "https://", "mailto:")) for link in links), links
    shown = chat.locator(".prose").inner_text()
    for line in HOSTILE[:7]:
        assert line in shown
    for line in HOSTILE[:2]:
        assert line in chat.locator(".thoughts").inner_text()
    for place in chat.locator(".thread a, .thread button:visible:enabled").all():
        assert place.get_attribute("href") != "#"


def test_links_lead_to_the_web_and_tell_nothing(chat: "Page", fake: Fake) -> None:
    fake.answer = lambda _: [text("<https://a.example/x> [b](http://b.example 't') c@d.com README.md"), stop()]
    chat.get_by_label("Message", exact=True).fill("links")
    chat.keyboard.press("Enter")
    chat.locator(".facts").wait_for()
    links = chat.locator(".prose a")
    assert links.evaluate_all("all => all.map(a => a.getAttribute('href'))") == [
        "https://a.example/x",
        "http://b.example",
        "mailto:c@d.com",
    ]
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer nofollow"}
    assert {link.get_attribute("target") for link in links.all()} == {"_blank"}


def test_an_imported_file_is_text_too(chat: "Page", tmp_path: Path) -> None:
    settings = {
        "model": HOSTILE[0], "effort": "low", "system": HOSTILE[1], "temperature": None, "topP": None,
        "maxTokens": None, "seed": None, "tools": "",
    }  # fmt: skip
    entry = {"id": "__proto__", "parent": None, "message": {"role": "user", "text": HOSTILE[0]}}
    conversation = {
        "id": "constructor", "title": HOSTILE[1], "created": 0, "updated": 0, "settings": settings, "entries": [entry],
        "shown": ["toString"],
    }  # fmt: skip
    file = tmp_path / "file.json"
    content = {"format": "ossia-conversations", "version": 1, "conversations": [conversation]}
    file.write_text(json.dumps(content), encoding="utf-8")
    chat.get_by_label("File of conversations").set_input_files(file)
    chat.locator(".said").wait_for()
    assert chat.locator(".said").inner_text() == HOSTILE[0]
    assert chat.locator(".list a").inner_text() == HOSTILE[1]


def test_markdown_is_read(chat: "Page", fake: Fake) -> None:
    written = (
        "# Title\n\nA **bold** and *leaning* word, `code`.\n\n1. one\n2. two\n   - inner\n\n"
        "> quoted\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n```python\ndef f(): return 1\n```\n\n"
        "Inline \\(a^2\\) and $b_1$, but $5 and $6 are money.\n\n\\[\\frac{1}{2}\\]\n\n$$\n\\sqrt{x}\n$$\n\n$\\wrong{$"
    )
    fake.answer = lambda _: [*(text(part) for part in written), stop()]  # A character at a time.
    chat.get_by_label("Message", exact=True).fill("markdown")
    chat.keyboard.press("Enter")
    chat.locator(".facts").wait_for()
    chat.locator("math").nth(3).wait_for()
    prose = chat.locator(".prose")
    counts = {"h3": 1, "strong": 1, "em": 1, "ol > li": 2, "ul > li": 1, "blockquote": 1, "td": 2, "math": 4}
    assert {tag: prose.locator(tag).count() for tag in counts} == counts
    assert prose.locator("td").last.get_attribute("class") == "align-right"
    assert prose.locator(".hljs-keyword").first.inner_text() == "def"
    assert "$5 and $6 are money" in prose.inner_text()
    assert prose.locator(".maths code:visible").inner_text() == "\\wrong{"
    prose.get_by_role("button", name="Copy code").click()
    assert chat.evaluate("navigator.clipboard.readText()") == "def f(): return 1"
    chat.get_by_role("button", name="Copy answer").click()
    assert chat.evaluate("navigator.clipboard.readText()") == written


@pytest.mark.parametrize("sink", ["document.body.innerHTML = '<b>x</b>'", "trustedTypes.createPolicy('p', {})"])
def test_the_page_runs_under_a_policy_that_knows_no_html(chat: "Page", failures: list[str], sink: str) -> None:
    assert chat.evaluate(f"() => {{ try {{ {sink}; return false; }} catch {{ return true; }} }}")
    assert len(failures) == 1  # The browser says so, and every other test would hear it.
    failures.clear()
