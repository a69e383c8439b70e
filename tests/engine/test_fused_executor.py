"""The compiled executor says what Eager says, whatever a step holds."""

import pytest
import torch
from engine_fakes import AllLogits

from dacheng.engine import Engine, Request
from dacheng.engine.executor import Eager
from dacheng.engine.fused import MANY, FusedCPU, FusedFloats
from dacheng.engine.readings import Embedding, Scoring
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.packed import pack_weights
from dacheng.ops import native
from dacheng.ops.qtensor import QTensor
from dacheng.protocols import SamplingParams

TRAITS = {"vocab_size": 70, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 32, "mlp_width": 96}


def packed_model(**traits) -> Decoder:
    model = Decoder(DecoderTraits(**TRAITS | {"max_positions": 192} | traits))
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, tensor in model.state_dict().items():
        weight = torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.ndim == 2 else 0.3)
        state[name] = QTensor.from_float(weight, "Q8_0") if tensor.ndim == 2 else weight + 1.0
    model.load_state_dict(pack_weights(model, state))
    return model.eval()


WINDOWED = {
    "window": 40, "window_pattern": "SL", "rope_window_theta": 500.0, "activation": "geglu_tanh",
    "norm_placement": "both", "qk_norm": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("traits", "kv_dtype"),
    [({}, None), ({}, "bfloat16"), (WINDOWED, None), ({"window": 40, "window_pattern": "S"}, "bfloat16")],
)
def test_steps_of_all_kinds_equal_eager(traits, kv_dtype):
    """Chunks, single tokens, hits and preemption in a small pool; logits within what the order of sums changes, with
    the packed products of both the same or not."""
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    model = packed_model(**traits)
    assert FusedCPU.why_not(model) == ""
    ids = torch.randint(0, 70, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for executor in (Eager(model), FusedCPU(model)):
        engine = Engine(
            model, max_batch=4, max_tokens_per_step=24, cache_tokens=224, executor=executor, kv_dtype=kv_dtype
        )
        requests = [
            AllLogits(ids[:70]),
            Scoring(ids, score_from=50),
            Embedding(ids[:40]),
            Request(ids[:64], SamplingParams(max_tokens=20, temperature=0, logprobs=True)),
            Request(ids[:33], SamplingParams(max_tokens=20, temperature=0, logprobs=True)),
        ]
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
        found.append(requests)
        assert all(request.finish_reason in ("stop", "length") for request in requests)
        assert getattr(executor, "fallbacks", 0) == 0
    eager, fused = found
    scale = torch.cat(eager[0].logits).std()
    assert (torch.cat(eager[0].logits) - torch.cat(fused[0].logits)).abs().max() < 0.05 * scale
    assert fused[1].nats == pytest.approx(eager[1].nats, rel=0.01)
    assert torch.dot(fused[2].unit_vector(), eager[2].unit_vector()) > 0.999
    for one, two in zip(eager[3:], fused[3:]):
        same = next((i for i in range(20) if one.token_ids[i] != two.token_ids[i]), 20)
        assert same >= 5 and two.logprobs[:same] == pytest.approx(one.logprobs[:same], abs=0.2)


@pytest.mark.parametrize("traits", [{}, WINDOWED])
def test_float_steps_equal_eager_whatever_their_size(traits):
    """Steps of few rows are compiled, those of many the model's own: over one cache, to 1e-5."""
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    model = Decoder(DecoderTraits(**TRAITS | {"max_positions": 192} | traits))
    model.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 70, (100,), generator=generator).tolist()
    found = []
    for executor in (Eager(model), FusedFloats(model)):
        engine = Engine(model, max_batch=4, max_tokens_per_step=MANY + 12, executor=executor)
        requests = [
            AllLogits(ids[:70]),
            *(Request(ids[:n], SamplingParams(max_tokens=20, seed=n, logprobs=True)) for n in (64, 33, 9)),
        ]
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
        found.append(requests)
    assert executor.fallbacks == 0
    eager, fused = found
    assert torch.allclose(torch.cat(eager[0].logits), torch.cat(fused[0].logits), atol=1e-5)
    for one, two in zip(eager[1:], fused[1:]):
        assert one.token_ids == two.token_ids and two.logprobs == pytest.approx(one.logprobs, abs=1e-5)


def test_what_it_has_no_kernel_for_is_refused():
    dense = Decoder(DecoderTraits(**TRAITS, max_positions=64))
    assert "not packed" in FusedCPU.why_not(dense)
    with pytest.raises(ValueError, match="not packed"):
        FusedCPU(dense)
