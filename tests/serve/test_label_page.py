"""The labelling page: its routes, and in a real browser two people who label, in both languages, with the keyboard."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
sys.path.append(str(Path(__file__).parent.parent / "align"))

from label_fixtures import session

from dacheng.align.labelling.labels import in_force
from dacheng.serve.label_server import serve_labels

pytestmark = [pytest.mark.process]


def post(url, body, kind="application/json"):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def refused(url, body, kind="application/json"):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, body, kind)
    return caught.value.code, json.loads(caught.value.read())["error"]


def test_the_routes_write_what_was_said_of_what_was_shown(tmp_path):
    found = session(tmp_path)
    with serve_labels(found, 0) as url:
        page = urllib.request.urlopen(f"{url}/label", timeout=5)
        assert "default-src 'none'" in page.headers["Content-Security-Policy"] and b"label.js" in page.read()
        one = post(f"{url}/label/next", {"annotator": "ada"})
        assert (one["done"], one["total"]) == (0, 4) and set(one["pair"]) == {"id", "prompt", "first", "second"}
        two = post(f"{url}/label/say", {"annotator": "ada", "pair": one["pair"]["id"], "said": "second2",
                                        "seconds": 2.5, "note": "<b>因为</b>"})  # fmt: skip
        assert two["done"] == 1 and two["pair"]["id"] != one["pair"]["id"]
        (label,) = found.store.read()[0]
        assert (label.strength, label.seconds, label.note) == (2, 2.5, "<b>因为</b>") and label.choice != label.first
        back = post(f"{url}/label/undo", {"annotator": "ada"})
        assert back["undone"] and back["pair"]["id"] == one["pair"]["id"]
        assert not post(f"{url}/label/undo", {"annotator": "ada"})["undone"]
        for pair in list(found.pairs):
            post(f"{url}/label/say", {"annotator": "bo", "pair": pair, "said": "first1", "seconds": 1e9})
        assert post(f"{url}/label/next", {"annotator": "bo"}) == {"pair": None, "done": 4, "total": 4}
        assert all(x.seconds is None for x in found.store.read()[0] if x.annotator == "bo")
        report = json.loads(urllib.request.urlopen(f"{url}/label/agreement", timeout=5).read())
        assert report["annotators"]["bo"]["first"]["estimate"] == 1.0 and report["pairs"]["all"] == 4


def test_what_the_routes_refuse(tmp_path):
    found = session(tmp_path)
    pair = next(iter(found.pairs))
    good = {"annotator": "ada", "pair": pair, "said": "tie"}
    with serve_labels(found, 0) as url:
        for changes in ({"annotator": ""}, {"annotator": "a\nb"}, {"annotator": 3}, {"annotator": "x" * 65},
                        {"pair": "p"},
                        {"pair": None}, {"said": "a"}, {"said": None}, {"seconds": -1}, {"seconds": "1"},
                        {"note": "x" * 2001}, {"more": 1}):  # fmt: skip
            code, error = refused(f"{url}/label/say", good | changes)
            assert code == 400 and error["param"] == next(iter(changes))
        assert refused(f"{url}/label/next", good)[0] == 400
        assert refused(f"{url}/label/say", good, "text/plain")[0] == 415  # a page of another site can send no JSON
        elsewhere = urllib.request.Request(f"{url}/label", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(elsewhere, timeout=5)
        assert caught.value.code == 403
    assert not found.store.path.exists()


@pytest.mark.browser
@pytest.mark.slow
def test_two_people_label_in_a_browser(page, tmp_path):
    """By mouse and by keyboard, in English and 中文; a hostile reply stays text; a torn connection says so."""
    api = pytest.importorskip("playwright.sync_api")
    found = session(tmp_path, seed=1)
    with serve_labels(found, 0) as url:
        page.goto(f"{url}/label")
        page.get_by_label("Your name").fill("ada")
        page.keyboard.press("Enter")
        api.expect(page.locator("#how-far")).to_have_text("ada · 0 of 4 labelled")
        api.expect(page.locator("#first")).to_be_focused()
        texts = set()
        for number in range(4):
            api.expect(page.locator("#how-far")).to_contain_text(f"{number} of 4")
            texts |= {page.locator("#first").inner_text(), page.locator("#second").inner_text()}
            page.keyboard.press("15s2"[number])
        api.expect(page.locator("#done")).to_be_visible()  # its text is there before: the last answer may still be due
        api.expect(page.locator("#done")).to_have_text("All pairs are labelled. Thank you!")
        assert any("<img src=x" in text for text in texts) and page.locator("#work img").count() == 0
        labels = {label.pair: label for label in found.store.read()[0]}
        assert [labels[p].choice == labels[p].first for p in found.pairs] == [True, False, False, True]
        assert [labels[p].strength for p in found.pairs] == [2, 2, 0, 1]
        page.keyboard.press("u")
        api.expect(page.locator("#how-far")).to_contain_text("3 of 4")
        page.get_by_label("Why (optional)").fill("short 1 2 u")  # typing chooses nothing
        page.get_by_role("button", name="equally good").click()
        api.expect(page.locator("#done")).to_be_visible()
        assert found.store.read()[0][-1].note == "short 1 2 u"

        page.reload()
        page.get_by_role("button", name="中文").click()
        page.get_by_label("您的名字").fill("李")
        page.get_by_role("button", name="开始").click()
        for number in range(4):
            api.expect(page.locator("#how-far")).to_have_text(f"李 · 已标注 {number} / 4")
            page.get_by_role("button", name="一样好").click()
        api.expect(page.locator("#done")).to_be_visible()
        api.expect(page.locator("#done")).to_have_text("全部标注完毕，谢谢！")
        page.get_by_role("button", name="目前的一致性").click()
        api.expect(page.locator("#figures")).to_contain_text("共 4 对，已标注 4 对，其中 3 对由两人以上标注")
        page.get_by_role("button", name="English").click()
        api.expect(page.locator("#figures")).to_contain_text("李: 4 labels, 4 ties")
        assert len(in_force(found.store.read()[0])) == 8
        assert page.wrong == [] and page.title() == "dacheng label"
        assert all(asked.startswith((url, "data:")) for asked in page.asked)
    page.get_by_role("button", name="Take back").click()  # the server is gone
    api.expect(page.locator("#trouble")).to_contain_text("connection is lost")
