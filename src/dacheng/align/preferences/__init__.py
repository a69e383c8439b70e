"""Learning from preferences: a policy by the losses of the DPO family, and a reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.align.preferences.reference import ReferenceCache
    from dacheng.align.preferences.report import describe
    from dacheng.align.preferences.reward_model import RewardModel
    from dacheng.align.preferences.reward_training import RewardResult, train_reward
    from dacheng.align.preferences.settings import PreferTrainConfig, RewardTrainConfig
    from dacheng.align.preferences.training import PreferenceResult, train_preferences

__all__ = [
    "PreferTrainConfig",
    "PreferenceResult",
    "ReferenceCache",
    "RewardModel",
    "RewardResult",
    "RewardTrainConfig",
    "describe",
    "train_preferences",
    "train_reward",
]

__getattr__ = exports(
    __name__,
    {
        "reference": ("ReferenceCache",),
        "report": ("describe",),
        "reward_model": ("RewardModel",),
        "reward_training": ("RewardResult", "train_reward"),
        "settings": ("PreferTrainConfig", "RewardTrainConfig"),
        "training": ("PreferenceResult", "train_preferences"),
    },
)
