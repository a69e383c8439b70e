import json
import os
import signal

import pytest
import torch
from train_toys import Recorder, ToyModel, ToyObjective, make

from dacheng.errors import UsageError
from dacheng.ledger import Ledger
from dacheng.objectives.base import Term
from dacheng.train import EarlyStop, Evaluate, Interrupted, NonFinite, Sample


def log_of(out):
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


class _Poison(ToyObjective):
    """NaN in the fourth step."""

    def __call__(self, model, batch, ctx):
        terms, metrics = super().__call__(model, batch, ctx)
        if ctx.step == 3:
            terms["next_token"] = Term(terms["next_token"].sum * float("nan"))
        return terms, metrics


def test_early_stop_waits_for_its_patience_and_a_resume_does_not_go_on(tmp_path):
    values = iter([5.0, 4.0, 4.5, 4.2, 3.9, 4.0, 4.1, 4.2, 0.0])
    evaluation = Evaluate(lambda _model: {"loss": next(values)}, every=1)
    stop = EarlyStop("valid/loss", patience=3)
    result = make(tmp_path, [evaluation, stop], steps=20).fit()
    assert result.steps == 8 and result.stopped.startswith("early stop: valid/loss was best 3.9 at step 5")
    assert result.metrics == {"valid/loss": 4.2}
    again = EarlyStop("valid/loss", patience=3)
    resumed = make(tmp_path, [evaluation, again], steps=20).fit()
    assert resumed.steps == 8 and resumed.stopped == result.stopped
    assert (again.best, again.best_step, again.waited) == (3.9, 5, 3)


def test_early_stop_on_a_metric_that_grows_and_on_one_that_never_comes(tmp_path):
    values = iter([0.1, 0.5, float("nan"), 0.505, 0.4])
    evaluation = Evaluate(lambda _model: {"accuracy": next(values)}, every=2)
    stop = EarlyStop("valid/accuracy", patience=2, mode="max", min_delta=0.01)
    assert make(tmp_path / "a", [evaluation, stop], steps=20).fit().steps == 8
    result = make(tmp_path / "b", [EarlyStop("valid/typo")], steps=3).fit()
    assert any("never saw a finite valid/typo" in warning for warning in result.warnings)


def test_the_wall_clock_ends_a_run_with_a_checkpoint_and_an_evaluation(tmp_path):
    seen = Recorder(at={3: lambda trainer: setattr(trainer, "late", True)})
    evaluation = Evaluate(lambda _model: {"x": 1.0}, every=1000)
    trainer = make(tmp_path, [seen, evaluation], steps=100000, max_minutes=0.01)
    result = trainer.fit()
    assert result.stopped == "wall clock: 0.01 minutes" and 0 < result.steps < 100000
    assert result.wall_s >= 0.6 and result.metrics == {"valid/x": 1.0}
    assert result.checkpoint.is_dir() and result.checkpoint.name == f"step-{result.steps:08d}"
    longer = make(tmp_path, steps=100000, max_minutes=0.02).fit()
    assert longer.resumed_from == result.steps < longer.steps
    assert longer.wall_s >= 1.2


def test_evaluation_sees_the_model_aside(tmp_path):
    def look(model):
        assert not model.training and not torch.is_grad_enabled()
        return {"x": 2.0}

    seen = Recorder()
    trainer = make(tmp_path, [Evaluate(look, every=5), seen])
    assert trainer.fit().metrics == {"valid/x": 2.0}
    assert [event for event in seen.events if "evaluate" in event] == ["evaluate 5", "evaluate 10", "evaluate 12"]
    evaluations = [line for line in log_of(tmp_path) if "evaluation" in line]
    assert [line["step"] for line in evaluations] == [5, 10, 12]


def test_modules_that_were_in_evaluation_mode_stay_so(tmp_path):
    """A frozen normalisation in eval mode must not wake up after the first evaluation."""
    model = ToyModel()
    modes = []

    def freeze(trainer):
        trainer.model.norm.eval()

    def look(trainer):
        modes.append((trainer.model.training, trainer.model.norm.training))

    make(tmp_path, [Recorder(at={1: freeze, 6: look}), Evaluate(lambda _m: {}, every=2)], model=model).fit()
    assert modes == [(True, False)]


def test_samples_are_kept_and_shown(tmp_path):
    shown = []

    class Listener(Recorder):
        def on_message(self, trainer, text):
            shown.append(text)

    sample = Sample(lambda model: f"大成 {float(torch.rand(1)):.0f}", every=6)
    make(tmp_path, [sample, Listener()]).fit()
    kept = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [6, 12] and [line["text"] for line in kept] == shown


def test_callbacks_are_told_in_order(tmp_path):
    seen = Recorder()
    make(tmp_path, [seen], steps=4, save_every=3).fit()
    assert seen.events == [
        "start 0",
        "checkpoint step-00000003",
        "checkpoint step-00000004",
        "end",
        "close",
    ]
    with pytest.raises(UsageError, match="two callbacks of one name"):
        make(tmp_path, [Recorder(), Recorder()])


def test_the_ledger_gets_tokens_and_flops(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    trainer = make(tmp_path, ledger=ledger)
    result = trainer.fit()
    totals = ledger.totals("train")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    assert totals["tokens"] == result.tokens == 12 * 96
    assert totals["flops"] == result.flops == pytest.approx(6.0 * parameters * 12 * 96)
    assert totals["numbers"]["steps"] == 12 and totals["statuses"] == {"done": 1}


def test_a_failed_run_is_a_failed_entry(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(NonFinite):
        make(tmp_path, ledger=ledger, objective=_Poison(), non_finite="stop").fit()
    assert ledger.totals()["statuses"] == {"failed": 1}
    assert ledger.totals()["tokens"] == 3 * 96


def test_an_interrupted_run_is_an_interrupted_entry(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(Interrupted):
        make(tmp_path, [Recorder(at={5: lambda _t: os.kill(os.getpid(), signal.SIGTERM)})], ledger=ledger).fit()
    make(tmp_path, ledger=ledger).fit()
    assert ledger.totals()["statuses"] == {"interrupted": 1, "done": 1}
    assert ledger.totals()["tokens"] == 12 * 96
