"""kill -9 at any moment: the same command again ends where an uninterrupted run ends, bit for bit."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from train_toys import assert_same_bits, everything, make, noisy_evaluation, processes, train

from dacheng.train import CheckpointStore, Evaluate

STEPS = 30


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Its log, and everything that its last checkpoint holds."""
    out = tmp_path_factory.mktemp("whole")
    trainer = make(out, [Evaluate(noisy_evaluation, every=3)], steps=STEPS, save_every=2)
    trainer.fit()
    return everything(trainer), steps_and_losses(out), stored(out)


def stored(out: Path) -> dict[str, torch.Tensor]:
    checkpoint, warnings = CheckpointStore(out).latest()
    assert checkpoint is not None and checkpoint.step == STEPS and not warnings
    # Callbacks' and random states of the checkpoint are in here too, so this compares all that a resume would read.
    return {**checkpoint.model_tensors(), **checkpoint.optimizer_tensors()}


def steps_and_losses(out: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("evaluation")) for line in lines]


class Run:
    """The toys in a process of their own."""

    def __init__(self, out: Path, pause: float = 0.02) -> None:
        self.process = processes().Process(target=train, args=(out, STEPS, pause))
        self.out = out
        self.process.start()

    def wait_for(self, seen, seconds: float = 120.0) -> bool:
        """Polls as fast as it can, to hit short moments; False when the run ended first."""
        end = time.monotonic() + seconds
        while self.process.is_alive():
            if seen():
                return True
            assert time.monotonic() < end, "nothing happened"
        return False

    def kill(self) -> bool:
        """True when it was still running."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode in (0, -signal.SIGKILL)
        return self.process.exitcode != 0

    def finish(self) -> None:
        self.process.join(300)
        errors = self.out / "error"
        assert self.process.exitcode == 0, errors.read_text() if errors.exists() else self.process.exitcode


def lines_written(out: Path) -> int:
    log = out / "train.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def saving(out: Path) -> bool:
    """A checkpoint is being written: its staging directory is there."""
    folder = out / "checkpoints"
    return folder.is_dir() and any(path.name.startswith(".step-") for path in folder.iterdir())


MOMENTS = ("stepping", "evaluating", "saving", "any time")


def kill_while(out: Path, moment: str, choose: random.Random) -> bool:
    """One run, killed in the middle of `moment`, at a random step past those that are done. False if it ended first."""
    run, step = Run(out), lines_written(out) + choose.randint(2, 6)
    happening = {
        "stepping": lambda: lines_written(out) >= step,
        "evaluating": lambda: lines_written(out) >= step and (out / "evaluating").exists(),
        "saving": lambda: lines_written(out) >= step and saving(out),
        "any time": lambda: True,
    }
    run.wait_for(happening[moment])
    if moment == "any time":
        time.sleep(choose.random())
    return run.kill()


def check(out: Path, uninterrupted) -> None:
    Run(out, pause=0.0).finish()
    tensors, log, checkpoint = uninterrupted
    assert_same_bits(stored(out), checkpoint)
    assert steps_and_losses(out) == log
    resumed = make(out, [Evaluate(noisy_evaluation, every=3)], steps=STEPS, save_every=2)
    resumed.fit()
    assert_same_bits(everything(resumed), tensors)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []


@pytest.mark.process
@pytest.mark.slow
def test_three_kills_in_a_row_change_nothing(tmp_path, uninterrupted):
    """While stepping, while evaluating, while saving."""
    choose = random.Random(0)
    killed = [kill_while(tmp_path, moment, choose) for moment in MOMENTS[:3]]
    assert all(killed)
    check(tmp_path, uninterrupted)


@pytest.mark.process
@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_ten_times_killed_at_random(tmp_path, uninterrupted, seed):
    choose = random.Random(seed)
    killed = [kill_while(tmp_path, choose.choice(MOMENTS), choose) for _ in range(3)]
    assert any(killed)
    check(tmp_path, uninterrupted)


@pytest.mark.process
@pytest.mark.slow
def test_ctrl_c_in_a_real_process(tmp_path, uninterrupted):
    run = Run(tmp_path)
    assert run.wait_for(lambda: lines_written(tmp_path) >= 5)
    os.kill(run.process.pid, signal.SIGINT)
    run.process.join(120)
    errors = (tmp_path / "error").read_text()
    assert "Interrupted" in errors and "run the same command again" in errors
    steps = CheckpointStore(tmp_path).steps()
    assert steps[-1] == max(step for step, loss, _ in steps_and_losses(tmp_path) if loss is not None)
    check(tmp_path, uninterrupted)
