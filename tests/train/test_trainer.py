import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_toys import (
    Recorder,
    ToyModel,
    ToyObjective,
    ToySource,
    assert_same_bits,
    config,
    everything,
    make,
)

from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.base import Term
from dacheng.objectives.next_token import NextToken
from dacheng.train import (
    NonFinite,
    OptimizerConfig,
    Phase,
    ScheduleConfig,
    TrainConfig,
    Trainer,
    build_optimizers,
)


def log_of(out):
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_learns(tmp_path, kind):
    """Counting rows have a stride of 1 or 2, unknown only at the first token: well under 0.7 nats is in reach."""
    optimizer = OptimizerConfig(kind=kind, lr=0.03, matrix_lr=0.03, weight_decay=0.0)
    seen = Recorder()
    make(tmp_path, [seen], model=ToyModel(32, 0.0), steps=160, save_every=160, optimizer=optimizer).fit()
    assert seen.losses[0] > 3.0
    assert sum(seen.losses[-20:]) / 20 < 0.9


def test_the_update_is_the_one_written_out_by_hand(tmp_path):
    """Two micro-batches, global mean, clipping, the schedule's factor, SGD: three steps in a few lines of torch."""
    trainer = Trainer(
        ToyModel(dropout=0.0),
        [Phase(ToyObjective(penalty=0.0), optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.5))],
        ToySource(),
        [],
        config(steps=3, clip_norm=0.3, schedule=ScheduleConfig("linear", warmup=2, final=0.0)),
        tmp_path,
    )
    trainer.fit()
    model = ToyModel(dropout=0.0)
    for step, factor in enumerate([0.5, 1.0, 1.0]):
        batch = ToySource(micro_batches=1).next(step)[0]
        model.zero_grad()
        F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * factor * p.grad
    for (name, p), (_, q) in zip(trainer.model.named_parameters(), model.named_parameters()):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("micro_batches", [1, 4, 8])
def test_accumulation_does_not_change_the_run(tmp_path, micro_batches):
    """SGD, because Adam would hide a wrong scale of the gradient."""

    def run(out, parts):
        sgd = Phase(ToyObjective(), optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.3))
        settings = config(steps=5, clip_norm=None)
        trainer = Trainer(ToyModel(dropout=0.0), [sgd], ToySource(parts), [seen := Recorder()], settings, out)
        trainer.fit()
        return trainer.model, seen.losses

    model, losses = run(tmp_path / "a", 2)
    other, others = run(tmp_path / "b", micro_batches)
    assert others == pytest.approx(losses, rel=1e-5)
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_a_step_without_targets_changes_nothing_and_is_counted(tmp_path):
    class Silent(ToySource):
        def next(self, step, model=None, weights_version=0):
            batches = super().next(step)
            if step in (2, 3):
                for batch in batches:
                    batch.targets.fill_(-100)
            return batches

    kept = {}

    def remember(trainer):
        kept[trainer.state.step] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    seen = Recorder(at=dict.fromkeys((2, 3, 4, 5), remember))
    trainer = Trainer(
        ToyModel(), [Phase(_TokensOnly())], Silent(), [seen], config(steps=6, optimizer=OptimizerConfig()), tmp_path
    )
    result = trainer.fit()
    assert result.empty_steps == 2 and result.skipped_steps == 0
    assert seen.losses[2] == seen.losses[3] == 0.0
    assert_same_bits(kept[2], kept[4])  # not even weight decay
    assert not torch.equal(kept[4]["up.weight"], kept[5]["up.weight"])
    assert trainer.state.weights_version == 4
    assert "nothing in the batch" in log_of(tmp_path)[2]["skipped"]


class _TokensOnly(ToyObjective):
    def counts(self, batch):
        return {"next_token": super().counts(batch)["next_token"]}

    def __call__(self, model, batch, ctx):
        terms, metrics = super().__call__(model, batch, ctx)
        return {"next_token": terms["next_token"]}, metrics


class _Poison(ToyObjective):
    """NaN in the steps of `poisoned`; with `gradient`, only the gradient is, by the square root of zero."""

    def __init__(self, poisoned, gradient=False):
        super().__init__()
        self._poisoned, self._gradient = poisoned, gradient

    def __call__(self, model, batch, ctx):
        terms, metrics = super().__call__(model, batch, ctx)
        if ctx.step in self._poisoned:
            total = terms["next_token"].sum
            extra = (model.up.weight.sum() * 0).abs().sqrt() if self._gradient else total * float("inf") * 0
            terms["next_token"] = Term(total + extra)
        return terms, metrics


