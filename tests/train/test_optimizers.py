import pytest
import torch
from train_toys import MUON, ToyModel, assert_same_bits

from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.train.optimizers import OptimizerConfig, OptimizerSet, build_optimizers, group_of


def decoder(**traits) -> Decoder:
    shape = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "max_positions": 16}
    return Decoder(DecoderTraits(**{**shape, **traits})).init_weights(torch.Generator().manual_seed(0))


def groups(optimizers: OptimizerSet) -> dict[str, set[str]]:
    return {g["name"]: {optimizers.names[id(p)] for p in g["params"]} for g in optimizers.param_groups}


def test_a_decoder_is_divided_as_the_names_say():
    model = decoder(tied_head=False, value_embeddings=True, residual_scalars=True, attention_bias=True)
    found = groups(build_optimizers(model, OptimizerConfig(kind="muon")))
    assert found["embedding"] == {"embed.weight", "value_embeddings.1.weight"}
    assert found["head"] == {"lm_head.weight"}
    assert "residual_lambdas" in found["scalar"] and "blocks.0.attention.q.bias" in found["scalar"]
    assert "norm.weight" in found["scalar"] and "blocks.1.attention_norm.weight" in found["scalar"]
    assert {"blocks.0.attention.q.weight", "blocks.1.mlp.down.weight"} <= found["matrix"]
    assert set.union(*found.values()) == {name for name, _ in model.named_parameters()}


def test_only_matrices_and_the_head_decay():
    model = decoder(tied_head=False)
    for kind in ("adamw", "muon"):
        optimizers = build_optimizers(model, OptimizerConfig(kind=kind, weight_decay=0.3))
        decays = {g["name"]: g["weight_decay"] for g in optimizers.param_groups}
        assert decays == {"embedding": 0.0, "scalar": 0.0, "head": 0.3, "matrix": 0.3}


def test_learning_rates_and_their_factor():
    config = OptimizerConfig(kind="muon", lr=1e-3, embedding_lr=0.2, head_lr=0.004)
    optimizers = build_optimizers(decoder(tied_head=False), config)
    assert optimizers.learning_rates() == {"matrix": 0.02, "embedding": 0.2, "head": 0.004, "scalar": 1e-3}
    optimizers.set_factor(0.5)
    optimizers.set_factor(0.5)  # of the peak, not of the last value
    assert optimizers.learning_rates() == {"matrix": 0.01, "embedding": 0.1, "head": 0.002, "scalar": 5e-4}
    assert OptimizerConfig(kind="muon", muon_scale="rms", lr=7e-4).rate("matrix") == 7e-4


@pytest.mark.parametrize(
    ("name", "shape", "group"),
    [
        ("embed.weight", (4, 4), "embedding"),
        ("position_embedding.weight", (4, 4), "embedding"),
        ("embed_norm.weight", (4,), "scalar"),
        ("encoder.lm_head.weight", (4, 4), "head"),
        ("blocks.0.experts.up", (2, 4, 4), "matrix"),
        ("conv.weight", (2, 4, 3, 3), "matrix"),
    ],
)
def test_group_of(name, shape, group):
    assert group_of(name, torch.zeros(shape)) == group


def test_convolutions_and_frozen_parameters():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(4, 4))
    model[1].bias.requires_grad_(False)
    optimizers = build_optimizers(model, OptimizerConfig(kind="muon"))
    assert [type(o).__name__ for o in optimizers.optimizers] == ["Muon", "AdamW"]
    assert len(optimizers.parameters) == 3
    with pytest.raises(UsageError, match="no parameter is trainable"):
        build_optimizers(model.requires_grad_(False), OptimizerConfig())


def test_adamw_equals_the_published_algorithm():
    """Loshchilov & Hutter 2019, algorithm 2, written out in float64."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    config = OptimizerConfig(lr=0.01, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6)
    optimizers = build_optimizers(model, config)
    w = model.weight.detach().double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 6):
        model.weight.grad, model.bias.grad = torch.randn(3, 5), torch.randn(3)
        g = model.weight.grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w = w - 0.01 * 0.2 * w - 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-6)
        optimizers.step()
    torch.testing.assert_close(model.weight.detach().double(), w, atol=1e-6, rtol=1e-5)


def test_the_fused_kernel_equals_torchs_plain_one():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizers = build_optimizers(ours, OptimizerConfig(lr=0.02))
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    assert optimizers.optimizers[0].defaults["fused"] is True
    for _ in range(4):
        ours.weight.grad = torch.randn(6, 6)
        theirs.weight.grad = ours.weight.grad.clone()
        optimizers.step()
        plain.step()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("settings", [OptimizerConfig(), MUON], ids=["adamw", "muon"])
def test_state_survives_a_round_trip_bit_for_bit(settings):
    def grads(model, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)

    one, other = ToyModel(), ToyModel()
    first, second = build_optimizers(one, settings), build_optimizers(other, settings)
    for seed in range(3):
        grads(one, seed)
        first.step()
    other.load_state_dict(one.state_dict())
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert_same_bits(first.state_dict(), second.state_dict())
    grads(one, 9), grads(other, 9)
    first.step(), second.step()
    assert_same_bits(one.state_dict(), other.state_dict())
    assert all("/" in name and name.split("/")[0] in dict(one.named_parameters()) for name in first.state_dict())


def test_a_state_of_another_model_is_refused():
    model = ToyModel()
    optimizers = build_optimizers(model, OptimizerConfig())
    with pytest.raises(DachengError, match="has not") as caught:
        optimizers.load_state_dict({"strange.weight/exp_avg": torch.zeros(2)})
    assert caught.value.field == "strange.weight"
    with pytest.raises(DachengError, match="another shape"):
        optimizers.load_state_dict({"up.weight/exp_avg": torch.zeros(2, 2)})


def test_a_parameter_belongs_to_one_optimizer():
    layer = torch.nn.Linear(2, 2)
    named = list(layer.named_parameters())
    twice = [torch.optim.SGD(layer.parameters(), lr=1.0), torch.optim.SGD([layer.bias], lr=1.0)]
    with pytest.raises(UsageError, match="in two groups"):
        OptimizerSet(twice, named)
    with pytest.raises(UsageError, match="not one of the phase's"):
        OptimizerSet([torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)], named)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", {"kind": "adam"}),
        ("lr", {"lr": -1.0}),
        ("betas", {"betas": (0.9, 1.0)}),
        ("momentum", {"momentum": 1.0}),
        ("cautious", {"cautious": True}),
        ("muon_scale", {"muon_scale": "huge"}),
    ],
)
def test_nonsense_is_refused_by_name(field, values):
    with pytest.raises(UsageError) as caught:
        OptimizerConfig(**values)
    assert caught.value.field == field
