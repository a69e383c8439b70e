"""The pages on pruning and merging: what their snippets print is what they say, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "compress"
NAMES = (
    "magnitude", "wanda", "sparsegpt", "n-m", "heads", "neurons", "layers", "width", "vocabulary", "gradual", "healing",
    "sparse-storage", "low-rank", "merging", "upcycling",
)  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_shows_is_what_comes_out(name):
    shown_somewhere = False
    for code in re.findall(r"```python\n(.*?)```", (GUIDE / f"{name}.md").read_text(encoding="utf-8"), flags=re.S):
        shown = [line.removeprefix("#> ") for line in code.splitlines() if line.startswith("#> ")]
        if not shown:
            continue
        shown_somewhere = True
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), {})
        found = printed.getvalue().splitlines()
        assert [NUMBER.sub("#", line) for line in found] == [NUMBER.sub("#", line) for line in shown]
        for line, expected in zip(found, shown):
            numbers = [[float(x) for x in NUMBER.findall(text)] for text in (line, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.011), line
    assert shown_somewhere or name == "healing"


@pytest.mark.parametrize("name", [*NAMES, "README"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)", (GUIDE / f"{name}.md").read_text(encoding="utf-8")):
        assert (GUIDE / target).exists(), target
