"""Resumed ≡ uninterrupted, bit for bit; and what refuses to resume."""

import json
import logging
import os
import shutil
import signal

import pytest
import torch
from train_toys import (
    MUON,
    Recorder,
    ToyModel,
    ToyObjective,
    ToySource,
    assert_same_bits,
    config,
    everything,
    make,
    noisy_evaluation,
)

from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.base import Term
from dacheng.objectives.next_token import NextToken
from dacheng.train import EarlyStop, Evaluate, OptimizerConfig, Phase, ScheduleConfig, Trainer
from dacheng.train.interrupts import Interrupted


class Stop(Exception):
    pass


def crash(_trainer):
    raise Stop


def lines(out):
    found = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.mark.parametrize(
    ("optimizer", "crash_at"),
    [(MUON, 1), (MUON, 6), (MUON, 8), (OptimizerConfig(lr=3e-3), 11)],
    ids=["muon-1", "muon-6", "muon-8", "adamw-11"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, optimizer, crash_at):
    """Weights, buffers, optimizer, random streams, data order and log; the crash falls on and between checkpoints."""
    evaluation = Evaluate(noisy_evaluation, every=5)
    whole = make(tmp_path / "whole", [evaluation], optimizer=optimizer)
    whole.fit()
    with pytest.raises(Stop):
        make(tmp_path / "cut", [evaluation, Recorder(at={crash_at: crash})], optimizer=optimizer).fit()
    source = ToySource()
    resumed = make(tmp_path / "cut", [evaluation], source, model=ToyModel(seed=7), optimizer=optimizer)
    result = resumed.fit()
    # A crash in step 8 comes before its checkpoint.
    first = (crash_at - 1) // 4 * 4
    assert result.resumed_from == (first or None)
    if first:
        assert source.read == list(range(first, 12))
        assert_same_bits(everything(whole), everything(resumed))
        assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
        assert resumed.state.metrics == whole.state.metrics


def test_a_decoder_resumes_bit_for_bit_in_the_middle_of_a_chain_of_crashes(tmp_path):
    def trainer(out, seed, *callbacks):
        model = Decoder(DecoderTraits(vocab_size=29, width=16, layers=2, heads=2, max_positions=16, qk_norm=True))
        model.init_weights(torch.Generator().manual_seed(seed))
        return Trainer(model, [Phase(NextToken(z_loss=1e-3))], ToySource(), callbacks, config(save_every=2), out)

    whole = trainer(tmp_path / "whole", 0)
    whole.fit()
    for crash_at in (3, 4, 7, 9):
        with pytest.raises(Stop):
            trainer(tmp_path / "cut", 0 if crash_at == 3 else 5, Recorder(at={crash_at: crash})).fit()
    resumed = trainer(tmp_path / "cut", 6)
    assert resumed.fit().resumed_from == 8
    assert_same_bits(everything(whole), everything(resumed))
    assert [line["step"] for line in lines(tmp_path / "cut")] == list(range(1, 13))


def test_a_finished_run_is_left_alone(tmp_path):
    first = make(tmp_path)
    done = first.fit()
    again = make(tmp_path, source=(source := ToySource()))
    result = again.fit()
    assert source.read == []
    assert (result.steps, result.loss, result.stopped) == (12, done.loss, "finished")
    assert result.checkpoint == done.checkpoint
    assert_same_bits(everything(first), everything(again))


def test_evaluation_does_not_change_training(tmp_path):
    quiet, noisy = Recorder(), Recorder()
    make(tmp_path / "a", [quiet]).fit()
    trainer = make(tmp_path / "b", [noisy, Evaluate(noisy_evaluation, every=1)])
    trainer.fit()
    assert quiet.losses == noisy.losses
    assert trainer.model.training


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog):
    whole = make(tmp_path / "whole")
    whole.fit()
    with pytest.raises(Stop):
        make(tmp_path / "cut", [Recorder(at={10: crash})]).fit()
    newest = tmp_path / "cut" / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = make(tmp_path / "cut")
    with caplog.at_level(logging.WARNING):
        result = resumed.fit()
    assert result.resumed_from == 4
    assert any("step-00000008/optimizer.safetensors" in warning for warning in result.warnings)
    assert "step-00000008/optimizer.safetensors" in caplog.text
    assert_same_bits(everything(whole), everything(resumed))
    assert (tmp_path / "cut" / "checkpoints" / "step-00000008.damaged").is_dir()


def test_no_intact_checkpoint_is_no_silent_fresh_start(tmp_path):
    with pytest.raises(Stop):
        make(tmp_path, [Recorder(at={5: crash})]).fit()
    (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").unlink()
    with pytest.raises(DamagedFile, match="no checkpoint is intact"):
        make(tmp_path).fit()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("config.clip_norm", {"clip_norm": 0.5}),
        ("config.seed", {"seed": 2}),
        ("config.schedule.kind", {"schedule": ScheduleConfig("linear")}),
        ("config.optimizer.matrix_lr", {"optimizer": OptimizerConfig(kind="muon", lr=3e-3, matrix_lr=0.5)}),
        ("config.steps", {"steps": 30}),
        ("model.up.weight", {"model": ToyModel(width=24)}),
        ("phases.main.objective.penalty", {"objective": ToyObjective(penalty=0.5)}),
    ],
)
def test_a_changed_recipe_is_refused_by_the_name_of_the_field(tmp_path, field, change):
    make(tmp_path, steps=4).fit() if field == "config.steps" else make(tmp_path).fit()
    with pytest.raises(UsageError, match="recipe has changed") as caught:
        make(tmp_path, **change).fit()
    if field.startswith("model"):
        assert caught.value.field.startswith("model.")
    else:
        assert caught.value.field == field
    assert "allow_changes" in caught.value.remedy


