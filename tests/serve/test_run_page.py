"""The page of a run in a real browser: from reading to a chat with citations, the plug pulled, in both languages."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")
sys.path.append(str(Path(__file__).parent.parent / "stages"))

from adapting_fakes import FakeParts, save_tiny, write_documents  # noqa: E402

from dacheng.serve.run_server import serve_run  # noqa: E402
from dacheng.stages.adapting.kitchen import Kitchen  # noqa: E402
from dacheng.stages.adapting.model_room import ModelRoom  # noqa: E402
from dacheng.stages.adapting.report import write_report  # noqa: E402
from dacheng.stages.adapting.run import Recipe, Run  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.process]
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> says [1]"


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def test_from_reading_to_a_cited_answer(page, tmp_path):
    parts = FakeParts(tmp_path / "out", steps=80, pause=0.05)
    parts.notes.append(HOSTILE)
    with Run(Recipe("docs", "tiny", 0.2), tmp_path / "out", parts) as run, serve_run(run, parts, None, 0) as url:
        page.goto(f"{url}/run")

        def whole():
            run.carry_out()
            write_report(tmp_path / "out")
            run.ready(f"{url}/run")

        thread = threading.Thread(target=whole)
        thread.start()
        api.expect(page.locator("#read")).to_contain_text("2 files, 3 passages")
        api.expect(page.locator("#notes")).to_contain_text(HOSTILE)
        api.expect(page.locator("#probe-body")).to_contain_text("bare says")
        api.expect(page.locator("#trained")).to_contain_text("of 80")
        page.get_by_role("button", name="Pull the plug").click()
        api.expect(page.locator("#plugs")).to_contain_text("Plug pulled at step")
        page.get_by_label("Quote only").check()
        page.locator("#question").fill("what is it?")
        page.keyboard.press("Enter")
        api.expect(page.locator(".answer .said")).to_contain_text("quote says [1]")
        api.expect(page.locator("#plugs")).to_contain_text("bit-identical", timeout=10_000)
        api.expect(page.locator("#curve svg polyline")).to_be_visible()
        api.expect(page.locator("#verdict")).to_contain_text(
            "Quoting the best passage was helpful most often", timeout=20_000
        )
        thread.join(20)
        page.get_by_role("button", name="中文").click()
        api.expect(page.locator("#verdict")).to_contain_text("直接引用最佳段落最常有用")
        api.expect(page.locator("#exam-body tr")).to_have_count(4)
        page.get_by_label("适配后").check()
        page.locator("#question").fill("再问一次")
        page.keyboard.press("Enter")
        api.expect(page.locator(".answer")).to_have_count(2)
        page.locator(".answer .cite").last.click()
        api.expect(page.locator("#passage mark")).to_have_text("the words")
        api.expect(page.locator("#passage-text")).to_contain_text("<b>stand</b>")
        page.keyboard.press("Escape")
        api.expect(page.locator("#passage")).to_be_hidden()
        api.expect(page.locator("#curl")).to_contain_text("/v1/chat/completions")
        page.reload()  # all of it is drawn again from the journal
        api.expect(page.locator("#verdict")).to_contain_text("helpful most often")
        assert page.wrong == [] and page.title() == "dacheng adapt"
        assert all(asked.startswith((url, "data:")) for asked in page.asked)
    report = (tmp_path / "out" / "report.html").read_text()
    assert (
        "<svg" in report
        and "bit-identical" in report
        and "<img src=x" not in report
        and "http" not in report.split("</style>")[0]
    )


def test_an_abstention_names_what_is_nearest(page, tmp_path):
    parts = FakeParts(tmp_path / "out", writes=False, trains=False)
    shown = parts.show

    def abstaining(answer):
        near = [{"passage_id": 1, "source": "a.md", "heading": "Near it"}]
        return shown(answer) | {"abstained": True, "citations": [], "nearest": near}

    with Run(Recipe("docs", None, 0.2), tmp_path / "out", parts) as run, serve_run(run, parts, None, 0) as url:
        run.carry_out()
        run.ready(f"{url}/run")
        parts.show = abstaining
        page.goto(f"{url}/run")
        page.locator("#question").fill("<b>where</b>?")
        page.get_by_role("button", name="Ask").click()
        api.expect(page.locator(".answer .said")).to_have_text("Not in the documents.")
        page.get_by_role("button", name="a.md · Near it").click()
        api.expect(page.locator("#passage-text")).to_contain_text("Before it.")
        assert page.locator(".asked b").count() == 0 and page.wrong == []


def test_what_the_routes_refuse(tmp_path):
    parts = FakeParts(tmp_path / "out")
    with Run(Recipe("docs", None, 0.2), tmp_path / "out", parts) as run, serve_run(run, parts, None, 0) as url:
        assert "still being read" in post(f"{url}/run/ask", {"question": "what?", "mode": "quote"})
        assert json.loads(post(f"{url}/run/plug", {})) == {"pulled": False}
        for path, body in (("ask", {"question": " "}), ("ask", {"question": "x" * 3000}),
                           ("ask", {"question": "x", "mode": "all"}),
                           ("ask", {"question": "x", "more": 1}), ("plug", {"now": True})):  # fmt: skip
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(f"{url}/run/{path}", body)
            assert refused.value.code == 400
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/run/passages/7", timeout=5)
        assert refused.value.code == 404
        with pytest.raises(urllib.error.HTTPError) as refused:  # a page of another site can send no JSON
            urllib.request.urlopen(
                urllib.request.Request(f"{url}/run/plug", b"{}", {"Content-Type": "text/plain"}), timeout=5
            )
        assert refused.value.code == 415


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
def test_a_real_run_with_a_tiny_model(browser, tmp_path, language):
    """Documents, questions, gate, trainer, exam and chat as they are, in seconds, and OpenAI's API beside the page."""
    documents, out = write_documents(tmp_path / "docs"), tmp_path / "out"
    room = ModelRoom(save_tiny(tmp_path / "tiny"))
    train = {"row_tokens": 512, "batch_tokens": 512, "save_every": 3, "snapshot_every": 3, "rank": 2, "steps": 30}
    parts = Kitchen(str(documents), out, room, train={**train, "seconds": None})
    page = browser.new_page(locale=language)
    words = {"en-GB": ("Pull the plug", "bit-identical", "helpful most often", "Quote only"),
             "zh-CN": ("拔掉电源", "逐位相同", "最常有用", "仅引用")}[language]  # fmt: skip
    try:
        with Run(Recipe(str(documents), "tiny", 0.1), out, parts) as run, serve_run(run, parts, room, 0) as url:
            page.goto(f"{url}/run")
            thread = threading.Thread(target=lambda: (run.carry_out(), run.ready(f"{url}/run", room.name)))
            thread.start()
            page.get_by_role("button", name=words[0]).click(timeout=60_000)
            api.expect(page.locator("#plugs")).to_contain_text(words[1], timeout=60_000)
            api.expect(page.locator("#verdict")).to_contain_text(words[2], timeout=60_000)
            page.get_by_label(words[3]).check()
            page.locator("#question").fill("What does copy_target return?")
            page.keyboard.press("Enter")
            page.locator(".answer .cite").last.click(timeout=10_000)
            api.expect(page.locator("#passage-where")).to_contain_text("copy.md")
            api.expect(page.locator("#passage mark")).to_be_visible()
            thread.join(20)
            for model in ("tiny", "adapted"):
                body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
                assert json.loads(post(f"{url}/v1/chat/completions", body))["choices"]
            asked = {"model": "documents", "messages": [{"role": "user", "content": "What does copy_target return?"}]}
            said = json.loads(post(f"{url}/v1/chat/completions", asked))["choices"][0]["message"]["content"]
            assert "[1] copy.md, line " in said or "Not in the documents." in said
    finally:
        page.close()
        parts.close()
