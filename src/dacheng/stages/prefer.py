"""do: prefer. Trains a policy on preferences by DPO, IPO, KTO, ORPO, SimPO, CPO…: an adapter, or the weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dacheng.align.preferences.settings import PreferTrainConfig
from dacheng.records import Artifact, Drops
from dacheng.stages import preferring
from dacheng.stages.base import Input, StageContext
from dacheng.stages.sft import base_of, save_merged

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
    return preferring.hashes_of((config.model, config.reference), config.data + config.held_out)


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (a model directory), with rank above 0 adapter/ (PEFT) beside it, and training/; goes on from an
    interrupted run, to the same bytes. Raises what train_preferences raises."""
    from dacheng.align.preferences.training import train_preferences
    from dacheng.formats.provenance import weights_hash
    from dacheng.train.progress import Progress

    base, unread = base_of(config.model, inputs), Drops()
    learnt, held_out = preferring.read_sides(config.data, config.held_out, config.held_out_fraction, unread)
    settings = PreferTrainConfig(**{f.name: getattr(config, f.name) for f in fields(PreferTrainConfig)})
    recipe = {"life": context.life, "stage": context.name, "fingerprint": context.fingerprint, "seed": config.seed}
    provenance = {"parent": weights_hash(base) if base.is_dir() else None, "recipe": recipe}
    with context.reporter.task("reference log-probabilities") as task:
        made = train_preferences(
            base, learnt, out, settings, [Progress()], held_out=held_out, reference=config.reference,
            progress=lambda done, total: task.update(done, total=total), ledger=context.ledger, provenance=provenance,
        )  # fmt: skip
    preferring.tell_drops(made.drops, unread, context)
    share, low, high = made.accuracy
    context.reporter.note(
        f"{made.measured_pairs} {made.measured_on} pairs: the chosen reply gained more in {share:.0%} "
        f"({low:.0%} to {high:.0%}); "
        f"log-probability of chosen {made.before['logps/chosen']:.1f} -> {made.after['logps/chosen']:.1f}, "
        f"rejected {made.before['logps/rejected']:.1f} -> {made.after['logps/rejected']:.1f}"
    )  # fmt: skip
    if config.rank:
        context.reporter.note(save_merged(base, made.path, out / "model", provenance))
    return Artifact(KIND, out / "model", metrics={k: v for k, v in made.to_dict().items() if k != "path"})
