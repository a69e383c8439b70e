"""GPTQ, AWQ, SmoothQuant and NF4 beside the papers' own code (tests/goldens/make_quantizers.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dacheng.compress.calibrate import InputStats
from dacheng.compress.quantize.awq import awq_scales, clip_ranges
from dacheng.compress.quantize.gptq import gptq
from dacheng.compress.quantize.smoothquant import smooth_scales
from dacheng.ops.integers import IntTensor, QSpec
from dacheng.ops.nf4 import NF4Tensor

pytestmark = pytest.mark.oracle
GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
FOUND = json.loads((GOLDENS / "quantizers.json").read_text(encoding="utf-8"))
TOKENS, WIDTH = 96, 64


def matrix(values: list[int], width: int = WIDTH) -> torch.Tensor:
    return (torch.tensor(values) / 256).view(-1, width)


def drawn(*shape: int, seed: int, spread: int = 512) -> torch.Tensor:
    return torch.randint(-spread, spread + 1, shape, generator=torch.Generator().manual_seed(seed)) / 256


def stats(x: torch.Tensor) -> InputStats:
    return InputStats(len(x), x.t() @ x / len(x), x.abs().amax(0), x.abs().mean(0))


@pytest.mark.parametrize("name", [name for name in FOUND["gptq"]["cases"] if not name.startswith("rtn")])
def test_gptq_equals_the_authors(name):
    case, of = FOUND["gptq"]["cases"][name], FOUND["gptq"]
    group = "channel" if case["groupsize"] == -1 else case["groupsize"]
    spec = QSpec(case["bits"], group, case["sym"], "float32")
    solved = gptq(
        matrix(of["weight"]), stats(matrix(of["inputs"])).hessian, spec, block=case.get("blocksize", 128),
        act_order=case.get("actorder", False), static_groups=case.get("static_groups", False),
    )  # fmt: skip
    assert solved.damp == 0.01 and not solved.note
    expected = torch.tensor(case["weight"]).view(-1, WIDTH)
    found = solved.weight.dequantize()
    step = solved.weight.scale.max()
    assert float((found - expected).abs().max()) < 1e-3 * float(step)  # the same code everywhere


@pytest.mark.parametrize("name", [name for name in FOUND["gptq"]["cases"] if name.startswith("rtn")])
def test_rounding_to_nearest_equals_their_quantizer(name):
    case = FOUND["gptq"]["cases"][name]
    spec = QSpec(case["bits"], "channel", case["sym"], "float32")
    found = IntTensor.from_float(matrix(FOUND["gptq"]["weight"]), spec).dequantize()
    torch.testing.assert_close(found, torch.tensor(case["weight"]).view(-1, WIDTH), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FOUND["awq"]["cases"])
@pytest.mark.parametrize("part", ["o", "down"])
def test_awq_scales_equal_the_authors(name, part):
    case, one = FOUND["awq"]["cases"][name], stats(matrix(FOUND["gptq"]["inputs"]))
    spec = QSpec(case["bits"], "channel" if case["group"] == -1 else case["group"], False, "float32")
    scales, power = awq_scales([matrix(FOUND["awq"][part])], one.hessian, one.absmean, spec)
    torch.testing.assert_close(scales, torch.tensor(case[part]), rtol=1e-5, atol=1e-6)
    assert 0 < power < 1


@pytest.mark.parametrize("name", FOUND["awq"]["cases"])
def test_awq_clipping_equals_the_authors(name):
    case, one, weight = FOUND["awq"]["cases"][name], stats(matrix(FOUND["gptq"]["inputs"])), matrix(FOUND["awq"]["o"])
    spec = QSpec(case["bits"], "channel" if case["group"] == -1 else case["group"], False, "float32")
    pseudo = IntTensor.from_float(weight[:4], spec).dequantize()
    torch.testing.assert_close(pseudo, torch.tensor(case["pseudo"]).view(-1, WIDTH), rtol=1e-5, atol=1e-5)
    limits = torch.tensor(case["clip"]).view(WIDTH, -1, 1)
    expected = torch.clamp(weight.view(WIDTH, limits.shape[1], -1), -limits, limits).view_as(weight)
    torch.testing.assert_close(clip_ranges(weight, one.hessian, spec), expected)


@pytest.mark.parametrize("alpha", ["0.5", "0.85"])
def test_smoothquant_scales_equal_the_authors(alpha):
    of = FOUND["smoothquant"]
    weights = [matrix(values) for values in of["weights"]]
    scales = smooth_scales(torch.tensor(of["absmax"]) / 256, weights, float(alpha))
    torch.testing.assert_close(1 / scales, torch.tensor(of[alpha]["gain"]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        weights[0] * scales, torch.tensor(of[alpha]["first"]).view(-1, WIDTH), rtol=1e-5, atol=1e-6
    )


def test_nf4_equals_bitsandbytes():
    weight = drawn(40, 192, seed=30) ** 3
    weight[3, :64] = 0
    for name, double in (("single", False), ("double", True)):
        case, found = FOUND["nf4"][name], NF4Tensor.from_float(weight, double)
        assert bytes(found.codes.flatten().tolist()).hex() == case["codes"]
        if double:
            assert found.absmax.tolist() == case["absmax"] and float(found.offset) == pytest.approx(
                case["offset"], rel=1e-6
            )
            torch.testing.assert_close(found.levels, torch.tensor(case["levels"]))
        else:
            assert torch.equal(found.absmax, torch.tensor(case["absmax"]))
        torch.testing.assert_close(found.dequantize()[:2].flatten(), torch.tensor(case["first"]), rtol=1e-6, atol=1e-7)
    assert NF4Tensor.from_float(torch.randn(512, 1024)).nbytes * 8 / 512 / 1024 == pytest.approx(4.127, abs=5e-4)


@pytest.mark.peer
def test_the_goldens_are_what_the_code_makes_now(tmp_path):
    """Checkouts of their code: DACHENG_QUANTIZERS=GPTQ:AWQ:SMOOTHQUANT."""
    pytest.importorskip("bitsandbytes")
    folders = os.environ.get("DACHENG_QUANTIZERS", "").split(":")
    if len(folders) != 3:
        pytest.skip("DACHENG_QUANTIZERS names no checkouts of gptq, llm-awq and smoothquant")
    script = GOLDENS / "make_quantizers.py"
    subprocess.run([sys.executable, str(script), *folders, str(tmp_path / "again.json")], check=True)
    assert json.loads((tmp_path / "again.json").read_text()) == FOUND
