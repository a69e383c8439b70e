"""Whole runs equal TRL's, step by step: DPO, IPO, hinge and a reward model on four pairs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dacheng.align.preferences.reference import row_logps
from dacheng.data.pairs import PairRows, PairSource, Row
from dacheng.formats.huggingface.families import family_of_config
from dacheng.models.decoder import Decoder
from dacheng.models.scalar_head import Scorer
from dacheng.objectives.preference import Preference, PreferenceConfig
from dacheng.objectives.reward_model import RewardRanking
from dacheng.train.callbacks import Callback
from dacheng.train.config import TrainConfig
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.phases import Phase
from dacheng.train.schedules import ScheduleConfig
from dacheng.train.trainer import Trainer

KINDS = {"sigmoid": "dpo", "ipo": "ipo", "hinge": "hinge", "reward": None}


@pytest.fixture(scope="module")
def maker(goldens):
    spec = importlib.util.spec_from_file_location("make_preference_runs", goldens / "make_preference_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(maker, tmp_path) -> Decoder:
    config = {**maker.CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    family = family_of_config(config, Path("config.json"))
    traits, _ = family.read(config, Path("config.json"))
    made = family.build(traits)
    theirs = family.export_tensors(made.state_dict(), traits)
    filled = {name: maker.sines(name, tuple(tensor.shape)) for name, tensor in theirs.items()}
    made.load_state_dict(family.import_tensors(filled, traits))
    return made


def pairs(golden):
    def row(prompt, reply):
        return Row(np.array(prompt + reply, np.int32), np.arange(len(prompt + reply)) >= len(prompt))

    return [
        PairRows(*(row(p["prompt_ids"], p[side]) for side in ("chosen_ids", "rejected_ids"))) for p in golden["pairs"]
    ]


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, trainer, report):
        self.seen.append(report.loss)


def ours(kind, golden, maker, out) -> list[float]:
    body, rows = model(maker, out), pairs(golden)
    reference = None if kind == "reward" else torch.stack([row_logps(body, list(pair[:2])) for pair in rows])
    if kind == "reward":
        trained, objective = Scorer(body), RewardRanking(centre=0.01)
    else:
        trained, objective = body, Preference(PreferenceConfig(loss=KINDS[kind], beta=golden["beta"]))
    losses = Losses()
    config = TrainConfig(
        steps=len(golden["losses"][kind]), precision="fp32", clip_norm=1.0, threads=1,
        optimizer=OptimizerConfig(lr=golden["rate"], weight_decay=0.0, betas=(0.9, 0.99)),
        schedule=ScheduleConfig(kind="constant", warmup=0),
    )  # fmt: skip
    Trainer(trained, [Phase(objective)], PairSource(rows, 4, reference=reference), [losses], config, out).fit()
    return losses.seen


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_trls_loss(kind, goldens, maker, tmp_path):
    golden = json.loads((goldens / "preference_runs.json").read_text())
    assert ours(kind, golden, maker, tmp_path) == pytest.approx(golden["losses"][kind], rel=2e-4)


@pytest.mark.peer
def test_trl_still_says_so(goldens, maker):
    pytest.importorskip("trl")
    again, golden = maker.made(), json.loads((goldens / "preference_runs.json").read_text())
    for kind, losses in golden["losses"].items():
        assert again["losses"][kind] == pytest.approx(losses, rel=1e-5)
