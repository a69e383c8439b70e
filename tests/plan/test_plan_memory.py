import subprocess
import sys

import pytest
import torch

from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal, PackedDocuments
from dacheng.plan.memory import activation_bytes, check_memory, fit_rows, training_memory

ROWS, LENGTH = 2, 128


def traits(layers=2, **choices):
    base = {"vocab_size": 512, "width": 64, "layers": layers, "heads": 2, "max_positions": 256}
    return DecoderTraits(**(base | choices))


def saved_bytes_per_token(t, autocast=False):
    """Bytes of the distinct storages that autograd keeps of one forward pass, parameters apart."""
    model = Decoder(t).init_weights(torch.Generator().manual_seed(0))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no address is used twice
        return tensor

    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model(tokens, positions, DenseCausal() if t.n_kv_heads else PackedDocuments(tokens))
    return sum(n_bytes for n_bytes, _ in kept.values()) / (ROWS * LENGTH)


CHOICES = [
    {},
    {"activation": "relu2"},
    {"activation": "gelu_tanh", "mlp_width": 320},
    {"kv_heads": 1},
    {"heads": 8, "kv_heads": 2},
    {"norm_weight": False},
    {"qk_norm": True},
    {"residual_scalars": True},
    {"value_embeddings": True},
    {"attention_soft_cap": 30.0},
    {"head_width": 48},
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: ",".join(c) or "plain")
def test_what_a_layer_keeps_is_what_autograd_keeps(choices):
    def counted(layers):
        return saved_bytes_per_token(traits(layers, **choices))

    def estimated(layers):
        return activation_bytes(traits(layers, **choices), LENGTH)

    assert (estimated(4) - estimated(2)) == pytest.approx(counted(4) - counted(2), rel=0.06)


def test_autocast_keeps_less_and_the_estimate_knows_how_much():
    def grown(count):
        return count(4) - count(2)

    counted = grown(lambda layers: saved_bytes_per_token(traits(layers), autocast=True))
    estimated = grown(lambda layers: activation_bytes(traits(layers), LENGTH, "bfloat16"))
    assert estimated == pytest.approx(counted, rel=0.08)
    assert estimated < 0.7 * grown(lambda layers: activation_bytes(traits(layers), LENGTH))


TRAIN = """
import resource, sys, torch
from dacheng.meters import peak_bytes
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import PackedDocuments
from dacheng.objectives.cross_entropy import linear_cross_entropy
rows, length = int(sys.argv[1]), 128
model = Decoder(DecoderTraits(vocab_size=8192, width=256, layers=4, heads=8, max_positions=128)).init_weights()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.zeros(rows, length, dtype=torch.int64)
positions = torch.arange(length).expand(rows, length)
for _ in range(2):
    hidden = model(tokens, positions, PackedDocuments(positions // 50))
    nats, _ = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, tokens.flatten())
    nats.backward()
    optimizer.step()
    optimizer.zero_grad()
print(peak_bytes())
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("rows", [1, 16])
def test_a_real_training_step_takes_about_what_was_estimated(rows):
    t = DecoderTraits(vocab_size=8192, width=256, layers=4, heads=8, max_positions=128)
    result = subprocess.run([sys.executable, "-c", TRAIN, str(rows)], capture_output=True, text=True, check=True)
    estimate = training_memory(t, batch_rows=rows, context_length=128).total
    assert 0.75 < int(result.stdout) / estimate < 1.25


def test_parts_add_up_and_grow_as_they_should():
    one = training_memory(traits(), batch_rows=1, context_length=LENGTH)
    eight = training_memory(traits(), batch_rows=8, context_length=LENGTH)
    assert eight.activations == 8 * one.activations
    assert eight.weights == one.weights == 4 * Decoder(traits()).params()["total"]
    assert one.total > one.weights + one.gradients + one.optimizer + one.activations + one.head + one.process
    sgd, muon = (
        training_memory(traits(), batch_rows=1, context_length=LENGTH, optimizer=name) for name in ("sgd", "muon")
    )
    assert sgd.optimizer == 0
    assert one.optimizer == 2 * one.weights
    assert muon.optimizer > 0
    checkpointed = training_memory(traits(16), batch_rows=8, context_length=LENGTH, checkpoint_activations=True)
    whole = training_memory(traits(16), batch_rows=8, context_length=LENGTH)
    assert checkpointed.activations < 0.25 * whole.activations
    assert "estimated" in one.lines()[0]
    assert one.to_dict()["total"] == one.total


def test_rows_that_fit_are_the_most_that_fit():
    available = 700 << 20
    rows = fit_rows(traits(), available, context_length=LENGTH)
    assert training_memory(traits(), batch_rows=rows, context_length=LENGTH).total <= available
    assert training_memory(traits(), batch_rows=rows + 1, context_length=LENGTH).total > available
    assert fit_rows(traits(), 1 << 20, context_length=LENGTH) == 0
    assert fit_rows(traits(), 1 << 40, context_length=LENGTH, largest=64) == 64


def test_what_does_not_fit_is_refused_with_what_would():
    t = traits(8, width=512, heads=8, vocab_size=8192)
    check_memory(t, 8 << 30, batch_rows=4, context_length=128)
    with pytest.raises(DachengError, match=r"batch_rows=\d+ fits"):
        check_memory(t, 2 << 30, batch_rows=512, context_length=128)
    row = training_memory(t, batch_rows=1, context_length=4096).total
    with pytest.raises(DachengError, match="checkpoint_activations=true"):
        check_memory(t, row - (100 << 20), batch_rows=1, context_length=4096)
    with pytest.raises(DachengError, match=r"context_length=\d+ with batch_rows=1 fits"):
        check_memory(t, 1 << 30, batch_rows=1, context_length=4096, checkpoint_activations=True)
    with pytest.raises(DachengError, match="smaller model"):
        check_memory(t, 400 << 20, batch_rows=1, context_length=128)


@pytest.mark.parametrize(
    "options",
    [{"batch_rows": 0}, {"context_length": 0}, {"optimizer": "lion"}, {"dtype": "float16"}, {"chunk": 0}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError):
        training_memory(traits(), **({"batch_rows": 1, "context_length": 8} | options))
