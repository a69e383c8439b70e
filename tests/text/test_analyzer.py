import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacheng.text.analyzer import analyze, analyze_query


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Recursively delete a directory.", ["recursively", "delet", "a", "directory"]),
        ("shutil.rmtree", ["shutil.rmtree", "shutil", "rmtree"]),
        ("get_terminal_size()", ["get_terminal_size", "get", "terminal", "size"]),
        ("isDir HTTPServer", ["isdir", "is", "dir", "httpserver", "http", "server"]),
        ("__init__ _private", ["__init__", "init", "_private", "privat"]),
        ("pi is 3.14.", ["pi", "is", "3.14", "3", "14"]),
        ("___ ... --", []),
        ("红楼梦", ["红楼", "楼梦"]),
        ("红", ["红"]),
        ("《西游记》的孙悟空。", ["西游", "游记", "的孙", "孙悟", "悟空"]),
        ("《西游记》，红", ["西游", "游记", "红"]),
        ("用Python3写爬虫", ["用", "python3", "写爬", "爬虫"]),
        ("Ｐｙｔｈｏｎ　ｶﾞｲﾄﾞ", ["python", "ガイ", "イド"]),  # full-width Latin, half-width kana
        ("Straße ﬁle", ["strasse", "file"]),
        ("cafe\u0301", ["café"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("", []),
    ],
)
def test_terms(text, terms):
    assert analyze(text) == terms


@pytest.mark.parametrize(
    "forms",
    [
        "change changes changed changing",
        "stop stops stopped stopping",
        "serialize serializes serialized serializing",
        "directory directories",
        "class classes",
    ],
)
def test_forms_of_a_word_are_one_term(forms):
    assert len(set(analyze(forms))) == 1


def test_words_that_only_look_like_forms():
    words = ["string", "bring", "is", "this", "bus", "need", "thing", "str"]
    assert analyze(" ".join(words)) == words


def test_a_question_keeps_what_it_is_about():
    assert analyze_query("Which function of shutil is for a copy, a copy?") == ["function", "shutil", "copy"]
    assert analyze_query("What is it?") == ["what", "is", "it"]  # nothing else
    assert analyze_query("?!") == []


def test_every_character_gives_terms_that_stay_terms():
    """No term holds a space or punctuation that a query language could read, and analysing terms again adds none."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character)[0] == "C":  # unassigned, private, half a pair
            continue
        for term in analyze(f"a{character}b"):
            assert all(not c.isascii() or c.isalnum() or c in "_." for c in term), (hex(code), term)
            assert not any(c.isspace() for c in term), (hex(code), term)


@given(st.text())
def test_deterministic_and_idempotent(text):
    terms = analyze(text)
    assert analyze(text) == terms
    assert set(analyze(" ".join(terms))) == set(terms)


@given(st.text(alphabet=st.sampled_from("红楼梦曹雪芹 abXY_.1。，")), st.text(alphabet=st.sampled_from("西游记 qr")))
def test_texts_apart_have_the_terms_of_both(one, other):
    assert analyze(f"{one}\n{other}") == analyze(one) + analyze(other)
