"""What the templates ask of a passage, and what they leave alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rag_fakes import library, passage

from dacheng.errors import DamagedFile, UsageError
from dacheng.protocols import ScriptedModel
from dacheng.rag.questions import (
    Question,
    Rarity,
    draw_questions,
    in_turn,
    questions_by_model,
    read_questions,
    write_questions,
)
from dacheng.rag.questions.code import code_questions, defaults, split_signature
from dacheng.rag.questions.wording import identifiers, is_chinese, third_person
from dacheng.rag.sentences import sentences
from dacheng.records import Drops

RMTREE = passage(
    1,
    "shutil.py",
    "shutil.rmtree",
    "shutil.rmtree(path, ignore_errors=False, retries=3)\n"
    "Recursively delete a directory tree.\n\n"
    "Returns the number of files removed. OSError is raised if the path is a\nsymbolic link.\n",
)


def asked(item, *others):
    drops = Drops()
    every = [item, *others]
    return {q.question: q for q in draw_questions(every, Rarity.of(every), drops)}, drops


def test_code_questions_say_what_the_docstring_says():
    found, _ = asked(RMTREE)
    which = found["Which function of shutil recursively deletes a directory tree?"]
    assert which.answers == ("rmtree",)
    assert which.reply == "It is shutil.rmtree."
    assert which.passages == (RMTREE.key,)
    assert which.synthetic
    assert found["What does shutil.rmtree return?"].answers == ("number of files removed",)
    raised = found["What does shutil.rmtree raise if the path is a symbolic link?"]
    assert raised.answers == ("OSError",)
    assert found["What is the default of retries in shutil.rmtree?"].answers == ("3",)


def test_every_reply_holds_its_answer():
    passages = library()
    for question in draw_questions(passages, Rarity.of(passages), Drops()):
        assert question.answers[0] in question.reply, question


def test_a_question_with_two_answers_is_dropped_and_counted():
    other = passage(2, "other.py", "other.wipe", "other.wipe(path)\nRecursively delete a directory tree.\n")
    found, drops = asked(RMTREE, other)
    assert "Which function recursively deletes a directory tree?" not in found
    assert "Which function of other recursively deletes a directory tree?" in found
    assert drops.dropped["ambiguous"] == 2


def test_the_same_answer_in_two_passages_is_one_question_with_both():
    twin = passage(2, "nt.py", "nt.rmtree", "nt.rmtree(path)\nRecursively delete a directory tree.\n")
    found, drops = asked(RMTREE, twin)
    both = found["Which function recursively deletes a directory tree?"]
    assert both.passages == (RMTREE.key, twin.key)
    assert drops.altered["same_question_merged"] == 1


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("Return the size.", "returns the size"),
        ("Recursively delete a tree", "recursively deletes a tree"),
        ("Copies a file.", "copies a file"),
        ("Try again and again.", "tries again and again"),
        ("A context manager.", None),
        ("xyzzy the thing", None),
    ],
)
def test_third_person(sentence, told):
    assert third_person(sentence) == told


def test_signatures_with_brackets_in_defaults():
    arguments, rest = split_signature("f.g(a=(1, 2), b=3)\nDoc.", "g")
    assert (arguments, rest) == ("a=(1, 2), b=3", "Doc.")
    assert defaults("a=(1, 2), b='x', c=-5, d=None, e=0.5, *, f=True") == {
        "b": "'x'", "c": "-5", "e": "0.5", "f": "True"
    }  # fmt: skip
    assert defaults("a=(((") == {}
    assert split_signature("no signature here", "g") == (None, "no signature here")


def test_private_names_and_passages_of_other_forms_ask_nothing():
    assert not list(code_questions(passage(1, "a.py", "a._hidden", "a._hidden()\nReturn the size of it.\n")))
    assert not list(code_questions(passage(1, "a.py", "not a name", "Anything at all.\n")))


PROSE = passage(
    1,
    "rivers.md",
    "Rivers > The Danube",
    "The Danube is the second-longest river in Europe, after the Volga. It passes through Budapest in Hungary and has\n"
    "about 2850 kilometres. Johann Strauss wrote a famous waltz about it for a choir.",
    "prose",
)


def test_prose_questions():
    found, _ = asked(PROSE)
    assert found["What is the Danube?"].answers == ("second-longest river in Europe",)
    assert found["Who wrote a famous waltz about it for a choir?"].answers == ("Johann Strauss",)
    (cloze,) = [q for q in found.values() if q.kind == "cloze"]
    assert "____" in cloze.question
    assert cloze.answers[0] not in cloze.question


def test_tables_ask_for_cells():
    rows = "| lake | depth | country |\n|---|---|---|\n| Garda | 346 | Italy |\n| Constance | 251 | Germany |"
    table = passage(1, "t.md", "Lakes", rows, "table")
    found, _ = asked(table)
    assert found["What is the depth of Garda?"].answers == ("346",)
    assert found["What is the country of Constance?"].reply == "The country of Constance is Germany."
    assert len(found) == 4


CHINESE = passage(
    1,
    "红楼梦.md",
    "红楼梦 > 简介",
    "《红楼梦》是清代的一部长篇小说，全书共有120回。红楼梦由曹雪芹创作，又名《石头记》。贾宝玉的丫鬟名叫袭人，后来嫁给了蒋玉菡。",
    "prose",
    "zh",
)


def test_chinese_questions():
    found, _ = asked(CHINESE)
    assert found["全书共有多少回？"].answers == ("120",)
    assert any(q.answers == ("曹雪芹",) and "由谁" in q.question for q in found.values())
    assert found["贾宝玉的丫鬟名叫什么？"].answers == ("袭人",)
    assert all(q.language == "zh" for q in found.values())
    (blank,) = [q for q in found.values() if q.kind == "cloze"]
    assert blank.answers[0] in ("红楼梦", "石头记")


def test_sentences_of_docstrings_and_of_chinese():
    text = "f(a, b=3)\nReturn a thing, e.g. a pot. It\nis round.\n\n>>> f(1)\n2\n- first item\n- second item"
    assert [s.text for s in sentences(text) if not s.is_example] == [
        "f(a, b=3)", "Return a thing, e.g. a pot.", "It is round.", "2", "- first item", "- second item"
    ]  # fmt: skip
    assert [s.text for s in sentences("他来了。“好！”她说\n话。")] == ["他来了。", "“好！”", "她说话。"]
    assert len(sentences("a. " * 5000)) <= 400


def test_names_in_a_text():
    assert identifiers("Use os.path.join or read_text, not e.g. this. See myFunc.") == [
        "os.path.join",
        "read_text",
        "myFunc",
    ]
    assert is_chinese("什么是 SQLite？")
    assert not is_chinese("What is 中?")


def test_the_order_of_a_draw_depends_on_the_seed_only_and_spreads_over_documents():
    passages = library()
    questions = draw_questions(passages, Rarity.of(passages), Drops())
    first = in_turn(questions, 1)
    assert first == in_turn(list(reversed(questions)), 1)
    assert first != in_turn(questions, 2)
    assert len({q.source for q in first[:20]}) > 10
    assert len({q.kind for q in first[:4]}) >= 3


def test_questions_in_a_file(tmp_path):
    found, _ = asked(RMTREE)
    path = tmp_path / "questions" / "exam.jsonl"
    write_questions(path, found.values())
    assert read_questions(path) == list(found.values())
    path.write_text('{"id": "a", "question": "Why?", "answers": "no list", "passages": [], "kind": "hand"}\n')
    with pytest.raises(DamagedFile, match="not a question") as caught:
        read_questions(path)
    assert caught.value.field == f"{path}:1"
    with pytest.raises(UsageError):
        Question.from_dict({"question": "x", "id": "1", "kind": "no such", "language": "en"})
    with pytest.raises(UsageError):
        Question.from_dict([1])


def test_a_model_may_write_questions_and_is_checked():
    replies = [
        '{"question": "How do I get rid of a folder?", "answer": "delete a directory tree"}',
        'Sure! {"question": "Who is the king?", "answer": "Charles"}',
        "no idea",
        '{"question": "Does it delete a directory tree?", "answer": "delete a directory tree"}',
    ]
    drops = Drops()
    (made,) = questions_by_model(ScriptedModel(replies), [RMTREE] * 4, drops)
    assert (made.kind, made.synthetic, made.answers) == ("model", True, ("delete a directory tree",))
    assert dict(drops.dropped) == {"answer_not_in_passage": 1, "no_json": 1, "answer_in_question": 1}


PIECES = st.sampled_from(
    ["Return ", "raises ", "ValueError", "(", ")", "a=1", "|", "\n", "\n\n", ". ", "。", "《", "》", "由", "写", "是"]
    + ["“", "”", "：", "道", "120", "回", "is a ", "The ", "Anna ", "wrote ", "x" * 40, " ", ">>> ", "- ", "[1]"]
    + ["\x00", "\ud800", "é", "=" * 9]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=120).map("".join), st.sampled_from(["code", "prose", "table", "list"]))
def test_any_text_is_asked_about_or_left_alone(text, kind):
    for language, heading in (("en", "a.b"), ("zh", "甲 > 乙"), ("other", "")):
        item = passage(1, "a.py", heading, text, kind, language)
        for question in draw_questions([item], Rarity.of([item]), Drops()):
            assert question.answers[0]
            assert question.passages == (item.key,)


@pytest.mark.parametrize(
    "unit", ["a", "A ", "a.", "is a ", "由", "甲", "1", "(", "Return a", "raise X if ", "|a", "道：“"]
)
def test_long_runs_end(unit):
    """No pattern goes astray on a passage of one thing repeated: with one that did, this would not come to its end."""
    for kind in ("code", "prose", "table"):
        for language in ("en", "zh"):
            item = passage(1, "a.py", "a.b", unit * (4000 // len(unit)), kind, language)
            assert all(q.passages == (item.key,) for q in draw_questions([item], Rarity.of([item]), Drops()))
