"""Does a policy learn to use a tool? Products of two-digit numbers, a small model made from nothing, shown as often the
answer alone (which it can't work out) as a call of the calculator; then GRPO on prompts, the reward the answer alone.

    python benchmarks/tool_turns.py --seeds 0 1 2 --log runs/tool_turns.jsonl

One JSON line a figure: pass@1 and pass@8 of held-out products and the share of answers with a call, with 95% bootstrap
intervals over products.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_tasks import byte_tokenizer, new_model, teach

from dacheng.align.reinforce.held_out import pass_at_k
from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.reinforce.training import train_policy
from dacheng.align.rewards import ExactReward, RewardMix, Sample
from dacheng.align.rollouts.ask import Ask, Sampling
from dacheng.align.rollouts.inline import InlineWorker
from dacheng.align.tools import ToolsConfig
from dacheng.data.batches import PackedSource
from dacheng.data.chats import shards_of
from dacheng.data.order import permutation
from dacheng.data.packing import pack
from dacheng.evaluate.intervals import bootstrap_mean, paired_difference
from dacheng.train.rng import derive_seed

TOOLS = ToolsConfig(opening="<", closing="=", before="", after=">")
HELD_OUT, TAUGHT, MAX_TOKENS, ANSWERS = 200, 3000, 18, 8


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--supervised", type=int, default=250, help="steps before")
    arguments.add_argument("--steps", type=int, default=40, help="of GRPO")
    arguments.add_argument("--log", type=Path, default=Path("runs/tool_turns.jsonl"))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    given.log.parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        one_seed(seed, given)


def one_seed(seed: int, given: argparse.Namespace) -> None:
    tokenizer = byte_tokenizer()
    pairs = [(10 + int(n) // 90, 10 + int(n) % 90) for n in permutation(8100, seed, 7)]
    held_out, train = prompts_of(pairs[:HELD_OUT], tokenizer), prompts_of(pairs[HELD_OUT:], tokenizer)
    model = new_model(tokenizer, seed, width=64, layers=2)
    teach(model, lessons(pairs[HELD_OUT : HELD_OUT + TAUGHT], tokenizer, seed), scratch(), given.supervised, seed=seed)
    before = measured(model, tokenizer, held_out, seed)
    tell(given.log, seed, "taught both ways", before, before, {})
    config = ReinforceConfig(
        method="grpo", group=8, prompts_per_step=16, updates_per_rollout=2, epochs=2, lr=2e-4, steps=given.steps,
        max_tokens=MAX_TOKENS, tools=TOOLS, seed=seed, max_batch=128, micro_rows=128, save_every=100_000, warmup=2,
    )  # fmt: skip
    began = time.process_time()
    done = train_policy(model, tokenizer, train, reward(), scratch(), config)
    more = {"cpu_s": round(time.process_time() - began, 1), "kl": done.figures.get("objective/kl")}
    tell(given.log, seed, f"GRPO, {given.steps} steps", measured(done.model, tokenizer, held_out, seed), before, more)


def prompts_of(pairs: list[tuple[int, int]], tokenizer: Any) -> list[Prompt]:
    texts = [(f"{a}*{b}:", str(a * b)) for a, b in pairs]
    return [Prompt(t, tuple(tokenizer.encode(t)), t, None, {"answer": answer}) for t, answer in texts]


def reward() -> RewardMix:
    return RewardMix([(ExactReward(extract="number"), 1.0)])


def lessons(pairs: list[tuple[int, int]], tokenizer: Any, seed: int) -> PackedSource:
    """Every other product by a call, whose result is not learnt; the others as they are."""
    documents = []
    for number, (a, b) in enumerate(pairs):
        if number % 2:
            parts = [(f"{a}*{b}:", 0), (f"<{a}*{b}=", 1), (f"{a * b}>", 0)]
        else:
            parts = [(f"{a}*{b}:", 0), (str(a * b), 1)]
        ids = [token for text, _ in parts for token in tokenizer.encode(text)] + [tokenizer.eos_id]
        learnt = [bool(own) for text, own in parts for _ in tokenizer.encode(text)] + [True]
        documents.append((np.array(ids, np.int32), np.array(learnt)))
    shards = shards_of(documents)
    return PackedSource(shards, pack(shards, 24), 64, seed=seed)


def measured(model: Any, tokenizer: Any, prompts: list[Prompt], seed: int) -> dict[str, list[float]]:
    """Of each prompt: right answers of ANSWERS, and the share of them with a call."""
    sampling = Sampling(max_tokens=MAX_TOKENS, stop=TOOLS.stop, max_batch=128)
    asks = [
        Ask(f"{i}.{n}", prompt.token_ids, str(i), derive_seed(seed, "held_out", i, n))
        for i, prompt in enumerate(prompts)
        for n in range(ANSWERS)
    ]
    rollouts = InlineWorker(model, tokenizer, sampling, continuation=TOOLS.turns()).generate(asks)
    of = [prompt for prompt in prompts for _ in range(ANSWERS)]
    judged = reward()([Sample(p.text, response=r.text, meta=p.meta) for r, p in zip(rollouts, of)])
    right = np.array([one.total for one in judged]).reshape(-1, ANSWERS)
    called = np.array([0 in r.mask for r in rollouts], float).reshape(-1, ANSWERS)
    return {"right": right.sum(1).tolist(), "called": called.mean(1).tolist()}


def tell(log: Path, seed: int, what: str, found: dict[str, Any], start: dict[str, Any], more: dict[str, Any]) -> None:
    at = {k: bootstrap_mean([pass_at_k(ANSWERS, int(n), k) for n in found["right"]]) for k in (1, 8)}
    gain = paired_difference(*([n / ANSWERS for n in one["right"]] for one in (found, start)))
    figures = {"pass@1": at[1], "pass@8": at[8], "with a call": bootstrap_mean(found["called"]), "gain": gain}
    line = {"figure": "products with a calculator", "seed": seed, "what": what}
    line |= {name: interval.to_dict() for name, interval in figures.items()} | more
    with open(log, "a") as file:
        file.write(json.dumps(line) + "\n")
    shown = {name: (round(i.estimate, 3), round(i.low, 3), round(i.high, 3)) for name, i in figures.items()}
    print(seed, what, shown, more, flush=True)


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="tool_turns"))


if __name__ == "__main__":
    main()
