"""Training a policy on preferences: the one Trainer, with an adapter around a frozen base or on the weights themselves.

Rafailov et al. 2023 and its relatives (objectives.preference). The reference is the policy as it was before the first
step, or another model; what it says of each row is computed once and kept on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dacheng.adapt.counts import trainable
from dacheng.adapt.full import choose_top
from dacheng.adapt.step_log import StepLog
from dacheng.adapt.training import ADAPTER, MODEL, RESULT, TRAINING, Opened, add_lora_to_top, opened
from dacheng.align.preferences.measure import accuracy, logps_of, pair_metrics
from dacheng.align.preferences.reference import Progress, ReferenceCache, model_digest
from dacheng.align.preferences.settings import PairTrainConfig, PreferTrainConfig
from dacheng.data.pair_layouts import Comparison
from dacheng.data.pairs import PairRows, PairSource
from dacheng.data.preferences import Preference as Saying
from dacheng.data.preferences import marked_rows, pair_rows, without_prompts
from dacheng.errors import DachengError
from dacheng.formats.json_files import write_json
from dacheng.formats.peft import write_adapter
from dacheng.models.decoder import Decoder
from dacheng.nn.lora_config import Adapter
from dacheng.objectives.preference import Preference
from dacheng.records import Drops
from dacheng.train.callbacks import Callback, Evaluate
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import ChatRenderer


@dataclass(frozen=True, slots=True)
class PreferenceResult:
    """path: the adapter (PEFT), or the model's directory. before, after: see measure.pair_metrics, on `measured_on`
    ("held out" or "training") pairs; accuracy: rewards/accuracies after, [estimate, low, high] at 95%. references:
    rows whose reference was computed now, and those that were on disk."""

    path: Path
    loss: str
    steps: int
    tokens: int
    seconds: float
    pairs: int
    measured_on: str
    measured_pairs: int
    before: dict[str, float]
    after: dict[str, float]
    accuracy: list[float]
    trained: int
    total: int
    references: dict[str, int]
    resumed_from: int | None
    budget: list[str]
    drops: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "tokens_per_s": self.tokens_per_s}


def train_preferences(
    base: Path | str | Decoder,
    preferences: Sequence[Saying],
    out: Path | str,
    config: PreferTrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    renderer: ChatRenderer | None = None,
    held_out: Sequence[Saying] = (),
    reference: Path | str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    ledger: Ledger | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PreferenceResult:
    """Trains on `preferences` and writes out/adapter (PEFT) or, with rank 0, out/model; out/training has log.jsonl,
    train.jsonl with every metric, result.json and checkpoints. Goes on from those of a killed run, to the same bytes.

    base: a directory, a GGUF file, or a model, which then needs a renderer and keeps its adapter. Prompts that are held
    out are not trained on. reference: another model; None: the base as it is now. cache: where its log-probabilities
    are kept, see ReferenceCache. Raises DachengError where no pair is left and for a reference with another vocabulary,
    and what Trainer.fit raises.
    """
    out, c = Path(out), config
    found = opened(base, renderer)
    model, tokenizer, drops = found.model, found.renderer.tokenizer, Drops()
    pad_id = tokenizer.pad_id or 0
    rows, measured = _rows(preferences, held_out, found.renderer, c, drops)
    judge, digest = _reference(model, reference)
    kept = ReferenceCache(digest, cache)
    wanted = [row for pair in [*measured, *(rows if c.objective.needs_reference else [])] for row in pair[:2]]
    kept.fill(judge, wanted, pad_id, progress)
    judged = kept.of(measured)
    # of the policy that has learnt nothing yet; where it is its own reference, that has just been computed
    start = judged if judge is model else logps_of(model, measured, pad_id)
    adapter = make_trainable(model, c)
    source = PairSource(
        rows, c.batch_pairs, pad_id=pad_id, micro_batches=c.micro_batches, seed=derive_seed(c.seed, "data"),
        reference=kept.of(rows) if c.objective.needs_reference else None,
    )  # fmt: skip
    last: list[Tensor] = []

    def look(policy: Any) -> dict[str, float]:
        last[:] = [logps_of(policy, measured, pad_id)]
        return pair_metrics(last[0], judged, measured, c.objective.strength)

    own: list[Callback] = [StepLog(), Evaluate(look, c.eval_every or 10**9, "eval")]
    phase = Phase(Preference(c.objective, routed=model.traits.moe is not None))
    settings = c.trainer(source.steps_per_epoch)
    trainer = Trainer(model, [phase], source, [*own, *callbacks], settings, out / TRAINING, ledger=ledger)
    done = trainer.fit()
    if not last:  # all was done before
        with trainer.aside():
            look(model)
    gained = last[0] - judged
    right = accuracy(gained[:, 0], gained[:, 1])
    counts = trainable(model)
    result = PreferenceResult(
        write_trained(out, found, adapter, provenance), c.loss, done.steps, done.tokens, done.seconds, len(rows),
        "held out" if held_out else "training", len(measured),
        pair_metrics(start, judged, measured, c.objective.strength),
        pair_metrics(last[0], judged, measured, c.objective.strength), [right.estimate, right.low, right.high],
        counts.trained, counts.total, {"computed": kept.computed, "kept": len({r.key for r in wanted}) - kept.computed},
        done.resumed_from, done.budget, drops.to_dict(), done.warnings,
    )  # fmt: skip
    write_json(out / TRAINING / RESULT, result.to_dict())
    return result


def make_trainable(model: Decoder, config: PairTrainConfig) -> Adapter | None:
    """A fresh adapter around the top `layers` blocks, or with rank 0 their weights; the rest is frozen."""
    depth = model.traits.layers
    if config.rank:
        return add_lora_to_top(model, config.adapter)
    choose_top(model, None if config.layers is None or config.layers >= depth else config.layers)
    return None


def write_trained(
    out: Path, found: Opened, adapter: Adapter | None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """out/adapter, or out/model where the weights themselves were trained."""
    if adapter is not None:
        return write_adapter(out / ADAPTER, adapter, found.model, base=found.name)
    from dacheng.formats.model_directory import save_model

    tokenizer = found.renderer.tokenizer
    return save_model(out / MODEL, found.model, tokenizer, generation=found.generation, provenance=provenance)


def _rows(
    preferences: Sequence[Saying],
    held_out: Sequence[Saying],
    renderer: ChatRenderer,
    c: PreferTrainConfig,
    drops: Drops,
) -> tuple[list[PairRows], list[PairRows]]:
    """(what is learnt, the pairs that are measured on)."""
    preferences = without_prompts(preferences, held_out, drops) if held_out else preferences
    if c.objective.loss == "kto":
        rows = marked_rows(preferences, renderer, c.max_tokens, drops, derive_seed(c.seed, "others"))
    else:
        rows = pair_rows(preferences, renderer, c.max_tokens, drops)
    unmeasured = Drops()
    measured = _measured(held_out or preferences, renderer, c, unmeasured)
    for reason, count in unmeasured.dropped.items() if held_out else ():
        drops.alter(f"held_out:{reason}", count)
    return rows, measured[: c.eval_pairs]


def _measured(
    preferences: Sequence[Saying], renderer: ChatRenderer, c: PreferTrainConfig, drops: Drops
) -> list[PairRows]:
    """The comparisons; where there are none, each wanted reply beside an unwanted one, to whatever prompt."""
    if any(isinstance(preference.said, Comparison) for preference in preferences):
        return pair_rows(preferences, renderer, c.max_tokens, drops)
    marked = marked_rows(preferences, renderer, c.max_tokens, drops)
    wanted, unwanted = ([row.first for row in marked if row.desirable is side] for side in (True, False))
    found = [PairRows(one, other) for one, other in zip(wanted, unwanted)]
    if not found:
        raise DachengError("all replies have the same mark", field="data", value=len(marked),
                           remedy="give wanted and unwanted ones, for training and held out")  # fmt: skip
    return found


def _reference(model: Decoder, reference: Path | str | None) -> tuple[Decoder, str]:
    """The model that gives the reference's log-probabilities, and what it is known by."""
    if reference is None:
        return model, model_digest(model)
    other = opened(reference, None).model
    if other.traits.vocab_size != model.traits.vocab_size:
        raise DachengError(
            f"the reference has a vocabulary of {other.traits.vocab_size} tokens, the model of "
            f"{model.traits.vocab_size}", field="reference", value=str(reference),
            remedy="take one that reads the same tokens: the model before its training",
        )  # fmt: skip
    return other, model_digest(other)
