"""Learning from rewards: rollouts as a source of batches, the methods as settings of one loss, on the one Trainer.

What trains is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.align.reinforce.prompts import Prompt, read_prompts
    from dacheng.align.reinforce.settings import ReinforceConfig
    from dacheng.align.reinforce.training import PolicyResult, train_policy

__all__ = ["PolicyResult", "Prompt", "ReinforceConfig", "read_prompts", "train_policy"]

__getattr__ = exports(
    __name__,
    {
        "prompts": ("Prompt", "read_prompts"),
        "settings": ("ReinforceConfig",),
        "training": ("PolicyResult", "train_policy"),
    },
)