@pytest.mark.parametrize(
    ("gradient", "name"), [(False, "next_token is nan"), (True, "gradient of up.weight")], ids=["loss", "gradient"]
)
def test_what_is_not_finite_is_named_skipped_and_counted(tmp_path, gradient, name):
    seen = Recorder()
    trainer = make(tmp_path / "skip", [seen], objective=_Poison({3, 7}, gradient))
    result = trainer.fit()
    assert result.skipped_steps == 2 and result.steps == 12
    assert trainer.state.weights_version == 10
    assert name in seen.reports[3].skipped and len(result.warnings) == 2 and name in result.warnings[0]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert all(math.isfinite(loss) for i, loss in enumerate(seen.losses) if i not in (3, 7))
    assert len(log_of(tmp_path / "skip")) == 12
    with pytest.raises(NonFinite, match="step 4") as caught:
        make(tmp_path / "stop", objective=_Poison({3}, gradient), non_finite="stop").fit()
    assert name in caught.value.problem and "learning rate" in caught.value.remedy


def test_ten_skips_in_a_row_stop_a_run_that_skips(tmp_path):
    with pytest.raises(NonFinite, match="10 steps in a row"):
        make(tmp_path, objective=_Poison(set(range(5, 40))), steps=40).fit()


class _Gan(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.critic = nn.Linear(1, 1), nn.Linear(1, 1)


class _CriticLoss:
    couples_batch = False

    def counts(self, batch):
        return {"critic": float(len(batch))}

    def __call__(self, model, batch, ctx):
        fake = model.generator(torch.ones_like(batch))  # not detached: the trainer keeps the phases apart
        loss = F.softplus(-model.critic(batch)).sum() + F.softplus(model.critic(fake)).sum()
        return {"critic": Term(loss)}, {}


class _GeneratorLoss:
    couples_batch = False

    def counts(self, batch):
        return {"generator": float(len(batch))}

    def __call__(self, model, batch, ctx):
        return {"generator": Term(F.softplus(-model.critic(model.generator(torch.ones_like(batch)))).sum())}, {}


class _Numbers:
    fingerprint, tokens_per_step = "numbers", 0

    def next(self, step, model=None, weights_version=0):
        self.version = weights_version
        return [torch.full((4, 1), 2.0)]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_phases_move_their_own_parameters_only(tmp_path):
    """A GAN: two updates of the critic, one of the generator, each with its own optimizer and learning rate."""
    moved = []

    class Watch(Recorder):
        def on_step_end(self, trainer, report):
            super().on_step_end(trainer, report)
            critic, generator = trainer.phases
            counts = {
                phase.name: int(next(iter(phase.optimizer.state_dict().values())).item())
                for phase in (critic, generator)
            }
            moved.append(counts)

    def sgd(named):
        return torch.optim.AdamW([p for _, p in named], lr=0.01)

    model, source, seen = _Gan(), _Numbers(), Watch()
    before = model.generator.weight.detach().clone()
    phases = [
        Phase(_CriticLoss(), list(model.critic.parameters()), sgd, repeats=2, name="critic"),
        Phase(_GeneratorLoss(), lambda m: m.generator.parameters(), OptimizerConfig(lr=0.5), name="generator"),
    ]
    trainer = Trainer(model, phases, source, [seen], config(steps=3, schedule=ScheduleConfig("constant", 0)), tmp_path)
    trainer.fit()
    assert moved == [{"critic": 2 * i, "generator": i} for i in (1, 2, 3)]
    assert trainer.state.weights_version == 9 and source.version == 6
    assert not torch.equal(before, model.generator.weight)
    report = seen.reports[-1]
    assert set(report.losses) == {"critic", "generator"}
    assert report.loss == pytest.approx(sum(report.losses.values()))
    assert report.lr["critic.group0"] == 0.01 and report.lr["generator.matrix"] == 0.5
    with pytest.raises(UsageError, match="not one of the model's"):  # the critic's list belongs to the first model
        Trainer(_Gan(), phases, source, [], config(steps=3), tmp_path)


def test_phases_that_cannot_be_are_refused(tmp_path):
    def trainer(*phases):
        return Trainer(ToyModel(), phases, ToySource(), [], config(), tmp_path)

    with pytest.raises(UsageError, match="at least one phase"):
        trainer()
    with pytest.raises(UsageError, match="of different names"):
        trainer(Phase(ToyObjective()), Phase(ToyObjective()))
    with pytest.raises(UsageError, match="not one of the model's"):
        trainer(Phase(ToyObjective(), [nn.Parameter(torch.ones(1))]))
    with pytest.raises(UsageError, match="at least 1"):
        trainer(Phase(ToyObjective(), repeats=0))
    with pytest.raises(UsageError, match="gives an OptimizerSet"):
        trainer(Phase(ToyObjective(), optimizer=lambda named: "adam"))
    frozen = ToyModel().requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to train"):
        Trainer(frozen, [Phase(ToyObjective())], ToySource(), [], config(), tmp_path)


def test_an_optimizer_may_be_a_config_a_factory_or_the_default(tmp_path):
    settings = OptimizerConfig(lr=3e-3)
    runs = []
    for i, optimizer in enumerate([settings, None, lambda named: build_optimizers(named, settings)]):
        phases = [Phase(ToyObjective(), optimizer=optimizer)]
        trainer = Trainer(ToyModel(), phases, ToySource(), [], config(optimizer=settings), tmp_path / str(i))
        trainer.fit()
        runs.append(everything(trainer))
    assert_same_bits(runs[0], runs[1])
    assert_same_bits(runs[0], runs[2])


def test_recomputing_activations_gives_the_same_gradients(tmp_path):
    def run(out, recompute):
        model = Decoder(DecoderTraits(vocab_size=29, width=16, layers=3, heads=2, max_positions=16))
        model.init_weights(torch.Generator().manual_seed(0))
        settings = config(steps=3, checkpoint_activations=recompute)
        trainer = Trainer(model, [Phase(NextToken())], ToySource(), [], settings, out)
        trainer.fit()
        assert model.checkpoint_activations is recompute
        return everything(trainer)

    assert_same_bits(run(tmp_path / "a", False), run(tmp_path / "b", True))
    with pytest.raises(UsageError, match="cannot recompute"):
        make(tmp_path / "c", checkpoint_activations=True)


@pytest.mark.nightly
def test_compiled_training_follows_the_eager_one(tmp_path):
    """Other kernels, other roundings: the losses agree to four digits, and a resume across the two names it."""
    eager, compiled = Recorder(), Recorder()
    make(tmp_path / "a", [eager], model=ToyModel(dropout=0.0)).fit()
    make(tmp_path / "b", [compiled], model=ToyModel(dropout=0.0), compile=True, steps=12).fit()
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    resumed = make(tmp_path / "b", steps=14, model=ToyModel(dropout=0.0), allow_changes=("config.steps",)).fit()
    assert any("compiled was True, is False" in warning for warning in resumed.warnings)


def test_compiling_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"C\+\+ compiler") as caught:
        make(tmp_path, compile=True)
    assert caught.value.field == "train.compile"


