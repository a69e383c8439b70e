"""A small model, objective and source that behave like the real ones: dropout, a buffer, tied weights, masked targets.

`train` runs them in a process of its own, so that tests can kill it.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from dacheng.data.batches import TokenBatch
from dacheng.objectives.base import Term
from dacheng.train import Callback, Evaluate, OptimizerConfig, Phase, TrainConfig, Trainer

VOCAB = 29
CONTEXT = 12


class ToyModel(nn.Module):
    """Embedding, dropout, a running mean, one matrix, a tied head."""

    def __init__(self, width: int = 16, dropout: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.up = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCAB, bias=False)
        self.lm_head.weight = self.embed.weight
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(width))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.up.bias.zero_()
            for p in self.parameters():
                if p.ndim == 2:
                    p.normal_(0.0, 0.3, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.embed(tokens), self.dropout, self.training)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return self.lm_head(self.norm(x + torch.tanh(self.up(x))))

    def flops(self, context_length: int, training: bool = True) -> float:
        return 6.0 * sum(p.numel() for p in self.parameters())


@dataclass
class ToyObjective:
    """Next token, and a second term that counts rows, so that there are two counts."""

    penalty: float = 0.01
    couples_batch: bool = False

    def counts(self, batch: TokenBatch) -> dict[str, float]:
        return {"next_token": float((batch.targets != -100).sum()), "penalty": float(len(batch.tokens))}

    def __call__(self, model, batch, ctx):
        logits = model(batch.tokens)
        nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100, reduction="sum")
        right = (logits.argmax(-1) == batch.targets).sum()
        terms = {"next_token": Term(nats), "penalty": Term(logits.square().mean((1, 2)).sum(), self.penalty)}
        return terms, {"accuracy": (right, self.counts(batch)["next_token"])}


class ToySource:
    """Rows that count upwards modulo the vocabulary, some targets masked; a function of the step, as it has to be."""

    def __init__(self, micro_batches: int = 2, rows: int = 8, rank: int = 0, world: int = 1) -> None:
        self.micro_batches, self.rows, self.rank, self.world = micro_batches, rows, rank, world
        self.fingerprint = "counting rows"
        self.tokens_per_step = rows * CONTEXT
        self.read: list[int] = []

    def next(self, step, model=None, weights_version=0):
        self.read.append(step)
        generator = torch.Generator().manual_seed(1000 + step)
        start = torch.randint(0, VOCAB, (self.rows, 1), generator=generator)
        stride = torch.randint(1, 3, (self.rows, 1), generator=generator)
        tokens = (start + stride * torch.arange(CONTEXT + 1)) % VOCAB
        targets = tokens[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
        positions = torch.arange(CONTEXT).expand(self.rows, CONTEXT)
        parts = self.micro_batches * self.world
        rows = [slice(i * self.rows // parts, (i + 1) * self.rows // parts) for i in range(parts)]
        mine = rows[self.rank * self.micro_batches : (self.rank + 1) * self.micro_batches]
        return [TokenBatch(tokens[r, :-1], targets[r], positions[r]) for r in mine]

    def state_dict(self):
        return {"steps_read": len(self.read)}

    def load_state_dict(self, state):
        self.loaded = state


class Recorder(Callback):
    """Keeps what happened, for assertions; `at` maps a finished step to something to do after it."""

    def __init__(self, at=None) -> None:
        self.at = at or {}
        self.losses: list[float] = []
        self.events: list[str] = []
        self.reports = []

    def on_start(self, trainer):
        self.events.append(f"start {trainer.state.step}")

    def on_step_end(self, trainer, report):
        self.losses.append(report.loss)
        self.reports.append(report)
        if report.step in self.at:
            self.at[report.step](trainer)

    def on_evaluate(self, trainer, metrics):
        self.events.append(f"evaluate {trainer.state.step}")

    def on_checkpoint(self, trainer, path):
        self.events.append(f"checkpoint {path.name}")

    def on_end(self, trainer, result):
        self.events.append("end")

    def close(self, error):
        self.events.append(f"close {type(error).__name__}" if error else "close")


MUON = OptimizerConfig(kind="muon", lr=3e-3, matrix_lr=0.01)


def config(**changes) -> TrainConfig:
    # One thread everywhere: bitwise equality is promised between runs of the same number of threads.
    values = {"steps": 12, "precision": "fp32", "save_every": 4, "optimizer": MUON, "threads": 1, **changes}
    return TrainConfig(**values)


def noisy_evaluation(model: nn.Module) -> dict[str, float]:
    """Draws random numbers, as a sampling evaluation would."""
    return {"noise": float(torch.rand(3).sum())}


def make(out: Path, callbacks=(), source=None, objective=None, model=None, ledger=None, machine=None, **changes):
    """A Trainer of the toys."""
    phases = [Phase(objective or ToyObjective())]
    made = config(**changes)
    return Trainer(model or ToyModel(), phases, source or ToySource(), list(callbacks), made, out, ledger, machine)


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, buffers, optimizer state and random streams of a trainer, for bitwise comparison."""
    tensors = {f"model/{name}": value.clone() for name, value in trainer.model.state_dict().items()}
    for phase in trainer.phases:
        for name, value in phase.optimizer.state_dict().items():
            tensors[f"{phase.name}/{name}"] = value.clone()
    tensors.update({f"rng/{name}": value.clone() for name, value in trainer.rng.state_dict().items()})
    return tensors


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert not different, different


class SlowDown(Callback):
    """Gives a killer time to aim."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_end(self, trainer, report):
        time.sleep(self.seconds)


def processes() -> multiprocessing.context.BaseContext:
    """Real processes, forked from a server that has imported torch once: importing it costs more than the toys."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_toys"])
    return context


def train(out: Path, steps: int, pause: float) -> None:
    """What a process is given to do: train the toys to the end, going on from what is there.

    While it evaluates there is a file out/evaluating; an error is written to out/error.
    """
    torch.set_num_threads(1)

    def evaluate(model: nn.Module) -> dict[str, float]:
        (out / "evaluating").touch()
        time.sleep(pause)
        metrics = noisy_evaluation(model)
        (out / "evaluating").unlink()
        return metrics

    try:
        make(out, [Evaluate(evaluate, every=3), SlowDown(pause)], steps=steps, save_every=2).fit()
    except BaseException:
        (out / "error").write_text(traceback.format_exc())
        raise
