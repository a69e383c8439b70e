"""What a policy's training on preferences and a reward model's share: rows, the Trainer, what is told and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dacheng.adapt.counts import trainable
from dacheng.adapt.full import choose_top
from dacheng.adapt.step_log import StepLog
from dacheng.adapt.training import Opened, add_lora_to_top
from dacheng.align.preferences.settings import PairTrainConfig
from dacheng.data.pairs import PairRows, PairSource
from dacheng.data.preferences import Preference, without_prompts
from dacheng.evaluate.intervals import Interval
from dacheng.formats.model_directory import save_model
from dacheng.formats.peft import write_adapter
from dacheng.models.decoder import Decoder
from dacheng.nn.lora_config import Adapter
from dacheng.objectives.base import Objective
from dacheng.records import Drops
from dacheng.train.callbacks import Callback, Evaluate
from dacheng.train.outcome import Outcome
from dacheng.train.phases import Phase
from dacheng.train.report import TrainResult
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger

RowsOf = Callable[..., list[PairRows]]
"""Of preferences, with drops=…: such as data.preferences.pair_rows with its renderer."""


@dataclass(frozen=True, kw_only=True)
class PairResult(Outcome):
    """pairs: that were learnt from. measured_on: "held out" or "training", of which there were measured_pairs.
    accuracy: of these, [estimate, low, high] at 95%. trained, total: numbers of weights."""

    pairs: int
    measured_on: str
    measured_pairs: int
    accuracy: list[float]
    trained: int
    total: int


def both_sides(
    preferences: Sequence[Preference],
    held_out: Sequence[Preference],
    config: PairTrainConfig,
    drops: Drops,
    learnt: RowsOf,
    measured: RowsOf,
) -> tuple[list[PairRows], list[PairRows]]:
    """(what is learnt, the pairs that are measured on). Prompts that are held out are not learnt from; where none are,
    what is learnt is measured on. What is dropped of the held-out ones counts as altered, under "held_out:REASON"."""
    if not held_out:
        rows = learnt(preferences, drops=drops)
        return rows, (rows if measured is learnt else measured(preferences, drops=Drops()))[: config.eval_pairs]
    rows, unmeasured = learnt(without_prompts(preferences, held_out, drops), drops=drops), Drops()
    found = measured(held_out, drops=unmeasured)
    for reason, count in unmeasured.dropped.items():
        drops.alter(f"held_out:{reason}", count)
    return rows, found[: config.eval_pairs]


def make_trainable(model: Decoder, config: PairTrainConfig) -> Adapter | None:
    """A fresh adapter around the top `layers` blocks, or with rank 0 their weights; the rest is frozen."""
    depth = model.traits.layers
    if config.rank:
        return add_lora_to_top(model, config.adapter)
    choose_top(model, None if config.layers is None or config.layers >= depth else config.layers)
    return None


def fit_pairs(
    model: nn.Module,
    objective: Objective,
    rows: Sequence[PairRows],
    look: Callable[[Any], dict[str, float]],
    config: PairTrainConfig,
    out: Path,
    callbacks: Sequence[Callback],
    *,
    pad_id: int,
    reference: Tensor | None = None,
    ledger: Ledger | None = None,
) -> tuple[Trainer, TrainResult]:
    """One run of the Trainer over pairs. look: what is measured of the model, every config.eval_every steps and at the
    end. reference (N, 2): see PairSource. Raises what Trainer.fit raises."""
    source = PairSource(
        rows, config.batch_pairs, pad_id=pad_id, micro_batches=config.micro_batches,
        seed=derive_seed(config.seed, "data"), reference=reference,
    )  # fmt: skip
    own: list[Callback] = [StepLog(), Evaluate(look, config.eval_every, "eval")]
    settings = config.trainer(source.steps_per_epoch)
    trainer = Trainer(model, [Phase(objective)], source, [*own, *callbacks], settings, out, ledger=ledger)
    return trainer, trainer.fit()


def write_trained(
    path: Path, found: Opened, adapter: Adapter | None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """The adapter (PEFT), or with None the model's directory."""
    if adapter is not None:
        return write_adapter(path, adapter, found.model, base=found.name)
    tokenizer = found.renderer.tokenizer
    return save_model(path, found.model, tokenizer, generation=found.generation, provenance=provenance)


def told(
    path: Path, done: TrainResult, drops: Drops, model: nn.Module, rows: Sequence[PairRows],
    measured: Sequence[PairRows], held_out: bool, right: Interval,
) -> dict[str, Any]:  # fmt: skip
    """The fields of PairResult. right: the accuracy."""
    counts = trainable(model)
    return {
        **Outcome.told(path, done, drops), "pairs": len(rows), "measured_pairs": len(measured),
        "measured_on": "held out" if held_out else "training", "accuracy": [right.estimate, right.low, right.high],
        "trained": counts.trained, "total": counts.total,
    }  # fmt: skip
