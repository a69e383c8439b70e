"""Many answers to a prompt and a reward: the best of them, lessons from the best, and pairs of the best and the worst.

Best-of-n (Stiennon et al. 2020) changes no weight. Rejection sampling (Touvron et al. 2023, section 3.2.3; RAFT,
Dong et al. 2023) learns the best answers as if somebody had written them. Iterative DPO (Xu et al. 2023; Yuan et
al. 2024) samples pairs from the policy as it is, learns from them, and samples again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dacheng.align.preferences.reference import row_logps
from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.source import RewardFunction
from dacheng.align.rewards.base import Sample
from dacheng.align.rollouts.ask import Ask, Sampling
from dacheng.align.rollouts.inline import InlineWorker
from dacheng.data.batches import PackedSource
from dacheng.data.chats import shards_of
from dacheng.data.packing import pack
from dacheng.data.pairs import PairRows, PairSource, Row
from dacheng.data.rollouts import Rollout
from dacheng.errors import DachengError
from dacheng.models.decoder import Decoder
from dacheng.objectives.next_token import NextToken
from dacheng.objectives.preference import Preference, PreferenceConfig
from dacheng.train.config import TrainConfig
from dacheng.train.phases import Phase
from dacheng.train.report import TrainResult
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer


@dataclass(slots=True)
class Group:
    """Judged answers to one prompt, as they were sampled."""

    prompt: Prompt
    rollouts: list[Rollout]

    @property
    def judged(self) -> list[Rollout]:
        return [rollout for rollout in self.rollouts if rollout.reward is not None]

    def best(self) -> Rollout | None:
        """The first of the best; None where no reward could say anything."""
        return max(self.judged, key=lambda r: r.reward or 0.0, default=None)

    def worst(self) -> Rollout | None:
        return min(self.judged, key=lambda r: r.reward or 0.0, default=None)


def sample_groups(
    model: Decoder,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    sampling: Sampling,
    n: int,
    *,
    seed: int = 0,
) -> list[Group]:
    """n judged answers to each prompt. Raises what the engine and the rewards raise."""
    worker = InlineWorker(model, tokenizer, sampling)
    asks = [
        Ask(f"{i}.{k}", prompt.token_ids, str(i), derive_seed(seed, "selection", i, k))
        for i, prompt in enumerate(prompts)
        for k in range(n)
    ]
    rollouts = worker.generate(asks)
    worker.close()
    owners = [prompt for prompt in prompts for _ in range(n)]
    samples = [
        Sample(p.text, p.messages, r.text, {"id": p.id, **p.meta}, r.finish_reason, r.own_tokens)
        for p, r in zip(owners, rollouts)
    ]
    for rollout, judged in zip(rollouts, reward(samples)):
        rollout.reward, rollout.parts = judged.total, dict(judged.parts)
    return [Group(prompt, rollouts[i * n : (i + 1) * n]) for i, prompt in enumerate(prompts)]


def best_of_n(groups: Sequence[Group]) -> list[Rollout]:
    """The best answer of each group that has one."""
    return [best for group in groups if (best := group.best()) is not None]


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1)/n nats: how far best-of-n is from the policy it samples, at most (Beirami et al. 2024;
    Stiennon et al. 2020, appendix G.3)."""
    if n < 1:
        raise DachengError("the best of at least one", field="n", value=n, remedy="1 or more")
    return math.log(n) - (n - 1) / n


def lessons(
    rollouts: Sequence[Rollout], batch_rows: int, *, threshold: float | None = None, seed: int = 0
) -> PackedSource:
    """The answers of at least `threshold` reward (None: all of them) as rows to learn, only the model's own tokens.
    Raises DachengError where there is none."""
    kept = [r for r in rollouts if r.reward is not None and (threshold is None or r.reward >= threshold)]
    if not kept:
        raise DachengError("no answer is good enough to learn from", field="threshold", value=threshold,
                           remedy="lower it, sample more, or use easier prompts")  # fmt: skip
    documents = [(row.ids, row.learnt) for row in map(row_of, kept)]
    shards = shards_of(documents)
    longest = max(len(ids) for ids, _ in documents)
    return PackedSource(shards, pack(shards, longest), batch_rows, seed=seed)


