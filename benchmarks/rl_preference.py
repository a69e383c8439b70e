"""PPO, DPO and best-of-n on one programmatic preference, at the same distance from where they began; and what becomes
of the true reward when a learnt one is followed too far.

A small model writes names such as Python's own. The true ("gold") reward of a name is a program; people's place is
taken by 256 pairs of the model's own names that gold has compared, one in ten the wrong way round. From these alone a
reward model (the "proxy") is trained for PPO and best-of-n, and DPO learns.

    python benchmarks/rl_preference.py --seeds 0 1 2 --log runs/rl_preference.jsonl

One JSON line a point: method, KL of a name in nats (best-of-n: log n - (n-1)/n), proxy and gold reward.
"""

from __future__ import annotations

import argparse
import builtins
import copy
import json
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_tasks import byte_tokenizer, new_model

from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.scoring import policy_logps
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.reinforce.training import train_policy
from dacheng.align.rewards.base import FunctionReward, RewardMix, Sample
from dacheng.align.rollouts.ask import Sampling
from dacheng.align.selection import Group, best_of_n_kl, learn_pairs, row_of, sample_groups
from dacheng.data.batches import PackedSource
from dacheng.data.chats import shards_of
from dacheng.data.packing import pack
from dacheng.data.pairs import PairRows, PairSource
from dacheng.data.rollouts import collate
from dacheng.models.decoder import Decoder
from dacheng.models.scalar_head import Scorer
from dacheng.objectives.next_token import NextToken
from dacheng.objectives.preference import PreferenceConfig
from dacheng.objectives.reward_model import RewardRanking, last_token_scores
from dacheng.train import OptimizerConfig, Phase, ScheduleConfig, TrainConfig, Trainer

SAMPLING = Sampling(max_tokens=16, max_batch=256)
PAIRS, WRONG, LARGEST_N = 256, 0.1, 64
LETTERS = "abcdefghiklmnoprstuvw"


def gold(sample: Sample) -> float:
    """0 to 1: vowels and consonants take turns, letters are not used twice, about eight of them."""
    name = re.sub(r"[^a-z]", "", sample.prompt + sample.response)
    if len(name) < 2 or sample.finish_reason != "stop":
        return 0.0
    turns = sum((a in "aeiouy") != (b in "aeiouy") for a, b in pairwise(name)) / (len(name) - 1)
    return turns * len(set(name)) / len(name) * min(1.0, len(name) / 8)


def names() -> list[str]:
    """Lower-case names of this Python's library."""
    found = set(sys.stdlib_module_names) | set(dir(builtins))
    for module in ("os", "string", "math", "json", "re", "socket", "ast", "email", "decimal", "datetime", "random"):
        found |= set(dir(__import__(module)))
    return sorted(n for n in (name.strip("_").lower() for name in found) if re.fullmatch(r"[a-z_]{3,14}", n))


def config(steps: int, lr: float, seed: int, warmup: int = 10) -> TrainConfig:
    return TrainConfig(
        steps=steps, seed=seed, precision="fp32", save_every=100_000, clip_norm=1.0,
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.01), schedule=ScheduleConfig(kind="constant", warmup=warmup),
    )  # fmt: skip


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="rl_preference"))


def writer(tokenizer: Any, seed: int) -> Decoder:
    """A model that writes names."""
    model = new_model(tokenizer, seed, width=64, layers=2)
    documents = []
    for name in names():
        ids = np.array([*tokenizer.encode(name), tokenizer.eos_id], np.int32)
        documents.append((ids, np.ones(len(ids), np.bool_)))
    shards = shards_of(documents)
    source = PackedSource(shards, pack(shards, 16), 64, seed=seed)
    Trainer(model, [Phase(NextToken())], source, [], config(300, 2e-3, seed), scratch()).fit()
    return model


class Proxy:
    """The reward model as a reward."""

    name = "proxy"

    def __init__(self, scorer: Scorer, tokenizer: Any) -> None:
        self.scorer, self.tokenizer = scorer.eval(), tokenizer

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        rows = [self.tokenizer.encode(s.prompt + s.response) for s in samples]
        rows = [r + [self.tokenizer.eos_id] * (s.finish_reason == "stop") for r, s in zip(rows, samples)]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        return last_token_scores(self.scorer, tokens, torch.tensor([len(r) for r in rows])).tolist()


