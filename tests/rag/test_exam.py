"""The exam's journal: answers are asked once, whatever interrupts it, and never mixed with another exam's."""

from __future__ import annotations

import json

import pytest
from rag_fakes import Echo, FakeRetriever, library

from dacheng.rag.answer import Answerer
from dacheng.rag.calibration import calibrate
from dacheng.rag.exam import read_exam, run_exam
from dacheng.rag.questions import split_questions

MODES = ("bare", "sources", "adapted", "quote")


@pytest.fixture(scope="module")
def world():
    passages = library()
    splits = split_questions(passages, 0, train=10, calibration=60, exam=24)
    retriever = FakeRetriever(passages)
    return splits, retriever, calibrate(retriever, splits.calibration, splits.rarity)


def made(world, model=None):
    splits, retriever, gate = world
    model = model or Echo()
    return Answerer(model, None, retriever, gate, model, rarity=splits.rarity), splits.exam, model


def test_rows_and_their_twins(world, tmp_path):
    answerer, questions, _ = made(world)
    seen = []
    result = run_exam(answerer, questions, MODES, tmp_path, progress=lambda *a: seen.append(a))
    assert set(result.rows) == {
        "bare", "sources", "sources+gate", "adapted", "adapted-gate", "quote", "quote-gate"
    }  # fmt: skip
    assert seen[-1] == ("quote", 24, 24)
    assert all(list(row) == [q.id for q in questions] for row in result.rows.values())
    figures = result.summaries()
    assert figures["sources"]["abstained"][0] == 0.0
    assert figures["sources+gate"]["abstained"][0] > 0.7
    assert figures["adapted"] | {"seconds": 0} == figures["sources+gate"] | {"seconds": 0}
    gain = result.difference("sources+gate", "sources")["abstained_right"]
    assert gain[0] > 0
    table = result.table()
    assert "| sources+gate |" in table
    assert table.count("\n") == 1 + len(result.rows)


def test_the_journal_has_a_line_for_each_answer(world, tmp_path):
    answerer, questions, _ = made(world)
    run_exam(answerer, questions, MODES, tmp_path)
    rows = read_exam(tmp_path, questions, MODES)
    for mode in MODES:
        lines = (tmp_path / f"{mode}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [q.id for q in questions]
        assert [line["id"] for line in rows[mode]] == [q.id for q in questions]
    stopped = [line for line in rows["adapted"] if line["abstained"]]
    assert stopped
    assert all(line["draft"] and line["citations"] == [] for line in stopped)
    assert all(line["text"] == line["draft"] for line in rows["sources"])


class Killed(BaseException):
    pass


def test_killed_anywhere_nothing_is_asked_twice_or_lost(world, tmp_path):
    answerer, questions, _ = made(world)
    whole = run_exam(answerer, questions, ("sources",), tmp_path / "whole")

    class Dying(Echo):
        def generate(self, prompts, params):
            if len(self.prompts) >= 8:
                raise Killed
            return super().generate(prompts, params)

    dying, _, _ = made(world, Dying())
    with pytest.raises(Killed):
        run_exam(dying, questions, ("sources",), tmp_path / "cut", batch=4)
    path = tmp_path / "cut" / "sources.jsonl"
    assert len(path.read_bytes().splitlines()) == 8
    path.write_bytes(path.read_bytes() + b'{"id": "torn')  # as a kill in the middle of a line leaves it
    again, _, model = made(world)
    resumed = run_exam(again, questions, ("sources",), tmp_path / "cut", batch=4)
    assert len(model.prompts) == len(questions) - 8
    assert resumed.forgotten == 0
    strip = {row: {k: {**s.to_dict(), "seconds": 0} for k, s in scores.items()} for row, scores in resumed.rows.items()}
    assert strip == {
        row: {k: {**s.to_dict(), "seconds": 0} for k, s in scores.items()} for row, scores in whole.rows.items()
    }
    assert len(path.read_bytes().splitlines()) == len(questions)
    third, _, model = made(world)
    run_exam(third, questions, ("sources",), tmp_path / "cut")
    assert model.prompts == []


def test_answers_of_another_model_are_not_taken_for_this_ones(world, tmp_path):
    answerer, questions, model = made(world)
    run_exam(answerer, questions, ("sources",), tmp_path, settings={"model": "a"})
    asked = len(model.prompts)
    result = run_exam(answerer, questions, ("sources",), tmp_path, settings={"model": "b"})
    assert len(model.prompts) == 2 * asked
    assert result.forgotten == len(questions)
    assert len((tmp_path / "sources.jsonl").read_text().splitlines()) == len(questions)