def learn_best(
    model: Decoder, groups: Sequence[Group], out: Path, config: TrainConfig, *, batch_rows: int = 32,
    threshold: float | None = None,
) -> TrainResult:  # fmt: skip
    """One round of rejection sampling: the best answer of each group, learnt on the one Trainer."""
    source = lessons(best_of_n(groups), batch_rows, threshold=threshold, seed=config.seed)
    routed = model.traits.moe is not None
    return Trainer(model, [Phase(NextToken(routed=routed))], source, [], config, Path(out)).fit()


def pairs_of(groups: Sequence[Group]) -> list[PairRows]:
    """The best beside the worst of each group whose answers are not all worth the same."""
    found = []
    for group in groups:
        best, worst = group.best(), group.worst()
        if best is not None and worst is not None and best.reward != worst.reward:
            found.append(PairRows(row_of(best), row_of(worst)))
    return found


def row_of(rollout: Rollout) -> Row:
    """A rollout as ids and which of them are learnt."""
    ids = np.array([*rollout.prompt_ids, *rollout.completion_ids], np.int32)
    learnt = np.array([0] * len(rollout.prompt_ids) + rollout.mask, np.bool_)
    return Row(ids, learnt)


def learn_pairs(
    model: Decoder,
    pairs: Sequence[PairRows],
    out: Path,
    config: TrainConfig,
    *,
    loss: PreferenceConfig | None = None,
    reference: Decoder | None = None,
    batch_pairs: int = 32,
    pad_id: int = 0,
) -> TrainResult:
    """One round of DPO (or another loss of objectives.preference) on pairs of ids. reference: None takes the model as
    it comes in. Raises DachengError for fewer pairs than a batch."""
    if len(pairs) < batch_pairs:
        raise DachengError(
            f"{len(pairs)} pairs are no batch of {batch_pairs}", field="pairs", value=len(pairs),
            remedy="sample more answers or prompts: groups whose answers are worth the same give no pair",
        )  # fmt: skip
    rows = [row for pair in pairs for row in (pair.first, pair.second)]
    sums = torch.cat([row_logps(reference or model, rows[i : i + 64], pad_id) for i in range(0, len(rows), 64)])
    source = PairSource(pairs, batch_pairs, pad_id=pad_id, seed=config.seed, reference=sums.view(-1, 2))
    objective = Preference(loss or PreferenceConfig(), routed=model.traits.moe is not None)
    return Trainer(model, [Phase(objective)], source, [], config, Path(out)).fit()


def iterative_dpo(
    model: Decoder,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    sampling: Sampling,
    out: Path,
    config: TrainConfig,
    *,
    rounds: int = 3,
    n: int = 8,
    loss: PreferenceConfig | None = None,
    batch_pairs: int = 32,
) -> list[dict[str, float]]:
    """`rounds` of: n answers to each prompt, best against worst, DPO from there; in out/round-0, …. The reference of
    each round is the policy at its beginning. The same call after a kill samples and pairs the same again, and its
    trainers go on from their checkpoints.

    config.steps: of each round. Returns for each round pairs, the mean reward and the mean best reward before it.
    """
    figures = []
    for number in range(rounds):
        groups = sample_groups(model, tokenizer, prompts, reward, sampling, n, seed=derive_seed(config.seed, number))
        pairs = pairs_of(groups)
        rewards = [r.reward for group in groups for r in group.judged if r.reward is not None]
        best = [r.reward for r in best_of_n(groups) if r.reward is not None]
        learn_pairs(
            model, pairs, Path(out) / f"round-{number}", config, loss=loss, batch_pairs=batch_pairs,
            pad_id=tokenizer.pad_id,
        )  # fmt: skip
        figures.append({
            "pairs": float(len(pairs)), "reward": math.fsum(rewards) / max(1, len(rewards)),
            "best": math.fsum(best) / max(1, len(best)),
        })  # fmt: skip
    return figures
