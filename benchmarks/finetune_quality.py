"""LoRA against full fine-tuning on one task: orders turned into JSON, the same examples, rows and steps.

    dacheng import smollm2 --out models/smollm2
    python benchmarks/finetune_quality.py --model models/smollm2 [--steps 24] [--lora-lr 1e-3] [--full-lr 1e-4]

Trained on recipes/adapt/orders.jsonl, judged on recipes/adapt/orders_held_out.jsonl: nats of an assistant's token, and
answers that are the JSON expected, greedily, with Wilson's interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROW = 256


def judge(model: Any, renderer: Any, records: list[Any], source: Any) -> dict[str, Any]:
    import torch

    from dacheng.adapt.training import mean_loss
    from dacheng.engine import Engine
    from dacheng.evaluate.intervals import wilson
    from dacheng.protocols import SamplingParams

    model.eval()
    with torch.no_grad():
        loss = mean_loss(model, [source.read([row]) for row in range(source.packing.rows)])
    end = tuple(i for name, i in renderer.tokenizer.special_tokens.items() if name == "<|im_end|>")
    prompts = [renderer.render(record.messages[:-1], add_generation_prompt=True).token_ids for record in records]
    params = SamplingParams(max_tokens=64, temperature=0, stop_token_ids=end)
    texts = [completion.text for completion in Engine(model, renderer.tokenizer).generate(prompts, params)]
    right = [same(text, record.messages[-1]["content"]) for text, record in zip(texts, records)]
    found = wilson(sum(right), len(right))
    return {"held_out_loss": round(loss, 4), "right": round(found.estimate, 3),
            "interval": [round(found.low, 3), round(found.high, 3)], "questions": len(right)}  # fmt: skip


def same(text: str, expected: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(expected))
    except ValueError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--full-lr", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2, help="of 256 tokens, in a step")
    parser.add_argument("--questions", type=int, default=60)
    args = parser.parse_args()

    from dacheng.adapt import AdaptTrainConfig
    from dacheng.adapt.training import add_lora_to_top
    from dacheng.data.beginnings import tree_source
    from dacheng.data.chats import read_chats
    from dacheng.formats.model_directory import load_model
    from dacheng.objectives.next_token import NextToken
    from dacheng.records import Drops
    from dacheng.text import ChatRenderer
    from dacheng.train import Phase, Trainer

    for method, rate in (("base", 0.0), ("lora", args.lora_lr), ("full", args.full_lr)):
        loaded = load_model(args.model, dtype="float32")
        renderer = ChatRenderer(loaded.tokenizer)
        train, held = (
            list(read_chats([ROOT / "recipes/adapt" / name], Drops()))
            for name in ("orders.jsonl", "orders_held_out.jsonl")
        )
        held = held[: args.questions]
        source, valid = (
            tree_source(records, renderer, context_length=ROW, batch_rows=rows, seed=1, drops=Drops())
            for records, rows in ((train, args.rows), (held, 1))
        )
        line: dict[str, Any] = {"figure": "orders as JSON", "method": method, "lr": rate, "steps": args.steps,
                                "tokens_a_step": ROW * args.rows}  # fmt: skip
        if method != "base":
            config = AdaptTrainConfig(
                rank=args.rank, alpha=2.0 * args.rank, lr=rate, layers=None, warmup=0.1, steps=args.steps,
                row_tokens=ROW, batch_tokens=ROW * args.rows,
            )  # fmt: skip
            if method == "lora":
                add_lora_to_top(loaded.model, config)
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as out:
                Trainer(loaded.model, [Phase(NextToken())], source, [], config.trainer(1.0), Path(out)).fit()
            moved = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
            line |= {"trained": moved, "seconds": round(time.perf_counter() - began, 1)}
        print(json.dumps(line | judge(loaded.model, renderer, held, valid)), flush=True)


if __name__ == "__main__":
    main()
