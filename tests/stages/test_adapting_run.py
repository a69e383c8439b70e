"""The order of a run, and that it goes on wherever it was ended."""

from __future__ import annotations

import json
import threading
import time

import pytest
from adapting_fakes import FakeParts

from dacheng.errors import DachengError, Locked, UsageError
from dacheng.evaluate.answers import Scores
from dacheng.stages.adapting.plan import Speeds, make_plan
from dacheng.stages.adapting.run import Recipe, Run
from dacheng.stages.adapting.verdict import judge

RECIPE = Recipe("docs", "tiny", minutes=0.2)


def finish(out, parts=None, recipe=RECIPE):
    parts = parts or FakeParts(out)
    with Run(recipe, out, parts) as run:
        result = run.carry_out()
        run.ready()
        return parts, result, run.state()


def test_a_run_from_reading_to_verdict(tmp_path):
    parts, result, state = finish(tmp_path / "out")
    assert state.stage == "ready" and state.reading["drops"] == {"binary": 1}
    assert sorted(state.losses) == list(range(1, 13)) and list(state.rows) == ["bare", "sources", "adapted", "quote"]
    assert result["verdict"]["winner"] == "quote" and result["rows"]["quote"]["hand"]["all_right"][0] == 0.9
    assert "quoted as it stands" in " ".join(result["verdict"]["sentences"])
    assert parts.adapters[-1] == tmp_path / "out" / "adapter"
    before = {mode for given in state.probes.values() for answer in given for mode in [answer["mode"]]}
    assert {"bare", "sources", "quote"} <= before
    answers = (tmp_path / "out" / "exam" / "bare.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in answers}) == len(answers) == state.plan["exam_questions"]


def test_what_is_done_is_not_done_again(tmp_path):
    finish(tmp_path / "out")
    again = FakeParts(tmp_path / "out")
    _, result, state = finish(tmp_path / "out", again)
    assert again.asked == [] and again.made is None and state.starts == 2 and result["verdict"]["winner"] == "quote"


def test_an_exam_that_was_broken_off_goes_on_with_the_rest(tmp_path):
    broken = FakeParts(tmp_path / "out", break_at="sources")
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "out", broken)
    again = FakeParts(tmp_path / "out")
    _, _, state = finish(tmp_path / "out", again)
    asked = [question for mode, question in broken.asked + again.asked if mode == "quote"]
    assert state.failed is None and state.stage == "ready"
    kept = [question for mode, question in again.asked if mode == "bare"]
    assert kept == [] or len(asked) > 0
    lines = (tmp_path / "out" / "exam" / "sources.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == state.plan["exam_questions"]


@pytest.mark.process
def test_the_plug_is_pulled_and_the_repeated_steps_are_compared(tmp_path):
    parts = FakeParts(tmp_path / "out", steps=40, pause=0.03)
    with Run(RECIPE, tmp_path / "out", parts) as run:
        thread = threading.Thread(target=run.carry_out)
        thread.start()
        while run.state().stage != "training" or len(run.state().losses) < 7:
            time.sleep(0.02)
        assert run.pull_plug()
        shown = run.ask("what?", "adapted")
        assert shown["text"] == "adapted says [1]"
        thread.join(30)
        state = run.state()
        assert not run.pull_plug()
    assert parts.made.kills == 1 and sorted(state.losses) == list(range(1, 41))
    plug = state.plugs[0]
    assert plug.identical is True and plug.compared >= 1 and plug.from_step % 5 == 0 and plug.from_step < plug.step


@pytest.mark.process
def test_asking_pauses_a_trainer_and_a_killed_run_goes_on(tmp_path):
    parts = FakeParts(tmp_path / "out", steps=60, pause=0.02)
    with Run(RECIPE, tmp_path / "out", parts) as run:

        def killed():
            with pytest.raises(DachengError):
                run.carry_out()

        thread = threading.Thread(target=killed)
        thread.start()
        while len(run.state().losses) < 8:
            time.sleep(0.02)
        run.ask("what?", "sources")
        kinds = [line for line in run.events_path.read_text().splitlines() if '"paused"' in line or '"resumed"' in line]
        assert '"reason": "question"' in kinds[0] and '"resumed"' in kinds[1]
        parts.made.failure = lambda: DachengError("the power is gone")
        parts.made.process.kill()
        thread.join(10)
        assert run.state().failed["problem"] == "the power is gone"
    _, _, state = finish(tmp_path / "out", FakeParts(tmp_path / "out", steps=60))
    assert sorted(state.losses) == list(range(1, 61)) and state.plugs[-1].from_step >= 5


def test_two_runs_are_kept_apart(tmp_path):
    with Run(RECIPE, tmp_path, FakeParts(tmp_path)), pytest.raises(Locked):
        Run(RECIPE, tmp_path, FakeParts(tmp_path)).__enter__()
    with pytest.raises(UsageError, match="another run"):
        Run(Recipe("other", "tiny", minutes=0.2), tmp_path, FakeParts(tmp_path)).__enter__()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        Run(RECIPE, tmp_path / "else", FakeParts(tmp_path)).__enter__()


def test_changed_documents_set_aside_what_was_made_of_them(tmp_path):
    out = tmp_path / "out"
    finish(out)
    parts, _, state = finish(out, FakeParts(out, fingerprint="g"))
    assert (out / "earlier-1" / "exam" / "bare.jsonl").exists() and parts.made is not None
    assert "earlier-1" in state.notes[-1]


def test_without_a_model_all_is_quoted(tmp_path):
    _, result, state = finish(tmp_path / "out", FakeParts(tmp_path / "out", writes=False, trains=False))
    assert list(state.rows) == ["quote"] and result["verdict"]["winner"] == "quote" and state.losses == {}


def test_the_plan_shares_out_the_minutes():
    speeds = Speeds(answer_s=0.5, train_tokens_per_s=250, tokens_per_example=200)
    plan = make_plan(6, 30, speeds, exam_available=200, rows=4, batch_tokens=1024)
    assert plan.exam_questions == 132 and plan.exam_seconds + plan.train_seconds < 330
    assert plan.steps == int(plan.train_seconds * 250 / 1024)
    tight = make_plan(0.1, 60, speeds, exam_available=200, rows=4, batch_tokens=1024)
    assert tight.exam_questions == 20 and tight.train_seconds == 5
    assert make_plan(1, 0, speeds, exam_available=7, rows=1, batch_tokens=64, train=False).steps == 0
    with pytest.raises(UsageError):
        make_plan(0, 0, speeds, exam_available=1, rows=1, batch_tokens=1)


def test_a_verdict_names_what_may_be_chance():
    def row(good):
        return {str(k): Scores(True, k < good, k < good, False, True, 0.9, 0.1) for k in range(40)}

    found = judge({"sources": row(20), "adapted": row(22), "quote": row(10)})
    assert found.winner == "adapted"
    said = [line for line in found.sentences["en"] if "against the model with sources" in line]
    assert said and all("not clear of zero" in line for line in said)
    assert any("against quoting" in line and "not clear" not in line for line in found.sentences["en"])
    assert judge({"quote": row(22), "adapted": row(22)}).winner == "quote"  # it needs less
    assert len(found.sentences["zh"]) == len(found.sentences["en"])
