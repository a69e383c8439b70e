"""Traits on their way to disk: which family they are written as, and that none is lost."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.formats.huggingface.families import family_of_traits
from dacheng.formats.huggingface.family import resolved
from dacheng.models.traits import DecoderTraits
from dacheng.nn.latent import LatentTraits
from dacheng.nn.mlp import ACTIVATIONS
from dacheng.nn.moe import MoETraits
from dacheng.nn.rope import RopeScaling

PATH = Path("model/config.json")
PLAIN = DecoderTraits(vocab_size=96, width=32, layers=2, heads=4)
OWN_RECIPE = {
    "activation": "relu2",
    "norm_weight": False,
    "qk_norm": True,
    "logit_soft_cap": 15.0,
    "attention_soft_cap": 50.0,
    "value_embeddings": True,
    "residual_scalars": True,
    "embedding_norm": True,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 2, "tied_head": False},
        {"attention_bias": True, "mlp_bias": True},
        {"activation": "geglu_tanh", "rope_theta": 5e5, "norm_eps": 1e-5},
        {"head_width": 16, "mlp_width": 40, "max_positions": 77},
    ],
)
def test_traits_with_a_counterpart_are_written_as_llama(changes):
    traits = replace(PLAIN, **changes)
    family = family_of_traits(traits)
    assert family.model_type == "llama"
    assert family.read(family.from_traits(traits), PATH) == (resolved(traits), [])


@pytest.mark.parametrize(
    "changes",
    [{name: value} for name, value in OWN_RECIPE.items()]
    + [
        OWN_RECIPE,
        {"activation": "silu"},  # not gated: llama's "silu" is
        {"rope_window_theta": 2.0},  # no layer uses it, and it must not get lost all the same
    ],
)
def test_all_other_traits_keep_their_own_format(changes):
    traits = replace(PLAIN, **changes)
    family = family_of_traits(traits)
    assert family.model_type == "dacheng"
    assert family.read(family.from_traits(traits), PATH) == (resolved(traits), [])


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({"window": 8, "window_pattern": "S"}, "mistral"),
        ({"width": 30, "heads": 4, "head_width": 8}, "mistral"),  # transformers refuses such a width for llama
        ({"attention_bias": True, "output_bias": False}, "qwen2"),
        ({"qk_norm": True, "qk_norm_weight": True}, "qwen3"),
        ({"window": 8, "window_pattern": "SL"}, "smollm3"),
        ({"window": 8}, "smollm3"),  # no layer uses it, and it must not get lost all the same
        ({"rope_fraction": 0.5}, "phi3"),
        (
            {"norm": "layer", "positions": "learned", "activation": "gelu", "attention_bias": True, "mlp_bias": True},
            "gpt2",
        ),
        ({"moe": MoETraits(experts=4, experts_per_token=2, expert_width=8)}, "mixtral"),
    ],
)
def test_traits_are_written_as_the_first_family_that_can_say_them(changes, model_type):
    traits = replace(PLAIN, **changes)
    family = family_of_traits(traits)
    assert family.model_type == model_type
    assert family_of_traits(traits, "mamba") is family
    assert replace(family.read(family.from_traits(traits), PATH)[0], mlp_width=None) == replace(
        resolved(traits), mlp_width=None
    )


def test_the_family_that_a_model_was_read_as_is_preferred_while_it_can_say_the_traits():
    assert family_of_traits(PLAIN, "mistral").model_type == "mistral"
    assert family_of_traits(replace(PLAIN, mlp_bias=True), "mistral").model_type == "llama"


YARN = RopeScaling(kind="yarn", factor=2.0, original_positions=16)
MOE = MoETraits(experts=4, experts_per_token=2, expert_width=8, groups=2, groups_per_token=2)
LATENT = LatentTraits(kv_rank=8)
# What a trait is changed to, where doubling or negating it would not do; and what must be there for it to count.
CHANGED = {
    "kv_heads": 2, "head_width": 10, "mlp_width": 40, "window": 8, "activation": "relu2", "norm": "layer",
    "norm_placement": "both", "positions": "learned", "rope_scaling": YARN, "rope_fraction": 0.5, "rope_pattern": "RN",
    "output_bias": True, "latent": LATENT, "moe": MOE, "heads": 8, "window_pattern": "S", "ngram_longest": 4,
    "ngram_rows": 64, "pattern": "MD", "score": "sigmoid", "groups_per_token": 1, "group_score": "two_best",
    "kind": "llama3", "short_factors": (1.0,) * 4, "long_factors": (2.0,) * 4,
}  # fmt: skip
PRESENT = {"window_pattern": {"window": 8}, "mlp_width": {}}


def changed(record, name):
    value = getattr(record, name)
    if name in CHANGED:
        return CHANGED[name]
    if isinstance(value, bool):
        return not value
    return 2 if name == "query_rank" else 2.0 if value is None else value * 2 or 3


@pytest.mark.parametrize("trait", [trait.name for trait in fields(DecoderTraits)])
def test_every_trait_is_told_apart_by_some_family(trait):
    """A trait added later must not be lost on the way to disk: changing any one of them changes what comes back."""
    base = replace(PLAIN, **PRESENT.get(trait, {}))
    other = replace(base, **{trait: changed(base, trait)})
    family = family_of_traits(other)
    assert family.read(family.from_traits(other), PATH)[0] == resolved(other) != resolved(base)


@pytest.mark.parametrize(
    ("part", "trait"),
    [
        (part, trait.name)
        for part, record in {"rope_scaling": YARN, "moe": MOE, "latent": LATENT}.items()
        for trait in fields(record)
        if trait.name != "long"
    ],
)
def test_every_trait_of_a_part_is_told_apart(part, trait):
    record = {"rope_scaling": YARN, "moe": MOE, "latent": LATENT}[part]
    kind = {"kind": "longrope"} if trait in ("short_factors", "long_factors") else {}
    record = replace(record, **kind | ({"short_factors": (2.0,) * 4, "long_factors": (1.0,) * 4} if kind else {}))
    one, other = (replace(PLAIN, **{part: r}) for r in (record, replace(record, **{trait: changed(record, trait)})))
    family = family_of_traits(other)
    back = family.read(family.from_traits(other), PATH)[0]
    assert getattr(back, part) == getattr(resolved(other), part) != getattr(resolved(one), part)


def test_the_choice_of_long_angles_is_not_stored():
    scaling = RopeScaling(
        kind="longrope", factor=2.0, original_positions=16, short_factors=(1.0,) * 4, long_factors=(2.0,) * 4, long=True
    )
    for traits in (replace(PLAIN, rope_scaling=scaling), replace(PLAIN, rope_scaling=scaling, norm_weight=False)):
        family = family_of_traits(traits)
        back, notes = family.read(family.from_traits(traits), PATH)
        assert back.rope_scaling == scaling
        assert not back.rope_scaling.long
        if family.model_type != "dacheng":
            assert "rope_scaling.long" in notes[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_buildable_traits_survive_the_way_to_disk(data):
    draw = data.draw
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    traits = DecoderTraits(
        vocab_size=draw(st.integers(1, 10**6)),
        width=heads * 2 * draw(st.integers(1, 64)),
        layers=draw(st.integers(1, 99)),
        heads=heads,
        kv_heads=draw(st.sampled_from([None, 1, heads])),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        norm_eps=draw(st.floats(1e-12, 1)),
        rope_theta=draw(st.floats(1.5, 1e9)),
        max_positions=draw(st.integers(1, 10**5)),
        tied_head=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        logit_soft_cap=draw(st.none() | st.floats(1, 100)),
        window=draw(st.integers(1, 99)),
        window_pattern=draw(st.text("SL", min_size=1, max_size=5)),
        rope_pattern=draw(st.text("RN", min_size=1, max_size=5)),
        norm_placement=draw(st.sampled_from(["pre", "post", "both"])),
        qk_norm_weight=draw(st.booleans()),
        attention_sinks=draw(st.booleans()),
        rope_scaling=draw(st.sampled_from([None, YARN])),
        moe=draw(st.sampled_from([None, MOE])),
    )
    family = family_of_traits(traits)
    assert family.read(family.from_traits(traits), PATH) == (resolved(traits), [])
