"""Adapters: put around a model, trained alone, merged, several on one base."""

from dacheng.adapt.attach import adapter_of, add_lora, attach, detach, disabled, rows_of
from dacheng.adapt.bank import AdapterBank
from dacheng.adapt.counts import trainable
from dacheng.adapt.merge import Merged, merge
from dacheng.nn.lora_config import Adapter, LoRAConfig

__all__ = [
    "Adapter",
    "AdapterBank",
    "LoRAConfig",
    "Merged",
    "adapter_of",
    "add_lora",
    "attach",
    "detach",
    "disabled",
    "merge",
    "rows_of",
    "trainable",
]  # fmt: skip
