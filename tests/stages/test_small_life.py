"""The real stages, from a folder of files to a report, small enough for every day."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_stages import STAGES

from dacheng.errors import UsageError
from dacheng.formats.model_directory import load_model
from dacheng.life.graph import parse
from dacheng.stages.train import Config, initial_model, model_traits, trainer_config
from dacheng.text import Tokenizer
from dacheng.train.interrupts import Interrupted


def made(result, name):
    return next(stage.artifact for stage in result.stages if stage.name == name)


def test_each_stage_leaves_what_it_says(small_life):
    kinds = [stage.artifact.kind for stage in small_life.stages]
    assert kinds == ["machine", "documents", "tokenizer", "tokens", "plan", "model", "evaluation", "samples", "report"]
    assert all(stage.artifact.path.exists() for stage in small_life.stages)
    drops = made(small_life, "data").metrics["drops"]
    assert drops["kept"] + sum(drops["dropped"].values()) == 80
    tokens = made(small_life, "tokens").metrics
    assert tokens["train"]["documents"] + tokens["valid"]["documents"] == drops["kept"]
    assert made(small_life, "tokenizer").metrics["bytes_per_token"] > 1.2
    assert len(made(small_life, "plan").metrics["formula"]) > 3


def test_the_model_learnt_and_is_a_model_directory(small_life):
    artifact = made(small_life, "train")
    log = [json.loads(line) for line in (artifact.path.parent / "train.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 20 and losses[-1] < losses[0] - 1.0
    loaded = load_model(artifact.path)
    assert (loaded.model.traits.width, loaded.model.traits.layers) == (32, 1)  # the plan's
    assert loaded.tokenizer.fingerprint == Tokenizer.load(made(small_life, "tokenizer").path).fingerprint
    recipe = loaded.provenance["recipe"]
    assert recipe["fingerprint"] == artifact.fingerprint and recipe["life"]["name"] == "small"
    assert artifact.metrics["tokens"] == 20 * 8 * 64
    assert artifact.totals["tokens"] == 20 * 8 * 64 and artifact.totals["flops"] == artifact.metrics["flops"] > 0


def test_the_evaluation_compares_with_floors_on_the_same_split(small_life):
    found = made(small_life, "judge").metrics
    assert list(found["floors"]) == ["byte 2-gram", "byte 3-gram", "token 2-gram"]
    assert all(0 < bits < 8 for bits in (found["bits_per_byte"], *found["floors"].values()))
    best = min(found["floors"].values())
    assert found["best_floor"] == best
    assert found["below_best_floor"] == pytest.approx(1 - found["bits_per_byte"] / best)
    assert found["documents"] == made(small_life, "data").metrics["valid"]["documents"]
    assert {who: share["n"] for who, share in found["parse"].items()} == {"the model": 3, "byte 3-gram": 3}


def test_samples_are_of_the_same_model_before_and_after(small_life):
    rows = json.loads(made(small_life, "samples").path.read_text())
    assert [row["prompt"] for row in rows] == ["def ", "<script>"]
    for row in rows:
        assert row["before"] != row["after"] and {"ngram", "temperature"} <= set(row)


def test_the_report_shows_it_all_and_escapes_it(small_life):
    page = made(small_life, "report").path.read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page
    for name in ("Training (train)", "Against the floors (judge)", "Samples", "What it cost", "byte 3-gram"):
        assert name in page


def test_costs_reconcile(small_life):
    totals = small_life.totals
    assert totals["statuses"] == {"done": 9}
    parts = [stage.artifact.totals["wall_s"] for stage in small_life.stages]
    assert math.fsum(parts) == pytest.approx(totals["wall_s"])
    assert 0 <= small_life.this_run["unattributed"] < 0.2 * totals["wall_s"] + 1


def test_what_moves_no_weight_trains_nothing_again(small_life, make_life):
    again = make_life(small_life.out, "train.save_every=7", "train.eval_every=3", "train.threads=1")
    assert [stage.status for stage in again.stages] == ["cached"] * 9
    report = make_life(small_life.out, "report.file=page.html")
    assert [stage.status for stage in report.stages] == ["cached"] * 8 + ["run"]


def test_an_interrupted_training_goes_on_to_the_same_weights(small_life, make_life, tmp_path, monkeypatch):
    from dacheng.train.trainer import Trainer

    step = Trainer.train_step

    def interrupted_step(self):
        if self.state.step == 13:
            raise Interrupted("stopped by a test")
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    with pytest.raises(Interrupted):
        make_life(tmp_path, until="train")
    assert json.loads((tmp_path / "stages/train/stage.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.setenv("DACHENG_HOME", str(tmp_path / "home"))
    result = make_life(tmp_path, until="train")
    assert [stage.status for stage in result.stages] == ["cached"] * 5 + ["run"]
    assert made(result, "train").metrics["resumed_from"] == 10
    one, two = (load_model(made(life, "train").path).model.state_dict() for life in (small_life, result))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_plan_gives_length_unless_the_recipe_does():
    plan = {
        "tokens": 70 * 8 * 128,
        "context_length": 128,
        "batch_rows": 4,
        "micro_batches": 2,
        "budget": {"minutes": 2.0},
        "traits": {"width": 64, "layers": 2, "heads": 2, "vocab_size": 9},
    }
    settled = trainer_config(Config(), plan)
    assert (settled.steps, settled.budget.minutes) == (70, 2.0)
    assert trainer_config(Config(batch_rows=16), plan).steps == 35  # the plan's tokens, in larger steps
    assert trainer_config(Config(steps=5), plan).steps == 5
    assert trainer_config(Config(steps=5), plan).budget.minutes is None
    traits = model_traits(Config(model={"activation": "relu2", "layers": 3}), plan, 300, 128)
    assert (traits.width, traits.layers, traits.activation) == (64, 3, "relu2")
    assert (traits.vocab_size, traits.max_positions) == (300, 128)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.model.widht=3", "train.model.widht"),
        ("train.model.width=a", "train.model.width"),
        ("train.model.vocab_size=3", "train.model.vocab_size"),
        ("train.stps=3", "train.stps"),
        ("train.steps=0", "train.steps"),
        ("train.optimizer.kind=adam", "train.optimizer.kind"),
        ("plan.budget.minutes=-1", "plan.budget.minutes"),
        ("tokens.packing=loose", "tokens.packing"),
        ("data.cleaning.profile=prosa", "data.cleaning.profile"),
        ("tokenizer.path=somewhere", "tokenizer.vocab_size"),
    ],
)
def test_mistakes_are_found_before_anything_runs(override, field):
    with pytest.raises(UsageError) as caught:
        parse({"name": "small", "stages": STAGES}, [override])
    assert caught.value.field == field


def test_too_little_memory_names_what_fits(make_life, tmp_path, monkeypatch):
    monkeypatch.setattr("dacheng.machine.available_bytes", lambda: 400 << 20)
    with pytest.raises(Exception, match="fits") as caught:
        make_life(tmp_path, "train.batch_rows=4096", until="train")
    assert caught.value.field == "batch_rows"


def test_the_initial_model_follows_from_the_seed():
    traits = model_traits(Config(model={"width": 32, "layers": 1, "heads": 2}), {}, 64, 16)
    one, again, other = (initial_model(traits, seed).embed.weight for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
