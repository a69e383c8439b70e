"""Three sets of questions that know nothing of one another."""

from __future__ import annotations

import json
import random
import shutil
import sys
import sysconfig
from importlib import resources
from pathlib import Path

import pytest
from rag_fakes import FakeStore, library, passage

from dacheng.errors import DachengError
from dacheng.rag.questions import Rarity, Splits, hand_questions, split_questions, unanswerable, without_near
from dacheng.rag.questions.hand import holds
from dacheng.rag.questions.rewording import reworded
from dacheng.rag.store import PassageStore
from dacheng.records import Drops
from dacheng.text.analyzer import analyze, analyze_query


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split_questions(FakeStore(library()), 3, train=100, calibration=40, exam=30)


def test_sizes_and_marks(splits):
    assert splits.counts() == {"train": 100, "calibration": 40, "exam": 30, "hand": 0}
    every = [*splits.train, *splits.calibration, *splits.exam]
    assert all(q.synthetic for q in every)
    assert len({q.id for q in every}) == len(every)
    assert sum(not q.answerable for q in splits.exam) == 10
    assert sum(not q.answerable for q in splits.calibration) == 13
    assert sum(not q.answerable for q in splits.train) == 10


def test_no_document_is_in_two_sets(splits):
    sources = [{q.source for q in part if q.source} for part in (splits.train, splits.calibration, splits.exam)]
    assert all(sources)
    assert not (sources[0] & sources[1] | sources[1] & sources[2] | sources[0] & sources[2])


def test_nothing_nearly_repeats_the_exam(splits):
    def near(a, b):
        a, b = set(analyze_query(a.question)), set(analyze_query(b.question))
        return len(a & b) / len(a | b)

    for question in [*splits.train, *splits.calibration]:
        assert all(near(question, other) < 0.7 for other in splits.exam)
    assert without_near(splits.exam, splits.exam) == []


def test_the_same_seed_draws_the_same(splits):
    again = split_questions(library(), 3, train=100, calibration=40, exam=30)
    assert (again.train, again.calibration, again.exam) == (splits.train, splits.calibration, splits.exam)
    other = split_questions(library(), 4, train=100, calibration=40, exam=30)
    assert other.exam != splits.exam


def test_saved_and_read_again(splits, tmp_path):
    splits.save(tmp_path)
    again = Splits.load(tmp_path)
    assert (again.train, again.calibration, again.exam) == (splits.train, splits.calibration, splits.exam)


def test_one_document_is_parted_into_stretches():
    one = [passage(p.id, "all.py", p.heading, p.text) for p in library()]
    parts = split_questions(one, 0, train=50, calibration=30, exam=30)
    keys = [{key for q in part for key in q.passages} for part in (parts.train, parts.calibration, parts.exam)]
    assert all(keys)
    assert not (keys[0] & keys[1] | keys[1] & keys[2] | keys[0] & keys[2])


def test_documents_that_say_nothing_are_refused():
    with pytest.raises(DachengError, match="no question could be drawn"):
        split_questions([passage(1, "a.txt", "", "Hm.", "prose")], 0)
    with pytest.raises(DachengError):
        split_questions([], 0)


def test_questions_without_an_answer_name_what_no_passage_has():
    passages = library()
    rarity = Rarity.of(passages)
    pool = split_questions(passages, 0).train
    pool = [q for q in pool if q.answerable]
    made = [q for _, q in zip(range(60), unanswerable(pool, rarity, random.Random(1)))]
    assert len({q.question for q in made}) == 60
    assert all(not q.answers and not q.passages and q.synthetic for q in made)
    unheard = [q for q in made if any(term not in rarity for term in analyze(q.question))]
    assert len(unheard) >= 45  # the others have a borrowed scope
    assert not {q.question for q in made} & {q.question for q in pool}


def test_rewording_keeps_names_and_answers():
    question = next(q for q in split_questions(library(), 0).train if q.kind == "signature")
    name = question.question.split(" in ")[-1].rstrip("?")
    for seed in range(20):
        other = reworded(question, random.Random(seed))
        assert (other.answers, other.passages, other.reply) == (question.answers, question.passages, question.reply)
        assert name in other.question
        assert (other.id == question.id) == (other.question == question.question)


def test_the_questions_written_by_hand_stand_in_this_interpreters_library(tmp_path):
    """Each answer occurs in the passage that its question names; places that this version does not have are counted."""
    lines = (resources.files("dacheng.rag") / "data" / "stdlib_questions.jsonl").read_text("utf-8").splitlines()
    library_root = Path(sysconfig.get_path("stdlib"))
    for source in {place["source"] for line in lines for place in json.loads(line)["where"]}:
        if (library_root / source).is_file():
            (tmp_path / "docs" / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library_root / source, tmp_path / "docs" / source)
    store = PassageStore.open(tmp_path / "docs.db", create=True)
    store.sync(tmp_path / "docs")
    passages, drops = list(store.all()), Drops()
    found = hand_questions(passages, drops)
    assert len(found) + drops.dropped["not_in_this_version"] == len(lines) == 60
    assert sum(not q.answerable for q in found) == 20
    if sys.version_info[:2] == (3, 11):
        assert len(found) == 60
    assert len(found) >= 50
    by_key = {p.key: p for p in passages}
    for question in (q for q in found if q.answerable):
        assert not question.synthetic
        assert all(any(holds(by_key[key], answer) for answer in question.answers) for key in question.passages)
