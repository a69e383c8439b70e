"""Training a policy on preferences: the one Trainer, with an adapter around a frozen base or on the weights themselves.

Rafailov et al. 2023 and its relatives (objectives.preference). The reference is the policy as it was before the first
step, or another model; what it says of each row is computed once and kept on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dacheng.adapt.training import ADAPTER, opened
from dacheng.align.preferences.measure import accuracy, logps_of, pair_metrics
from dacheng.align.preferences.reference import Progress, ReferenceCache, model_digest
from dacheng.align.preferences.run import PairResult, both_sides, fit_pairs, make_trainable, told, write_trained
from dacheng.align.preferences.settings import PreferTrainConfig
from dacheng.data.pair_layouts import Comparison
from dacheng.data.pairs import PairRows
from dacheng.data.preferences import Preference as Saying
from dacheng.data.preferences import marked_rows, pair_rows
from dacheng.errors import DachengError
from dacheng.models.decoder import Decoder
from dacheng.objectives.preference import Preference
from dacheng.records import Drops
from dacheng.train.callbacks import Callback
from dacheng.train.outcome import MODEL, RESULT, TRAINING
from dacheng.train.rng import derive_seed

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import ChatRenderer


@dataclass(frozen=True, kw_only=True)
class PreferenceResult(PairResult):
    """path: the adapter (PEFT), or the model's directory. before, after: see measure.pair_metrics; accuracy:
    rewards/accuracies after. references: rows whose reference was computed now, and those that were on disk."""

    loss: str
    before: dict[str, float]
    after: dict[str, float]
    references: dict[str, int]


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
    model, pad_id, drops = found.model, found.renderer.tokenizer.pad_id or 0, Drops()
    rendering: dict[str, Any] = {"renderer": found.renderer, "max_tokens": c.max_tokens}
    learnt = partial(pair_rows, **rendering)
    if c.objective.loss == "kto":
        learnt = partial(marked_rows, seed=derive_seed(c.seed, "others"), **rendering)
    rows, measured = both_sides(preferences, held_out, c, drops, learnt, partial(_measured, **rendering))
    judge, digest = _reference(model, reference)
    kept = ReferenceCache(digest, cache)
    wanted = [row for pair in [*measured, *(rows if c.objective.needs_reference else [])] for row in pair[:2]]
    kept.fill(judge, wanted, pad_id, progress)
    judged = kept.of(measured)
    # of the policy that has learnt nothing yet; where it is its own reference, that has just been computed
    start = judged if judge is model else logps_of(model, measured, pad_id)
    adapter = make_trainable(model, c)
    last: list[Tensor] = []

    def look(policy: Any) -> dict[str, float]:
        last[:] = [logps_of(policy, measured, pad_id)]
        return pair_metrics(last[0], judged, measured, c.objective.strength)

    objective = Preference(c.objective, routed=model.traits.moe is not None)
    trainer, done = fit_pairs(
        model, objective, rows, look, c, out / TRAINING, callbacks, pad_id=pad_id, ledger=ledger,
        reference=kept.of(rows) if c.objective.needs_reference else None,
    )  # fmt: skip
    if not last:  # all was done before
        with trainer.aside():
            look(model)
    gained = last[0] - judged
    path = write_trained(out / (MODEL if adapter is None else ADAPTER), found, adapter, provenance)
    result = PreferenceResult(
        **told(path, done, drops, model, rows, measured, bool(held_out), accuracy(gained[:, 0], gained[:, 1])),
        loss=c.loss,
        before=pair_metrics(start, judged, measured, c.objective.strength),
        after=pair_metrics(last[0], judged, measured, c.objective.strength),
        references={"computed": kept.computed, "kept": len({r.key for r in wanted}) - kept.computed},
    )  # fmt: skip
    result.write(out / TRAINING / RESULT)
    return result


def _measured(
    preferences: Sequence[Saying], *, renderer: ChatRenderer, max_tokens: int, drops: Drops
) -> list[PairRows]:
    """The comparisons; where there are none, each wanted reply beside an unwanted one, to whatever prompt."""
    if any(isinstance(preference.said, Comparison) for preference in preferences):
        return pair_rows(preferences, renderer, max_tokens, drops)
    marked = marked_rows(preferences, renderer, max_tokens, drops)
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
