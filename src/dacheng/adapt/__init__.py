"""Adapters: put around a model, trained alone (here or in a process of their own), merged, several on one base.

What trains is imported when it is first used: an engine with adapters needs no trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.adapt.attach import adapter_of, add_lora, attach, detach, disabled, rows_of
from dacheng.adapt.bank import AdapterBank
from dacheng.adapt.counts import trainable
from dacheng.adapt.merge import Merged, merge
from dacheng.lazy import exports
from dacheng.nn.lora_config import Adapter, LoRAConfig

if TYPE_CHECKING:
    from dacheng.adapt.full import train_full
    from dacheng.adapt.process import TrainerProcess
    from dacheng.adapt.settings import AdaptTrainConfig, ChatTrainConfig
    from dacheng.adapt.tail import LogTail, Repeats, compare_repeats
    from dacheng.adapt.training import AdapterResult, train_adapter
    from dacheng.adapt.worker_config import WorkerConfig

__all__ = [
    "AdaptTrainConfig",
    "Adapter",
    "AdapterBank",
    "AdapterResult",
    "ChatTrainConfig",
    "LoRAConfig",
    "LogTail",
    "Merged",
    "Repeats",
    "TrainerProcess",
    "WorkerConfig",
    "adapter_of",
    "add_lora",
    "attach",
    "compare_repeats",
    "detach",
    "disabled",
    "merge",
    "rows_of",
    "train_adapter",
    "train_full",
    "trainable",
]

__getattr__ = exports(
    __name__,
    {
        "process": ("TrainerProcess",),
        "full": ("train_full",),
        "settings": ("AdaptTrainConfig", "ChatTrainConfig"),
        "tail": ("LogTail", "Repeats", "compare_repeats"),
        "training": ("AdapterResult", "train_adapter"),
        "worker_config": ("WorkerConfig",),
    },
)
