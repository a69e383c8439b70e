"""Training speed and peak memory beside a plain loop over transformers' LlamaForCausalLM.

    DACHENG_PEER_PYTHON=PATH python benchmarks/train.py [--rounds 7] [--steps 4] [--dtype float32] [--threads 2]

Same shape, precision, data (random ids of the same seed), batch and optimizer (fused AdamW, clipping at 1.0), each in a
process of its own. The two take turns of `--steps` steps. Ours is the whole Trainer: counts, chunked head, clipping,
metrics, JSONL log. The peer's is the loop that its documentation shows.
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
from pathlib import Path
from typing import Any

from turns import Worker, interleave, ratios, serve

SHAPE = {"vocab": 8192, "width": 384, "layers": 6, "heads": 6, "mlp": 1024}
LEARNING_RATE = 3e-4


def random_rows(torch: Any, args: argparse.Namespace, step: int) -> Any:
    """(batch, context + 1) ids of a step, the same for both sides."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, SHAPE["vocab"], (args.batch, args.context + 1), generator=generator)


def figures(args: argparse.Namespace, seconds: float, loss: float) -> dict[str, float]:
    tokens = args.batch * args.context * args.steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_s": tokens / seconds, "peak_mb": peak, "loss": loss}


def our_worker(args: argparse.Namespace) -> None:
    """The Trainer, held at the end of each turn by a callback until the conductor says go."""
    import torch

    from dacheng.data.batches import TokenBatch
    from dacheng.models.decoder import Decoder
    from dacheng.models.traits import DecoderTraits
    from dacheng.objectives.next_token import NextToken
    from dacheng.train.callbacks import Callback
    from dacheng.train.config import TrainConfig
    from dacheng.train.optimizers import OptimizerConfig
    from dacheng.train.phases import Phase
    from dacheng.train.schedules import ScheduleConfig
    from dacheng.train.trainer import Trainer

    traits = DecoderTraits(
        vocab_size=SHAPE["vocab"],
        width=SHAPE["width"],
        layers=SHAPE["layers"],
        heads=SHAPE["heads"],
        mlp_width=SHAPE["mlp"],
        max_positions=args.context,
    )
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))

    class RandomRows:
        fingerprint, tokens_per_step = "random rows", args.batch * args.context

        def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[TokenBatch]:
            rows = random_rows(torch, args, step)
            positions = torch.arange(args.context).expand(args.batch, args.context)
            return [TokenBatch(rows[:, :-1], rows[:, 1:].contiguous(), positions, None)]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    class Turns(Callback):
        name = "turns"

        def on_start(self, trainer: Any) -> None:
            print(json.dumps({"parameters": model.params()["total"]}), flush=True)
            self._wait()

        def on_step_end(self, trainer: Any, report: Any) -> None:
            if report.step % args.steps == 0:
                seconds = time.perf_counter() - self.began
                print(json.dumps(figures(args, seconds, report.loss)), flush=True)
                self._wait()

        def _wait(self) -> None:
            if not sys.stdin.readline():
                os._exit(0)  # the conductor has what it wants: no final checkpoint
            self.began = time.perf_counter()

    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(
            steps=10**6,
            save_every=10**6,
            precision="bf16" if args.dtype == "bfloat16" else "fp32",
            threads=args.threads,
            deterministic=not args.nondeterministic,
            optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0),
            schedule=ScheduleConfig(kind="constant", warmup=0),
        )
        Trainer(model, [Phase(NextToken())], RandomRows(), [Turns()], config, Path(out)).fit()


def peer_worker(args: argparse.Namespace) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE["vocab"],
            hidden_size=SHAPE["width"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            intermediate_size=SHAPE["mlp"],
            max_position_embeddings=args.context,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    done = 0

    def turn() -> dict[str, float]:
        nonlocal done
        began = time.perf_counter()
        for _ in range(args.steps):
            rows = random_rows(torch, args, done)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
                loss = model(input_ids=rows[:, :-1], labels=rows[:, :-1], shift_labels=rows[:, 1:].contiguous()).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
        return figures(args, time.perf_counter() - began, loss.item())

    serve({"parameters": sum(p.numel() for p in model.parameters())}, turn)


def compare(args: argparse.Namespace, arguments: list[str]) -> None:
    """Runs both and prints a JSON line per figure; ratios over 1 mean ours is better."""
    if not args.peer_python:
        raise SystemExit(
            "name the peer's interpreter: --peer-python PATH or DACHENG_PEER_PYTHON (make peers builds one)"
        )
    workers = [
        Worker(sys.executable, "ours", __file__, arguments, args.threads),
        Worker(args.peer_python, "peer", __file__, arguments, args.threads),
    ]
    parameters = {worker.name: worker.ready["parameters"] for worker in workers}
    turns = interleave(workers, args.rounds)
    for worker in workers:
        worker.close()
    common = {"rounds": args.rounds, "threads": args.threads, "dtype": args.dtype, "parameters": parameters}
    for figure, key, unit in (
        ("training tokens/s", "tokens_per_s", "tok/s"),
        ("training peak memory", "peak_mb", "MB"),
    ):
        ours, peer = ([turn[key] for turn in turns[name]] for name in ("ours", "peer"))
        better = (ours, peer) if key == "tokens_per_s" else (peer, ours)
        line = {
            "figure": f"{figure} vs transformers' Llama",
            "ours": round(statistics.median(ours), 1),
            "peer": round(statistics.median(peer), 1),
            **ratios(*better),
            "unit": unit,
            **common,
        }
        print(json.dumps(line), flush=True)
    losses = {name: round(turns[name][-1]["loss"], 4) for name in turns}
    print(json.dumps({"figure": "last loss", **losses}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=["ours", "peer"])
    parser.add_argument("--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--nondeterministic", action="store_true", help="ours without deterministic algorithms")
    args = parser.parse_args()
    if args.worker:
        (our_worker if args.worker == "ours" else peer_worker)(args)
    else:
        compare(args, sys.argv[1:])


if __name__ == "__main__":
    main()
