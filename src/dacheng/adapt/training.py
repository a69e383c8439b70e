"""Training on conversations: an adapter around a frozen base, or the weights themselves, by the one Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dacheng.adapt.attach import add_lora, targeted
from dacheng.adapt.counts import trainable
from dacheng.adapt.settings import AdaptTrainConfig, ChatTrainConfig
from dacheng.adapt.step_log import StepLog
from dacheng.data.beginnings import TreeSource, tree_source
from dacheng.errors import DachengError, UsageError
from dacheng.formats.peft import write_adapter
from dacheng.formats.peft.names import PeftNames
from dacheng.models.decoder import Decoder
from dacheng.nn.lora_config import Adapter
from dacheng.objectives.base import StepContext
from dacheng.objectives.neftune import Neftune
from dacheng.objectives.next_token import NextToken
from dacheng.records import Drops, Record
from dacheng.train.callbacks import Callback
from dacheng.train.outcome import RESULT, TRAINING, Outcome
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import ChatRenderer
    from dacheng.train.report import StepReport, TrainResult

ADAPTER, SNAPSHOT = "adapter", "snapshot"


@dataclass(frozen=True, kw_only=True)
class AdapterResult(Outcome):
    """path: the adapter, a PEFT directory, or the model's directory. loss_before, loss_after: mean nats of an
    assistant's token, on what was held out, else on some rows of the training. trained, total: numbers of weights."""

    loss_before: float
    loss_after: float
    examples: int
    trained: int
    total: int


def train_adapter(
    base: Path | str | Decoder,
    examples: Sequence[Record],
    out: Path | str,
    config: AdaptTrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    renderer: ChatRenderer | None = None,
    held_out: Sequence[Record] = (),
    ledger: Ledger | None = None,
) -> AdapterResult:
    """Trains LoRA on `examples` (records with messages) and writes out/adapter (PEFT), out/training/log.jsonl,
    out/training/result.json and checkpoints; goes on from those of a run that was killed, to the same bytes.

    base: a directory, a GGUF file, or a model, which then keeps the adapter and needs a renderer. Only what the
    assistant says is learnt. Raises DachengError for a base without a chat template, examples of which none is left,
    and what Trainer.fit raises.
    """
    out = Path(out)
    model, renderer, name, _ = opened(base, renderer, small=config.base_memory == "small")
    adapter: list[Adapter] = []

    def prepare() -> list[Callback]:
        adapter.append(add_lora_to_top(model, config))
        if config.snapshot_every is None:
            return []
        return [_Snapshot(adapter[0], model, name, out / TRAINING / SNAPSHOT, config.snapshot_every)]

    def write() -> Path:
        return write_adapter(out / ADAPTER, adapter[0], model, base=name)

    return fit_chats(
        model, renderer, examples, out, config, prepare, write, callbacks, held_out=held_out, ledger=ledger
    )


def fit_chats(
    model: Decoder,
    renderer: ChatRenderer,
    examples: Sequence[Record],
    out: Path,
    config: ChatTrainConfig,
    prepare: Callable[[], Sequence[Callback]],
    write: Callable[[], Path],
    callbacks: Sequence[Callback] = (),
    *,
    held_out: Sequence[Record] = (),
    ledger: Ledger | None = None,
) -> AdapterResult:
    """One run of the Trainer over conversations, whatever of the model is trained.

    prepare: says what, by requires_grad, once the examples are known to be there, and may bring callbacks. write:
    leaves the result after the last step.
    """
    drops = Drops()
    source = _source(examples, renderer, model, config, drops)
    measured = _source(held_out, renderer, model, config, Drops()) if held_out else source
    brought = prepare()
    losses = _Losses(_some_rows(measured, config))
    objective = NextToken(routed=model.traits.moe is not None)
    phase = Phase(Neftune(objective, config.neftune) if config.neftune else objective)
    settings = config.trainer(source.steps_per_epoch)
    own = [StepLog(), losses, *brought, *callbacks]
    done = Trainer(model, [phase], source, own, settings, out / TRAINING, ledger=ledger).fit()
    path, counts = write(), trainable(model)
    result = AdapterResult(
        **Outcome.told(path, done, drops), loss_before=losses.before, loss_after=losses.after, examples=drops.kept,
        trained=counts.trained, total=counts.total,
    )  # fmt: skip
    result.write(out / TRAINING / RESULT)
    return result


class Opened(NamedTuple):
    """name: what an adapter calls its base. generation: of its generation_config.json."""

    model: Decoder
    renderer: ChatRenderer
    name: str
    generation: dict[str, Any]


