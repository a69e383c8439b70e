"""Healing: a short training after pruning, with adapters or of all weights, on text or by the unpruned model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dacheng.adapt.attach import add_lora
from dacheng.adapt.merge import merge_into
from dacheng.adapt.training import mean_loss
from dacheng.checks import at_least_one
from dacheng.compress.prune.schedule import CubicSchedule, KeepZeros
from dacheng.compress.prune.weights import masks_of, put_masks
from dacheng.data.batches import PackedSource, TokenBatch
from dacheng.data.chats import shards_of
from dacheng.data.packing import pack
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.lora_config import LoRAConfig
from dacheng.objectives.base import Objective
from dacheng.objectives.next_token import NextToken
from dacheng.train.callbacks import Callback
from dacheng.train.config import TrainConfig
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.schedules import ScheduleConfig
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class HealConfig:
    """how: "lora" trains adapters on all maps of the blocks and merges them; "full" trains every weight. lr: null for
    1e-3 with lora, 5e-5 with full. rank, alpha: of the adapters. batch_rows rows of context_length tokens a step.
    gradual: pruning goes on while it trains, from what there is to this sparsity at two thirds of the steps ("full"
    only); null for none."""

    steps: int = 100
    how: Literal["lora", "full"] = "lora"
    lr: float | None = None
    rank: int = 16
    alpha: float = 32.0
    context_length: int = 256
    batch_rows: int = 2
    gradual: float | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "rank", "batch_rows")
        if self.how not in ("lora", "full"):
            raise UsageError("no such way", field="how", value=self.how, remedy="lora or full")
        if self.gradual is not None and self.how != "full":
            raise UsageError("adapters cannot make zeros", field="gradual", value=self.gradual, remedy="how: full")


@dataclass(slots=True)
class HealReport:
    """Nats a token on what was held out, else on some rows of the healing text itself (which says that it learns, not
    how good it is): of the pruned model, and of the healed one as it is returned."""

    loss_before: float
    loss_after: float
    steps: int
    tokens: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def text_source(
    documents: Iterable[Sequence[int]], context_length: int, batch_rows: int = 1, *, seed: int = 0
) -> PackedSource:
    """Documents of token ids, cut into rows of `context_length`, in a seeded order. Raises UsageError where there are
    fewer tokens than a row takes."""
    arrays = [np.asarray(ids, dtype=np.int32) for ids in documents if len(ids)]
    total = sum(map(len, arrays))
    if total <= context_length:
        raise UsageError("the text is too short", field="text", value=f"{total} tokens",
                         remedy=f"give more than {context_length} tokens, or shorten context_length")  # fmt: skip
    shards = shards_of([(ids, np.ones(len(ids), dtype=np.bool_)) for ids in arrays])
    return PackedSource(shards, pack(shards, context_length, mode="concatenated"), batch_rows, seed=seed)


def heal(
    model: Decoder,
    documents: Iterable[Sequence[int]],
    out: Path,
    config: HealConfig,
    *,
    held_out: Sequence[TokenBatch] = (),
    objective: Objective | None = None,
    callbacks: Sequence[Callback] = (),
    ledger: Ledger | None = None,
) -> HealReport:
    """Trains `model`, in place, on `documents` (token ids), through the one Trainer; a stopped call goes on from the
    checkpoints in `out`.

    objective: next-token prediction by default; objectives.distil_tokens.DistilTokens heals by the unpruned model.
    Zeros stay zeros: with "full" after every step, with "lora" once, when the adapters are merged (what that costs is
    in the report). Raises UsageError for text that fills no row, and what Trainer.fit raises.
    """
    source = text_source(documents, config.context_length, config.batch_rows, seed=derive_seed(config.seed, "data"))
    rows = list(held_out) or [source.read([row]) for row in range(min(4, source.packing.rows))]
    masks, before = masks_of(model), mean_loss(model, rows)
    lora = config.how == "lora"
    if lora:
        settings = LoRAConfig(rank=config.rank, alpha=config.alpha)
        add_lora(model, settings, generator=torch.Generator().manual_seed(derive_seed(config.seed, "init")))
    own: list[Callback] = []
    if not lora and (masks or config.gradual is not None):
        own.append(KeepZeros(_schedule(config)))
    objective = NextToken(routed=model.traits.moe is not None) if objective is None else objective
    trainer = Trainer(model, [Phase(objective)], source, [*own, *callbacks], _settings(config), out, ledger=ledger)
    done = trainer.fit()
    notes = list(done.warnings)
    if lora:
        merge_into(model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if masks:
            beside = mean_loss(model, rows)
            put_masks(model, masks)
            notes.append(
                f"merging put the zeros back: {beside:.4f} nats a token before, {mean_loss(model, rows):.4f} after"
            )
    after = mean_loss(model, rows)
    if not math.isfinite(after):
        notes.append("the healed model's loss is not finite")
    return HealReport(before, after, done.steps, done.tokens, done.seconds, notes)


def _schedule(config: HealConfig) -> CubicSchedule | None:
    if config.gradual is None:
        return None
    end = max(1, config.steps * 2 // 3)  # the last third heals
    return CubicSchedule(config.gradual, 0, end, max(1, end // 20))


def _settings(config: HealConfig) -> TrainConfig:
    lr = config.lr if config.lr is not None else 1e-3 if config.how == "lora" else 5e-5
    return TrainConfig(
        steps=config.steps, seed=config.seed, precision="fp32",
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.0), schedule=ScheduleConfig(warmup=0.1, final=0.0),
        save_every=max(50, config.steps // 4),
    )  # fmt: skip
