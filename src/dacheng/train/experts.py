"""The trainer's part in a mixture of experts: the load of each, and the biases that even it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dacheng.nn.moe import MoE
from dacheng.train import collectives
from dacheng.train.callbacks import at_least_one, is_due
from dacheng.train.logs import FileLog

if TYPE_CHECKING:
    from dacheng.train.report import StepReport
    from dacheng.train.trainer import Trainer


class ExpertLoad(FileLog):
    """After each step moves the bias of every expert that was chosen more than average down by `bias_speed`, and of
    every other up (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2, with its speed as the default).

    Every `every` steps, and at the end, writes out/experts.jsonl, a line a layer: the step, the layer, and how often
    each expert was chosen since the line before; publishes the greatest load over the mean, and the share of experts
    that nobody chose.
    """

    file_name = "experts.jsonl"
    every_rank = True  # the biases are part of every rank's model

    def __init__(self, every: int = 50, bias_speed: float = 1e-3) -> None:
        super().__init__()
        self.every, self.bias_speed = at_least_one("every", every), bias_speed
        self._seen: list[list[float]] = []

    def on_start(self, trainer: Trainer) -> None:
        if collectives.rank() == 0:
            super().on_start(trainer)
        for layer in _layers(trainer):  # the kernels of a warm-up, or of a step that failed, are no load
            layer.load.zero_()

    @torch.no_grad()
    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        layers = _layers(trainer)
        loads = [[sum(counts) for counts in zip(*ranks)] for ranks in _by_layer([x.load.tolist() for x in layers])]
        for layer, load in zip(layers, loads):
            layer.load.zero_()
            if layer.router.score_bias is not None and sum(load) > 0:
                counts = torch.tensor(load, device=layer.router.score_bias.device)
                layer.router.score_bias += self.bias_speed * torch.sign(counts.mean() - counts)
        self._seen = [[a + b for a, b in zip(*pair)] for pair in zip(self._seen, loads)] if self._seen else loads
        if is_due(trainer, self.every):
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        seen, self._seen = self._seen, []
        peaks, idle = [], []
        for index, load in enumerate(seen):
            if self._file is not None:
                self._file.append({"step": trainer.state.step, "layer": index, "load": [int(count) for count in load]})
            mean = sum(load) / len(load)
            peaks.append(max(load) / mean if mean else 0.0)
            idle.append(sum(count == 0 for count in load) / len(load))
        if seen and collectives.rank() == 0:
            trainer.publish({"experts/peak_load": max(peaks), "experts/idle_share": max(idle)})

    def state_dict(self) -> dict:
        return {**super().state_dict(), "seen": self._seen}

    def load_state_dict(self, state: dict) -> None:
        self._seen = state["seen"]


def _layers(trainer: Trainer) -> list[MoE]:
    return [module for module in trainer.model.modules() if isinstance(module, MoE)]


def _by_layer(loads: list[list[float]]) -> list[tuple[list[float], ...]]:
    """This rank's loads (layers, N) -> for each layer, the loads of all ranks."""
    return list(zip(*collectives.gather(loads)))
