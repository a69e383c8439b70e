"""Products of packed matrices by the compiled kernels: exact but for the rounding of x, in every format and shape."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.ops import native
from dacheng.ops.block_formats import FORMATS
from dacheng.ops.packed_linear import fallbacks, make_panels, packed_linear, why_no_kernel
from dacheng.ops.qtensor import QTensor

needs_kernels = pytest.mark.usefixtures("kernels")
KERNELS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")


@pytest.fixture
def kernels():
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(name, out, width, goldens):
    """Of random values where we write the format, of the reference's blocks where we only read it."""
    format = FORMATS[name]
    if name in ("Q4_0", "Q4_1", "Q8_0"):
        return QTensor.from_float(random(out, width), name)
    with np.load(goldens / "gguf_blocks.npz") as file:
        blocks = torch.from_numpy(file[f"{name}.raw"]).reshape(-1, format.bytes)
    values = QTensor(format, torch.Size((len(blocks), format.values)), blocks.contiguous()).dequantize()
    blocks = blocks[(values.abs().amax(1) < 1e3) & (values.abs().amax(1) > 1e-3)]
    count = out * width // format.values
    picked = torch.randint(len(blocks), (count,), generator=torch.Generator().manual_seed(1))
    return QTensor(format, torch.Size((out, width)), blocks[picked].reshape(out, -1))


