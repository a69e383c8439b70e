"""The chat page in a real browser."""

from __future__ import annotations

import pytest
from serve_fakes import FakeEngine, chat_tokenizer, eventually, running, served

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.browser

HOSTILE = (
    "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script> **大成** "
    "[here](javascript:document.title='broken') <a href=\"javascript:alert(1)\">a</a> ![x](http://192.0.2.1/x.png) "
    "<svg onload=alert(1)> &lt;b&gt; \u202egnp.exe\u2066 `</span></div><iframe srcdoc='<script>alert(1)</script>'>`"
)


def said(page):
    return page.locator(".assistant .said").last


def two_models(page, url):
    page.goto(url)
    page.get_by_role("button", name="Side by side").click()
    api.expect(page.locator("#model2")).to_be_visible()
    page.locator("#model2").select_option("second")


def test_a_chat_by_keyboard_and_hostile_text(page):
    engine = FakeEngine(chat_tokenizer(), HOSTILE)
    with running(served(engine, max_context=4096)) as url:
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
        assert page.locator(".message :not(span)").count() == 0 and page.title() == "dacheng 大成"
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
        page.locator("#temperature").fill("3")
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(page.locator("#state")).to_contain_text("temperature")


def test_two_models_side_by_side(page):
    first, second = FakeEngine(chat_tokenizer(), "the cat"), FakeEngine(chat_tokenizer(), "the mat " * 60, pause_s=0.03)
    with running(served(first, ["first"]), served(second, ["second"])) as url:
        two_models(page, url)
        page.keyboard.type("hello")
        page.keyboard.press("Enter")
        api.expect(page.locator("#chat .said").last).to_have_text("the cat")
        api.expect(page.locator("#chat2 .said").last).to_contain_text("the mat")
        assert second.running == 1  # still writing, while the other has ended
        api.expect(page.locator("#state")).to_contain_text("tokens/s")
        page.keyboard.press("Escape")
        api.expect(page.locator("#state2")).to_have_text("stopped")
        assert eventually(lambda: second.running == 0 and second.cancelled == 1)
        page.locator("#text").fill("again")
        page.locator("#text").press("Enter")
        api.expect(page.locator("#chat .assistant")).to_have_count(2)
        assert eventually(lambda: len(second.asked) == 2)
        for engine, other in ((first, "mat"), (second, "the cat")):  # each goes on with its own conversation
            prompt = engine.tokenizer.decode(engine.asked[-1][0])
            assert "hello" in prompt and "again" in prompt and other not in prompt
        page.get_by_role("button", name="Stop").click()
        assert eventually(lambda: second.running == 0)
        assert page.wrong == [] and all(asked.startswith((url, "data:")) for asked in page.asked)


def tab_to(page, wanted, key="Tab"):
    for _ in range(30):
        if wanted.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press(key)
    raise AssertionError("the tab key does not get there")


def test_everything_by_keyboard_in_chinese(page):
    first, second = FakeEngine(chat_tokenizer(), "the cat"), FakeEngine(chat_tokenizer(), "大成 若缺")
    with running(served(first, ["first"]), served(second, ["second", "third"])) as url:
        page.goto(url)
        api.expect(page.locator("#model option")).to_have_count(3)
        for name in ("中文", "并排比较"):
            tab_to(page, page.get_by_role("button", name=name), "Shift+Tab")
            page.keyboard.press("Enter")
        api.expect(page.locator("#text")).to_be_focused()
        assert page.locator("html").get_attribute("lang") == "zh"
        tab_to(page, page.locator("#model2"), "Shift+Tab")
        api.expect(page.locator("#model2")).to_have_value("second")
        page.keyboard.press("ArrowDown")
        api.expect(page.locator("#model2")).to_have_value("third")
        tab_to(page, page.locator("#text"))
        page.keyboard.type("hello")
        tab_to(page, page.get_by_role("button", name="发送"))
        page.keyboard.press("Enter")
        api.expect(page.locator("#chat .said").last).to_have_text("the cat")
        api.expect(page.locator("#chat2 .said").last).to_have_text("大成 若缺")
        api.expect(page.locator("#state2")).to_contain_text("词元/秒")
        tab_to(page, page.locator("#chat2 .token").first, "Shift+Tab")
        api.expect(page.locator("#tip")).to_contain_text("60.7%")
        tab_to(page, page.locator("summary"), "Shift+Tab")
        page.keyboard.press("Enter")
        api.expect(page.get_by_label("词元概率")).to_be_visible()
        tab_to(page, page.get_by_role("button", name="新对话"), "Shift+Tab")
        page.keyboard.press("Enter")
        api.expect(page.locator(".message")).to_have_count(0)
        assert page.wrong == []


def test_one_stop_ends_both(page):
    engines = [FakeEngine(chat_tokenizer(), "the cat " * 60, pause_s=0.03) for _ in range(2)]
    with running(served(engines[0], ["first"]), served(engines[1], ["second"])) as url:
        two_models(page, url)
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        for chat in ("#chat", "#chat2"):
            api.expect(page.locator(f"{chat} .said").last).to_contain_text("the cat")
        page.get_by_role("button", name="Stop").click()
        for state in ("#state", "#state2"):
            api.expect(page.locator(state)).to_have_text("stopped")
        assert eventually(lambda: all(engine.cancelled == 1 and engine.running == 0 for engine in engines))


