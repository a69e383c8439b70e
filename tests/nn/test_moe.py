"""A mixture of experts against the plain formula: every token through each of its experts by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.moe import MoE, MoETraits

WIDTH = 8


def made(seed: int = 0, activation: str = "swiglu", **changes: object) -> MoE:
    traits = MoETraits(**{"experts": 6, "experts_per_token": 2, "expert_width": 5, **changes})  # type: ignore[arg-type]
    moe = MoE(WIDTH, traits, activation)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.7, generator=generator)
        if moe.router.score_bias is not None:
            moe.router.score_bias.normal_(0, 0.3, generator=generator)
    return moe


def one_by_one(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """Each token alone, each expert alone."""
    rows = []
    for token in x.flatten(0, -2):
        routing = moe.router(token[None])
        out = sum(
            weight * moe.experts(token[None], int(expert))[0]
            for expert, weight in zip(routing.chosen[0], routing.weights[0])
        )
        rows.append(out if moe.shared is None else out + moe.shared(token))
    return torch.stack(rows).view_as(x)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.sampled_from([(1, 1), (3, 2), (2, 1)]),
    st.sampled_from([0, 7]),
    st.booleans(),
)
def test_sorting_by_expert_changes_nothing(seed, score, normalize, groups, shared, biases):
    moe = made(
        seed, score=score, normalize=normalize, groups=groups[0], groups_per_token=groups[1], shared_width=shared,
        score_bias=biases, router_bias=biases, expert_bias=biases,
    )  # fmt: skip
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(moe(x), one_by_one(moe, x), atol=1e-5, rtol=1e-5)


def test_no_token_is_dropped_when_all_want_one_expert():
    moe = made(router_bias=True)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.bias.copy_(torch.tensor([9.0, 8, 0, 0, 0, 0]))  # type: ignore[union-attr]
    x = torch.randn(1, 64, WIDTH)
    torch.testing.assert_close(moe(x), one_by_one(moe, x), atol=1e-5, rtol=1e-5)


def test_score_bias_moves_the_choice_and_not_the_weight():
    moe = made(score="sigmoid", score_bias=True, normalize=False)
    assert moe.router.score_bias is not None
    x = torch.randn(10, WIDTH)
    with torch.no_grad():
        moe.router.score_bias.zero_()
        before = moe.router(x)
        moe.router.score_bias[3] = 10.0
    after = moe.router(x)
    assert (after.chosen == 3).any(-1).all() and not (before.chosen == 3).any(-1).all()
    torch.testing.assert_close(after.weights, after.scores.gather(-1, after.chosen))


def test_groups_confine_the_choice():
    moe = made(groups=3, groups_per_token=1, group_score="two_best", score="sigmoid")
    chosen = moe.router(torch.randn(50, WIDTH)).chosen
    assert (chosen[:, 0] // 2 == chosen[:, 1] // 2).all()  # both of one group of two


def test_flops_count_only_the_chosen_experts():
    base = {"vocab_size": 50, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
    dense = Decoder(DecoderTraits(**base))  # type: ignore[arg-type]
    moe = MoETraits(experts=8, experts_per_token=2, expert_width=12, pattern="DM")
    sparse = Decoder(DecoderTraits(**base, moe=moe))  # type: ignore[arg-type]
    router = 8 * 16
    assert sparse.active_params() == dense.active_params() + router  # 2 · 12 = 24 wide, as the dense one
    assert sparse.params()["matrices"] == dense.params()["matrices"] + router + 6 * 3 * 12 * 16


def test_gradients_reach_router_and_experts():
    traits = DecoderTraits(
        vocab_size=20, width=16, layers=1, heads=2,
        moe=MoETraits(experts=4, experts_per_token=2, expert_width=8),
    )  # fmt: skip
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    tokens = torch.randint(20, (2, 12))
    model.head(model(tokens, torch.arange(12).expand(2, 12), DenseCausal())).square().sum().backward()
    mlp = model.blocks[0].mlp
    assert isinstance(mlp, MoE)
    assert mlp.router.weight.grad is not None and mlp.router.weight.grad.abs().sum() > 0
    assert mlp.experts.down.grad is not None and mlp.experts.down.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"experts_per_token": 9}, "moe.experts_per_token"),
        ({"groups": 4}, "moe.groups"),
        ({"experts": 0}, "moe.experts"),
        ({"pattern": "X"}, "moe.pattern"),
        ({"score": "argmax"}, "moe.score"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, field):
    moe = MoETraits(**{"experts": 6, "experts_per_token": 2, "expert_width": 5, **changes})
    with pytest.raises(UsageError) as error:
        DecoderTraits(vocab_size=10, moe=moe).validate()
    assert error.value.field == field
