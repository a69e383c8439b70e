"""What pruning costs a real model, in perplexity: methods of zeros side by side, layers dropped and healed, and heads,
neurons, channels or ranks cut out by importance and at random.

    python benchmarks/prune.py weights [--model smollm2] [--sparsity 0.5 2:4] [--seeds 2]
    python benchmarks/prune.py layers  [--model smollm2] [--drop 3 5 7] [--heal 5 0] [--steps 60]
    python benchmarks/prune.py parts   [--model smollm2] [--seeds 1]

WikiText-2 valid (../shared/data/wikitext2, or --text FILE): calibration and healing use its first 60%, perplexity is of
stretches of 512 tokens of the rest. Intervals: percentile bootstrap over the stretches; differences are paired. Seeds
draw the calibration text (weights), or the layers that go at random (layers). One JSON object a line.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROW = 512


class Exam:
    """Stretches of the held-out text, and how a model does on them."""

    def __init__(self, ids: list[int], rows: int) -> None:
        import torch

        self.table = torch.tensor(ids[: rows * ROW]).view(-1, ROW)
        self.dense: list[float] = []

    def batches(self) -> list[Any]:
        import torch

        from dacheng.data.batches import TokenBatch

        positions = torch.arange(ROW - 1)
        return [TokenBatch(r[:, :-1], r[:, 1:], positions.expand(len(r), -1)) for r in self.table.split(2)]

    def nats(self, model: Any) -> list[float]:
        """Of each stretch."""
        from dacheng.evaluate.perplexity import scoring, token_nats
        from dacheng.objectives.next_token import context_for

        found = []
        with scoring(model):
            for batch in self.batches():
                hidden = model(batch.tokens, batch.positions, context_for(batch))
                for h, targets in zip(hidden, batch.targets):
                    found.append(float(token_nats(model, h, targets).sum()))
        return found

    def judge(self, model: Any, **told: Any) -> dict[str, Any]:
        from dacheng.evaluate.intervals import bootstrap_ratio, paired_difference

        began, nats = time.perf_counter(), self.nats(model)
        counts = [ROW - 1] * len(nats)
        self.dense = self.dense or nats
        found = bootstrap_ratio(nats, counts)
        worse = paired_difference(nats, self.dense, counts)
        line = {
            **told, "perplexity": math.exp(found.estimate), "low": math.exp(found.low), "high": math.exp(found.high),
            "nats_over_dense": worse.estimate, "nats_low": worse.low, "nats_high": worse.high, "rows": len(nats),
            "judged_s": time.perf_counter() - began, "nats": [round(n, 2) for n in nats],
        }  # fmt: skip
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
        print(json.dumps(shown), flush=True)
        return line


def opened(args: argparse.Namespace) -> tuple[Any, list[int], Exam]:
    """(model, ids to calibrate with, exam)."""
    from dacheng.cli.models import find_model
    from dacheng.compress.measure import read_text
    from dacheng.formats.model_directory import load_model

    loaded = load_model(find_model(args.model), dtype="float32")
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(read_text(args.text))
    cut = int(len(ids) * 0.6)
    return loaded.model, ids[:cut], Exam(ids[cut:], args.rows)


def weights(args: argparse.Namespace) -> None:
    from dacheng.compress.calibrate import calibration_batches
    from dacheng.compress.prune.weights import prune_weights

    model, ids, exam = opened(args)
    exam.judge(model, method="dense")
    for sparsity in args.sparsity:
        for method in args.methods:
            for seed in range(1 if method == "magnitude" else args.seeds):
                pruned, began = copy.deepcopy(model), time.perf_counter()
                batches = calibration_batches(ids, rows=args.calibration_rows, length=ROW, batch=4, seed=seed)
                report = prune_weights(pruned, batches, method, sparsity)
                told = {"sparsity": report.asked, "zeros": report.sparsity, "seed": seed, "notes": report.notes[:3]}
                exam.judge(pruned, method=method, pruned_s=time.perf_counter() - began, **told)


def layers(args: argparse.Namespace) -> None:
    from dacheng.compress.prune.choose import keep_layers
    from dacheng.compress.prune.healing import HealConfig, heal, text_source
    from dacheng.compress.prune.importance import block_influence
    from dacheng.compress.prune.keep import Keep
    from dacheng.compress.prune.shrink import shrink

    model, ids, exam = opened(args)
    exam.judge(model, order="dense", dropped=[])
    source = text_source([ids], ROW, 2)
    influence = block_influence(model, [source.rows(range_of(i)) for i in range(4)])
    print(json.dumps({"block_influence": [round(float(x), 4) for x in influence]}), flush=True)
    depth = model.traits.layers
    for count in args.drop:
        keep = keep_layers(influence, count)
        gone = sorted(set(range(depth)) - set(keep.layers or ()))
        exam.judge(shrink(model, keep), order="block influence", dropped=gone)
        for seed in range(args.seeds):
            drawn = [i for i in range(depth) if i not in args.spare]
            gone = sorted(random.Random(seed).sample(drawn, count))
            kept = Keep(layers=tuple(i for i in range(depth) if i not in gone))
            exam.judge(shrink(model, kept), order=f"random {seed}", dropped=gone)
    config = HealConfig(steps=args.steps, context_length=256, batch_rows=2, lr=args.lr)
    for count in args.heal:
        healed = shrink(model, keep_layers(influence, count)) if count else copy.deepcopy(model)
        with tempfile.TemporaryDirectory() as folder:
            report = heal(healed, [ids], Path(folder), config)
        what = "block influence" if count else "dense"
        told = {"order": f"{what}, healed by LoRA, {args.steps} steps", "healed_s": report.seconds}
        exam.judge(healed, dropped=count, tokens=report.tokens, lr=args.lr, **told)


def parts(args: argparse.Namespace) -> None:
    """A third of the heads, a quarter of the neurons, a sixth of the channels, and factors of as many weights."""
    import torch

    from dacheng.compress.low_rank import METHODS, factorise
    from dacheng.compress.prune import choose, importance
    from dacheng.compress.prune.healing import text_source
    from dacheng.compress.prune.shrink import shrink

    model, ids, exam = opened(args)
    exam.judge(model, part="dense")
    source = text_source([ids], ROW, 2)
    batches = [source.rows(range_of(i)) for i in range(args.calibration_rows // 2)]
    traits, whole = model.traits, model.params()["total"]
    cuts = {
        "heads": (importance.head_importance(model, batches, "gradient"), traits.heads * 2 // 3),
        "neurons": (importance.neuron_importance(model, batches, "gradient"), traits.mlp_size * 3 // 4),
        "width": (importance.channel_importance(model, batches), traits.width * 5 // 6),
    }
    for name, (scores, count) in cuts.items():
        for order in ("importance", *range(args.seeds)):
            drawn = scores
            if isinstance(order, int):
                drawn = torch.rand(scores.shape, generator=torch.Generator().manual_seed(order))
            keep = (
                choose.keep_heads(drawn, traits, count) if name == "heads"
                else choose.keep_neurons(drawn, count) if name == "neurons" else choose.keep_width(drawn, count)
            )  # fmt: skip
            cut = shrink(model, keep)
            order = order if isinstance(order, str) else f"random {order}"
            exam.judge(cut, part=name, kept=count, order=order, parameters=cut.params()["total"] / whole)
    for method in METHODS:
        factored = copy.deepcopy(model)
        found = factorise(factored, batches, 0.8, method)
        exam.judge(factored, part="low rank", kept=round(found.kept, 3), order=method, notes=found.notes[:2])


def range_of(number: int) -> Any:
    import numpy as np

    return np.arange(2 * number, 2 * number + 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["weights", "layers", "parts"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, default=ROOT.parent / "shared/data/wikitext2/valid.txt.gz")
    parser.add_argument("--rows", type=int, default=24, help="stretches of 512 tokens that are judged")
    parser.add_argument("--calibration-rows", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=["magnitude", "wanda", "sparsegpt"])
    parser.add_argument("--sparsity", nargs="+", default=["0.5", "2:4"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--drop", type=int, nargs="+", default=[3, 5, 7])
    parser.add_argument("--spare", type=int, nargs="*", default=[], help="layers that no random draw takes")
    parser.add_argument("--heal", type=int, nargs="*", default=[5, 0], help="layers dropped before; 0: the whole model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    {"weights": weights, "layers": layers, "parts": parts}[args.what](args)


if __name__ == "__main__":
    main()
