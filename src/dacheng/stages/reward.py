"""do: reward. Trains a reward model on comparisons: a decoder that says how good a reply is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.align.preferences.settings import RewardTrainConfig
from dacheng.recipes import part_of
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named, preferring
from dacheng.stages.base import Input, StageContext

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
    return named.hashes(
        named.weights("model", config.model), named.files("data", config.data), named.files("held_out", config.held_out)
    )


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves reward/ (see align.preferences.reward_model) and training/; goes on from an interrupted run, to the same
    bytes. Raises what train_reward raises."""
    from dacheng.align.preferences.reward_training import train_reward
    from dacheng.train.progress import Progress

    base, unread = named.base_of(config.model, inputs), Drops()
    learnt, held_out = preferring.read_sides(config.data, config.held_out, config.held_out_fraction, unread)
    made = train_reward(
        base, learnt, out, part_of(RewardTrainConfig, config), [Progress()], held_out=held_out, ledger=context.ledger,
        provenance=learning.provenance(base, context, config.seed),
    )  # fmt: skip
    learning.tell_drops("preferences", context, unread, made.drops)
    share, low, high = made.accuracy
    baseline = made.length_baseline
    context.reporter.note(
        f"{made.measured_pairs} {made.measured_on} pairs: {share:.0%} ranked right ({low:.0%} to {high:.0%}); "
        f"by length alone (the {baseline['prefers']} one) {baseline['accuracy']:.0%}"
    )
    return Artifact(KIND, made.path, metrics=made.figures())
