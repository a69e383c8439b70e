"""Each architecture of GGUF: a model converted by llama.cpp's rules must come back with the family's own traits and
tensors; what is not understood must be refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_converted import CASES, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError
from dacheng.formats.gguf.model import gguf_model
from dacheng.formats.huggingface.families import family_of_config


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_comes_back(case, tmp_path, goldens):
    path, config, tensors = written(case, tmp_path, goldens)
    model = gguf_model(path)
    expected, _ = family_of_config(config, Path("config.json")).read(config, Path("config.json"))
    family = family_of_config(model.config, path)
    found, _ = family.read(model.config, path)
    assert {**found.to_dict(), "initializer_range": 0} == {**expected.to_dict(), "initializer_range": 0}
    tensors = family.stored_tensors(tensors, expected)
    if found.tied_head:
        tensors.pop("lm_head.weight", None)
    assert model.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        off_by_one = "gemma" in case and name.endswith("norm.weight")  # (w + 1) - 1 rounds
        assert torch.allclose(model.tensors[name], tensor, rtol=0, atol=1e-6 if off_by_one else 0), name
    family.import_tensors(model.tensors, found)  # names and shapes are the family's
    assert model.notes == []


def test_an_unknown_key_of_the_architecture_is_refused(tmp_path, goldens):
    def add(metadata, tensors):
        metadata["qwen2.attention.temperature_length"] = 64

    path, *_ = written("qwen2", tmp_path, goldens, add)
    with pytest.raises(DachengError, match="may change what the model computes") as caught:
        gguf_model(path)
    assert (caught.value.field, caught.value.value) == ("qwen2.attention.temperature_length", 64)


def test_unknown_keys_that_are_off_or_not_the_models_are_noted(tmp_path, goldens):
    def add(metadata, tensors):
        metadata |= {"qwen2.swin_norm": False, "someone.mark": "x", "general.author": "y"}

    path, *_ = written("qwen2", tmp_path, goldens, add)
    assert gguf_model(path).notes == [
        "qwen2.gguf: unknown key qwen2.swin_norm is False, taken as off",
        "qwen2.gguf: unknown key someone.mark, which names no part of the model",
    ]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("qwen2.attention.causal", False, "both directions"),
        ("qwen2.attention.clamp_kqv", 8.0, "clamped"),
        ("qwen2.block_count", 100_000, "must be an integer from 1 to 4096"),
        ("qwen2.block_count", "two", "must be an integer"),
        ("qwen2.attention.head_count_kv", [1, 2], "differs from layer to layer"),
        ("qwen2.embedding_length", 17, "is not the width"),
        ("qwen2.attention.layer_norm_rms_epsilon", float("nan"), "must be a positive number"),
        ("qwen2.rope.scaling.type", "longrope2", "unknown kind"),
        ("qwen2.rope.scaling.attn_factor", 1.5, "scales attention"),
        ("general.type", "adapter", "holds no model"),
        ("general.architecture", "rwkv9", "not supported"),
        ("split.count", 3, "one of several parts"),
    ],
)
def test_what_is_not_supported_is_named(key, value, match, tmp_path, goldens):
    def change(metadata, tensors):
        if key == "general.architecture":
            metadata[key] = value
        else:
            metadata |= {key: value}

    path, *_ = written("qwen2", tmp_path, goldens, change)
    with pytest.raises(DachengError, match=match) as caught:
        gguf_model(path)
    assert caught.value.field == key


def test_a_key_that_is_missing_is_named(tmp_path, goldens):
    path, *_ = written("qwen2", tmp_path, goldens, lambda metadata, tensors: metadata.pop("qwen2.block_count"))
    with pytest.raises(DachengError, match="lacks a key") as caught:
        gguf_model(path)
    assert caught.value.field == "qwen2.block_count"


def test_an_unknown_tensor_is_refused(tmp_path, goldens):
    path, *_ = written(
        "qwen2",
        tmp_path,
        goldens,
        lambda _, tensors: tensors.update({"blk.0.attn_gate.weight": torch.ones(2, 2)}),
    )
    with pytest.raises(DachengError, match="has no such tensor that is known here") as caught:
        gguf_model(path)
    assert caught.value.field == "blk.0.attn_gate.weight"


def test_a_head_equal_to_the_embedding_is_taken_as_one(tmp_path, goldens):
    def add(metadata, tensors):
        tensors["output.weight"] = tensors["token_embd.weight"].clone()

    path, *_ = written("qwen2", tmp_path, goldens, add)
    model = gguf_model(path)
    assert model.config["tie_word_embeddings"] and "lm_head.weight" not in model.tensors
    assert model.notes == ["qwen2.gguf: output.weight equals token_embd.weight: taken as one"]


def test_frequencies_that_no_scaling_gives_are_refused(tmp_path, goldens):
    def add(metadata, tensors):
        tensors["rope_freqs.weight"] = torch.tensor([1.0, 3.0, 1.0, 2.0])

    path, *_ = written("llama_linear", tmp_path, goldens, lambda m, t: (add(m, t), m.pop("llama.rope.scaling.factor")))
    with pytest.raises(DachengError, match="not those of Llama 3") as caught:
        gguf_model(path)
    assert caught.value.field == "rope_freqs.weight"


def test_a_stack_of_another_size_than_the_keys_say_is_refused(tmp_path, goldens):
    path, *_ = written("qwen3_moe", tmp_path, goldens, lambda m, t: m.update({"qwen3moe.expert_count": 7}))
    with pytest.raises(DachengError, match="no stack of 7 matrices"):
        gguf_model(path)


VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 2**31, 2**32 - 1]),
    st.sampled_from([0.0, -1.0, 1e-30, 3e38, float("inf"), float("nan")]),
    st.booleans(),
    st.sampled_from(["", "none", "yarn", "longrope", "x"]),
    st.sampled_from([[], [1, 2], [True, False], ["a"], [[1]], [2, 2, 2]]),
)
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_nonsense_in_any_key_or_tensor_is_an_error_of_ours(data, tmp_path, goldens):
    def change(metadata, tensors):
        for _ in range(data.draw(st.integers(1, 2))):
            keys = [key for key in metadata if key != "general.architecture"]
            metadata[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(tensors)))
            if data.draw(st.booleans()):
                del tensors[name]
            else:
                tensors[name] = torch.ones(data.draw(SHAPES))

    path, *_ = written(data.draw(st.sampled_from(sorted(CASES))), tmp_path, goldens, change)
    try:
        model = gguf_model(path, packed=True)
        family = family_of_config(model.config, path)
        family.read(model.config, path)
    except DachengError as error:
        assert str(error)
