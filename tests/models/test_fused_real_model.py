"""What rounding x to eight bits changes in a real model: SmolLM2, against the exact products."""

from __future__ import annotations

import pytest
import torch

from dacheng.formats.model_directory import load_model
from dacheng.formats.packages import MODELS, gguf_of, package_file
from dacheng.models.fused import FusedDecoder
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.packed import use_exact
from dacheng.ops import native
from dacheng.ops.decoder_step import CacheView

TEXT = """The lighthouse keeper climbed the stairs every evening at six, lit the lamp, and wrote the weather into a
book. He had done so for thirty years. In the winter of 1911 a ship ran aground two miles to the north, and nobody has
ever explained why: the lamp was burning, the night was clear, and the captain knew the coast.
def area(radius): return 3.14159 * radius * radius
"""


@torch.inference_mode()
def log_probabilities(model, ids):
    hidden = model(ids[None], torch.arange(len(ids))[None], DenseCausal())[0]
    return model.head(hidden).log_softmax(-1)


def divergence(p, q):
    """Mean over positions of KL(p ‖ q), nats."""
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.slow
def test_the_next_token_hardly_changes():
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    path = package_file(*MODELS["smollm2"].parts[0])
    if path is None:
        pytest.skip(f"the model is absent: {MODELS['smollm2'].command}")
    loaded = load_model(path, packed=True)
    model = loaded.model
    ids = torch.tensor(loaded.tokenizer.encode(TEXT))
    use_exact(model)
    exact = log_probabilities(model, ids)
    use_exact(model, False)
    fast = log_probabilities(model, ids)
    assert 0 < divergence(exact, fast) < 0.005
    t, n = model.traits, len(ids)
    for dtype in (torch.float32, torch.bfloat16):
        keys, values = (
            [torch.zeros(1, t.n_kv_heads, n, t.head_size, dtype=dtype) for _ in range(t.layers)] for _ in "kv"
        )
        table = torch.zeros(1, 1, dtype=torch.long)
        view = CacheView(keys, values, table, n, 0, n * t.head_size, t.head_size)
        zeros = torch.zeros(n, dtype=torch.long)
        logits, _ = FusedDecoder(model).run(ids, torch.arange(n), zeros, view, torch.arange(n))
        fused = logits.log_softmax(-1)
        assert divergence(exact, fused) < 0.005
        assert (fused.argmax(-1) == exact.argmax(-1)).float().mean() > 0.93


@pytest.mark.slow
def test_gemma_is_run_whole_with_its_windows(tmp_path):
    """700 tokens, so that its windows of 512 slide: the last ones against the model itself with exact products."""
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    if package_file(*MODELS["gemma3-270m"].parts[0]) is None:
        pytest.skip(f"the model is absent: {MODELS['gemma3-270m'].command}")
    path = gguf_of(MODELS["gemma3-270m"], tmp_path)
    loaded = load_model(path, packed=True, weights_memory="small")
    model, t = loaded.model, loaded.model.traits
    assert t.window == 512
    ids = torch.tensor((loaded.tokenizer.encode(TEXT) * 8)[:700])
    n, last = len(ids), torch.arange(660, 700)
    use_exact(model)
    with torch.inference_mode():
        exact = model.head(model(ids[None], torch.arange(n)[None], DenseCausal())[0, last]).log_softmax(-1)
    use_exact(model, False)
    keys, values = ([torch.zeros(1, t.n_kv_heads, n, t.head_size) for _ in range(t.layers)] for _ in "kv")
    zeros, table = torch.zeros(n, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    view = CacheView(keys, values, table, n, 0, n * t.head_size, t.head_size)
    logits, _ = FusedDecoder(model).run(ids, torch.arange(n), zeros, view, last)
    fused = logits.log_softmax(-1)
    assert divergence(exact, fused) < 0.05 and (fused.argmax(-1) == exact.argmax(-1)).float().mean() > 0.9
