"""What a run's bits depend on beside its recipe: written into every checkpoint, compared when one is resumed."""

from __future__ import annotations

from typing import Any

import torch

import dacheng
from dacheng.machine import capabilities, cpu_model
from dacheng.train import collectives
from dacheng.train.precision import Precision


def describe(precision: Precision, *, compiled: bool, deterministic: bool) -> dict[str, Any]:
    """Versions, processor, threads, world size and kernels, as plain JSON data."""
    device = precision.device
    return {
        "dacheng": dacheng.__version__,
        "torch": torch.__version__,
        "cpu_model": cpu_model(),
        "cpu_flags": capabilities(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
        "world_size": collectives.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision.name,
        "compiled": compiled,
        "deterministic": deterministic,
    }


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per entry that differs, in words; empty means that the resumed run continues bit for bit."""
    names = sorted(set(saved) | set(now))
    return [
        f"{name} was {saved.get(name)!r}, is {now.get(name)!r}" for name in names if saved.get(name) != now.get(name)
    ]