def test_the_log_of_a_step(tmp_path):
    make(tmp_path).fit()
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    first = lines[0]
    assert first["tokens"] == 96 and first["counts"]["penalty"] == 8.0
    assert 0 <= first["metrics"]["accuracy"] <= 1 and set(first["terms"]) == {"next_token", "penalty"}
    assert first["loss"] == pytest.approx(first["terms"]["next_token"] + 0.01 * first["terms"]["penalty"])
    assert set(first["lr"]) == {"matrix", "embedding", "scalar"}


def test_determinism_is_put_back(tmp_path):
    inside = []
    seen = Recorder(at={1: lambda _trainer: inside.append(torch.are_deterministic_algorithms_enabled())})
    make(tmp_path, [seen], steps=1).fit()
    assert inside == [True] and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("field", "value"),
    [("save_every", 0), ("clip_norm", 0.0), ("resume", "maybe"), ("non_finite", "ignore"), ("steps", 0)],
)
def test_a_config_that_makes_no_run_is_refused(field, value):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{field: value})
    assert caught.value.field == field


def test_a_config_is_a_recipe():
    from dacheng import recipes

    loaded = recipes.load(TrainConfig, {"steps": 5}, ["optimizer.kind=muon", "budget.minutes=6", "schedule.kind=wsd"])
    assert (loaded.optimizer.kind, loaded.budget.minutes, loaded.schedule.kind) == ("muon", 6.0, "wsd")
    assert recipes.load(TrainConfig, recipes.to_dict(loaded)) == loaded
    with pytest.raises(UsageError) as caught:
        recipes.load(TrainConfig, {}, ["optimizer.betas=[0.9, 2.0]"])
    assert caught.value.field == "optimizer.betas"
    with pytest.raises(UsageError, match="adamw, muon"):
        recipes.load(TrainConfig, {}, ["optimizer.kind=muom"])
