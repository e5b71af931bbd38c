"""The page in a browser: what a person does with it, and what is asked of the server for that."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.server.web.conftest import PATIENCE
from tests.server.web.fake import Drop, Fake, Refuse, Step, Wait, call, echo, reasoning, stop, text

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WEATHER = [{"name": "get_weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}]


def say(page: "Page", message: str) -> None:
    page.get_by_label("Message", exact=True).fill(message)
    page.keyboard.press("Enter")


def ask(page: "Page", message: str) -> "Locator":
    """Says something and waits for the whole answer, which is returned."""
    num_before = page.locator(".facts").count()
    say(page, message)
    page.locator(".facts").nth(num_before).wait_for()
    return page.locator(".answer").last


def held(*steps: Step) -> tuple[threading.Event, Sequence[Step]]:
    """Steps of an answer that waits where None stands, and the event that lets it go on."""
    event = threading.Event()
    return event, [*steps[:-1], Wait(event=event), steps[-1], stop()]


def until(page: "Page", condition: str) -> None:
    """Waits until an expression is true. (The browser's own way of waiting for one is closed by the page's policy.)"""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never true: {condition}"
        page.wait_for_timeout(20)


def texts(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


# ---------------------------------------------------------------- talking


def test_an_answer_streams_and_its_reasoning_folds(chat: "Page", fake: Fake) -> None:
    go_on, steps = held(reasoning("First this, "), reasoning("then that."), text("All done."))
    fake.answer = lambda _: steps
    say(chat, "A question")
    chat.get_by_text("First this, then that.").wait_for()  # Live, before there is an answer.
    assert chat.locator(".fold").inner_text() == "Thinking"
    assert chat.get_by_role("button", name="Stop").is_visible()
    go_on.set()
    chat.get_by_text("All done.", exact=True).wait_for()
    fold = chat.locator(".fold")
    fold.filter(has_text="Thought for").wait_for()
    assert not chat.get_by_text("First this, then that.").is_visible()
    fold.click()
    assert chat.get_by_text("First this, then that.").is_visible()
    assert chat.locator(".facts").inner_text().replace("\n", " ").startswith("medium")
    assert "4 tokens" in chat.locator(".facts").inner_text()
    assert "64 of them cached" in (chat.locator(".facts").get_attribute("title") or "")
    assert chat.locator(".context").inner_text() == "104 of 4,096 tokens of context"
    (body,) = fake.bodies
    assert body == {
        "model": "ossia-demo",
        "messages": [{"role": "user", "content": "A question"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_effort": "medium",
    }


def test_a_second_turn_brings_the_first(chat: "Page", fake: Fake) -> None:
    ask(chat, "one")
    ask(chat, "two")
    assert texts(fake.bodies[1]) == ["one", "Answer 1 to: one", "two"]


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_keeps_what_came_and_tells_the_server(chat: "Page", fake: Fake, way: str) -> None:
    never, steps = held(text("The beginning"), text(" and the end"))
    fake.answer = lambda _: steps
    say(chat, "A question")
    chat.get_by_text("The beginning").wait_for()
    if way == "button":
        chat.get_by_role("button", name="Stop").click()
    else:
        chat.keyboard.press("Escape")
    chat.get_by_text("Stopped.", exact=True).first.wait_for()
    assert fake.left.wait(10), "the request went on after Stop"
    never.set()
    assert chat.locator(".prose").inner_text() == "The beginning"
    fake.answer = echo
    ask(chat, "And now")
    assert texts(fake.bodies[-1]) == ["A question", "The beginning", "And now"]


def test_regenerated_answers_are_versions(chat: "Page", fake: Fake) -> None:
    count = iter(range(1, 10))
    fake.answer = lambda _: [text(f"Version {next(count)}"), stop()]
    ask(chat, "A question")
    chat.get_by_role("button", name="Regenerate").click()
    chat.get_by_text("Version 2", exact=True).wait_for()
    assert chat.locator(".versions").inner_text() == "2/2"
    chat.get_by_role("button", name="Earlier version").click()
    chat.get_by_text("Version 1", exact=True).wait_for()
    assert chat.get_by_role("button", name="Earlier version").is_disabled()
    ask(chat, "Further")
    assert texts(fake.bodies[-1]) == ["A question", "Version 1", "Further"]
    chat.get_by_role("button", name="Later version").click()
    chat.get_by_text("Version 2", exact=True).wait_for()
    assert not chat.get_by_text("Further").last.is_visible() or chat.locator(".user").count() == 1


def test_an_edited_question_is_a_branch(chat: "Page", fake: Fake) -> None:
    ask(chat, "one")
    ask(chat, "two")
    chat.locator(".user").first.hover()
    chat.locator(".user").first.get_by_role("button", name="Edit message").click()
    chat.locator(".editing textarea").fill("uno")
    chat.keyboard.press("Enter")
    chat.get_by_text("Answer 1 to: uno", exact=True).wait_for()
    assert chat.locator(".user").count() == 1
    assert chat.locator(".user .versions").inner_text() == "2/2"
    assert texts(fake.bodies[-1]) == ["uno"]
    chat.get_by_role("button", name="Earlier version").click()
    chat.get_by_text("Answer 2 to: two", exact=True).wait_for()
    assert chat.locator(".said").all_inner_texts() == ["one", "two"]


def test_the_reader_who_scrolls_up_is_left_alone(chat: "Page", fake: Fake) -> None:
    go_on, steps = held(text("line\n\n" * 60), text("more\n\n" * 60))
    fake.answer = lambda _: steps
    say(chat, "A question")
    until(chat, "document.querySelectorAll('.prose p').length === 60")
    top = "document.querySelector('.thread').scrollTop"
    left = "(t => t.scrollHeight - t.scrollTop - t.clientHeight)(document.querySelector('.thread'))"
    until(chat, f"{left} < 4")  # It follows until the reader looks elsewhere.
    chat.locator(".thread").hover()
    chat.mouse.wheel(0, -600)
    until(chat, f"{left} > 300")
    before = chat.evaluate(top)
    go_on.set()
    chat.locator(".facts").wait_for()
    assert chat.evaluate(top) == before
    chat.get_by_role("button", name="To the end").click()
    until(chat, f"{left} < 4")


# ---------------------------------------------------------------- settings


def test_settings_are_sent_and_wrong_ones_are_not(chat: "Page", fake: Fake) -> None:
    chat.get_by_role("radio", name="high").check()
    chat.get_by_role("button", name="Settings", exact=True).click()
    chat.get_by_label("System prompt").fill("Be brief.")
    chat.get_by_label("Temperature").fill("0.5")
    chat.get_by_label("Top-p").fill("1.5")
    chat.get_by_label("Token limit").fill("64")
    chat.get_by_label("Seed").fill("7")
    assert chat.get_by_label("Top-p").get_attribute("aria-invalid") == "true"
    assert chat.get_by_text("above 0, up to 1").is_visible()
    ask(chat, "A question")
    (body,) = fake.bodies
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"reasoning_effort": "high", "temperature": 0.5, "max_completion_tokens": 64, "seed": 7}
    assert {key: body[key] for key in wanted} == wanted
    assert "top_p" not in body
    chips = chat.locator(".chips button").all_inner_texts()
    assert chips == ["system prompt", "temperature 0.5", "at most 64 tokens", "seed 7"]
    chat.get_by_role("button", name="Reset these settings").click()
    assert chat.locator(".chips button").count() == 0
    assert [chat.get_by_label(name).input_value() for name in ("Seed", "Top-p")] == ["", ""]


def test_wrong_tools_are_named_and_not_sent(chat: "Page", fake: Fake) -> None:
    chat.get_by_role("button", name="Settings", exact=True).click()
    for definitions, complaint in (
        ("[{", "Not JSON yet"),
        ("7", "Give a list of tools"),
        ('[{"description": "x"}]', "Tool 1 has no “name”."),
        ('[{"name": "a b"}]', "a name is 1 to 64 letters"),
        ('[{"name": "a"}, {"name": "a"}]', "Tool 2: there is a tool “a” already."),
        ('[{"name": "a", "parameters": {"type": "array"}}]', 'must be of type "object"'),
        ('[{"name": "a", "schema": {}}]', "“schema” is not a field of a tool."),
    ):
        chat.get_by_label("Tools").fill(definitions)
        assert complaint in chat.locator("#tools-state").inner_text()
    say(chat, "A question")
    chat.get_by_text("The tool definitions are not valid yet.").wait_for()
    assert fake.bodies == []
    assert chat.get_by_label("Message", exact=True).input_value() == "A question"


def test_calls_are_shown_and_go_on_with_their_results(chat: "Page", fake: Fake) -> None:
    def answer(body: dict[str, Any]) -> Sequence[Step]:
        if body["messages"][-1]["role"] == "tool":
            return [text(f"It returned {body['messages'][-1]['content']}"), stop()]
        both = (call("get_weather", '{"city":"Oslo"}'), call("get_weather", "not JSON", index=1))
        return [reasoning("I need the weather."), *both, stop("tool_calls")]

    fake.answer = answer
    chat.get_by_role("button", name="Settings", exact=True).click()
    chat.get_by_label("Tools").fill(json.dumps(WEATHER))
    assert chat.locator("#tools-state").inner_text() == "get_weather"
    ask(chat, "What is the weather?")
    cards = chat.locator(".call")
    assert cards.locator(".name").all_inner_texts() == ["get_weather", "get_weather"]
    assert json.loads(cards.first.locator("pre").inner_text()) == {"city": "Oslo"}
    assert chat.get_by_text("These arguments are not JSON.").count() == 1
    cards.first.get_by_label("Result").fill("7 °C")
    cards.last.get_by_label("Result").fill("8 °C")
    chat.get_by_role("button", name="Continue").click()
    chat.get_by_text("It returned 8 °C", exact=True).wait_for()
    assert fake.bodies[0]["tools"] == [{"type": "function", "function": WEATHER[0]}]
    called, *results = fake.bodies[1]["messages"][1:]
    assert called["reasoning"] == "I need the weather."
    assert [c["function"] for c in called["tool_calls"]] == [
        {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
        {"name": "get_weather", "arguments": "not JSON"},
    ]
    assert results == [
        {"role": "tool", "tool_call_id": "call_0", "content": "7 °C"},
        {"role": "tool", "tool_call_id": "call_1", "content": "8 °C"},
    ]
    chat.get_by_role("button", name="Change the results").click()
    cards.last.get_by_label("Result").fill("9 °C")
    chat.keyboard.press("Control+Enter")
    chat.get_by_text("It returned 9 °C", exact=True).wait_for()
    assert chat.locator(".calls .versions").inner_text() == "2/2"


def test_the_theme_follows_the_system_or_the_person(chat: "Page") -> None:
    shade = "getComputedStyle(document.documentElement).backgroundColor"
    light = chat.evaluate(shade)
    chat.emulate_media(color_scheme="dark")
    dark = chat.evaluate(shade)
    assert light != dark
    chat.get_by_role("radio", name="light").check()
    assert chat.evaluate(shade) == light
    chat.reload()
    chat.locator(".welcome").wait_for()
    assert chat.evaluate(shade) == light
    chat.get_by_role("radio", name="As the system").check()
    assert chat.evaluate(shade) == dark


# ---------------------------------------------------------------- conversations


def test_a_reload_keeps_the_conversation(chat: "Page", fake: Fake) -> None:
    ask(chat, "one")
    chat.get_by_role("button", name="Regenerate").click()
    chat.locator(".versions").wait_for()
    chat.locator(".facts").wait_for()
    chat.reload()
    chat.locator(".facts").wait_for()
    assert chat.locator(".prose").all_inner_texts() == ["Answer 1 to: one"]
    assert chat.locator(".versions").inner_text() == "2/2"
    ask(chat, "two")
    assert texts(fake.bodies[-1]) == ["one", "Answer 1 to: one", "two"]


def test_a_reload_in_the_middle_keeps_what_came(chat: "Page", fake: Fake) -> None:
    never, steps = held(text("The beginning"), text(" and the end"))
    fake.answer = lambda _: steps
    say(chat, "A question")
    chat.get_by_text("The beginning").wait_for()
    chat.reload()
    chat.locator(".failure", has_text="What had arrived is kept.").wait_for()
    never.set()
    assert chat.locator(".prose").inner_text() == "The beginning"


def test_conversations_are_found_renamed_and_deleted(chat: "Page") -> None:
    listed = chat.locator(".list a")
    for message in ("apples", "pears"):
        ask(chat, f"About {message}")
        chat.get_by_role("button", name="New chat").first.click()
    assert listed.all_inner_texts() == ["About pears", "About apples"]
    chat.get_by_role("searchbox").fill("to: about APPLES")  # In the answer, not in the title.
    until(chat, "document.querySelectorAll('.list a').length === 1")
    listed.click()
    assert chat.locator(".said").inner_text() == "About apples"
    chat.get_by_role("button", name="Actions for About apples").click()
    chat.get_by_role("menuitem", name="Rename").click()
    chat.get_by_label("Title").fill("Orchard")
    chat.keyboard.press("Enter")
    chat.get_by_role("searchbox").fill("")
    assert "Orchard" in listed.all_inner_texts()
    chat.locator(".list li", has_text="Orchard").hover()
    chat.get_by_role("button", name="Actions for Orchard").click()
    chat.get_by_role("menuitem", name="Delete").click()
    assert listed.all_inner_texts() == ["About pears"]
    assert chat.locator(".welcome").is_visible()
    chat.get_by_role("button", name="Undo").click()
    assert chat.locator(".said").inner_text() == "About apples"
    chat.wait_for_timeout(600)  # Until it is saved.
    chat.reload()
    listed.nth(1).wait_for()
    assert sorted(listed.all_inner_texts()) == ["About pears", "Orchard"]


def test_conversations_go_out_and_come_in(chat: "Page", tmp_path: Path) -> None:
    ask(chat, "one")
    chat.get_by_role("button", name="Regenerate").click()
    chat.locator(".versions").wait_for()
    chat.locator(".facts").wait_for()
    chat.get_by_role("button", name="More").click()
    with chat.expect_download() as download:
        chat.get_by_role("menuitem", name="Export all").click()
    path = tmp_path / "conversations.json"
    download.value.save_as(path)
    exported = json.loads(path.read_text(encoding="utf-8"))
    assert [c["title"] for c in exported["conversations"]] == ["one"]

    chooser = chat.get_by_label("File of conversations")
    chooser.set_input_files(path)
    chat.get_by_text("0 conversations imported.").wait_for()  # They are here already.
    chat.get_by_role("button", name="More").click()
    chat.get_by_role("menuitem", name="Delete all").click()
    chat.locator(".welcome").wait_for()
    chooser.set_input_files(path)
    chat.get_by_text("1 conversation imported.").wait_for()
    assert chat.locator(".prose").inner_text() == "Answer 1 to: one"
    assert chat.locator(".versions").inner_text() == "2/2"

    exported["conversations"][0]["entries"][1]["message"]["text"] = 7
    for name, content, complaint in (
        ("a.json", "{", "a.json is not JSON."),
        ("b.json", "{}", "b.json is not a file of exported conversations"),
        ("c.json", json.dumps(exported), "conversations.0.entries.1.message.text"),
    ):
        file = tmp_path / name
        file.write_text(content, encoding="utf-8")
        chooser.set_input_files(file)
        chat.locator(".notice", has_text=complaint).wait_for()
    assert chat.locator(".list a").count() == 1


def test_two_tabs_keep_to_the_same_conversations(chat: "Page", fake: Fake) -> None:
    other = chat.context.new_page()
    other.goto(fake.url)
    other.locator(".welcome button:enabled").first.wait_for()
    ask(chat, "one")
    other.locator(".list a", has_text="one").click()
    other.get_by_text("Answer 1 to: one", exact=True).wait_for()
    ask(other, "two")
    chat.get_by_text("Answer 2 to: two", exact=True).wait_for()


# ---------------------------------------------------------------- when things go wrong


def test_a_connection_that_breaks_loses_nothing(chat: "Page", fake: Fake) -> None:
    go_on, steps = held(reasoning("Hm."), text("The beginning"), Drop())
    fake.answer = lambda _: steps
    say(chat, "A question")
    chat.get_by_text("The beginning").wait_for()
    go_on.set()
    alert = chat.locator(".failure")
    alert.wait_for()
    expected = "The connection broke off before the answer was complete. What had arrived is kept."
    assert alert.locator("p").inner_text() == expected
    assert chat.locator(".prose").inner_text() == "The beginning"
    fake.answer = echo
    alert.get_by_role("button", name="Try again").click()
    chat.get_by_text("Answer 1 to: A question", exact=True).wait_for()
    assert chat.locator(".versions").inner_text() == "2/2"


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([Refuse(status=503, message="the queue is full")], "The server is busy: the queue is full."),
        ([Refuse(status=400, message="too long a prompt")], "The server refused this (400): too long a prompt."),
        ([Refuse(status=500, message="it is broken")], "The server failed (500): it is broken."),
        ([text("so"), Refuse(status=500, message="no room")], "The server failed: no room. What had arrived is kept."),
    ],
)
def test_an_error_is_a_sentence(chat: "Page", fake: Fake, steps: Sequence[Step], sentence: str) -> None:
    fake.answer = lambda _: steps
    say(chat, "A question")
    chat.locator(".failure").wait_for()
    assert chat.locator(".failure p").inner_text().strip() == sentence
    fake.answer = echo
    chat.get_by_role("button", name="Try again").click()
    chat.get_by_text("Answer 1 to: A question", exact=True).wait_for()
    # A failure that said nothing leaves no version behind.
    assert chat.locator(".versions").count() == (1 if len(steps) > 1 else 0)


def test_without_a_network_it_can_be_tried_again(chat: "Page") -> None:
    chat.context.set_offline(True)
    say(chat, "A question")
    chat.get_by_text("The server cannot be reached. Is it still running?").first.wait_for()
    chat.context.set_offline(False)
    chat.locator(".failure").get_by_role("button", name="Try again").click()
    chat.get_by_text("Answer 1 to: A question", exact=True).wait_for()


def test_a_cut_answer_says_so(chat: "Page", fake: Fake) -> None:
    fake.answer = lambda _: [text("As far as"), stop("length")]
    ask(chat, "A question")
    assert chat.get_by_text("Cut off: the limit of tokens was reached.").is_visible()


def test_a_key_is_asked_for_and_used(page: "Page", fake: Fake) -> None:
    fake.key = "right"
    page.goto(fake.url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.wait_for()
    dialog.get_by_label("API key", exact=True).fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    dialog.get_by_text("The server did not accept this key.").wait_for()
    dialog.get_by_label("API key", exact=True).fill("right")
    page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    ask(page, "A question")
    fake.key = "another"  # The server was started anew.
    say(page, "Still there?")
    dialog.wait_for()
    dialog.get_by_label("API key", exact=True).fill("another")
    page.keyboard.press("Enter")
    page.get_by_text("Answer 2 to: Still there?", exact=True).wait_for()  # Tried again by itself.
    page.reload()
    ask(page, "And now?")


# ---------------------------------------------------------------- hands and eyes


def test_the_keyboard(chat: "Page", fake: Fake) -> None:
    field = chat.get_by_label("Message", exact=True)
    assert field.evaluate("e => e === document.activeElement")
    chat.keyboard.type("one")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    chat.keyboard.press("Enter")
    chat.locator(".facts").wait_for()
    assert texts(fake.bodies[0]) == ["one\ntwo"]
    chat.keyboard.press("ArrowUp")
    editor = chat.locator(".editing textarea")
    assert editor.input_value() == "one\ntwo"
    chat.keyboard.press("Escape")
    chat.locator(".said").wait_for()
    chat.locator(".fold").focus()
    chat.keyboard.press("/")
    assert field.evaluate("e => e === document.activeElement")
    chat.locator(".fold").focus()
    chat.keyboard.press("?")
    chat.get_by_role("dialog", name="Keyboard").wait_for()
    chat.keyboard.press("Escape")
    chat.get_by_role("dialog", name="Keyboard").wait_for(state="detached")
    chat.keyboard.press("Control+k")
    chat.locator(".welcome").wait_for()
    chat.go_back()
    chat.locator(".said").wait_for()


def test_everything_that_can_be_pressed_has_a_name(chat: "Page", fake: Fake) -> None:
    fake.answer = lambda _: [reasoning("Hm."), text("```python\nx = 1\n```"), call("f", "{}"), stop("tool_calls")]
    ask(chat, "A question")
    chat.get_by_role("button", name="Settings", exact=True).click()
    nameless = chat.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select, a, [role=menuitem]")].filter(e =>
            !(e.ariaLabel || e.textContent.trim() || [...(e.labels ?? [])].some(l => l.textContent.trim()))
        ).map(e => e.outerHTML)"""
    )
    assert nameless == []
    spoken = chat.locator("[role=status][aria-live=polite]").inner_text()
    assert spoken == "The model calls f."


