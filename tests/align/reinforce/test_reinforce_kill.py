"""kill -9 in a rollout, in a reward, in the journal, in an update, in a sync of weights: the same bits in the end."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
from reinforce_toys import CountingMix, Killer, model, prompts, settings, tokenizer, train

from dacheng.align.reinforce.training import train_policy
from dacheng.train import CheckpointStore

CHANGES = {"method": "ppo", "updates_per_rollout": 2, "steps": 16, "save_every": 3, "lag": True, "kl_coef": 0.05,
           "kl_target": 0.5}  # fmt: skip
# What is just done, and not yet known to anyone else, when the process dies; and the how-manieth in that process.
MOMENTS = [("generated", 2), ("synced", 2), ("rewarded", 1), ("journalled", 2), ("judged", 1), ("updated", 4)]


def in_process(out: Path, killer: Killer | None) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reinforce_toys"])
    process = context.Process(target=train, args=(out, CHANGES, killer))
    process.start()
    process.join(300)
    assert not (out / "error").exists(), (out / "error").read_text()
    return process.exitcode or 0


def weights(out: Path) -> dict[str, torch.Tensor]:
    checkpoint, warnings = CheckpointStore(out).latest()
    assert checkpoint is not None and checkpoint.step == 16 and not warnings
    return {**checkpoint.model_tensors(), **checkpoint.optimizer_tensors()}


@pytest.mark.process
@pytest.mark.slow
def test_six_kills_in_a_row_change_nothing(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = tmp_path / "whole"
        whole.mkdir()
        train_policy(model(), tokenizer(), prompts(), CountingMix(whole / "calls"), whole, settings(**CHANGES))
    finally:
        torch.set_num_threads(threads)
    out = tmp_path / "cut"
    killed = [in_process(out, Killer(moment, at)) for moment, at in MOMENTS]
    assert killed == [-signal.SIGKILL] * len(MOMENTS)
    assert in_process(out, None) == 0
    found, expected = weights(out), weights(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    # Only the reward in whose middle the process died was asked again: one set of eight.
    asked = [len((folder / "calls").read_text().splitlines()) for folder in (whole, out)]
    assert asked == [8, 9]
    journals = [(folder / "rollouts" / "rewards.jsonl").read_bytes() for folder in (whole, out)]
    assert journals[0] == journals[1]
