"""Passages keep whole what should be whole, lose nothing, and know their lines: whatever the document says."""

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dacheng.rag.blocks import MAX_SIZE, Block, passages_of, size_of
from dacheng.rag.documents import read_document
from dacheng.rag.scripts import language_of
from dacheng.records import Drops

SENTENCES = [
    "The fox is quick.",
    "It ran, e.g. over the dog!",
    "Dr. Smith saw it?",
    "狐狸很快。",
    "他说：“真的吗？”",
    "x = 1",
]
LINES = st.one_of(
    st.sampled_from(
        [
            "",
            "",
            "# One",
            "## Two",
            "Under",
            "-----",
            "- item",
            "1. first",
            "| a | b |",
            "|---|---|",
            "```",
            "    code()",
            "第一回 开头",
            ".. note:: n",
            ".. function:: f(x)",
            "   body",
            "def f():",
            "class A:",
            '    """Doc."""',
        ]
    ),
    st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=12).map(" ".join),
)
DOCUMENTS = st.lists(LINES, max_size=60).map("\n".join)
WORD = re.compile(r"[一-鿿]|[^\W一-鿿]+")  # lines of Chinese are joined without a space


def passages(text: str, name: str):
    return read_document(text.encode("utf-8", "surrogatepass"), name, Drops())


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.sampled_from(["a.md", "a.txt", "a.rst", "a.py", "a.js", "a.csv"]))
@example("第一回 开头\n狐狸很快。", "a.md")
def test_the_lines_cited_hold_the_words(text, name):
    lines = text.split("\n")
    for passage in passages(text, name):
        assert 1 <= passage.first_line <= passage.last_line <= len(lines)
        words = set(WORD.findall(" ".join(lines[passage.first_line - 1 : passage.last_line])))
        if passage.kind == "table":  # its header is repeated
            words |= set(WORD.findall(text))
        assert set(WORD.findall(passage.text)) <= words
        assert size_of(passage.text) <= MAX_SIZE * 1.1  # joined sentences can count a little more than their sum
        assert passage.text.strip()


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS)
def test_plain_text_loses_no_word(text):
    """But those of a heading that nothing stands under."""
    text = text.replace("第一回 开头", "").replace("1. first", "").replace("-----", "")
    found = " ".join(f"{p.heading} {p.text}" for p in passages(text, "a.txt"))
    assert set(WORD.findall(text)) - set(WORD.findall(found)) == set()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400), st.sampled_from(["a.md", "a.txt", "a.rst", "a.py", "a.js", "a.html", "a.csv", "a.tsv"]))
def test_any_text_is_read_without_error(text, name):
    keys = [passage.key for passage in passages(text, name)]
    assert len(keys) == len(set(keys))


def test_parts_are_about_equal_and_sentences_whole():
    lines = tuple((i, f"Sentence number {i} has exactly eight words here.") for i in range(1, 101))
    found = list(passages_of([Block("prose", "A", lines)], "a.txt"))
    sizes = [size_of(p.text) for p in found]
    assert len(found) == 4 and max(sizes) <= MAX_SIZE and min(sizes) >= 0.8 * max(sizes)
    assert all(p.text.endswith(".") and p.text.startswith("Sentence") for p in found)
    assert [p.first_line for p in found][1:] == [p.last_line + 1 for p in found][:-1]


def test_a_chinese_section():
    lines = tuple((i, f"这是第{i}句话，它不是很长，也没有什么意思。") for i in range(1, 101))
    found = list(passages_of([Block("prose", "", lines)], "a.txt"))
    assert all(300 <= len(p.text) <= 520 and p.text.endswith("。") and "\n" not in p.text for p in found)


def test_one_endless_word_and_one_endless_line():
    found = list(passages_of([Block("prose", "", ((7, "x" * 300_000),))], "a.txt"))
    assert "".join(p.text for p in found) == "x" * 300_000 and {p.first_line for p in found} == {7}
    found = list(passages_of([Block("code", "", ((1, "a b " * 50_000),))], "a.js"))
    assert sum(len(p.text.split()) for p in found) == 100_000 and max(size_of(p.text) for p in found) <= MAX_SIZE


def test_headings_part_passages():
    blocks = [
        Block("prose", "A", ((1, "One."),)),
        Block("prose", "A > B", ((3, "Two."),)),
        Block("list", "A > B", ((4, "- x"),)),
    ]
    assert [(p.heading, p.text) for p in passages_of(blocks, "a.md")] == [("A", "One."), ("A > B", "Two.\n\n- x")]


def test_languages():
    assert language_of("The quick fox") == "en"
    assert language_of("狐狸 quick fox 很快，真的很快") == "zh"
    assert language_of("これはペンです。日本語") == "other"
    assert language_of("Это лиса") == "other"
    assert language_of("12 + 3") == "other"
    assert language_of("A long page of English that names 曹雪芹 once") == "en"
