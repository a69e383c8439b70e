"""Fewer weights: zeros by magnitude, Wanda and SparseGPT; parts cut out; schedules, healing, storage.

The solvers are functions of modules of their names: magnitude.magnitude, wanda.wanda, sparsegpt.sparsegpt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.compress.prune.healing import HealConfig, HealReport, heal
    from dacheng.compress.prune.importance import (
        block_influence,
        channel_importance,
        head_importance,
        neuron_importance,
    )
    from dacheng.compress.prune.keep import Keep
    from dacheng.compress.prune.schedule import CubicSchedule, KeepZeros
    from dacheng.compress.prune.shrink import mask_out, shrink
    from dacheng.compress.prune.sparsity import Sparsity
    from dacheng.compress.prune.storage import sparse_weights
    from dacheng.compress.prune.vocabulary import prune_vocabulary, token_counts
    from dacheng.compress.prune.weights import PruneReport, prune_weights

__all__ = [
    "CubicSchedule",
    "HealConfig",
    "HealReport",
    "Keep",
    "KeepZeros",
    "PruneReport",
    "Sparsity",
    "block_influence",
    "channel_importance",
    "head_importance",
    "heal",
    "mask_out",
    "neuron_importance",
    "prune_vocabulary",
    "prune_weights",
    "shrink",
    "sparse_weights",
    "token_counts",
]

# imported when first used: what trains is not needed to cut
__getattr__ = exports(
    __name__,
    {
        "healing": ("HealConfig", "HealReport", "heal"),
        "importance": ("block_influence", "channel_importance", "head_importance", "neuron_importance"),
        "keep": ("Keep",),
        "schedule": ("CubicSchedule", "KeepZeros"),
        "shrink": ("mask_out", "shrink"),
        "sparsity": ("Sparsity",),
        "storage": ("sparse_weights",),
        "vocabulary": ("prune_vocabulary", "token_counts"),
        "weights": ("PruneReport", "prune_weights"),
    },
)
