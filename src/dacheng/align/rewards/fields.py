"""Fields of a sample's meta, checked."""

from __future__ import annotations

from typing import Any

from dacheng.align.rewards.base import RewardError, Sample


def field_of(sample: Sample, path: str) -> Any:
    """meta[a][b] for "a.b"; None where there is none."""
    here: Any = sample.meta
    for name in path.split("."):
        if not isinstance(here, dict) or name not in here:
            return None
        here = here[name]
    return here


def wrong_field(reward: str, path: str, value: object, expected: str) -> RewardError:
    return RewardError(
        f"reward {reward}: meta.{path} is {expected}",
        field=f"meta.{path}",
        value=value,
        remedy="mend the prompts' file",
    )
