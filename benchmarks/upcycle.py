"""An upcycled mixture of experts against its dense parent trained on: at equal steps, at equal FLOPs, at equal seconds.

    python benchmarks/upcycle.py [--text ../shared/data/tinyshakespeare/…] [--steps 200] [--more 200] [--seeds 3]

A small decoder learns `steps` steps; then it goes on for `more` steps as it is, and as a mixture of experts made of it
(8 experts, 2 a token, and 4 experts, 1 a token), with the same rows, learning rate (constant after a warm-up, so that
every point of the curve is comparable) and a fresh optimizer. Loss: nats a token on held-out rows. One JSON object a
line, then a line with the means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTEXT, ROWS, LR = 128, 8, 2e-3
EVERY = 10


def learn(model: Any, source: Any, rows: list[Any], steps: int) -> list[dict[str, float]]:
    """The loss every EVERY steps, with the FLOPs and the processor's seconds until then."""
    from dacheng.adapt.training import mean_loss
    from dacheng.objectives.next_token import NextToken
    from dacheng.train import Phase, Trainer
    from dacheng.train.callbacks import Evaluate
    from dacheng.train.config import TrainConfig
    from dacheng.train.optimizers import OptimizerConfig
    from dacheng.train.schedules import ScheduleConfig

    curve, spent, asleep = [], time.process_time(), 0.0

    def judge(model: Any) -> dict[str, float]:
        nonlocal asleep
        began = time.process_time()
        loss = mean_loss(model, rows)
        asleep += time.process_time() - began
        step = EVERY * (len(curve) + 1)
        flops = model.flops(CONTEXT) * ROWS * CONTEXT * step
        curve.append({"step": step, "loss": loss, "flops": flops, "seconds": time.process_time() - spent - asleep})
        return {"loss": loss}

    config = TrainConfig(
        steps=steps, precision="fp32", optimizer=OptimizerConfig(lr=LR), save_every=10**6,
        schedule=ScheduleConfig(kind="constant", warmup=20),
    )  # fmt: skip
    phase = Phase(NextToken(routed=model.traits.moe is not None))
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, [phase], source, [Evaluate(judge, EVERY)], config, Path(folder)).fit()
    return curve


def one(seed: int, args: argparse.Namespace, ids: list[int], vocab_size: int) -> list[dict[str, Any]]:
    import copy

    import torch

    from dacheng.adapt.training import mean_loss
    from dacheng.compress.prune.healing import text_source
    from dacheng.compress.upcycle import upcycle
    from dacheng.models.decoder import Decoder
    from dacheng.models.traits import DecoderTraits

    cut = int(len(ids) * 0.9)
    held = text_source([ids[cut:]], CONTEXT, 1)
    rows = [held.read([i]) for i in range(min(24, held.packing.rows))]
    traits = DecoderTraits(vocab_size=vocab_size, width=128, layers=3, heads=4, mlp_width=352, max_positions=CONTEXT)
    dense = Decoder(traits).init_weights(torch.Generator().manual_seed(seed))
    learn(dense, text_source([ids[:cut]], CONTEXT, ROWS, seed=seed), rows, args.steps)
    start = mean_loss(dense, rows)
    found = []
    branches = {"dense": copy.deepcopy(dense), "8 experts, 2 a token": upcycle(dense, 8, 2, seed=seed),
                "4 experts, 1 a token": upcycle(dense, 4, 1, seed=seed)}  # fmt: skip
    for name, model in branches.items():
        at_0 = mean_loss(model, rows)
        curve = learn(model, text_source([ids[:cut]], CONTEXT, ROWS, seed=seed + 100), rows, args.more)
        found.append({"seed": seed, "model": name, "parameters": model.params()["total"], "start": start, "at_0": at_0,
                      "flops_per_token": model.flops(CONTEXT), "curve": curve})  # fmt: skip
    parent = found[0]["curve"][-1]
    for line in found:
        curve = line.pop("curve")
        last = curve[-1]
        line |= {"equal_steps": last["loss"], "seconds": last["seconds"]}
        for what in ("flops", "seconds"):  # the last point that costs no more than the parent's whole run
            within = [point for point in curve if point[what] <= parent[what] * 1.001]
            line[f"equal_{what}"] = within[-1]["loss"] if within else None
            line[f"equal_{what}_step"] = within[-1]["step"] if within else 0
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--more", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=1024)
    args = parser.parse_args()

    from dacheng.compress.measure import read_text
    from dacheng.text import train_tokenizer

    path = args.text or next(iter(sorted((ROOT.parent / "shared/data/tinyshakespeare").glob("*.txt*"))))
    text = read_text(path)
    tokenizer = train_tokenizer(text.split("\n\n"), vocab_size=args.vocab_size)
    ids = tokenizer.encode(text)
    lines = [line for seed in range(args.seeds) for line in one(seed, args, ids, tokenizer.vocab_size)]
    for name in dict.fromkeys(line["model"] for line in lines):
        same = [line for line in lines if line["model"] == name]
        summary: dict[str, Any] = {"model": name, "seeds": len(same)}
        for what in ("equal_steps", "equal_flops", "equal_seconds"):
            values = [line[what] for line in same]
            if all(value is not None for value in values):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                summary[what] = [round(statistics.mean(values), 4), round(spread, 4)]
        print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
