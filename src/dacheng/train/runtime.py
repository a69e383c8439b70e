"""What the process must be set to before a model trains: threads, deterministic kernels, compilation, recomputation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dacheng.errors import UsageError
from dacheng.train.config import TrainConfig


@contextmanager
def numerics(config: TrainConfig) -> Iterator[None]:
    """Deterministic algorithms until the end of the block, where the config wants them.

    Without them an embedding's backward on two threads adds in another order in every run, and a resume is not bitwise.
    """
    if config.deterministic and config.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(config.deterministic)
        # A debugging aid that writes every new tensor twice; no kernel here reads memory that was not written.
        debugging.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        debugging.fill_uninitialized_memory = fill


def prepare(model: nn.Module, config: TrainConfig) -> None:
    """Sets threads, for good; moves the model to its device; switches recomputation of activations and compilation on.

    Raises UsageError when the model cannot recompute, or no C++ compiler is there for the CPU's kernels.
    """
    if config.threads is not None:
        from dacheng.machine import set_threads

        set_threads(config.threads)
    model.to(config.device)
    if hasattr(model, "checkpoint_activations"):
        vars(model)["checkpoint_activations"] = config.checkpoint_activations
    elif config.checkpoint_activations:
        raise UsageError(
            f"{type(model).__name__} cannot recompute its activations",
            field="train.checkpoint_activations",
            value=True,
            remedy="leave it out, and lower the rows of a micro-batch instead",
        )
    if config.compile:
        compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
        if config.device == "cpu" and not any(shutil.which(name) for name in compilers if name):
            raise UsageError(
                "torch.compile needs a C++ compiler on a CPU",
                field="train.compile",
                value=True,
                remedy="install one (g++), or leave it out",
            )
        model.compile()
