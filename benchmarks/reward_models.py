"""A reward model on comparisons: held-out accuracy with its interval, beside a judge that looks at length alone.

    dacheng import smollm2 --out models/smollm2
    python benchmarks/reward_models.py --data ../shared/data/rasbt_instruct/instruction-data-with-preference.json \\
        --model models/smollm2 --out runs/reward-polite --steps 60
    python benchmarks/reward_models.py --data ../shared/data/hh_rlhf_harmless_test/test.jsonl.gz \\
        --model models/smollm2 --out runs/reward-harmless --max-tokens 128 --epochs 1 --held-out 0.25

Prompts are held out whole. One JSON object a seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--out", type=Path, default=Path("runs/reward-models"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch-pairs", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--held-out", type=float, default=0.15)
    parser.add_argument("--pairs", type=int, default=400, help="held-out pairs at most")
    args = parser.parse_args()

    from dacheng.align.preferences import RewardTrainConfig, describe, train_reward
    from dacheng.data.preferences import read_preferences, split_preferences
    from dacheng.formats.model_directory import load_model
    from dacheng.records import Drops
    from dacheng.text import ChatRenderer

    read = read_preferences([args.data], Drops())
    print(json.dumps(describe(read)), flush=True)
    train, held_out = split_preferences(read, args.held_out, "test")
    for seed in args.seeds:
        loaded = load_model(args.model, dtype="float32")
        renderer = ChatRenderer(loaded.tokenizer, "chatml")  # type: ignore[arg-type]
        config = RewardTrainConfig(
            seed=seed, steps=args.steps, epochs=args.epochs, lr=args.lr, layers=args.layers,
            batch_pairs=args.batch_pairs, max_tokens=args.max_tokens, eval_pairs=args.pairs,
        )  # fmt: skip
        began = time.perf_counter()
        made = train_reward(loaded.model, train, args.out / str(seed), config, renderer=renderer, held_out=held_out)
        shown = {
            "accuracy": [round(v, 3) for v in made.accuracy], "margin": round(made.margin, 3),
            "training_accuracy": round(made.training_accuracy, 3), "length_baseline": made.length_baseline,
        }  # fmt: skip
        print(json.dumps({"seed": seed, "lr": args.lr, "steps": made.steps, "learnt_from": made.pairs,
                          "held_out": made.measured_pairs, **shown, "seconds": round(time.perf_counter() - began)}),
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
