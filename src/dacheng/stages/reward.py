"""do: reward. Trains a reward model on comparisons: a decoder that says how good a reply is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dacheng.align.preferences.settings import RewardTrainConfig
from dacheng.records import Artifact, Drops
from dacheng.stages import preferring
from dacheng.stages.base import Input, StageContext
from dacheng.stages.sft import base_of

VERSION = 1
KIND = "reward"
INPUTS = {"model": Input("model", required=False)}


@dataclass(frozen=True, kw_only=True)
class Config(RewardTrainConfig):
    """Everything of RewardTrainConfig (centre, rank, lr, steps…), and model, data, held_out, held_out_fraction as of
    do: prefer."""

    model: str | None = None
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    held_out_fraction: float | None = None

    def __post_init__(self) -> None:
        preferring.check_files(self.data, self.held_out, self.held_out_fraction)
        super().__post_init__()


def externals(config: Config) -> dict[str, Any]:
    """The weights and the preferences. Raises DachengError for a file that is not there."""
    return preferring.hashes_of((config.model,), config.data + config.held_out)


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves reward/ (see align.preferences.reward_model) and training/; goes on from an interrupted run, to the same
    bytes. Raises what train_reward raises."""
    from dacheng.align.preferences.reward_training import train_reward
    from dacheng.train.progress import Progress

    base, unread = base_of(config.model, inputs), Drops()
    learnt, held_out = preferring.read_sides(config.data, config.held_out, config.held_out_fraction, unread)
    settings = RewardTrainConfig(**{f.name: getattr(config, f.name) for f in fields(RewardTrainConfig)})
    made = train_reward(base, learnt, out, settings, [Progress()], held_out=held_out, ledger=context.ledger)
    preferring.tell_drops(made.drops, unread, context)
    share, low, high = made.accuracy
    baseline = made.length_baseline
    context.reporter.note(
        f"{made.measured_pairs} {made.measured_on} pairs: {share:.0%} ranked right ({low:.0%} to {high:.0%}); "
        f"by length alone (the {baseline['prefers']} one) {baseline['accuracy']:.0%}"
    )
    return Artifact(KIND, made.path, metrics={k: v for k, v in made.to_dict().items() if k != "path"})