def rounded(x):
    """x as the kernels see it: eight bits in blocks of 32, with a scale that keeps all its bits."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return ((blocks * inverse).round() * scale).flatten(-2)


@needs_kernels
@pytest.mark.oracle
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("out", "width", "rows"), [(8, 256, 1), (13, 512, 3), (3, 256, 6), (40, 768, 130)])
def test_only_x_is_rounded(name, out, width, rows, goldens):
    weight, x, bias = matrix(name, out, width, goldens), random(rows, width, seed=2), random(out, seed=3)
    x[0, :32] = 0.0
    y = packed_linear(x, make_panels(weight), bias, weight.format, out)
    expected = rounded(x).double() @ weight.dequantize().double().T + bias
    # against the sum of the sizes of what is summed: a float32 sum cannot do better
    size = rounded(x).abs().double() @ weight.dequantize().abs().double().T + bias.abs()
    assert y.shape == (rows, out) and ((y - expected).abs() / size).max() < 1e-6


@needs_kernels
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_error_of_rounding_x_is_under_a_percent(name, goldens):
    weight, x = matrix(name, 64, 576, goldens), random(16, 576, seed=4)
    exact = x @ weight.dequantize().T
    error = (packed_linear(x, make_panels(weight), None, weight.format, 64) - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.01
    peak = x.clone()
    peak[:, 100] *= 100  # a channel far larger than the others harms its own block of 32, not the row
    scale = peak.abs().amax(1, keepdim=True) / 127
    by_row = ((peak / scale).round() * scale - peak) @ weight.dequantize().T
    found = packed_linear(peak, make_panels(weight), None, weight.format, 64)
    assert (found - peak @ weight.dequantize().T).norm() < by_row.norm() / 3


@needs_kernels
def test_threads_and_rows_of_a_batch_change_nothing(goldens):
    weight, x = matrix("Q4_1", 50, 64, goldens), random(7, 64)
    panels = make_panels(weight)
    whole = packed_linear(x, panels, None, weight.format, 50)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(packed_linear(x, make_panels(weight), None, weight.format, 50), whole)
    finally:
        torch.set_num_threads(before)
    for i in range(7):
        assert torch.equal(packed_linear(x[i], panels, None, weight.format, 50), whole[i])
    assert packed_linear(x[:0], panels, None, weight.format, 50).shape == (0, 50)
    assert torch.equal(packed_linear(x.T.contiguous().T, panels, None, weight.format, 50), whole)


@needs_kernels
def test_many_callers_at_once_and_a_forked_child(goldens):
    weight, x = matrix("Q4_0", 64, 64, goldens), random(5, 64)
    panels = make_panels(weight)
    whole = packed_linear(x, panels, None, weight.format, 64)

    def same(_=None):
        return all(torch.equal(packed_linear(x, panels, None, weight.format, 64), whole) for _ in range(20))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same()
        with ThreadPoolExecutor(4) as callers:
            assert all(callers.map(same, range(8)))
        child = os.fork()
        if child == 0:
            os._exit(0 if same() else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_spoils_its_row_only(bad, goldens):
    weight, x = matrix("Q8_0", 16, 64, goldens), random(3, 64)
    x[1, 40] = bad
    y = packed_linear(x, make_panels(weight), None, weight.format, 16)
    assert not y[1].isfinite().any() and y[[0, 2]].isfinite().all()


@needs_kernels
def test_it_is_a_torch_operator(goldens):
    weight, x = matrix("Q4_0", 16, 64, goldens), random(3, 64)
    panels = make_panels(weight)
    with torch.inference_mode():
        inside = torch.ops.dacheng.packed_linear(x, panels, None, weight.format.id, 16)
    assert torch.equal(inside, packed_linear(x, panels, None, weight.format, 16))
    meta = torch.ops.dacheng.packed_linear(x.to("meta"), panels.to("meta"), None, weight.format.id, 16)
    assert meta.shape == (3, 16) and meta.device.type == "meta"
    torch.library.opcheck(
        torch.ops.dacheng.packed_linear.default, (x, panels, random(16), weight.format.id, 16),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="panels of"):
        packed_linear(x, panels[:-1], None, weight.format, 16)


@needs_kernels
def test_a_module_uses_them_where_it_may_and_counts_where_not(goldens):
    weight, x = matrix("Q4_1", 16, 64, goldens), random(2, 64)
    module, exact = Packed(weight), x @ weight.dequantize().T
    before = sum(fallbacks().values())
    fast = module(x)
    assert sum(fallbacks().values()) == before and not torch.equal(fast, exact)
    assert torch.equal(PackedEmbedding(weight).as_head(x), fast)

    def counted(reason, y, expected):
        assert fallbacks().get(reason, 0) == counts.get(reason, 0) + 1 and torch.equal(y, expected)

    counts = fallbacks()
    counted("x needs a gradient", module(x.clone().requires_grad_()), exact)
    with torch.no_grad():
        assert torch.equal(module(x.clone().requires_grad_()), fast)
    counted("x is not float32", module(x.bfloat16()), x.bfloat16() @ weight.dequantize(torch.bfloat16).T)
    module.exact = True
    counted("exact products were asked for", module(x), exact)
    third = Packed(QTensor.from_float(weight.dequantize(), "F16"))
    counted("F16 has no kernel", third(x), x @ third.qtensor.dequantize().T)
    assert "no whole number" in why_no_kernel(FORMATS["Q8_0"], 40)


@needs_kernels
def test_new_bytes_make_new_panels(goldens):
    first, second = matrix("Q8_0", 16, 64, goldens), QTensor.from_float(random(16, 64, seed=9), "Q8_0")
    module, x = Packed(QTensor(first.format, first.shape, first.data.clone())), random(2, 64)
    module(x)
    module.load_state_dict(Packed(second).state_dict())
    assert torch.equal(module(x), Packed(second)(x))
    module.packed = first.data
    assert torch.equal(module(x), Packed(first)(x))


CHILD = """
import torch
from dacheng.nn.packed import Packed
from dacheng.ops import native
from dacheng.ops.packed_linear import fallbacks
from dacheng.ops.qtensor import QTensor
weight, x = QTensor.from_float(torch.ones(8, 32), "Q8_0"), torch.ones(1, 32)
module = Packed(weight)
assert torch.allclose(module(x), torch.full((1, 8), 32.0), rtol=1e-3) and module(x).shape == (1, 8)
print(native.library() is not None, "|", native.why_not(), "|", fallbacks())
"""


def child(tmp_path, **env):
    env = {**os.environ, "DACHENG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("env", "reason", "said"),
    [
        ({"DACHENG_NO_NATIVE": "1"}, "DACHENG_NO_NATIVE is set", 0),
        ({"CXX": "/no/such/compiler"}, "no C++ compiler was found", 1),
        ({"CXX": "false"}, "", 1),
    ],
)
def test_without_kernels_the_exact_code_does_the_work(tmp_path, env, reason, said):
    process = child(tmp_path, **env)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("False |") and reason in out and ": 2}" in out
    assert err.count("no compiled kernels") == said


@needs_kernels
@pytest.mark.slow
@pytest.mark.process
def test_two_processes_may_build_at_once(tmp_path):
    for process in [child(tmp_path), child(tmp_path)]:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.startswith("True |") and err == ""
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".so"
    kept[0].write_bytes(b"damaged")
    process = child(tmp_path)
    assert process.communicate(timeout=300)[0].startswith("True |")