def compared(groups: list[Group], seed: int) -> list[PairRows]:
    """PAIRS of names that gold has compared, some of them wrongly."""
    draw, found = random.Random(seed), []
    for group in groups:
        for one, other in zip(group.rollouts[::2], group.rollouts[1::2]):
            if one.parts["gold"] != other.parts["gold"] and len(found) < PAIRS:
                best, worst = (one, other) if one.parts["gold"] > other.parts["gold"] else (other, one)
                if draw.random() < WRONG:
                    best, worst = worst, best
                found.append(PairRows(row_of(best), row_of(worst)))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=320, help="of PPO")
    arguments.add_argument("--betas", type=float, nargs="+", default=[0.3, 0.1, 0.03], help="of DPO")
    arguments.add_argument("--kl-coefs", type=float, nargs="+", default=[0.0, 0.1], help="of PPO")
    arguments.add_argument("--log", type=Path, default=Path("runs/rl_preference.jsonl"))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    given.log.parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        one_seed(seed, given)


def one_seed(seed: int, given: argparse.Namespace) -> None:
    tokenizer, log = byte_tokenizer(), given.log
    prompts = [Prompt(letter, tuple(tokenizer.encode(letter)), letter) for letter in LETTERS]
    model = writer(tokenizer, seed)
    truth = RewardMix([(FunctionReward("gold", gold), 1.0)])
    pairs = compared(sample_groups(model, tokenizer, prompts, truth, SAMPLING, 40, seed=seed), seed)
    scorer = Scorer(copy.deepcopy(model))
    source = PairSource(pairs, 32, pad_id=tokenizer.pad_id, seed=seed)
    Trainer(scorer, [Phase(RewardRanking())], source, [], config(48, 5e-4, seed), scratch()).fit()
    both = RewardMix([(Proxy(scorer, tokenizer), 1.0), (FunctionReward("gold", gold), 0.0)])

    def tell(method: str, kl: float, proxy: float, true: float, **more: Any) -> None:
        line = {"figure": "names", "seed": seed, "method": method, "kl": kl, "proxy": proxy, "gold": true, **more}
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(seed, method, *(round(v, 3) for v in (kl, proxy, true)), more, flush=True)

    groups = sample_groups(model, tokenizer, prompts, both, SAMPLING, LARGEST_N, seed=seed + 100)
    n = 1
    while n <= LARGEST_N:
        best = [
            max(group.rollouts[i : i + n], key=lambda r: r.reward or 0.0)
            for group in groups for i in range(0, LARGEST_N, n)
        ]  # fmt: skip
        tell("best-of-n", best_of_n_kl(n), mean(best, "proxy"), mean(best, "gold"), n=n)
        n *= 2
    for beta in given.betas:
        policy = copy.deepcopy(model)
        for stage in range(4):  # the same pairs on and on: how far it goes
            learn_pairs(policy, pairs, scratch(), config(16, 1e-4, seed + stage, 0), loss=PreferenceConfig(beta=beta),
                        reference=model, pad_id=tokenizer.pad_id)  # fmt: skip
            after = sample_groups(policy, tokenizer, prompts, both, SAMPLING, 16, seed=seed + 200)
            rollouts = [r for group in after for r in group.rollouts]
            tell("dpo", distance(policy, model, rollouts, tokenizer), mean(rollouts, "proxy"), mean(rollouts, "gold"),
                 beta=beta, steps=16 * (stage + 1))  # fmt: skip
    for kl_coef in given.kl_coefs:
        out, policy = scratch(), copy.deepcopy(model)
        settings = ReinforceConfig(
            method="ppo", group=1, prompts_per_step=126, updates_per_rollout=4, epochs=2, lr=1e-4, critic_lr=3e-4,
            kl_coef=kl_coef, max_tokens=SAMPLING.max_tokens, max_batch=256, micro_rows=256, steps=given.steps,
            seed=seed, save_every=100_000,
        )  # fmt: skip
        train_policy(policy, tokenizer, prompts, both, out, settings)
        for line in map(json.loads, (out / "sets.jsonl").read_text().splitlines()):
            if line["set"] % 4 == 0:
                tell("ppo", line["objective/kl"], line["rewards/proxy/mean"], line["rewards/gold/mean"],
                     kl_coef=kl_coef, set=line["set"])  # fmt: skip


def mean(rollouts: Sequence[Any], part: str) -> float:
    return sum(r.parts[part] for r in rollouts) / len(rollouts)


def distance(policy: Decoder, reference: Decoder, rollouts: Sequence[Any], tokenizer: Any) -> float:
    """KL of a name, nats, from its own samples."""
    batch = collate(rollouts, tokenizer.pad_id)
    gap = policy_logps(policy, batch, 1.0, 256) - policy_logps(reference, batch, 1.0, 256)
    return float((gap * batch.mask).sum(-1).mean())


if __name__ == "__main__":
    main()
