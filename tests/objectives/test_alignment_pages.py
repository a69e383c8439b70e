"""The pages on alignment: what their snippets print is what they say, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
from pathlib import Path

import pytest

from dacheng.life.expand import load_recipe

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs/guide/alignment").glob("*.md"))
ROOT = PAGES[0].parents[3]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)")


def snippets(page: Path) -> list[str]:
    """Those that say what they print."""
    return [code for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S) if "#> " in code]


def test_there_is_a_page_for_each_method():
    assert len(PAGES) >= 20
    index = (PAGES[0].parent / "README.md").read_text()
    assert all(page.name == "README.md" or page.name in index for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_comes_out(page: Path):
    for code in snippets(page):
        shown = [line.removeprefix("#> ") for line in code.splitlines() if line.startswith("#> ")]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), {})
        found = printed.getvalue().splitlines()
        assert [NUMBER.sub("#", line) for line in found] == [NUMBER.sub("#", line) for line in shown]
        for line, expected in zip(found, shown):
            numbers = [[float(x) for x in NUMBER.findall(text)] for text in (line, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.011), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_load_with_the_settings_that_a_page_names(page: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in re.findall(r"^dacheng (?:train|run) (recipes/.*?)\s*(?:#.*)?$", page.read_text(), flags=re.M):
        recipe, *settings = shlex.split(line)
        assert load_recipe(recipe, settings).nodes, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_data_that_a_page_reads_is_there_or_was_written_before(page: Path):
    written = set()
    for command in re.findall(r"^dacheng .*$", page.read_text(), flags=re.M):
        words = shlex.split(command, comments=True)
        for before, word in itertools.pairwise(words):
            for name in re.findall(r"[\w./-]+\.jsonl", word):
                if before in ("--out", "--export", "--pairs"):
                    written.add(name)
                assert name in written or (ROOT / name).is_file(), command
