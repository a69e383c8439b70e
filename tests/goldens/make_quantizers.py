"""Makes tests/goldens/quantizers.json: what the papers' own code makes of small matrices.

    python tests/goldens/make_quantizers.py GPTQ AWQ SMOOTHQUANT [OUT]

GPTQ: a checkout of github.com/IST-DASLab/gptq at 2d65066; AWQ: github.com/mit-han-lab/llm-awq at d6e797a; SMOOTHQUANT:
github.com/mit-han-lab/smoothquant at c61476d. NF4 is bitsandbytes 0.50.2's. Made with torch 2.13.0 and transformers
5.23.0. Their code is run as it is; what it asks of a GPU is stubbed. Weights and inputs are multiples of 1/256, so that
JSON holds them exactly.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
OUT, WIDTH, TOKENS = 16, 64, 96
AWQ_OUT = 64  # auto_clip works on 64 rows at least
GPTQ_CASES = {
    "channel 4": {"bits": 4, "sym": True, "groupsize": -1},
    "channel 3 asym": {"bits": 3, "sym": False, "groupsize": -1},
    "act-order 4": {"bits": 4, "sym": True, "groupsize": -1, "actorder": True},
    "groups 4 asym": {"bits": 4, "sym": False, "groupsize": 32, "blocksize": 32},
    "static groups, act-order 4": {"bits": 4, "sym": True, "groupsize": 16, "actorder": True, "static_groups": True},
    "blocks of 16": {"bits": 4, "sym": True, "groupsize": -1, "blocksize": 16},
}


def drawn(*shape: int, seed: int, spread: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-spread, spread + 1, shape, generator=generator) / 256


def inputs(width: int) -> torch.Tensor:
    """Correlated, some channels much larger than others, one that is never there."""
    x = drawn(TOKENS, width, seed=2) @ drawn(width, width, seed=3) / 8
    x[:, ::9] *= 6
    x[:, 5] = 0
    return (x * 256).round() / 256


def module_of(path: Path, name: str, package: str | None = None) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if package is not None:
        module.__package__ = package
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def of_gptq(folder: Path) -> dict[str, Any]:
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    quant = module_of(folder / "quant.py", "quant")
    reference = module_of(folder / "gptq.py", "gptq_reference")
    found: dict[str, Any] = {}
    weight, x = drawn(OUT, WIDTH, seed=1), inputs(WIDTH)
    for name, case in GPTQ_CASES.items():
        layer = nn.Linear(WIDTH, OUT, bias=False)
        layer.weight.data = weight.clone()
        solver = reference.GPTQ(layer)
        solver.quantizer = quant.Quantizer()
        solver.quantizer.configure(case["bits"], perchannel=True, sym=case["sym"], mse=False)
        for row in x.split(32):
            solver.add_batch(row[None], None)
        solver.fasterquant(**{key: value for key, value in case.items() if key not in ("bits", "sym")})
        found[name] = {**case, "weight": rounded(layer.weight.data)}
    plain = quant.Quantizer()
    for bits, sym in ((4, True), (8, True), (3, False)):
        plain.configure(bits, perchannel=True, sym=sym, mse=False)
        plain.find_params(weight, weight=True)
        values = quant.quantize(weight, plain.scale, plain.zero, plain.maxq)
        found[f"rtn {bits} {'sym' if sym else 'asym'}"] = {"bits": bits, "sym": sym, "weight": rounded(values)}
    return {"weight": exact(weight), "inputs": exact(x), "cases": found}


def of_awq(folder: Path) -> dict[str, Any]:
    """`_search_module_scale` of single maps (o and down of a Llama layer), and auto_clip_layer."""
    for name in ("awq", "awq.quantize", "awq.utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []  # type: ignore[attr-defined]
    stub = types.ModuleType("awq.quantize.qmodule")
    stub.ScaledActivation = type("ScaledActivation", (nn.Module,), {})  # type: ignore[attr-defined]
    sys.modules["awq.quantize.qmodule"] = stub
    module_of(folder / "awq/utils/module.py", "awq.utils.module", "awq.utils")
    quantizer = module_of(folder / "awq/quantize/quantizer.py", "awq.quantize.quantizer", "awq.quantize")
    scale = module_of(folder / "awq/quantize/auto_scale.py", "awq.quantize.auto_scale", "awq.quantize")
    clip = module_of(folder / "awq/quantize/auto_clip.py", "awq.quantize.auto_clip", "awq.quantize")
    torch.cuda.empty_cache = lambda: None
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=WIDTH, num_attention_heads=4, num_key_value_heads=4)
    config._attn_implementation = "eager"
    layer = LlamaDecoderLayer(config, 0).eval()
    x, cases = inputs(WIDTH)[None], {}
    weights = {
        name: drawn(WIDTH, WIDTH, seed=seed) for seed, name in enumerate(("q", "k", "v", "o", "gate", "up", "down"), 10)
    }
    for name, weight in weights.items():
        (layer.mlp if name in ("gate", "up", "down") else layer.self_attn).get_submodule(
            f"{name}_proj"
        ).weight.data = weight.clone()
    layer.self_attn.forward = lambda hidden, **_: hidden  # the searches of q, k, v are not asked about
    layer.mlp.forward = lambda hidden, **_: hidden
    feed = dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"), x)
    for bits, group in ((4, 16), (3, -1)):
        asked = {"zero_point": True, "q_group_size": group}
        whole = asked | {"q_group_size": group if group > 0 else WIDTH}  # auto_clip knows only groups
        scales = {names[-1]: value for _, names, value in scale.auto_scale_block(layer, {}, bits, asked, feed)}
        cases[f"{bits} {group}"] = {
            "bits": bits, "group": group,
            "o": floats(scales["self_attn.o_proj"]), "down": floats(scales["mlp.down_proj"]),
            "clip": floats(clip.auto_clip_layer(weights["o"], x, bits, whole, n_sample_token=TOKENS).squeeze(-1)),
            "pseudo": rounded(quantizer.pseudo_quantize_tensor(weights["o"], bits, **asked)[:4]),
        }  # fmt: skip
    return {"o": exact(weights["o"]), "down": exact(weights["down"]), "cases": cases}


def of_smoothquant(folder: Path) -> dict[str, Any]:
    smooth = module_of(folder / "smoothquant/smooth.py", "smooth_reference")
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    absmax = inputs(WIDTH).abs().amax(0)
    found: dict[str, Any] = {"absmax": exact(absmax)}
    weights = [drawn(8, WIDTH, seed=20), drawn(4, WIDTH, seed=21)]
    found["weights"] = [exact(weight) for weight in weights]
    for alpha in (0.5, 0.85):
        norm = LlamaRMSNorm(WIDTH)
        maps = [nn.Linear(WIDTH, len(weight), bias=False) for weight in weights]
        for one, weight in zip(maps, weights):
            one.weight.data = weight.clone()
        smooth.smooth_ln_fcs_llama_like(norm, maps, absmax, alpha)
        found[f"{alpha}"] = {"gain": floats(norm.weight.data), "first": rounded(maps[0].weight.data)}
    return found


def of_nf4() -> dict[str, Any]:
    import bitsandbytes.functional as bnb

    weight = drawn(40, 192, seed=30) ** 3  # 120 blocks, more than one absmax is needed of; heavy tails
    weight[3, :64] = 0
    found: dict[str, Any] = {}
    for double in (False, True):
        codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        one: dict[str, Any] = {"codes": bytes(codes.flatten().tolist()).hex()}
        if double:
            one |= {
                "absmax": state.absmax.tolist(),
                "offset": float(state.offset),
                "levels": floats(state.state2.absmax),
            }
        else:
            one |= {"absmax": floats(state.absmax)}
        one["first"] = floats(bnb.dequantize_4bit(codes, state)[:2])
        found["double" if double else "single"] = one
    return found


def exact(x: torch.Tensor) -> list[Any]:
    return [int(v) for v in (x * 256).flatten().tolist()]


def rounded(x: torch.Tensor) -> list[Any]:
    return [float(f"{v:.6g}") for v in x.flatten().tolist()]


def floats(x: torch.Tensor) -> list[float]:
    return [float(f"{v:.9g}") for v in x.flatten().tolist()]  # enough for a float32


def main() -> None:
    gptq, awq, smoothquant = (Path(name) for name in sys.argv[1:4])
    out = Path(sys.argv[4]) if len(sys.argv) > 4 else HERE / "quantizers.json"
    with torch.no_grad():
        found = {"gptq": of_gptq(gptq), "awq": of_awq(awq), "smoothquant": of_smoothquant(smoothquant), "nf4": of_nf4()}
    out.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
