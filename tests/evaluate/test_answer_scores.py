"""What counts as a right answer, what as invented, and how sure the figures are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dacheng.evaluate.answers import auroc, differences, invented_names, says_any, score_answer, summarise


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("It is shutil.rmtree. [1]", ("rmtree",), True),
        ("It is random.resample. [1]", ("sample",), False),
        ("Use `random.sample()` [2]", ("sample",), True),
        ("The default is 0.6.", ("0.6",), True),
        ("The default is 0.65.", ("0.6",), False),
        ("It is 10.5", ("10",), False),
        ("a PAIR\n(fd,  name).", ("pair (fd, name)",), True),
        ("It is “'pass'”.", ("'pass'",), True),
        ("全书共有120回。", ("120",), True),
        ("由曹 雪芹创作", ("曹雪芹",), True),
        ("", ("x",), False),
        (
            "perhaps os.walk, os.scandir, glob.glob_all or shutil.rmtree_all, or a_b or shutil.rmtree",
            ("rmtree",),
            False,
        ),
        ("word " * 70 + "rmtree", ("rmtree",), False),
    ],
)
def test_right_answers(text, accepted, right):
    assert says_any(text, accepted) is right


def test_names_in_the_question_are_no_candidates():
    text = "os.walk, os.scandir, path_like, and dir_fd belong to shutil.rmtree"
    assert not says_any(text, ("rmtree",))
    assert says_any(text, ("rmtree",), "How do os.walk and os.scandir go with path_like?")


def test_invented_names_stand_in_no_source():
    known = "shutil.rmtree deletes a tree. See os.walk(). Written by Guido in 1998."
    assert invented_names("shutil.rmtree uses os.walk and was made by Guido in 1998. [1]", known) == []
    assert invented_names("Use shutil.deltree, by Monty since 2007. [1]", known) == ["shutil.deltree", "Monty", "2007"]
    assert invented_names("见《石头记》", "《红楼梦》") == ["石头记"]


def answer(text, *, abstained=False, cited=(), shown="", score=0.5, seconds=0.1):
    return SimpleNamespace(text=text, abstained=abstained, cited_keys=list(cited), shown_text=shown, gate_score=score,
                           seconds=seconds)  # fmt: skip


def question(*answers, passages=("k1",)):
    return SimpleNamespace(question="Which one?", answers=answers, passages=passages)


def test_scores_of_one_answer():
    right = score_answer(answer("It is rmtree. [1]", cited=["k1"], shown="rmtree"), question("rmtree"))
    assert (right.right, right.cited_right, right.abstained_right, right.invented) == (True, True, True, [])
    astray = score_answer(answer("It is rmtree. [2]", cited=["k1", "k2"]), question("rmtree"))
    assert astray.cited_right is False
    silent = score_answer(answer("The documents do not say.", abstained=True), question("rmtree"))
    assert (silent.right, silent.cited_right, silent.abstained_right) == (False, None, False)
    wise = score_answer(answer("The documents do not say.", abstained=True), question(passages=()))
    assert (wise.right, wise.abstained_right) == (True, True)
    rash = score_answer(answer("It is rmtree. [1]", cited=["k1"]), question(passages=()))
    assert (rash.right, rash.cited_right, rash.abstained_right) == (False, False, False)


def test_auroc_is_the_share_of_pairs_in_order():
    scores, labels = [0.1, 0.4, 0.35, 0.8, 0.4], [False, False, True, True, True]
    pairs = [(p > n) + 0.5 * (p == n) for p, a in zip(scores, labels) if a for n, b in zip(scores, labels) if not b]
    assert auroc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([1.0], [True]) is None


def _many(rights):
    return {
        str(i): score_answer(
            answer("It is rmtree. [1]" if r else "It is copy. [1]", cited=["k1" if r else "k2"], shown="rmtree copy",
                   score=0.9 if i % 3 else 0.2),
            question("rmtree") if i % 3 else question(passages=()),
        )
        for i, r in enumerate(rights)
    }  # fmt: skip


def test_summaries_have_intervals_and_differences_are_paired():
    good, bad = _many([True] * 30), _many([i % 2 == 0 for i in range(30)])
    figures = summarise(list(good.values()))
    assert figures["right"] == (1.0, 1.0, 1.0)
    assert figures["abstained"] == (0.0, 0.0, 0.0)
    assert figures["abstention_auroc"] == (1.0, 1.0, 1.0)
    mean, low, high = summarise(list(bad.values()))["right"]
    assert low < mean == 0.5 < high
    assert differences(good, good)["right"] == (0.0, 0.0, 0.0)
    gain = differences(good, bad)["right"]
    assert gain[0] == 0.5
    assert gain[1] > 0
    assert summarise([]) == {}


def test_citation_precision_is_compared_over_what_each_row_cites():
    """The one that abstains cites less, and only rightly: by questions that both cite there would be no difference."""
    rash = _many([True] * 30)
    wise = dict(rash)
    for key, s in rash.items():
        if not s.answerable:
            wise[key] = score_answer(answer("The documents do not say.", abstained=True), question(passages=()))
    assert summarise(list(rash.values()))["cited_right"][0] == pytest.approx(20 / 30)
    mean, low, high = differences(wise, rash)["cited_right"]
    assert mean == pytest.approx(1 / 3)
    assert 0 < low < mean < high
    silent = {key: score_answer(answer("", abstained=True), question("rmtree")) for key in rash}
    assert "cited_right" not in differences(silent, rash)
