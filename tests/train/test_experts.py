"""Experts under the trainer: the biases even out the load, the loads are logged, and a resume keeps both."""

from __future__ import annotations

import json

import pytest
import torch
from train_toys import CONTEXT, VOCAB, Recorder, ToySource, assert_same_bits, everything, make

from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.moe import MoETraits
from dacheng.objectives.next_token import NextToken
from dacheng.train.experts import ExpertLoad

EXPERTS = 6


def model(**changes) -> Decoder:
    moe = MoETraits(experts=EXPERTS, experts_per_token=2, expert_width=8, score="sigmoid", score_bias=True, **changes)
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=2, heads=2, max_positions=CONTEXT, moe=moe)
    made = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # two experts that everyone wants
        for block in made.blocks:
            block.mlp.router.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
            block.mlp.router.score_bias[:2] = 0.2
    return made


def trainer(out, callbacks, steps=60, **changes):
    return make(
        out, callbacks, ToySource(rows=16), NextToken(routed=True), model(**changes), steps=steps, save_every=20
    )


def peaks(out):
    lines = [json.loads(line) for line in (out / "experts.jsonl").read_text().splitlines()]
    return [(line["step"], max(line["load"]) / (sum(line["load"]) / EXPERTS)) for line in lines]


def test_biases_even_out_the_load_and_the_log_shows_it(tmp_path):
    trained = trainer(tmp_path, [ExpertLoad(every=10, bias_speed=0.01)])
    result = trained.fit()
    found = peaks(tmp_path)
    assert [step for step, _ in found] == [s for s in (10, 20, 30, 40, 50, 60) for _layer in range(2)]
    assert min(peak for step, peak in found if step == 10) > 2.0  # the two are chosen nearly always: 3 is all of it
    assert max(peak for step, peak in found if step == 60) < 1.7
    assert result.metrics["experts/peak_load"] == pytest.approx(max(p for s, p in found if s == 60))


def test_without_speed_the_load_stays_as_it_is(tmp_path):
    trainer(tmp_path, [ExpertLoad(every=30, bias_speed=0.0)]).fit()
    assert min(peak for _, peak in peaks(tmp_path)) > 2.0


def test_a_balance_loss_evens_out_as_well(tmp_path):
    trainer(tmp_path / "with", [ExpertLoad(every=60, bias_speed=0.0)], balance_loss=1.0).fit()
    trainer(tmp_path / "without", [ExpertLoad(every=60, bias_speed=0.0)]).fit()
    assert max(p for _, p in peaks(tmp_path / "with")) < max(p for _, p in peaks(tmp_path / "without")) - 0.2


class Stop(Exception):
    pass


def crash(_trainer):
    raise Stop


def test_a_resumed_run_has_the_same_biases_and_the_same_log(tmp_path):
    whole = trainer(tmp_path / "whole", [ExpertLoad(every=15)])
    whole.fit()
    with pytest.raises(Stop):
        trainer(tmp_path / "cut", [ExpertLoad(every=15), Recorder(at={33: crash})]).fit()
    resumed = trainer(tmp_path / "cut", [ExpertLoad(every=15)])
    assert resumed.fit().resumed_from == 20
    assert_same_bits(everything(whole), everything(resumed))
    assert (tmp_path / "cut/experts.jsonl").read_text() == (tmp_path / "whole/experts.jsonl").read_text()
