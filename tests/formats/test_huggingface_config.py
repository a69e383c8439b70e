"""config.json of each family: understood, refused or noted, and never ignored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError
from dacheng.formats.huggingface.families import FAMILIES, family_of_config, family_of_traits
from dacheng.formats.huggingface.family import resolved
from dacheng.formats.huggingface.llama import Llama
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.patterns import shortest
from dacheng.models.traits import DecoderTraits

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
    expected = DecoderTraits(
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
    assert traits == resolved(expected)


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
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, "rope_type"),
        ({"rope_scaling": {"type": "dynamic", "factor": 8.0}}, "type"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "rope_type"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "rope_scaling.high_frequency_factor",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3.0}}, "alpha"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 32}},
            "rope_scaling.short_factors",
        ),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [0] * 32}}, "long_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e5}}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
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
        ({"layer_types": ["full_attention"] * 29 + ["sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"] * 29}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
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
        ({"max_position_embeddings": 2**24 + 1}, "max_position_embeddings"),
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
GOLDEN = [
    json.loads(path.read_text())
    for path in sorted((Path(__file__).parent.parent / "goldens" / "families").glob("*/config.json"))
]
KEYS = st.sampled_from(sorted({"traits", "x", "rope_scaling", "layer_types"}.union(PUBLISHED, *GOLDEN)))


@settings(max_examples=150, deadline=None)
@given(
    base=st.sampled_from([PUBLISHED, FAMILIES[-1].from_traits(PLAIN), *GOLDEN]),
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
        ({"moe": {"experts": 4}}, "moe.experts_per_token"),
        ({"moe": {"experts": 4, "experts_per_token": 2, "expert_width": 8, "colour": 1}}, "moe.colour"),
        ({"moe": {"experts": True, "experts_per_token": 2, "expert_width": 8}}, "traits.moe.experts"),
        ({"moe": {"experts": 10**6, "experts_per_token": 2, "expert_width": 8}}, "traits.moe.experts"),
        ({"moe": {"experts": 4, "experts_per_token": 2, "expert_width": 8, "score": "x"}}, "traits.moe.score"),
        ({"moe": [4]}, "traits.moe"),
        ({"moe": {"experts": 4, "experts_per_token": 2, "expert_width": 8, "pattern": "X"}}, "moe.pattern"),
        ({"latent": {"kv_rank": 8, "rope_width": 3}}, "latent.rope_width"),
        ({"rope_scaling": {"kind": "dynamic"}}, "traits.rope_scaling.kind"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.0}}, "traits.rope_scaling.factor"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "original_positions"),
        (
            {"rope_scaling": {"kind": "longrope", "original_positions": 9, "short_factors": [1, -1]}},
            "traits.rope_scaling.short_factors",
        ),
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


@given(st.text("SL", min_size=1, max_size=12))
def test_the_shortest_pattern_repeats_to_the_same_letters(letters):
    pattern = shortest(letters)
    assert (pattern * len(letters))[: len(letters)] == letters
    assert not any((letters[:n] * len(letters))[: len(letters)] == letters for n in range(1, len(pattern)))
