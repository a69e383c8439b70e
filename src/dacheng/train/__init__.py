"""Training: one loop for every method. A method is an objective and a source of batches; see trainer.Trainer.

Names are imported when they are first used: a lock or a budget needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.train.budget import Budget
    from dacheng.train.callbacks import Callback, EarlyStop, Evaluate, LedgerWriter
    from dacheng.train.checkpoint import Checkpoint, CheckpointStore
    from dacheng.train.config import TrainConfig
    from dacheng.train.interrupts import Interrupted
    from dacheng.train.logs import JsonlLog, Sample, TensorBoard
    from dacheng.train.optimizers import OptimizerConfig, OptimizerSet, build_optimizers
    from dacheng.train.phases import Phase
    from dacheng.train.progress import Progress
    from dacheng.train.report import StepReport, TrainResult
    from dacheng.train.schedules import ScheduleConfig
    from dacheng.train.trainer import NonFinite, Trainer

__all__ = [
    "Budget",
    "Callback",
    "Checkpoint",
    "CheckpointStore",
    "EarlyStop",
    "Evaluate",
    "Interrupted",
    "JsonlLog",
    "LedgerWriter",
    "NonFinite",
    "OptimizerConfig",
    "OptimizerSet",
    "Phase",
    "Progress",
    "Sample",
    "ScheduleConfig",
    "StepReport",
    "TensorBoard",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "build_optimizers",
]

__getattr__ = exports(
    __name__,
    {
        "budget": ("Budget",),
        "callbacks": (
            "Callback",
            "EarlyStop",
            "Evaluate",
            "LedgerWriter",
        ),
        "checkpoint": (
            "Checkpoint",
            "CheckpointStore",
        ),
        "config": ("TrainConfig",),
        "interrupts": ("Interrupted",),
        "logs": (
            "JsonlLog",
            "Sample",
            "TensorBoard",
        ),
        "optimizers": (
            "OptimizerConfig",
            "OptimizerSet",
            "build_optimizers",
        ),
        "phases": ("Phase",),
        "progress": ("Progress",),
        "report": (
            "StepReport",
            "TrainResult",
        ),
        "schedules": ("ScheduleConfig",),
        "trainer": (
            "NonFinite",
            "Trainer",
        ),
    },
)
