"""Adapter directories that nobody should trust: each is refused by the name of what is wrong, or read as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_fakes import drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import read_adapter, write_adapter
from dacheng.formats.safetensors_io import read_tensors, write_tensors

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.fixture(scope="module")
def model():
    return load_model(GOLDENS / "llama" / "gqa_tied", dtype="float32").model


@pytest.fixture
def directory(tmp_path):
    return Path(shutil.copytree(GOLDENS / "peft" / "lora", tmp_path / "a"))


def changed(directory, **fields):
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | fields))


def refused(directory, model) -> DachengError:
    with pytest.raises(DachengError) as caught:
        read_adapter(directory, model)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"bias": "lora_only"}, "bias"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"something_new": {"on": True}}, "something_new"),
        ({"r": 0}, "rank"),
        ({"r": 10**9}, "rank"),
        ({"r": "8"}, "rank"),
        ({"lora_alpha": -1}, "alpha"),
        ({"lora_alpha": 1e300}, "alpha"),
        ({"lora_dropout": 2}, "dropout"),
        ({"use_dora": 1}, "use_dora"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": "much"}}, "alpha_pattern[q_proj]"),
    ],
)
def test_configs_that_ask_for_something_else(directory, model, fields, field):
    changed(directory, **fields)
    error = refused(directory, model)
    assert error.field == field and error.remedy


def test_a_rank_that_is_not_the_tensors(directory, model):
    changed(directory, r=8)
    error = refused(directory, model)
    assert error.field.endswith("lora_A") and error.value == [4, 32]


def test_another_models_adapter(model):
    assert "no such linear map" in str(refused(GOLDENS / "peft" / "gpt2", model))
    big = load_model(GOLDENS / "llama" / "wide_heads", dtype="float32").model
    assert refused(GOLDENS / "peft" / "lora", big).field.startswith("model.layers.")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda t: t.pop(Q + "lora_B.weight"), "model.layers.0.self_attn.q_proj"),
        (lambda t: t.update({Q + "lora_magnitude_vector": torch.ones(32)}), "model.layers.0.self_attn.q_proj"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 96)}), None),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(96, 32)}), None),
        (lambda t: t.update({Q + "lora_A.weight": torch.full((4, 32), float("nan"))}), None),
        (lambda t: t.update({Q + "lora_A.weight": torch.ones(4, 32, dtype=torch.int32)}), None),
        (lambda t: t.update({Q.replace("q_proj", "x" * 400) + "lora_A.weight": torch.ones(4, 32)}), None),
        (lambda t: t.update({Q.replace("self_attn", "../self") + "lora_A.weight": torch.ones(4, 32)}), None),
        (lambda t: t.update({Q.replace("q_proj", "q_norm") + "lora_A.weight": torch.ones(4, 32)}), None),
        (lambda t: t.update({Q.replace(".0.", ".7.") + "lora_A.weight": torch.ones(4, 32)}), None),
        (lambda t: t.clear(), None),
    ],
)
def test_tensors_that_are_no_adapter(directory, model, change, field):
    tensors = {name: tensor.clone() for name, tensor in read_tensors(directory / WEIGHTS).items()}
    change(tensors)
    write_tensors(directory / WEIGHTS, tensors)
    error = refused(directory, model)
    assert error.field and (field is None or error.field == field)


def test_files_that_are_not_there(directory, model):
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")
    assert "pickled" in refused(directory, model).remedy
    (directory / CONFIG).unlink()
    assert refused(directory, model).field == "adapter"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_by_name_or_are_read(directory, model, data):
    """Bytes changed, dropped and added in either file: never anything but a DachengError."""
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    original = (GOLDENS / "peft" / "lora" / name).read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    piece = data.draw(st.binary(min_size=1, max_size=9))
    damaged = {
        "flip": original[:at] + bytes([original[at] ^ 0x41]) + original[at + 1 :],
        "cut": original[:at],
        "insert": original[:at] + piece + original[at:],
    }[how]
    try:
        (directory / name).write_bytes(damaged)
        read_adapter(directory, model)
    except DachengError as error:
        assert error.problem
    finally:
        (directory / name).write_bytes(original)


def test_parts_of_a_fused_projection_become_one_of_all_ranks(tmp_path):
    """Adapters of q and v alone, each with its own A: qkv_proj gets both, block by block, and nothing is lost."""
    model = load_model(GOLDENS / "families" / "phi3_window", dtype="float32").model
    adapter = drawn(model, targets=("attention.q", "attention.v"))
    write_adapter(tmp_path / "a", adapter, model)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert set(config["rank_pattern"].values()) == {8} and config["target_modules"] == ["qkv_proj"]
    again = read_adapter(tmp_path / "a", model)
    for name, part in adapter.parts.items():
        found = again.parts[name]
        torch.testing.assert_close(found.scale * found.b @ found.a, part.scale * part.b @ part.a)
    rest = [part for name, part in again.parts.items() if name.endswith("attention.k")]
    assert rest and all(float(part.b.detach().abs().max()) == 0 for part in rest)
    with pytest.raises(DachengError, match="DoRA"):
        write_adapter(tmp_path / "b", drawn(model, targets=("attention.q",), use_dora=True), model)


def test_writing_replaces_the_directory_whole(model, tmp_path):
    write_adapter(tmp_path / "a", drawn(model), model)
    (tmp_path / "a" / "adapter_model.bin").touch()
    write_adapter(tmp_path / "a", drawn(model, targets=("q_proj",)), model, base="some/model")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CONFIG, WEIGHTS]
    assert read_adapter(tmp_path / "a", model).base == "some/model"
