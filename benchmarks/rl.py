"""Rollouts and whole GRPO steps beside transformers' generate and TRL's GRPOTrainer: speed and memory.

    DACHENG_PEER_PYTHON=PATH python benchmarks/rl.py --model models/smollm2 [--what rollouts groups steps] [--rounds 3]

rollouts: prompts of different lengths, sampled at temperature 1 until they end or reach --new tokens; what counts is
tokens that belong to an answer (a peer's padding after its end does not). groups: --group answers to each prompt of
--long tokens. steps: a GRPO step of all (sampling, reward, loss, update) with LoRA of rank 16 on all linear maps, no
KL. Same weights in float32, same prompts, each side in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

from turns import Worker, interleave, ratios, serve

WORDS = [
    "river", "stone", "lamp", "window", "garden", "paper", "engine", "silver", "morning", "letter", "market", "bridge",
    "winter", "table", "orange", "signal", "harbour", "copper", "meadow", "thunder",
]  # fmt: skip


def texts(count: int, lengths: list[int], seed: int = 0) -> list[str]:
    """Word lists that a model goes on with, of so many words each."""
    return [
        "Here is a list of words: " + ", ".join(WORDS[(i * 7 + k * (3 + i % 5) + seed) % len(WORDS)]
                                                for k in range(lengths[i % len(lengths)])) + ","
        for i in range(count)
    ]  # fmt: skip


def prompts_of(args: argparse.Namespace) -> tuple[list[str], int]:
    """Prompts, and answers to each."""
    if args.kind == "rollouts":
        return texts(args.batch, [4, 9, 16, 30]), 1
    if args.kind == "groups":
        return texts(max(1, args.batch // args.group), [args.long]), args.group
    return texts(64, [6]), args.group


def reward(text: str) -> float:
    """The share of letters: cheap, and different for different answers."""
    return sum(c.isalpha() for c in text) / max(1, len(text))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def our_worker(args: argparse.Namespace) -> None:
    import torch

    from dacheng.align.rollouts import Ask, InlineWorker, Sampling
    from dacheng.formats.model_directory import load_model

    torch.set_num_threads(args.threads)
    loaded = load_model(args.model, dtype="float32")
    assert loaded.tokenizer is not None
    tokenizer = loaded.tokenizer
    prompts, group = prompts_of(args)
    sampling = Sampling(max_tokens=args.new, max_batch=args.batch)
    if args.kind == "steps":
        return our_steps(args, loaded, prompts, group)
    worker, turns = InlineWorker(loaded.model, tokenizer, sampling), 0
    ids = [tuple(tokenizer.encode(prompt)) for prompt in prompts]

    def turn() -> dict[str, Any]:
        nonlocal turns
        turns += 1
        worker.update_weights(loaded.model, turns)  # as in a training: nothing of the last turn is in the cache
        asks = [
            Ask(f"{i}.{k}", own, str(i), 1000 * turns + 50 * i + k) for i, own in enumerate(ids) for k in range(group)
        ]
        began, cpu = time.perf_counter(), time.process_time()
        rollouts = worker.generate(asks)
        tokens = sum(rollout.own_tokens for rollout in rollouts)
        return figures(tokens, began, cpu)

    serve({}, turn)
    return None


def figures(amount: float, began: float, cpu: float) -> dict[str, Any]:
    return {"per_s": amount / (time.perf_counter() - began), "per_cpu_s": amount / (time.process_time() - cpu),
            "amount": amount, "peak_mb": peak_mb()}  # fmt: skip


def our_steps(args: argparse.Namespace, loaded: Any, texts_: list[str], group: int) -> None:
    from dacheng.align.reinforce.prompts import Prompt
    from dacheng.align.reinforce.settings import ReinforceConfig
    from dacheng.align.reinforce.training import train_policy
    from dacheng.align.rewards.base import FunctionReward, RewardMix
    from dacheng.train.callbacks import Callback

    class Turns(Callback):
        def on_start(self, trainer: Any) -> None:
            print(json.dumps({}), flush=True)
            self._wait()

        def on_step_end(self, trainer: Any, report: Any) -> None:
            print(json.dumps(figures(1, self.began, self.cpu)), flush=True)
            self._wait()

        def _wait(self) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            self.began, self.cpu = time.perf_counter(), time.process_time()

    prompts = [Prompt(t, tuple(loaded.tokenizer.encode(t)), t) for t in texts_]
    mix = RewardMix([(FunctionReward("letters", lambda sample: reward(sample.response)), 1.0)])
    config = ReinforceConfig(
        method="grpo", group=group, prompts_per_step=args.batch // group, steps=10**5, lr=1e-5, max_tokens=args.new,
        adapter=16, alpha=32.0, max_batch=args.batch, micro_rows=args.batch, track_kl=False, save_every=10**6,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        train_policy(loaded.model, loaded.tokenizer, prompts, mix, out, config, [Turns()])


def peer_worker(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    prompts, group = prompts_of(args)
    if args.kind == "steps":
        return peer_steps(args, model, tokenizer, prompts, group)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(0)

    def turn() -> dict[str, Any]:
        began, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            out = model.generate(
                **inputs, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=args.new,
                num_return_sequences=group, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        new = out[:, inputs["input_ids"].shape[1] :]
        ended = (new == tokenizer.eos_token_id).int()
        after = (ended.cumsum(1) - ended) > 0  # behind the first end of text
        return figures(int((~after).sum()), began, cpu)

    serve({}, turn)
    return None


def peer_steps(args: argparse.Namespace, model: Any, tokenizer: Any, prompts: list[str], group: int) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Turns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            print(json.dumps({}), flush=True)
            self._wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            print(json.dumps(figures(1, self.began, self.cpu)), flush=True)
            self._wait()

        def _wait(self) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            self.began, self.cpu = time.perf_counter(), time.process_time()

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out, per_device_train_batch_size=args.batch, num_generations=group, max_steps=10**5, beta=0.0,
            max_completion_length=args.new, temperature=1.0, top_k=0, learning_rate=1e-5, loss_type="grpo",
            lr_scheduler_type="constant", logging_steps=10**6, save_strategy="no", report_to=[], use_cpu=True,
            bf16=False, fp16=False, gradient_checkpointing=False, disable_tqdm=True, max_grad_norm=1.0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, processing_class=tokenizer, args=config,
            reward_funcs=lambda completions, **_: [reward(text) for text in completions],
            train_dataset=Dataset.from_dict({"prompt": prompts}), callbacks=[Turns()],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=targets),
        )  # fmt: skip
        trainer.train()


def compare(args: argparse.Namespace, kind: str) -> None:
    if not args.peer_python:
        raise SystemExit("name an interpreter with transformers, peft and trl: --peer-python or DACHENG_PEER_PYTHON")
    own = ["--kind", kind, "--model", args.model]
    for name in ("batch", "group", "new", "long", "threads"):
        own += [f"--{name}", str(getattr(args, name))]
    workers = [
        Worker(sys.executable, "ours", __file__, own, args.threads),
        Worker(args.peer_python, "peer", __file__, own, args.threads),
    ]
    turns = interleave(workers, args.rounds)
    for worker in workers:
        worker.close()
    unit = "steps/s" if kind == "steps" else "tok/s"
    peer_name = "TRL's GRPOTrainer" if kind == "steps" else "transformers' generate"
    common = {"rounds": args.rounds, "threads": args.threads, "batch": args.batch, "new": args.new}
    common |= {"group": 1 if kind == "rollouts" else args.group}
    for key, name in (("per_s", unit), ("per_cpu_s", f"{unit[:-2]} a processor second"), ("peak_mb", "MB at most")):
        ours, peer = ([turn[key] for turn in turns[side]] for side in ("ours", "peer"))
        better = (peer, ours) if key == "peak_mb" else (ours, peer)
        line = {"figure": f"{kind} vs {peer_name}: {name}", "ours": round(statistics.median(ours), 3),
                "peer": round(statistics.median(peer), 3), **ratios(*better), "unit": name, **common}  # fmt: skip
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=["ours", "peer"])
    parser.add_argument("--kind", choices=["rollouts", "groups", "steps"], help=argparse.SUPPRESS)
    parser.add_argument("--what", nargs="+", default=["rollouts", "groups", "steps"])
    parser.add_argument("--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"))
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--long", type=int, default=60, help="words of a group's prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.worker:
        (our_worker if args.worker == "ours" else peer_worker)(args)
    else:
        for kind in args.what:
            compare(args, kind)


if __name__ == "__main__":
    main()
