"""config.json of each family: understood, refused or noted, and never ignored."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError
from dacheng.formats.huggingface.families import FAMILIES, family_of_config, family_of_traits
from dacheng.formats.huggingface.family import resolved
from dacheng.formats.huggingface.llama import Llama
from dacheng.formats.huggingface.names import NameTable
from dacheng.models.traits import ACTIVATIONS, DecoderTraits

PATH = Path("model/config.json")
# As published for a small model by transformers 4.42.
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


def traits_of(**changes) -> DecoderTraits:
    config = {**PUBLISHED, **changes}
    return family_of_config(config, PATH).read(config, PATH)[0]


def test_a_published_config_is_understood_without_a_note():
    traits, notes = Llama().read(PUBLISHED, PATH)
    assert notes == []
    assert traits == DecoderTraits(
        vocab_size=49152,
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_width=64,
        mlp_width=1536,
        norm_eps=1e-5,
        rope_theta=100000.0,
        max_positions=8192,
        tied_head=True,
        initializer_range=0.041666666666666664,
    )


def test_absent_fields_take_the_defaults_of_transformers():
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    traits, _ = Llama().read({"model_type": "llama"} | {name: PUBLISHED[name] for name in sizes}, PATH)
    assert (traits.kv_heads, traits.head_width, traits.rope_theta) == (9, 64, 10000.0)
    assert (traits.norm_eps, traits.max_positions, traits.tied_head) == (1e-6, 2048, False)
    for name in sizes:
        with pytest.raises(DachengError, match="lacks a field") as caught:
            traits_of(**{name: None})
        assert caught.value.field == name


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": None}, 1e4),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 3e5, "rope_type": "default"}}, 3e5),
        ({"rope_theta": 3e5, "rope_parameters": {"rope_theta": 3e5, "rope_type": "default"}}, 3e5),
        ({"rope_theta": 3e5, "rope_scaling": {"type": "default"}}, 3e5),
    ],
)
def test_both_forms_of_rotary_parameters(changes, theta):
    assert traits_of(**changes).rope_theta == theta


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": [8.0]}, "rope_scaling"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "modeling.X"}}, "auto_map"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"model_type": "mamba"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"hidden_size": 576.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"max_position_embeddings": 2**24, "head_dim": 2**16}, "max_positions"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"num_key_value_heads": 4}, "kv_heads"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"surprise": {"a": 1}}, "surprise"),
    ],
)
def test_what_is_not_built_is_refused_by_name(changes, field):
    with pytest.raises(DachengError) as caught:
        traits_of(**changes)
    assert caught.value.field == field
    assert caught.value.remedy
    assert "config.json" in caught.value.problem


def test_unknown_fields_that_are_off_and_dropout_are_noted():
    _, notes = Llama().read(PUBLISHED | {"use_something": False, "other": None, "attention_dropout": 0.1}, PATH)
    assert notes == [
        "config.json: attention_dropout 0.1 concerns training, and is not applied there",
        "config.json: unknown field other is None, taken as off",
        "config.json: unknown field use_something is False, taken as off",
    ]


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
        {"qk_norm": True, "qk_norm_weight": True},
        {"window": 8, "window_pattern": "SL"},
        {"window": 8},  # no layer uses it, and it must not get lost all the same
        {"activation": "silu"},  # not gated: llama's "silu" is
        {"width": 36, "heads": 8, "head_width": 4},  # transformers refuses a width that the heads do not divide
    ],
)
def test_all_other_traits_keep_their_own_format(changes):
    traits = replace(PLAIN, **changes)
    family = family_of_traits(traits)
    assert family.model_type == "dacheng"
    assert family.read(family.from_traits(traits), PATH) == (resolved(traits), [])


def test_every_trait_is_told_apart_by_some_family():
    """A trait added later must not be lost on the way to disk: changing any one of them changes what comes back."""
    other = {"kv_heads": 2, "head_width": 10, "mlp_width": 40, "window": 8, "window_pattern": "L" * 3}
    other |= {"ngram_rows": 64, "ngram_longest": 4}
    for trait in fields(DecoderTraits):
        value = getattr(PLAIN, trait.name)
        if trait.name in other:
            value = other[trait.name]
        elif isinstance(value, bool):
            value = not value
        elif isinstance(value, str):
            value = "relu2"
        elif trait.name == "heads":
            value = 8
        else:
            value = 2.0 if value is None else value * 2
        changed = replace(PLAIN, **{trait.name: value})
        family = family_of_traits(changed)
        assert family.read(family.from_traits(changed), PATH)[0] == resolved(changed) != resolved(PLAIN), trait.name


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
        rope_theta=draw(st.floats(1, 1e9)),
        max_positions=draw(st.integers(1, 10**5)),
        tied_head=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        logit_soft_cap=draw(st.none() | st.floats(1, 100)),
        window=draw(st.integers(1, 99)),
        window_pattern=draw(st.text("SL", min_size=1, max_size=5)),
    )
    family = family_of_traits(traits)
    assert family.read(family.from_traits(traits), PATH) == (resolved(traits), [])


ANY_JSON = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "width", "layers"]), st.integers() | st.text())
)
KEYS = st.sampled_from([*sorted(PUBLISHED), "traits", "rope_parameters", "layer_types", "x"])


@settings(max_examples=150, deadline=None)
@given(
    base=st.sampled_from([PUBLISHED, FAMILIES[-1].from_traits(PLAIN)]),
    changes=st.dictionaries(KEYS, ANY_JSON, min_size=1, max_size=3),
)
def test_no_config_does_worse_than_an_error_with_a_field(base, changes):
    config = {**base, **changes}
    try:
        traits, _ = family_of_config(config, PATH).read(config, PATH)
    except DachengError as error:
        assert error.field
        return
    traits.validate()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"width": "32"}, "traits.width"),
        ({"width": None}, "traits.width"),
        ({"width": True}, "traits.width"),
        ({"kv_heads": True}, "traits.kv_heads"),
        ({"layers": 10**9}, "traits.layers"),
        ({"norm_eps": 0}, "traits.norm_eps"),
        ({"norm_eps": float("nan")}, "traits.norm_eps"),
        ({"rope_theta": 10**400}, "traits.rope_theta"),
        ({"logit_soft_cap": 0}, "traits.logit_soft_cap"),
        ({"qk_norm": 1}, "traits.qk_norm"),
        ({"activation": None}, "traits.activation"),
        ({"colour": 1}, "colour"),
        ({"heads": 5}, "heads"),
        ({"window_pattern": "SX"}, "window_pattern"),
    ],
)
def test_our_own_config_is_checked_just_as_much(changes, field):
    config = FAMILIES[-1].from_traits(PLAIN)
    config["traits"] |= changes
    with pytest.raises(DachengError) as caught:
        family_of_config(config, PATH).read(config, PATH)
    assert caught.value.field == field


def test_our_own_config_with_anything_beside_traits_is_refused():
    config = FAMILIES[-1].from_traits(PLAIN)
    for changes, field in (
        ({"hidden_size": 8}, "hidden_size"),
        ({"traits": [1]}, "traits"),
        ({"traits": {}}, "traits.vocab_size"),
    ):
        with pytest.raises(DachengError) as caught:
            FAMILIES[-1].read(config | changes, PATH)
        assert caught.value.field == field


def test_traits_that_nothing_can_be_built_with_are_named():
    with pytest.raises(DachengError) as caught:
        family_of_traits(replace(PLAIN, norm_eps=-1.0))
    assert caught.value.field == "traits.norm_eps"


def test_names_go_both_ways_and_only_canonical_numbers():
    table = NameTable({"a.{i}.x": "layers.{i}.y.x", "plain": "other", "n.{i}.x": "m.0.n.{i}.1.x"})
    assert (table.theirs("n.3.x"), table.ours("m.0.n.3.1.x"), table.ours("m.1.n.3.1.x")) == (
        "m.0.n.3.1.x",
        "n.3.x",
        None,
    )
    assert table.theirs("a.10.x") == "layers.10.y.x"
    assert table.ours("layers.10.y.x") == "a.10.x"
    assert table.theirs("plain") == "other"
    for name in ("a.01.x", "a.-1.x", "a.{i}.x", "a..x", "a.1.y", "b", "", "a.1.x.", "a.1e3.x", "a.²٣.x"):
        assert table.theirs(name) is None, name
    with pytest.raises(ValueError, match="two of our names"):
        NameTable({"a": "x", "b": "x"})