def test_an_example_begins_a_conversation(chat: "Page", fake: Fake) -> None:
    assert "tiny model" in chat.locator(".welcome").inner_text()
    chat.get_by_role("button", name="What is 4213 + 2789?").click()
    chat.get_by_text("Answer 1 to: What is 4213 + 2789?", exact=True).wait_for()


def test_another_model_is_not_called_tiny(page: "Page", fake: Fake) -> None:
    fake.model = "gpt-oss-20b"
    page.goto(fake.url)
    page.locator(".welcome button:enabled").first.wait_for()
    assert "tiny" not in page.locator(".welcome").inner_text()


class TestPhone:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}

    def test_it_fits_a_phone(self, chat: "Page", fake: Fake) -> None:
        wide = "x = " + " + ".join(str(n) for n in range(80))
        code = f"```python\n{wide}\n```\n\n| a | b |\n|--|--|\n| {'w' * 70} | 2 |\n\n{'unbroken' * 30}"
        fake.answer = lambda _: [reasoning("long" * 80), text(code), stop()]
        chat.get_by_label("Message", exact=True).tap()
        chat.keyboard.type("one")
        chat.keyboard.press("Enter")  # On glass, a new line.
        chat.keyboard.type("two")
        chat.get_by_role("button", name="Send").tap()
        chat.locator(".facts").wait_for()
        assert texts(fake.bodies[0]) == ["one\ntwo"]
        for place in ("document.documentElement", "document.querySelector('.thread')"):
            assert chat.evaluate(f"{place}.scrollWidth <= {place}.clientWidth"), f"{place} is wider than the screen"
        assert not chat.locator(".sidebar").is_visible()
        chat.get_by_role("button", name="Show the sidebar").tap()
        chat.locator(".list a", has_text="one").tap()
        chat.locator(".sidebar").wait_for(state="hidden")
        chat.get_by_role("button", name="Settings", exact=True).tap()
        chat.get_by_role("button", name="Close settings").tap()
        assert chat.locator(".settings").count() == 0
