"""Our decoder against transformers' LlamaForCausalLM, from files that transformers wrote (goldens/llama)."""

from __future__ import annotations

import json

import pytest
import torch

from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.safetensors_io import read_tensors
from dacheng.nn.contexts import DenseCausal

CASES = (
    "mha_untied",
    "gqa_tied",
    "mqa_biases",
    "wide_heads",
    "gelu_big_eps",
    "config_of_transformers_4",
    "sharded_bfloat16",
)
TOLERANCE = 1e-4


@torch.no_grad()
def logits_of(model, ids):
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return model.head(model(ids, positions, DenseCausal()))


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(goldens, case):
    expected = read_tensors(goldens / "llama" / case / "expected.safetensors")
    model = load_model(goldens / "llama" / case, dtype="float32").model
    logits = logits_of(model, expected["ids"])
    assert logits.dtype == torch.float32
    assert expected["logits"].std() > 1  # the comparison means something
    assert (logits - expected["logits"]).abs().max() < TOLERANCE


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_a_saved_copy_computes_the_same_bits(goldens, tmp_path, case):
    loaded = load_model(goldens / "llama" / case)
    save_model(tmp_path / "copy", loaded.model, None)
    again = load_model(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "llama"
    assert again.model.traits == loaded.model.traits
    ids = read_tensors(goldens / "llama" / case / "expected.safetensors")["ids"]
    assert torch.equal(logits_of(again.model.float(), ids), logits_of(loaded.model.float(), ids))


def test_traits_come_from_the_config(goldens):
    traits = load_model(goldens / "llama" / "gqa_tied").model.traits
    assert (traits.n_kv_heads, traits.tied_head, traits.rope_theta, traits.norm_eps) == (2, True, 1e6, 1e-5)
    traits = load_model(goldens / "llama" / "config_of_transformers_4").model.traits
    assert (traits.rope_theta, traits.head_size) == (5e5, 8)
    traits = load_model(goldens / "llama" / "gelu_big_eps").model.traits
    assert (traits.activation, traits.norm_eps) == ("geglu_tanh", 1e-2)


def test_stored_dtype_is_kept(goldens):
    model = load_model(goldens / "llama" / "sharded_bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model = load_model(goldens / "llama" / "sharded_bfloat16", dtype="float32").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
