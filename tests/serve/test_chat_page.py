"""The chat page in a real browser."""

from __future__ import annotations

import shutil

import pytest
from serve_fakes import FakeEngine, chat_tokenizer, eventually, running, served

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script> **大成**"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page that notes what it asks for and what goes wrong in it."""
    found = browser.new_page(locale="en-GB")
    found.asked, found.wrong = [], []
    found.on("request", lambda request: found.asked.append(request.url))
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.on("console", lambda message: message.type == "error" and found.wrong.append(message.text))
    yield found
    found.close()


def said(page):
    return page.locator(".assistant").last.locator("span").nth(1)


def test_a_chat_by_keyboard_and_hostile_text(page):
    engine = FakeEngine(chat_tokenizer(), HOSTILE)
    with running(served(engine)) as url:
        page.goto(url)
        api.expect(page.locator("#model option")).to_have_count(2)
        page.keyboard.type("hello")  # the cursor is where one writes
        page.keyboard.press("Enter")
        api.expect(said(page)).to_have_text(HOSTILE)
        api.expect(page.locator("#state")).to_contain_text("tokens/s")
        page.keyboard.type("again")
        page.keyboard.press("Enter")
        api.expect(page.locator(".assistant")).to_have_count(2)
        api.expect(said(page)).to_have_text(HOSTILE)
        prompt = engine.tokenizer.decode(engine.asked[-1][0])
        assert "hello" in prompt and HOSTILE in prompt and prompt.index(HOSTILE) < prompt.index("again")
        assert page.locator(".message img, .message script").count() == 0 and page.title() == "dacheng 大成"
        assert all(asked.startswith((url, "data:")) for asked in page.asked) and page.wrong == []
        page.get_by_role("button", name="New chat").click()
        api.expect(page.locator(".message")).to_have_count(0)


def test_stop_languages_and_thoughts(page):
    engine = FakeEngine(chat_tokenizer(), "<think>hm</think>" + "the cat " * 60, pause_s=0.03)
    with running(served(engine)) as url:
        page.goto(url)
        page.get_by_role("button", name="中文").click()
        api.expect(page.locator("#send")).to_have_text("发送")
        page.locator("#text").fill("你好")
        page.locator("#send").click()
        api.expect(page.locator(".assistant .thought")).to_have_text("hm")
        api.expect(said(page)).to_contain_text("the cat")
        page.get_by_role("button", name="停止").click()
        api.expect(page.locator("#state")).to_have_text("已停止")
        assert eventually(lambda: engine.running == 0 and engine.cancelled == 1)
        api.expect(page.locator("#send")).to_be_visible()
        page.get_by_role("button", name="English").click()
        api.expect(page.locator("#send")).to_have_text("Send")


def test_the_key_and_errors_are_shown(page):
    with running(served(FakeEngine(chat_tokenizer(), "the cat")), keys=["the-key-of-ours"]) as url:
        page.goto(url)
        api.expect(page.locator("#state")).to_contain_text("a key is needed")
        page.locator("#key").fill("the-key-of-ours")
        page.locator("#key").press("Tab")
        api.expect(page.locator("#model option")).to_have_count(2)
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(said(page)).to_have_text("the cat")
        page.locator("summary").click()
        page.locator("#temperature").fill("3")
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(page.locator("#state")).to_contain_text("temperature")
