"""Log-probabilities of a model's targets with their gradient: ours beside all logits at once, and TRL's way.

    python benchmarks/token_logps.py [--rows 2048] [--share 0.5] [--rounds 5] [--threads 1]

The head alone, at SmolLM2's size (width 576, 49,152 tokens, tied): rows of hidden states, of which a share has a target
(answers in a batch of prompts and answers). `all logits` is log_softmax and gather; `trl` is what TRL does without a
fused kernel (selective_log_softmax: logsumexp a row of the batch at a time, over every position). Forward and backward
to hidden states and weight; each way in turns, in seconds of the processor; memory in a process of its own. One JSON
line a figure: ratio over 1 means that ours is faster, or smaller.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dacheng.objectives.logps import hidden_logps

WIDTH, VOCAB, BATCH = 576, 49152, 8
WAYS = ("ours", "all logits", "trl")


def all_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    log_p = (hidden @ weight.t()).log_softmax(-1)
    return log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (targets >= 0)


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.t()
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (chosen - torch.stack([row.logsumexp(-1) for row in logits])) * (targets >= 0)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    model: Any = SimpleNamespace(head=lambda rows: rows @ weight.t())
    return hidden_logps(model, hidden, targets)  # type: ignore[no-any-return]


def step(way: str, args: argparse.Namespace) -> float:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, args.rows // BATCH, WIDTH, generator=g).requires_grad_()
    weight = (torch.randn(VOCAB, WIDTH, generator=g) * 0.04).requires_grad_(not args.frozen)
    targets = torch.randint(VOCAB, hidden.shape[:2], generator=g)
    targets[torch.rand(targets.shape, generator=g) >= args.share] = -100
    function = {"ours": ours, "all logits": all_logits, "trl": trl}[way]
    began = time.process_time()
    function(hidden, weight, targets).sum().backward()
    return time.process_time() - began


def high_water_mb() -> float:
    """Of this process (Linux). getrusage's begins with what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def memory(way: str, args: argparse.Namespace) -> float:
    """MB at peak over what the process had before."""
    command = [sys.executable, __file__, "--worker", way, "--rows", str(args.rows), "--share", str(args.share),
               "--threads", str(args.threads), *(["--frozen"] if args.frozen else [])]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frozen", action="store_true", help="the head is not trained, as under adapters")
    parser.add_argument("--worker", choices=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        before = high_water_mb()
        step(args.worker, args)
        print(high_water_mb() - before)
        return
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            times[way].append(step(way, args))
    peaks = {way: memory(way, args) for way in WAYS}
    what = f"{args.rows} rows, {args.share:.0%} with a target" + (", frozen head" if args.frozen else "")
    for peer in WAYS[1:]:
        quotients = sorted(b / a for a, b in zip(times["ours"], times[peer]))
        figure = {
            "figure": f"log-probabilities and gradient vs {peer}: {what}", "ours": statistics.median(times["ours"]),
            "peer": statistics.median(times[peer]), "ratio": statistics.median(quotients),
            "spread": [quotients[0], quotients[-1]], "unit": "CPU s", "rounds": args.rounds, "threads": args.threads,
        }  # fmt: skip
        print(json.dumps(figure), flush=True)
        figure |= {"figure": f"peak memory of the same vs {peer}: {what}", "ours": peaks["ours"], "peer": peaks[peer]}
        print(json.dumps(figure | {"ratio": peaks[peer] / peaks["ours"], "spread": None, "unit": "MB"}), flush=True)


if __name__ == "__main__":
    main()