def opened(base: Path | str | Decoder, renderer: ChatRenderer | None, *, small: bool = False) -> Opened:
    """The base and the renderer of its chats. small: with the packed weights of a GGUF file or of a quantised directory
    (QLoRA, with NF4 as in its paper)."""
    if isinstance(base, Decoder):
        if renderer is None:
            raise UsageError("a model needs its renderer", field="renderer", remedy="ChatRenderer(tokenizer)")
        return Opened(base, renderer, base.family or "", {})
    from dacheng.formats.model_directory import load_model
    from dacheng.formats.packed import is_packed
    from dacheng.text import ChatRenderer

    if small and not is_packed(base):
        raise UsageError("this base has no packed weights", field="base_memory", value="small",
                         remedy="base_memory: fast, or a .gguf file, or what dacheng compress made")  # fmt: skip
    loaded = load_model(base, dtype="float32", packed=small)
    if renderer is None:
        if loaded.tokenizer is None:
            raise DachengError("the base has no tokenizer", field="base", value=str(base), remedy="add its files")
        renderer = ChatRenderer(loaded.tokenizer)
    return Opened(loaded.model, renderer, str(base), loaded.generation)


def add_lora_to_top(model: Decoder, config: AdaptTrainConfig) -> Adapter:
    """A fresh adapter around the targets in the top `layers` blocks. What lies below has no gradient to compute: its
    forward keeps nothing, and the backward ends above it."""
    lora, depth = config.lora, model.traits.layers
    if config.layers is not None and config.layers < depth:
        top = tuple(
            name for name in targeted(model, lora, PeftNames.of(model))
            if (block := block_of(name)) is not None and block >= depth - config.layers
        )  # fmt: skip
        if not top:
            raise UsageError("no target lies in the top layers", field="layers", value=config.layers,
                             remedy=f"the targets are {', '.join(lora.targets)}")  # fmt: skip
        from dataclasses import replace

        lora = replace(lora, targets=top)
    return add_lora(model, lora, generator=torch.Generator().manual_seed(derive_seed(config.seed, "init")))


def block_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else None


def _source(
    examples: Sequence[Record], renderer: ChatRenderer, model: Decoder, config: ChatTrainConfig, drops: Drops
) -> TreeSource:
    """A row is a micro-batch: the memory for the backward is one row's."""
    t = model.traits
    # Experts are kept busy alike by counting the tokens of a batch, and n-grams read the tokens before one.
    share = config.share_beginnings and t.moe is None and not t.ngram_lengths
    return tree_source(
        examples, renderer, context_length=config.row_tokens, batch_rows=config.batch_rows,
        seed=derive_seed(config.seed, "data"), share=share, drops=drops, learn=config.learn,
    )  # fmt: skip


def _some_rows(source: TreeSource, config: ChatTrainConfig) -> list[Any]:
    rows = min(config.held_out_rows, source.packing.rows)
    return [source.rows(np.arange(row, row + 1)) for row in range(rows)]


@torch.no_grad()
def mean_loss(model: Decoder, batches: Sequence[Any]) -> float:
    """Nats a target, over all batches."""
    objective, total, count = NextToken(routed=model.traits.moe is not None), 0.0, 0.0
    for batch in batches:
        terms, _ = objective(model, batch, StepContext(training=False))
        total += float(terms["next_token"].sum)
        count += objective.counts(batch)["next_token"]
    return total / count if count else math.nan


class _Losses(Callback):
    """The loss before the first step and after the last; a resume keeps the first."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.before, self.after = batches, math.nan, math.nan

    def on_start(self, trainer: Trainer) -> None:
        if math.isnan(self.before):
            self.before = self._measured(trainer)

    def on_end(self, trainer: Trainer, result: TrainResult) -> None:
        self.after = self._measured(trainer)

    def _measured(self, trainer: Trainer) -> float:
        with trainer.aside():
            return mean_loss(trainer.model, self.batches)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"before": None if math.isnan(self.before) else self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = math.nan if state["before"] is None else float(state["before"])


class _Snapshot(Callback):
    """The adapter as it is now, for others to read while the training goes on."""

    def __init__(self, adapter: Adapter, model: Decoder, base: str, path: Path, every: int) -> None:
        self.adapter, self.model, self.base, self.path, self.every = adapter, model, base, path, every

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every == 0 or trainer.at_end:
            write_adapter(self.path, self.adapter, self.model, base=self.base)
