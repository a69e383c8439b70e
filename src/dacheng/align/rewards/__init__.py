"""Rewards: what says how good a response is. Rules, programs, models and people's words, and their weighted sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.align.rewards.base import FunctionReward, Judged, Reward, RewardError, RewardMix, Sample, ask
from dacheng.align.rewards.registry import KINDS, mix_from_config, reward_from_config
from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.align.rewards.distributions import Distribution, describe_rewards
    from dacheng.align.rewards.functions import NamedFunction
    from dacheng.align.rewards.instructions import InstructionsReward
    from dacheng.align.rewards.judge import JudgeReward
    from dacheng.align.rewards.maths import ExactReward, final_answer, same_answer
    from dacheng.align.rewards.models import ModelReward
    from dacheng.align.rewards.programs import TestsReward
    from dacheng.align.rewards.rules import FinishedReward, FormatReward, LengthReward
    from dacheng.align.rewards.syntax import SyntaxReward

__all__ = [
    "KINDS",
    "Distribution",
    "ExactReward",
    "FinishedReward",
    "FormatReward",
    "FunctionReward",
    "InstructionsReward",
    "JudgeReward",
    "Judged",
    "LengthReward",
    "ModelReward",
    "NamedFunction",
    "Reward",
    "RewardError",
    "RewardMix",
    "Sample",
    "SyntaxReward",
    "TestsReward",
    "ask",
    "describe_rewards",
    "final_answer",
    "mix_from_config",
    "reward_from_config",
    "same_answer",
]

__getattr__ = exports(
    __name__,
    {
        "distributions": ("Distribution", "describe_rewards"),
        "functions": ("NamedFunction",),
        "instructions": ("InstructionsReward",),
        "judge": ("JudgeReward",),
        "maths": ("ExactReward", "final_answer", "same_answer"),
        "models": ("ModelReward",),
        "programs": ("TestsReward",),
        "rules": ("FinishedReward", "FormatReward", "LengthReward"),
        "syntax": ("SyntaxReward",),
    },
)
