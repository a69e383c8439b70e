"""How good a policy is on prompts that it does not learn from: rewards, pass@k, and who wins, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.source import RewardFunction
from dacheng.align.rewards.base import Sample
from dacheng.align.rollouts.ask import Ask, Sampling
from dacheng.align.rollouts.inline import Continuation, InlineWorker
from dacheng.errors import DachengError
from dacheng.evaluate.intervals import Interval, bootstrap_mean
from dacheng.formats.json_files import read_json, write_json
from dacheng.models.decoder import Decoder
from dacheng.train.rng import derive_seed


@dataclass(slots=True)
class Measured:
    """prompts: their texts. rewards, texts, lengths: for each prompt, of each of its answers. A reward is NaN where
    none could say."""

    prompts: list[str]
    rewards: list[list[float]]
    texts: list[list[str]]
    lengths: list[list[int]]

    def mean_reward(self) -> Interval:
        """Over prompts, with a 95% bootstrap interval over them; its ends are NaN where fewer than two were judged."""
        return _interval([v for v in map(_mean, self.rewards) if math.isfinite(v)])

    def pass_at(self, k: int, threshold: float = 1.0) -> Interval:
        """Over prompts: that one of k answers has a reward of at least `threshold`."""
        right = [[r >= threshold for r in answers] for answers in self.rewards]
        return bootstrap_mean([pass_at_k(len(answers), sum(answers), k) for answers in right])

    def to_dict(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "rewards": self.rewards, "texts": self.texts, "lengths": self.lengths}

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Measured | None:
        """None where there is no such file."""
        if not path.is_file():
            return None
        found = read_json(path)
        rewards = [[float(r) for r in row] for row in found["rewards"]]
        return cls(found["prompts"], rewards, found["texts"], found["lengths"])


def measure(
    model: Decoder,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    sampling: Sampling,
    *,
    answers: int = 1,
    seed: int = 0,
    continuation: Continuation | None = None,
) -> Measured:
    """`answers` answers to each prompt. The seeds are those of the prompts, so two policies are compared on the same
    draws. continuation: see InlineWorker."""
    worker = InlineWorker(model, tokenizer, sampling, continuation=continuation)
    asks = [
        Ask(f"{i}.{n}", prompt.token_ids, str(i), derive_seed(seed, "held_out", i, n))
        for i, prompt in enumerate(prompts)
        for n in range(answers)
    ]
    rollouts = worker.generate(asks)
    worker.close()
    told = [
        Sample(p.text, p.messages, r.text, {"id": p.id, **p.meta}, r.finish_reason, r.own_tokens)
        for r, p in zip(rollouts, (p for p in prompts for _ in range(answers)))
    ]
    totals = [math.nan if judged.total is None else judged.total for judged in reward(told)]
    rows = range(0, len(asks), answers)
    return Measured(
        [prompt.text for prompt in prompts],
        [totals[i : i + answers] for i in rows],
        [[r.text for r in rollouts[i : i + answers]] for i in rows],
        [[r.own_tokens for r in rollouts[i : i + answers]] for i in rows],
    )


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n answers hold a right one (Chen et al. 2021, eq. 1). Raises
    DachengError for fewer answers than k."""
    if n < k:
        raise DachengError(f"pass@{k} needs {k} answers to a prompt", field="answers", value=n, remedy="sample more")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def win_rate(after: Measured, before: Measured) -> Interval:
    """How often an answer is worth more than the one with the same seed before; a draw counts half. The interval is of
    a bootstrap over prompts, with NaN for its ends where fewer than two were judged both times."""
    wins = []
    for ours, theirs in zip(after.rewards, before.rewards):
        pairs = [(a, b) for a, b in zip(ours, theirs) if math.isfinite(a) and math.isfinite(b)]
        if pairs:
            wins.append(_mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    return _interval(wins)


def _interval(values: Sequence[float]) -> Interval:
    """A run whose rewards could say little of what is held out is to end, and be saved, all the same."""
    if len(values) > 1:
        return bootstrap_mean(values)
    return Interval(_mean(values), math.nan, math.nan, 0.95, len(values))


def _mean(values: Sequence[float]) -> float:
    said = [v for v in values if math.isfinite(v)]
    return math.fsum(said) / len(said) if said else math.nan
