"""do: prefer. Trains a policy on preferences by DPO, IPO, KTO, ORPO, SimPO, CPO…: an adapter, or the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.align.preferences.settings import PreferTrainConfig
from dacheng.recipes import part_of
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named, preferring
from dacheng.stages.base import Input, StageContext
from dacheng.stages.sft import save_merged

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model", required=False)}


@dataclass(frozen=True, kw_only=True)
class Config(PreferTrainConfig):
    """Everything of PreferTrainConfig (loss, beta, rank, lr, steps…), and:

    model: a directory or a GGUF file; null for the one of `from:`. data: files of preferences, in any layout of
    data.pair_layouts. held_out: such files that are not learnt from; without, a share held_out_fraction of the prompts
    (null: a tenth). reference: the model to stay near; null for the model as it is.
    """

    model: str | None = None
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    held_out_fraction: float | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        preferring.check_files(self.data, self.held_out, self.held_out_fraction)
        super().__post_init__()


def externals(config: Config) -> dict[str, Any]:
    """The weights and the preferences. Raises DachengError for a file that is not there."""
    return named.hashes(
        named.weights("model", config.model), named.weights("reference", config.reference),
        named.files("data", config.data), named.files("held_out", config.held_out),
    )  # fmt: skip


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (a model directory), with rank above 0 adapter/ (PEFT) beside it, and training/; goes on from an
    interrupted run, to the same bytes. Raises what train_preferences raises."""
    from dacheng.align.preferences.training import train_preferences
    from dacheng.train.progress import Progress

    base, unread = named.base_of(config.model, inputs), Drops()
    learnt, held_out = preferring.read_sides(config.data, config.held_out, config.held_out_fraction, unread)
    settings = part_of(PreferTrainConfig, config)
    provenance = learning.provenance(base, context, config.seed)
    with preferring.counted(context.reporter, "reference log-probabilities") as progress:
        made = train_preferences(
            base, learnt, out, settings, [Progress()], held_out=held_out, reference=config.reference,
            progress=progress, ledger=context.ledger, provenance=provenance,
        )  # fmt: skip
    learning.tell_drops("preferences", context, unread, made.drops)
    share, low, high = made.accuracy
    context.reporter.note(
        f"{made.measured_pairs} {made.measured_on} pairs: the chosen reply gained more in {share:.0%} "
        f"({low:.0%} to {high:.0%}); "
        f"log-probability of chosen {made.before['logps/chosen']:.1f} -> {made.after['logps/chosen']:.1f}, "
        f"rejected {made.before['logps/rejected']:.1f} -> {made.after['logps/rejected']:.1f}"
    )  # fmt: skip
    if config.rank:
        context.reporter.note(save_merged(base, made.path, out / "model", provenance))
    return Artifact(KIND, out / "model", metrics=made.figures())
