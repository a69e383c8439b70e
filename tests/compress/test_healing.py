"""Training after pruning: it learns, it keeps the zeros, it is the same after a stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dacheng.compress.prune.healing import HealConfig, heal, text_source
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.schedule import CubicSchedule, KeepZeros
from dacheng.compress.prune.shrink import shrink
from dacheng.compress.prune.sparsity import share_of_zeros
from dacheng.compress.prune.weights import linear_maps, masks_of, prune_weights
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.distil import DistilWeights
from dacheng.objectives.distil_tokens import DistilTokens

TRAITS = DecoderTraits(vocab_size=32, width=32, layers=3, heads=4, kv_heads=2, mlp_width=64, max_positions=64)
CIRCLE = [[(i * 3 + start) % 32 for i in range(200)] for start in range(3)]  # the next is three further


def trained(tmp_path):
    model = Decoder(TRAITS).init_weights(torch.Generator().manual_seed(0))
    config = HealConfig(how="full", steps=80, lr=1e-2, context_length=24, batch_rows=4)
    report = heal(model, CIRCLE, tmp_path / "first", config)
    assert report.loss_after < 0.1 < 3 < report.loss_before
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("healing"))


def copy_of(model):
    return shrink(model, Keep())


def test_a_layer_less_is_healed_by_adapters(model, tmp_path):
    cut = shrink(model, Keep(layers=(0, 2)))
    report = heal(cut, CIRCLE, tmp_path, HealConfig(steps=40, lr=1e-2, rank=4, context_length=24, batch_rows=4))
    assert report.loss_before > 0.2 and report.loss_after < 0.5 * report.loss_before
    assert cut.params() == shrink(model, Keep(layers=(0, 2))).params()  # merged: nothing is left around the maps
    assert all(p.requires_grad for p in cut.parameters())


def test_the_teacher_heals(model, tmp_path):
    cut = shrink(model, Keep(layers=(0, 2)))
    objective = DistilTokens(model, DistilWeights(soft=1.0, hard=0.0))
    config = HealConfig(how="full", steps=40, lr=3e-3, context_length=24, batch_rows=4)
    report = heal(cut, CIRCLE, tmp_path, config, objective=objective)
    assert report.loss_after < 0.5 * report.loss_before


@pytest.mark.parametrize("how", ["full", "lora"])
def test_zeros_stay_zeros(model, tmp_path, how):
    pruned = copy_of(model)
    prune_weights(pruned, [torch.tensor([ids[:60] for ids in CIRCLE])], "wanda", 0.7)
    masks = masks_of(pruned)
    config = HealConfig(how=how, steps=30, lr=3e-3, rank=4, context_length=24, batch_rows=4)
    report = heal(pruned, CIRCLE, tmp_path, config)
    assert all(torch.equal(mask, masks_of(pruned)[name]) for name, mask in masks.items())
    assert report.loss_after < report.loss_before
    assert any("put the zeros back" in note for note in report.notes) == (how == "lora")


def test_gradual_pruning_ends_where_it_says(model, tmp_path):
    pruned = copy_of(model)
    config = HealConfig(how="full", steps=60, lr=3e-3, context_length=24, batch_rows=4, gradual=0.75)
    report = heal(pruned, CIRCLE, tmp_path, config)
    shares = [share_of_zeros(m.weight) for m in linear_maps(pruned).values()]
    assert len(shares) == 21 and all(abs(share - 0.75) < 0.01 for share in shares)
    at_once = copy_of(model)
    prune_weights(at_once, (), "magnitude", 0.75)
    same = HealConfig(how="full", steps=1, lr=1e-9, context_length=24, batch_rows=4)
    assert report.loss_after < heal(at_once, CIRCLE, tmp_path / "once", same).loss_before


def test_zeros_that_are_there_do_not_come_back(model, tmp_path):
    """A schedule that begins below what was pruned already, with as many zeros in each row as it says."""
    pruned = copy_of(model)
    prune_weights(pruned, (), "magnitude", 0.6)
    masks = masks_of(pruned)
    keep = KeepZeros(CubicSchedule(0.65, begin=0, end=100, every=1), scope="row")
    trainer = SimpleNamespace(model=pruned, state=SimpleNamespace(step=1), publish=lambda told: None)
    keep.on_start(trainer)
    keep.on_step_end(trainer, None)
    assert all(not bool((keep.masks[name] & ~mask).any()) for name, mask in masks.items())


def test_the_schedule_is_the_papers():
    schedule = CubicSchedule(0.8, begin=10, end=110, every=20)
    assert schedule.at(0) == schedule.at(10) == 0 and schedule.at(110) == schedule.at(500) == 0.8
    assert schedule.at(60) == pytest.approx(0.8 * (1 - 0.5**3))
    assert [step for step in range(200) if schedule.is_due(step)] == [10, 30, 50, 70, 90, 110]


def test_bad_input(model):
    with pytest.raises(UsageError, match="too short"):
        text_source([[1, 2, 3]], 24)
    with pytest.raises(UsageError, match="adapters cannot"):
        HealConfig(gradual=0.5)
    for values in ((0.5, 10, 10, 1), (1.0, 0, 10, 1), (0.5, 0, 10, 0)):
        with pytest.raises(UsageError):
            CubicSchedule(*values)

    class FakeTrainer:
        model = copy_of(Decoder(TRAITS).init_weights())

    with pytest.raises(UsageError, match="no zeros"):
        KeepZeros().on_start(FakeTrainer())
