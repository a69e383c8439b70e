"""Training a reward model on comparisons: a decoder with one number for a head (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dacheng.adapt.training import opened
from dacheng.align.preferences.measure import accuracy, shorter_or_longer
from dacheng.align.preferences.reward_model import RewardModel, row_scores
from dacheng.align.preferences.run import PairResult, both_sides, fit_pairs, make_trainable, told, write_trained
from dacheng.align.preferences.settings import RewardTrainConfig
from dacheng.data.pairs import PairRows
from dacheng.data.preferences import Preference as Saying
from dacheng.data.preferences import pair_rows
from dacheng.models.decoder import Decoder
from dacheng.models.scalar_head import Scorer
from dacheng.objectives.reward_model import RewardRanking
from dacheng.records import Drops
from dacheng.train.callbacks import Callback
from dacheng.train.outcome import RESULT, TRAINING

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import ChatRenderer

REWARD = "reward"


@dataclass(frozen=True, kw_only=True)
class RewardResult(PairResult):
    """path: the reward model's directory. margin: mean difference of scores. length_baseline: see
    measure.shorter_or_longer; training_accuracy: on as many pairs that were learnt from."""

    training_accuracy: float
    margin: float
    length_baseline: dict[str, Any]


def train_reward(
    base: Path | str | Decoder,
    preferences: Sequence[Saying],
    out: Path | str,
    config: RewardTrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    renderer: ChatRenderer | None = None,
    held_out: Sequence[Saying] = (),
    ledger: Ledger | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> RewardResult:
    """Trains a score that ranks chosen over rejected and writes out/reward: an adapter or weights, the head, and the
    scale of the scores; RewardModel.load reads it. out/training as of train_preferences; goes on from a killed run.

    base: a directory, a GGUF file, or a model, which then needs a renderer. Raises DachengError where no pair is left,
    and what Trainer.fit raises.
    """
    out, c = Path(out), config
    found, drops = opened(base, renderer), Drops()
    pad_id = found.renderer.tokenizer.pad_id or 0
    rows_of = partial(pair_rows, renderer=found.renderer, max_tokens=c.max_tokens)
    rows, measured = both_sides(preferences, held_out, c, drops, rows_of, rows_of)
    adapter = make_trainable(found.model, c)
    scorer = Scorer(found.model)

    def look(model: Any) -> dict[str, float]:
        one, other = _scores(model, measured, pad_id)
        return {"accuracy": float((one > other).float().mean()), "margin": float((one - other).mean())}

    trainer, done = fit_pairs(
        scorer, RewardRanking(c.centre), rows, look, c, out / TRAINING, callbacks, pad_id=pad_id, ledger=ledger
    )
    with trainer.aside():
        chosen, rejected = _scores(scorer, measured, pad_id)
        learnt = _scores(scorer, rows[: c.eval_pairs], pad_id)
    seen = torch.cat(learnt)
    std = float(seen.std()) if seen.numel() > 1 and float(seen.std()) > 0 else 1.0
    judge = RewardModel(scorer, found.renderer, float(seen.mean()), std)
    path, right = write_trained(out / REWARD, found, adapter, provenance), accuracy(chosen, rejected)
    result = RewardResult(
        **told(path, done, drops, scorer, rows, measured, bool(held_out), right),
        training_accuracy=accuracy(*learnt).estimate, margin=float((chosen - rejected).mean()),
        length_baseline=shorter_or_longer(rows, measured),
    )  # fmt: skip
    judge.save_head(path, found.name, {"accuracy": result.accuracy, "measured_on": result.measured_on})
    result.write(out / TRAINING / RESULT)
    return result


def _scores(scorer: Scorer, pairs: Sequence[PairRows], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the chosen and of the rejected ones, (N,) each."""
    found = row_scores(scorer, [row for pair in pairs for row in pair[:2]], pad_id).view(-1, 2)
    return found[:, 0], found[:, 1]
