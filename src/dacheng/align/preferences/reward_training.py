"""Training a reward model on comparisons: a decoder with one number for a head (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dacheng.adapt.counts import trainable
from dacheng.adapt.step_log import StepLog
from dacheng.adapt.training import RESULT, TRAINING, opened
from dacheng.align.preferences.measure import accuracy, shorter_or_longer
from dacheng.align.preferences.reward_model import RewardModel, row_scores
from dacheng.align.preferences.settings import RewardTrainConfig
from dacheng.align.preferences.training import make_trainable
from dacheng.data.pairs import PairRows, PairSource
from dacheng.data.preferences import Preference as Saying
from dacheng.data.preferences import pair_rows, without_prompts
from dacheng.formats.json_files import write_json
from dacheng.formats.peft import write_adapter
from dacheng.models.decoder import Decoder
from dacheng.models.scalar_head import Scorer
from dacheng.objectives.reward_model import RewardRanking
from dacheng.records import Drops
from dacheng.train.callbacks import Callback, Evaluate
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import ChatRenderer

REWARD = "reward"


@dataclass(frozen=True, slots=True)
class RewardResult:
    """path: the reward model's directory. accuracy: of the pairs measured on, [estimate, low, high] at 95%; margin:
    mean difference of scores. length_baseline: see measure.shorter_or_longer; training_accuracy: on as many pairs that
    were learnt from."""

    path: Path
    steps: int
    tokens: int
    seconds: float
    pairs: int
    measured_on: str
    measured_pairs: int
    accuracy: list[float]
    training_accuracy: float
    margin: float
    length_baseline: dict[str, Any]
    trained: int
    total: int
    resumed_from: int | None
    budget: list[str]
    drops: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


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
    preferences = without_prompts(preferences, held_out, drops) if held_out else preferences
    rows = pair_rows(preferences, found.renderer, c.max_tokens, drops)
    unmeasured = Drops()
    measured = pair_rows(held_out, found.renderer, c.max_tokens, unmeasured) if held_out else rows
    for reason, count in unmeasured.dropped.items():
        drops.alter(f"held_out:{reason}", count)
    measured = measured[: c.eval_pairs]
    adapter = make_trainable(found.model, c)
    scorer = Scorer(found.model)
    source = PairSource(
        rows, c.batch_pairs, pad_id=pad_id, micro_batches=c.micro_batches, seed=derive_seed(c.seed, "data")
    )

    def look(model: Any) -> dict[str, float]:
        one, other = _scores(model, measured, pad_id)
        return {"accuracy": float((one > other).float().mean()), "margin": float((one - other).mean())}

    own: list[Callback] = [StepLog(), Evaluate(look, c.eval_every or 10**9, "eval")]
    phase, settings = Phase(RewardRanking(c.centre)), c.trainer(source.steps_per_epoch)
    trainer = Trainer(scorer, [phase], source, [*own, *callbacks], settings, out / TRAINING, ledger=ledger)
    done = trainer.fit()
    with trainer.aside():
        chosen, rejected = _scores(scorer, measured, pad_id)
        learnt = _scores(scorer, rows[: c.eval_pairs], pad_id)
    seen = torch.cat(learnt)
    std = float(seen.std()) if seen.numel() > 1 and float(seen.std()) > 0 else 1.0
    judge = RewardModel(scorer, found.renderer, float(seen.mean()), std)
    right, counts = accuracy(chosen, rejected), trainable(scorer)
    result = RewardResult(
        out / REWARD, done.steps, done.tokens, done.seconds, len(rows), "held out" if held_out else "training",
        len(measured), [right.estimate, right.low, right.high], accuracy(*learnt).estimate,
        float((chosen - rejected).mean()), shorter_or_longer(rows, measured), counts.trained, counts.total,
        done.resumed_from, done.budget, drops.to_dict(), done.warnings,
    )  # fmt: skip
    if adapter is not None:
        write_adapter(out / REWARD, adapter, found.model, base=found.name)
    else:
        from dacheng.formats.model_directory import save_model

        tokenizer = found.renderer.tokenizer
        save_model(out / REWARD, found.model, tokenizer, generation=found.generation, provenance=provenance)
    judge.save_head(out / REWARD, found.name, {"accuracy": result.accuracy, "measured_on": result.measured_on})
    write_json(out / TRAINING / RESULT, result.to_dict())
    return result


def _scores(scorer: Scorer, pairs: Sequence[PairRows], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the chosen and of the rejected ones, (N,) each."""
    found = row_scores(scorer, [row for pair in pairs for row in pair[:2]], pad_id).view(-1, 2)
    return found[:, 0], found[:, 1]