def test_changed_data_is_refused(tmp_path):
    make(tmp_path).fit()
    other = ToySource()
    other.fingerprint = "something else"
    with pytest.raises(UsageError, match="recipe has changed") as caught:
        make(tmp_path, source=other).fit()
    assert caught.value.field == "data"


def test_an_allowed_change_goes_through_and_is_told(tmp_path):
    make(tmp_path, steps=6, save_every=3).fit()
    result = make(tmp_path, steps=10, save_every=3, allow_changes=("config.steps",)).fit()
    assert (result.resumed_from, result.steps) == (6, 10)
    assert any("config.steps was 6, is 10 (allowed)" in warning for warning in result.warnings)


def test_free_settings_may_change(tmp_path):
    with pytest.raises(Stop):
        make(tmp_path, [Recorder(at={5: crash})]).fit()
    assert make(tmp_path, save_every=7, keep_last=1, non_finite="skip").fit().resumed_from == 4


def test_must_and_never(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint to resume"):
        make(tmp_path, resume="must").fit()
    make(tmp_path, resume="never").fit()
    with pytest.raises(UsageError, match="already has checkpoints"):
        make(tmp_path, resume="never").fit()
    assert make(tmp_path, resume="must").fit().resumed_from == 12


def test_another_environment_is_named_and_training_goes_on(tmp_path, monkeypatch):
    with pytest.raises(Stop):
        make(tmp_path, [Recorder(at={5: crash})]).fit()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    result = make(tmp_path).fit()
    assert result.steps == 12 and result.resumed_from == 4
    assert any("not bit for bit" in warning and "is 'AVX9'" in warning for warning in result.warnings)


def test_frozen_weights_are_not_stored_but_checked(tmp_path):
    def trainer(out, scale=1.0, *callbacks):
        model = ToyModel()
        with torch.no_grad():
            model.up.weight.mul_(scale)
        model.up.weight.requires_grad_(False)
        return make(out, callbacks, model=model)

    whole = trainer(tmp_path / "whole")
    whole.fit()
    with pytest.raises(Stop):
        trainer(tmp_path / "cut", 1.0, Recorder(at={6: crash})).fit()
    resumed = trainer(tmp_path / "cut")
    resumed.fit()
    assert_same_bits(everything(whole), everything(resumed))
    from dacheng.formats.safetensors_io import read_tensors

    stored = read_tensors(tmp_path / "cut" / "checkpoints" / "step-00000012" / "model.safetensors")
    assert "up.weight" not in stored and "up.bias" in stored
    with pytest.raises(UsageError, match="recipe has changed") as caught:
        trainer(tmp_path / "cut", 1.5).fit()
    assert caught.value.field == "model.frozen"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    whole = make(tmp_path / "whole")
    whole.fit()
    seen = Recorder(at={6: lambda _trainer: os.kill(os.getpid(), number)})
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="step 6 of 12") as caught:
        make(tmp_path / "cut", [seen]).fit()
    assert caught.value.exit_code == 130 and "same command" in caught.value.remedy
    assert seen.events == ["start 0", "checkpoint step-00000004", "checkpoint step-00000006", "close Interrupted"]
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    resumed = make(tmp_path / "cut")
    assert resumed.fit().resumed_from == 6
    assert_same_bits(everything(whole), everything(resumed))


def test_a_second_interrupt_aborts_at_once(tmp_path):
    def twice(_trainer):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, [Recorder(at={6: twice})]).fit()
    assert make(tmp_path).fit().resumed_from == 4


def test_a_loss_that_is_not_a_number_survives_a_checkpoint(tmp_path):
    class Bad(ToyObjective):
        def __call__(self, model, batch, ctx):
            terms, metrics = super().__call__(model, batch, ctx)
            if ctx.step == 3:
                terms["next_token"] = Term(terms["next_token"].sum * float("nan"))
            return terms, metrics

    for _ in range(2):
        running = make(tmp_path, [Recorder(at={5: crash})], objective=Bad())
        with pytest.raises(Stop):
            running.fit()
    assert running.resumed_from == 4 and running.state.skipped_steps == 1
    assert isinstance(make(tmp_path, objective=Bad()).fit().loss, float)


def test_a_callback_that_is_gone_is_named(tmp_path):
    with pytest.raises(Stop):
        make(tmp_path, [EarlyStop("valid/noise"), Recorder(at={5: crash})]).fit()
    result = make(tmp_path).fit()
    assert any("callback that is gone: EarlyStop.valid/noise" in warning for warning in result.warnings)


def test_a_trainer_fits_once(tmp_path):
    trainer = make(tmp_path, steps=2)
    trainer.fit()
    with pytest.raises(DachengError, match="already been used"):
        trainer.fit()


def test_a_disk_that_cannot_hold_one_checkpoint_is_noticed_at_once(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DachengError, match=r"checkpoint of step 1 needs .* MB"):
        make(tmp_path, [seen := Recorder()]).fit()
    assert seen.losses == []


def test_a_state_that_json_cannot_hold_is_refused_by_name(tmp_path):
    class Strange(ToySource):
        def state_dict(self):
            return {"queue": {"items": object()}}

    with pytest.raises(DachengError, match="cannot be written as JSON") as caught:
        make(tmp_path, source=Strange()).fit()
    assert "queue.items" in caught.value.field
