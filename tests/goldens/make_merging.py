"""Makes tests/goldens/merging.json: merged tensors of mergekit's and PEFT's own code.

    python tests/goldens/make_merging.py MERGEKIT [OUT]

MERGEKIT: a checkout of github.com/arcee-ai/mergekit at a6e4028; PEFT 0.21.2 is imported; made with torch 2.13.0.
Tensors are multiples of 1/256, so that JSON holds them exactly. mergekit's tasks are run unbound, with the few fields
that they read.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
SHAPE, MODELS = (6, 10), 3


def drawn(seed: int, spread: int = 512) -> torch.Tensor:
    return torch.randint(-spread, spread + 1, SHAPE, generator=torch.Generator().manual_seed(seed)) / 256


class _Absent(types.ModuleType):
    """Any name of a library that only the rest of the package wants."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


def mergekit(path: Path) -> tuple[Any, Any, Any]:
    from pydantic import BaseModel

    BaseModel.model_config["arbitrary_types_allowed"] = True  # its classes hold tensors, which newer ones ask about
    sys.path.insert(0, str(path))
    while True:
        try:
            return tuple(
                importlib.import_module(f"mergekit.merge_methods.{name}")
                for name in ("linear", "slerp", "generalized_task_arithmetic")
            )  # type: ignore[return-value]
        except ModuleNotFoundError as error:
            assert error.name is not None and not error.name.startswith("mergekit"), error
            sys.modules[error.name] = _Absent(error.name)


def make(path: Path) -> dict[str, Any]:
    linear, slerp, arithmetic = mergekit(path)
    from peft.utils import merge_utils

    base = drawn(0)
    models = [base + drawn(i + 1, 128) for i in range(MODELS)]
    found: dict[str, Any] = {"base": base.tolist(), "models": [m.tolist() for m in models], "cases": []}

    def add(method: str, value: torch.Tensor, **arguments: Any) -> None:
        found["cases"].append({"method": method, **arguments, "expected": value.tolist()})

    for weights in ([1.0, 1.0, 1.0], [0.5, 2.0, 1.0]):
        parameters = {i: {"weight": w} for i, w in enumerate(weights)}
        stub = SimpleNamespace(
            normalize=True, weight_info=SimpleNamespace(is_embed=False), tensor_parameters=parameters
        )
        linear.rectify_embed_sizes = lambda *_: None
        add("linear", linear.LinearMergeTask.execute(stub, dict(enumerate(models))), weights=weights)
        for method, consensus, sparsify, normalize, density in (
            ("task_arithmetic", None, None, False, 1.0), ("ties", "sum", "magnitude", True, 0.3),
        ):  # fmt: skip
            stub = SimpleNamespace(
                weight_info=SimpleNamespace(name="w", is_embed=False), base_model="base", lambda_=0.75, int8_mask=False,
                normalize=normalize, rescale_norm=None,
                method=SimpleNamespace(
                    consensus_method=consensus and arithmetic.ConsensusMethod(consensus),
                    sparsification_method=sparsify and arithmetic.SparsificationMethod(sparsify),
                ),
                tensor_parameters=SimpleNamespace(
                    data={i: {"weight": w, "density": density} for i, w in enumerate(weights)}
                ),
            )  # fmt: skip
            tensors = {"base": base.clone(), **{i: m.clone() for i, m in enumerate(models)}}
            value = arithmetic.GTATask.execute(stub, tensors)
            add(method, value, weights=weights, scale=0.75, density=density)
        torch.manual_seed(7)
        deltas = [m - base for m in models]
        add("dare_linear", base + merge_utils.dare_linear(deltas, torch.tensor(weights), 0.4), weights=weights,
            density=0.4, seed=7)  # fmt: skip
    for t in (0.0, 0.25, 0.5, 1.0):
        add("slerp", slerp.slerp(t, models[0], models[1]), t=t)
    add("slerp", slerp.slerp(0.5, models[0], models[0] * 3), t=0.5, parallel=3.0)
    return found


if __name__ == "__main__":
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "merging.json"
    out.write_text(json.dumps(make(Path(sys.argv[1]))), encoding="utf-8")
    print(out, out.stat().st_size)
