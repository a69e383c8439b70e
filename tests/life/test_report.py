from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dacheng.life import plots
from dacheng.life.report import render
from dacheng.records import Artifact

HOSTILE = "$\\frac{</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\x00\ud800"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of them; `open` is what was never closed."""

    VOID = ("meta", "br", "img", "hr", "link", "input", "path", "rect", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def totals(**more) -> dict:
    money = {"power": 0.01, "hardware": 0.02, "labour": 0.0}
    base = {"wall_s": 61.5, "cpu_s": 100.0, "joules": 5e3, "joules_kind": "estimated", "flops": 1e12, "tokens": 1000}
    return {**base, "peak_bytes": 10**9, "money": money, "currency": "EUR", "assumed": ["watts"], **more}


def story(tmp_path: Path, text: str = "plain") -> dict:
    """A life whose every string is `text`."""
    model = tmp_path / "train" / "model"
    model.mkdir(parents=True)
    steps = [{"step": s, "loss": 5 - s / 20, "grad_norm": 1.0, "tokens": 64} for s in range(1, 61)]
    evaluations = [{"step": s, "evaluation": {"valid/bits_per_byte": 3 - s / 50}} for s in (20, 40, 60)]
    log = [json.dumps(line) for line in steps + evaluations]
    (model.parent / "train.jsonl").write_text("\n".join(log) + '\n{"step": 61, "lo')
    samples = tmp_path / "samples.json"
    row = {"prompt": text, "before": text, "after": "def f():", "ngram": text, "temperature": 0.8}
    samples.write_text(json.dumps([row]))
    drops = {
        "kept": 9,
        "kept_bytes": 99,
        "dropped": {text: 3},
        "dropped_bytes": {text: 7},
        "examples": {text: text},
        "altered": {text: 1},
    }
    floors = {"byte 7-gram": 1.71, text: 1.9}
    machine = {"cpu_model": text, "cores": 2, "threads": 2, "capabilities": ["avx2"], "memory_bytes": 2**33}
    made = {
        "machine": Artifact("machine", tmp_path, "f" * 64, machine | {"matmul_gflops": {"float32": 90.1}}),
        "data": Artifact("documents", tmp_path, "a" * 64, {"drops": drops}),
        "tokens": Artifact("tokens", tmp_path, "b" * 64, {"train": {"tokens": 5, "documents": 2}, "context_length": 8}),
        "plan": Artifact("plan", tmp_path, "c" * 64, {"formula": [text, "C = 6 N D"]}),
        "net": Artifact("model", model, "d" * 64, {"steps": 60, "tokens": 3840, "budget": [text]}),
        "judge": Artifact("evaluation", tmp_path, "e" * 64, {"bits_per_byte": 1.5, "floors": floors, "bytes": 1000}),
        "samples": Artifact("samples", samples, "0" * 64),
    }
    for artifact in made.values():
        artifact.totals = totals()
    stages = [{"name": name, "do": text, **({"from": {"x": "data"}} if name == "net" else {})} for name in made]
    return {"life": {"name": text, "stages": stages}, "artifacts": made, "totals": totals()}


def page(tmp_path: Path, text: str = "plain") -> str:
    return render(tmp_path / "report.html", **story(tmp_path, text)).read_text(encoding="utf-8")


def test_it_needs_nothing_beside_it(tmp_path):
    text = page(tmp_path)
    parsed = Page(text)
    assert parsed.open == []
    names = [tag for tag, _ in parsed.tags]
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(names)
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                assert (value or "").startswith("#"), (tag, name, value)
            assert not name.startswith("on")
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_it_has_language_and_both_colour_schemes(tmp_path):
    text = page(tmp_path)
    assert '<html lang="en">' in text
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text
    assert "#000000" not in text.split("</style>")[1]  # nothing is painted black on a page that may be dark


def test_it_tells_the_story(tmp_path):
    text = Page(page(tmp_path)).text
    assert "1.5 bits per byte, 12.3% below the best n-gram floor (byte 7-gram, 1.71)." in text
    for part in (
        "Training (net)",
        "Against the floors",
        "Samples",
        "The plan",
        "Data",
        "What it cost",
        "Lineage",
        "Environment",
    ):
        assert part in text
    assert "C = 6 N D" in text
    assert "0.0100 EUR (assumed)" in text and "5 kJ (estimated)" in text and "assumed: watts" in text
    assert "90.1 GFLOPS" in text


def test_everything_from_outside_is_escaped(tmp_path):
    text = page(tmp_path, HOSTILE)
    parsed = Page(text)
    assert parsed.open == []
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
    assert "<script" not in text.lower() and "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert "{{ 7*7 }}" in parsed.text and "49" not in re.findall(r"\}\}(\d+)", parsed.text)
    assert "</pre><script>alert(1)</script>" in parsed.text  # it is shown as what it is


def test_tables_stand_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    text = page(tmp_path)
    parsed = Page(text)
    assert "pip install 'dacheng[report]'" in parsed.text
    assert [tag for tag, _ in parsed.tags].count("svg") == 1  # the lineage is drawn without it
    assert "byte 7-gram" in parsed.text and "1.71" in parsed.text


def test_plots_take_the_colour_of_the_page_and_have_ids_of_their_own():
    pytest.importorskip("matplotlib")
    one = plots.line_plot({"a<b": ([1, 2], [3.0, 4.0])}, x_label="x", y_label='"y" & <z>', identity="one")
    two = plots.line_plot({"a<b": ([1, 2], [3.0, 4.0])}, x_label="x", y_label="y", identity="two")
    assert one.startswith("<svg ") and "currentColor" in one and "<metadata" not in one and "<!DOCTYPE" not in one
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r"(?:xlink:href=\"|url\()#([^\")]+)", one))
    assert used and used <= ids[0]
    assert one == plots.line_plot({"a<b": ([1, 2], [3.0, 4.0])}, x_label="x", y_label='"y" & <z>', identity="one")


def test_a_life_of_one_stage_is_a_page_too(tmp_path):
    life = {"name": "x", "stages": [{"name": "a", "do": "data"}]}
    text = render(tmp_path / "r.html", life=life, artifacts={}, totals={"wall_s": 1.0}).read_text()
    assert Page(text).open == [] and "Lineage" in text
