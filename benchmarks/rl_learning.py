"""Does learning from rewards learn? Two-digit sums, a model made from nothing: supervised for some steps, then PPO and
GRPO on prompts without answers, beside more supervision for the same processor seconds and beside best-of-n.

    python benchmarks/rl_learning.py --seeds 0 1 2 --log runs/rl_learning.jsonl

One JSON line a figure: pass@1, pass@8 and majority of 8 of the held-out sums, with a 95% bootstrap interval over sums.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rl_tasks import MAX_TOKENS, byte_tokenizer, exact, lessons, new_model, prompts_of, sums, teach

from dacheng.align.reinforce.held_out import Measured, measure
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.reinforce.training import train_policy
from dacheng.align.rollouts.ask import Sampling
from dacheng.evaluate.intervals import bootstrap_mean, paired_difference

TAUGHT = 2000  # sums with answers; all others are prompts, or held out
BOUT, MOST = 150, 6000  # supervised steps between two looks at --start, and the most
SAMPLING = Sampling(max_tokens=MAX_TOKENS, max_batch=256)
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"group": 1, "prompts_per_step": 256, "critic_lr": 3e-4, "kl_coef": 0.01},
    "grpo": {"group": 8, "prompts_per_step": 32, "kl_coef": 0.0},
}  # fmt: skip
METHODS |= dict.fromkeys(("dr_grpo", "dapo", "rloo", "gspo"), METHODS["grpo"])
METHODS["reinforce"] = METHODS["ppo"] | {"critic_lr": None}
SHARED: dict[str, Any] = {
    "updates_per_rollout": 4, "epochs": 2, "lr": 1e-4, "max_tokens": MAX_TOKENS, "max_batch": 256, "micro_rows": 256,
    "save_every": 100_000, "warmup": 5,
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=200, help="of PPO and of GRPO")
    arguments.add_argument("--supervised", type=int, default=900, help="steps before them")
    arguments.add_argument("--start", type=float, default=0.0, help="pass@1 to be reached first, by more of them: "
                           "on 100 prompts that are neither taught nor held out")  # fmt: skip
    arguments.add_argument("--no-further", action="store_true", help="leave out more supervision")
    arguments.add_argument("--methods", nargs="+", default=["ppo", "grpo"], choices=list(METHODS))
    arguments.add_argument("--log", type=Path, default=Path("runs/rl_learning.jsonl"))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    given.log.parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        one_seed(seed, given)


def one_seed(seed: int, given: argparse.Namespace) -> None:
    tokenizer, log = byte_tokenizer(), given.log
    train, held_out = sums(seed)
    prompts, asked = prompts_of(train, tokenizer), prompts_of(held_out, tokenizer)
    taught = lessons(train[:TAUGHT], tokenizer, 64, seed)
    model = new_model(tokenizer, seed)

    def judged(policy: Any) -> Measured:
        return measure(policy, tokenizer, asked, exact(), SAMPLING, answers=8, seed=seed)

    began, steps, looked = time.process_time(), given.supervised, 0.0
    teach(model, taught, scratch(), steps, seed=seed)
    while given.start and steps < MOST:
        before = time.process_time()
        found = measure(model, tokenizer, prompts[TAUGHT : TAUGHT + 100], exact(), SAMPLING, answers=8, seed=seed)
        looked += time.process_time() - before
        if found.pass_at(1).estimate >= given.start:
            break
        teach(model, taught, scratch(), BOUT, seed=seed + steps)
        steps += BOUT
    taught_s = time.process_time() - began - looked
    per_step, start, spent = taught_s / steps, judged(model), [0.0]
    tell(log, seed, "sft", start, start, taught_s, steps=steps)
    for name in given.methods:
        policy, out = copy.deepcopy(model), scratch()
        config = ReinforceConfig(**SHARED | METHODS[name], method=name, steps=given.steps, seed=seed)  # type: ignore[arg-type]
        began = time.process_time()
        done = train_policy(policy, tokenizer, prompts, exact(), out, config)
        spent.append(time.process_time() - began)
        tell(log, seed, name, judged(done.model), start, spent[-1], kl=done.figures["objective/kl"],
             gap=done.figures.get("sampling/sampling_logp_difference/max"))  # fmt: skip

    steps = int(max(spent) / per_step)
    if steps and not given.no_further:
        teach(model, taught, scratch(), steps, seed=seed + 1000)
        tell(log, seed, "sft, as long again as the dearer of them", judged(model), start, steps * per_step)


def tell(log: Path, seed: int, what: str, found: Measured, start: Measured, cpu_s: float, **more: Any) -> None:
    votes = []
    for prompt, texts in zip(found.prompts, found.texts):
        a, b = prompt[:-1].split("+")
        votes.append(float(Counter(text.strip() for text in texts).most_common(1)[0][0] == str(int(a) + int(b))))
    gain = paired_difference([sum(r) / 8 for r in found.rewards], [sum(r) / 8 for r in start.rewards])
    line = {
        "figure": "two-digit sums", "seed": seed, "what": what, "pass@1": found.pass_at(1).to_dict(),
        "pass@8": found.pass_at(8).to_dict(), "majority of 8": bootstrap_mean(votes).to_dict(),
        "pass@1 more than at the start": gain.to_dict(), "cpu_s": cpu_s, **more,
    }  # fmt: skip
    with open(log, "a") as file:
        file.write(json.dumps(line) + "\n")
    brief = {k: round(v["estimate"], 3) for k, v in line.items() if isinstance(v, dict)}
    print(seed, what, brief, f"{cpu_s:.0f} s", more, flush=True)


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="rl_learning"))


if __name__ == "__main__":
    main()
