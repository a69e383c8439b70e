"""The pages on distillation: what their snippets print is what they say, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"
PAGES = [GUIDE / "classify.md", *(GUIDE / "compress").glob("*distil*.md"), GUIDE / "compress" / "gkd.md"]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)")


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_comes_out(page: Path):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        shown = [line.removeprefix("#> ") for line in code.splitlines() if line.startswith("#> ")]
        if not shown:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), {})
        found = printed.getvalue().splitlines()
        assert [NUMBER.sub("#", line) for line in found] == [NUMBER.sub("#", line) for line in shown]
        for line, expected in zip(found, shown):
            numbers = [[float(x) for x in NUMBER.findall(text)] for text in (line, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.011), line


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
