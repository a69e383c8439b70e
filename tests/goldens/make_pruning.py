"""Makes tests/goldens/pruning.json: the zeros of the papers' own code on small matrices.

    python tests/goldens/make_pruning.py WANDA SPARSEGPT [OUT]

WANDA: a checkout of github.com/locuslab/wanda at 8e8fc87; SPARSEGPT: one of github.com/IST-DASLab/sparsegpt at 147d215.
Made with torch 2.13.0 and transformers 5.23.0. `lib/prune.py` is run as it is, on a model of two linear layers that
stands for a Llama; `sparsegpt.py` is run on one layer. Weights and inputs are multiples of 1/256, so that JSON holds
them exactly.
"""

from __future__ import annotations

import json
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
SEQUENCES, LENGTH, WIDTH, OUT = 128, 2, 16, 12
RATIOS, GROUPS = (0.5, 0.3), ((2, 4), (4, 8))


def drawn(*shape: int, seed: int, spread: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-spread, spread + 1, shape, generator=generator) / 256


class Layer(nn.Module):
    """Called as transformers' decoder layers were when the code was written."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, OUT, bias=False)
        self.proj.weight.data = weight.clone()
        self.back = nn.Linear(OUT, WIDTH, bias=False)
        self.back.weight.data = drawn(WIDTH, OUT, seed=7)

    def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self.back(torch.relu(self.proj(x))),)


class Model(nn.Module):
    """model.model.layers, and a forward that hands the inputs to the first of them."""

    def __init__(self, weight: torch.Tensor, inputs: torch.Tensor) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Layer(weight)])
        self.inputs, self.seqlen, self.hf_device_map = inputs, LENGTH, {}
        self.config = Namespace(use_cache=False, hidden_size=WIDTH)

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        return self.model.layers[0](self.inputs[int(number)][None], attention_mask=None, position_ids=None)[0]


def wanda_zeros(prune: Any, weight: torch.Tensor, inputs: torch.Tensor, method: str, **arguments: Any) -> list:
    model = Model(weight, inputs)
    ratio, n, m = arguments.get("ratio", 0.0), arguments.get("n", 0), arguments.get("m", 0)
    args = Namespace(nsamples=SEQUENCES, seed=0, sparsity_ratio=ratio, use_variant=False)
    prune.get_loaders = lambda *_, **__: ([(torch.tensor(i),) for i in range(SEQUENCES)], None)
    if method == "magnitude":
        prune.prune_magnitude(args, model, None, torch.device("cpu"), n, m)
    else:
        prune.prune_wanda(args, model, None, torch.device("cpu"), n, m)
    return (model.model.layers[0].proj.weight == 0).int().tolist()


def sparsegpt_weight(module: Any, weight: torch.Tensor, inputs: torch.Tensor, block: int, **arguments: Any) -> list:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    solver = module.SparseGPT(layer)
    for sequence in inputs:
        solver.add_batch(sequence[None], None)
    solver.fasterprune(
        arguments.get("ratio", 0.0), arguments.get("n", 0), arguments.get("m", 0), blocksize=block, percdamp=0.01
    )
    return layer.weight.tolist()


def cases() -> list[dict[str, Any]]:
    # n of the reference is how many go of m: for 2:4 and 4:8 as many as stay
    return [{"ratio": ratio} for ratio in RATIOS] + [{"n": n, "m": m} for n, m in GROUPS]


def make(wanda: Path, sparsegpt: Path) -> dict[str, Any]:
    torch.Tensor.cuda = lambda self, *_: self  # the code asks for a GPU to sort and to wait for
    torch.cuda.synchronize = lambda *_: None
    sys.path[:0] = [str(wanda)]
    sys.modules["lib.data"] = types.SimpleNamespace(get_loaders=None)
    from lib import prune

    sys.path[:0] = [str(sparsegpt)]
    import sparsegpt as module

    weight, inputs = drawn(OUT, WIDTH, seed=0), drawn(SEQUENCES, LENGTH, WIDTH, seed=1)
    inputs = inputs * torch.linspace(0.25, 4, WIDTH).mul(4).round().div(4)  # inputs of different sizes
    inputs[..., 1::2] += inputs[..., ::2]  # and that go together: else there is nothing to make up for
    found: dict[str, Any] = {"weight": weight.tolist(), "inputs": inputs.flatten(0, 1).tolist(), "cases": []}
    found["sequence_length"] = LENGTH
    for case in cases():
        for method in ("magnitude", "wanda"):
            zeros = wanda_zeros(prune, weight, inputs, method, **case)
            found["cases"].append({"method": method, **case, "zeros": zeros})
        for block in (8, 128):
            pruned = sparsegpt_weight(module, weight, inputs, block, **case)
            found["cases"].append({"method": "sparsegpt", "block": block, **case, "pruned": pruned})
    return found


if __name__ == "__main__":
    out = Path(sys.argv[3]) if len(sys.argv) > 3 else HERE / "pruning.json"
    out.write_text(json.dumps(make(Path(sys.argv[1]), Path(sys.argv[2]))), encoding="utf-8")
    print(out, out.stat().st_size)