def test_a_second_column_goes_on_with_the_conversation(page):
    first, second = FakeEngine(chat_tokenizer(), "the cat"), FakeEngine(chat_tokenizer(), "the mat")
    with running(served(first, ["first"]), served(second, ["second"])) as url:
        page.goto(url)
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(page.locator("#send")).to_be_visible()
        page.get_by_role("button", name="Side by side").click()
        api.expect(page.locator("#model2")).to_have_value("second")
        api.expect(page.locator("#chat2 .said").last).to_have_text("the cat")
        page.locator("#text").fill("again")
        page.locator("#text").press("Enter")
        api.expect(page.locator("#chat2 .said").last).to_have_text("the mat")
        assert "the cat" in second.tokenizer.decode(second.asked[-1][0])
        page.get_by_role("button", name="Side by side").click()
        api.expect(page.locator("#model2")).to_be_hidden()


def test_probabilities_by_pointer_and_by_keyboard(page):
    engine = FakeEngine(chat_tokenizer(), "大成 the cat\n```\nx = 1\n```\nthe END")
    with running(served(engine)) as url:
        page.goto(url)
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(said(page)).to_have_text("大成 the cat\n```\nx = 1\n```\nthe END")
        api.expect(page.locator("#send")).to_be_visible()
        tokens, tip = said(page).locator(".token"), page.locator("#tip")
        assert "".join(tokens.all_text_contents()) == said(page).text_content()
        api.expect(said(page).locator(".code")).to_have_text("```\nx = 1\n```")
        api.expect(tip).to_be_hidden()
        tokens.nth(1).hover()
        api.expect(tip).to_be_visible()
        api.expect(tip.locator(".chosen").first).to_contain_text("60.7%")  # exp(-0.5)
        api.expect(tip).to_contain_text("0%")  # the alternative, which cannot be
        page.mouse.move(1, 1)
        api.expect(tip).to_be_hidden()
        page.locator("#text").focus()
        for _ in range(20):  # back from the text to the answer: one stop, whatever its length
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement.className") == "token":
                break
        api.expect(tokens.first).to_be_focused()
        api.expect(tip).to_be_visible()
        page.keyboard.press("ArrowRight")
        api.expect(tokens.nth(1)).to_be_focused()
        assert tokens.nth(1).get_attribute("aria-describedby") == "tip"
        page.keyboard.press("End")
        api.expect(tokens.last).to_be_focused()
        api.expect(tip.locator(".chosen bdi").first).to_have_text(tokens.last.text_content().replace(" ", "␣"))
        page.keyboard.press("Escape")
        api.expect(tip).to_be_hidden()
        api.expect(tokens.last).to_be_focused()
        assert page.wrong == []


def test_the_focus_scrolls_and_keeps_its_tooltip(page):
    engine = FakeEngine(chat_tokenizer(), "the cat sat on the mat " * 80)
    with running(served(engine, max_context=4096)) as url:
        page.goto(url)
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(page.locator("#send")).to_be_visible()
        chat = page.locator("#chat")
        assert chat.evaluate("node => node.scrollTop") > 100  # it went along with the text
        said(page).locator(".token").first.focus()
        assert eventually(lambda: chat.evaluate("node => node.scrollTop") < 100)
        page.wait_for_timeout(100)
        api.expect(page.locator("#tip")).to_be_visible()
        page.keyboard.press("End")
        assert eventually(lambda: chat.evaluate("node => node.scrollTop") > 100)
        page.wait_for_timeout(100)
        api.expect(page.locator("#tip")).to_be_visible()


def test_hostile_tokens_in_the_tooltip(page):
    engine = FakeEngine(chat_tokenizer(), HOSTILE)
    with running(served(engine, ["<b>x</b>"], max_context=4096)) as url:
        page.goto(url)
        api.expect(page.locator("#model")).to_have_value("<b>x</b>")
        page.locator("#text").fill(HOSTILE)
        page.locator("#text").press("Enter")
        api.expect(said(page)).to_have_text(HOSTILE)
        api.expect(page.locator("#send")).to_be_visible()
        token = said(page).locator(".token", has_text="\u202e")
        token.first.focus()
        api.expect(page.locator("#tip")).to_contain_text("‹U+202E›")  # its name, not its effect
        assert page.locator("a, img, svg, iframe, main script, #tip script").count() == 0
        assert page.title() == "dacheng 大成" and page.wrong == []
        assert all(asked.startswith((url, "data:")) for asked in page.asked)


def test_without_probabilities_none_are_asked_for(page):
    engine = FakeEngine(chat_tokenizer(), "the cat")
    with running(served(engine)) as url:
        page.goto(url)
        page.locator("summary").click()
        page.get_by_label("Token probabilities").uncheck()
        page.locator("#text").fill("hello")
        page.locator("#text").press("Enter")
        api.expect(said(page)).to_have_text("the cat")
        assert not engine.asked[-1][1].logprobs and said(page).locator(".token").count() == 0


def test_the_policy_lets_nothing_else_run(page):
    """Were something of a model's taken as markup after all, its scripts would not run."""
    with running(served(FakeEngine(chat_tokenizer()))) as url:
        answer = page.goto(url)
        assert "unsafe" not in answer.headers["content-security-policy"]
        page.evaluate(
            """() => { const node = document.createElement("div"); document.body.append(node);
            node.innerHTML = `<img src=x onerror="document.title='broken'">`;
            const script = document.createElement("script"); script.textContent = "document.title='broken'";
            node.append(script); }"""
        )
        page.wait_for_timeout(100)
        assert page.title() == "dacheng 大成" and page.wrong  # it says that it refused
        refused = page.evaluate("fetch('http://192.0.2.1/').then(() => 'sent', () => 'refused')")
        assert refused == "refused"
