"""LoRA on a small model beside transformers and PEFT: tokens a second, and memory.

    dacheng import smollm2 --out models/smollm2
    DACHENG_PEER_PYTHON=PATH python benchmarks/finetune.py --model models/smollm2 [--rounds 5] [--steps 2] [--threads 2]

Same weights (float32), rank, alpha, targets (all linear maps of the blocks), rows, AdamW and clipping; each in a
process of its own, in turns of `--steps` steps. Rows are conversations packed to `--row` tokens; only what the
assistant says is learnt. Ours is the whole Trainer, a row at a time; the peer's is the loop that its documentation
shows, over the step's rows at once (--peer-micro: a row at a time as well). The peer lets conversations of a row see
each other, which is less work than to keep them apart.
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

ROOT = Path(__file__).resolve().parent.parent
LEARNING_RATE = 1e-3


def peak_mb() -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Wall and processor seconds of a turn; the latter say less of what else the machine was doing."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def figures(self, args: argparse.Namespace, loss: float) -> dict[str, float]:
        tokens = args.rows * args.row * args.steps
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu, "peak_mb": peak_mb(), "loss": loss}


def held_bytes(weights: int, gradients: int, moments: int) -> dict[str, float]:
    return {"weights_mb": weights / 2**20, "gradients_mb": gradients / 2**20, "optimizer_mb": moments / 2**20}


def our_worker(args: argparse.Namespace) -> None:
    import torch

    from dacheng.adapt import AdaptTrainConfig, train_adapter
    from dacheng.data.chats import read_chats
    from dacheng.records import Drops
    from dacheng.train.callbacks import Callback

    torch.set_num_threads(args.threads)

    class Turns(Callback):
        def on_start(self, trainer: Any) -> None:
            trained = sum(p.numel() for phase in trainer.phases for p in phase.parameters)
            tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
            nbytes = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
            print(json.dumps({"trained": trained, **held_bytes(nbytes, 4 * trained, 8 * trained)}), flush=True)
            self._wait()

        def on_step_end(self, trainer: Any, report: Any) -> None:
            if report.step % args.steps == 0:
                print(json.dumps(self.clock.figures(args, report.loss)), flush=True)
                self._wait()

        def _wait(self) -> None:
            if not sys.stdin.readline():
                os._exit(0)  # the conductor has what it wants: no final checkpoint
            self.clock = Clock()

    settings = AdaptTrainConfig(
        rank=args.rank, alpha=2.0 * args.rank, lr=LEARNING_RATE, schedule="constant", warmup=0, steps=10**6,
        row_tokens=args.row, batch_tokens=args.rows * args.row, threads=args.threads, save_every=10**6,
        share_beginnings=False, held_out_rows=1, base_memory=args.base_memory,
        layers=args.layers,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        train_adapter(Path(args.model), list(read_chats([args.data], Drops())), out, settings, [Turns()])


def peer_worker(args: argparse.Namespace) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.peer_model or args.model, dtype=torch.float32)
    model.config.use_cache = False
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    layers = None
    if args.layers is not None:
        depth = model.config.num_hidden_layers
        layers = list(range(depth - args.layers, depth))
    model = get_peft_model(
        model, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, layers_to_transform=layers)
    )
    model.train()
    moved = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    rows = [tuple(torch.tensor(part) for part in row) for row in json.loads(Path(args.rows_file).read_text())]
    trained = sum(p.numel() for p in moved)
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    done = 0

    def turn() -> dict[str, float]:
        nonlocal done
        clock = Clock()
        for _ in range(args.steps):
            chosen = [rows[(done * args.rows + i) % len(rows)] for i in range(args.rows)]
            parts = [[row] for row in chosen] if args.peer_micro else [chosen]
            for part in parts:
                ids, labels = (torch.stack([row[k] for row in part]) for k in (0, 1))
                loss = model(input_ids=ids, labels=ids, shift_labels=labels).loss / len(parts)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(moved, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
        return clock.figures(args, loss.item())

    serve({"trained": trained, **held_bytes(nbytes, 4 * trained, 8 * trained)}, turn)


def write_rows(args: argparse.Namespace, path: Path) -> None:
    """The rows that ours trains on, for the peer: [ids, targets] each."""
    from dacheng.data.beginnings import tree_source
    from dacheng.data.chats import read_chats
    from dacheng.formats.model_directory import load_tokenizer
    from dacheng.records import Drops
    from dacheng.text import ChatRenderer

    renderer = ChatRenderer(load_tokenizer(args.model))
    records = read_chats([args.data], Drops())
    source = tree_source(records, renderer, context_length=args.row, batch_rows=1, share=False, drops=Drops())
    found = [source.read([row]) for row in range(source.packing.rows)]
    path.write_text(json.dumps([[batch.tokens[0].tolist(), batch.targets[0].tolist()] for batch in found]))


def compare(args: argparse.Namespace, arguments: list[str]) -> None:
    if not args.peer_python:
        raise SystemExit("name an interpreter with transformers and peft: --peer-python or DACHENG_PEER_PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        write_rows(args, rows)
        arguments = [*arguments, "--rows-file", str(rows)]
        workers = [
            Worker(sys.executable, "ours", __file__, arguments, args.threads),
            Worker(args.peer_python, "peer", __file__, arguments, args.threads),
        ]
        turns = interleave(workers, args.rounds)
        for worker in workers:
            worker.close()
    ready = {worker.name: worker.ready for worker in workers}
    common = {"rounds": args.rounds, "steps": args.steps, "threads": args.threads, "rank": args.rank,
              "tokens_a_step": args.rows * args.row, "layers": args.layers, "base_memory": args.base_memory,
              "trained": {name: int(found["trained"]) for name, found in ready.items()}}  # fmt: skip
    for figure, key, unit in (
        ("tokens/s", "tokens_per_s", "tok/s"),
        ("tokens per processor second", "tokens_per_cpu_s", "tok/s"),
        ("peak memory", "peak_mb", "MB"),
    ):
        ours, peer = ([turn[key] for turn in turns[name]] for name in ("ours", "peer"))
        better = (peer, ours) if key == "peak_mb" else (ours, peer)
        line = {"figure": f"LoRA {figure} vs transformers + peft", "ours": round(statistics.median(ours), 1),
                "peer": round(statistics.median(peer), 1), **ratios(*better), "unit": unit, **common}  # fmt: skip
        print(json.dumps(line), flush=True)
    for key in ("weights_mb", "gradients_mb", "optimizer_mb"):
        held = {name: round(found[key], 1) for name, found in ready.items()}
        print(json.dumps({"figure": f"LoRA {key.removesuffix('_mb')}", **held, "unit": "MB"}), flush=True)
    losses = {name: round(turns[name][-1]["loss"], 4) for name in turns}
    print(json.dumps({"figure": "last loss", **losses}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=["ours", "peer"])
    parser.add_argument("--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"))
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--peer-model", help="the same weights as a directory, where --model is a GGUF file")
    parser.add_argument("--data", default=str(ROOT / "recipes/adapt/orders.jsonl"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--row", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--layers", type=int, help="adapt only the top n")
    parser.add_argument("--base-memory", choices=["fast", "small"], default="fast")
    parser.add_argument("--peer-micro", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows-file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        (our_worker if args.worker == "ours" else peer_worker)(args)
    else:
        compare(args, sys.argv[1:])


if __name__ == "__main__":
    main()
