"""The two real GGUF files that come from PyPI: what they hold, as the peers' own readers say."""

from __future__ import annotations

import pytest
import torch
from gguf_files import gemma_file, smollm2_file

from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.model import gguf_model
from dacheng.ops.qtensor import QTensor


@pytest.fixture(scope="module")
def smollm2():
    return smollm2_file()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return gemma_file(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


def formats(path):
    counts: dict[str, int] = {}
    for entry in GGUFFile(path).tensors.values():
        counts[entry.format.name] = counts.get(entry.format.name, 0) + 1
    return counts


def test_smollm2_is_llama_with_packed_matrices(smollm2):
    assert formats(smollm2) == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    model = gguf_model(smollm2, packed=True)
    assert model.config == {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    assert model.notes == []
    kinds = {type(value) for name, value in model.tensors.items() if name.endswith("proj.weight")}
    assert kinds == {QTensor} and len(model.tensors) == 272
    assert sum(v.nbytes for v in model.tensors.values()) == GGUFFile(smollm2).nbytes()
    assert "<|im_start|>" in (model.chat_template or "")
    assert len(model.tokenizer_metadata["tokenizer.ggml.tokens"]) == 49152


def test_the_permutation_of_a_packed_matrix_is_that_of_its_values(smollm2):
    name = "blk.3.attn_k.weight"
    values = GGUFFile(smollm2).tensor(name)  # pairs of neighbours, head by head
    model = gguf_model(smollm2, packed=True).tensors["model.layers.3.self_attn.k_proj.weight"]
    halves = values.reshape(3, 32, 2, 576).transpose(1, 2).reshape(192, 576)
    assert torch.equal(model.dequantize(), halves)


def test_gemma_has_windows_and_norms_without_the_one(gemma):
    assert formats(gemma) == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}
    model = gguf_model(gemma, packed=True)
    config = model.config
    assert config["model_type"] == "gemma3_text" and config["hidden_activation"] == "gelu_pytorch_tanh"
    assert config["layer_types"] == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert (config["sliding_window"], config["head_dim"], config["query_pre_attn_scalar"]) == (512, 256, 256)
    assert (config["rms_norm_eps"], config["tie_word_embeddings"]) == (1e-6, True)
    assert model.notes == [] and model.chat_template is None
    stored = GGUFFile(gemma).tensor("blk.7.attn_q_norm.weight")
    assert torch.equal(model.tensors["model.layers.7.self_attn.q_norm.weight"], stored - 1)
    assert len(model.tensors) == 236


@pytest.mark.slow
def test_dequantised_to_a_dtype_of_choice(smollm2):
    whole = gguf_model(smollm2, dtype=torch.bfloat16)
    packed = gguf_model(smollm2, packed=True)
    assert {value.dtype for value in whole.tensors.values()} == {torch.bfloat16}
    name = "model.layers.29.mlp.down_proj.weight"
    assert torch.equal(whole.tensors[name], packed.tensors[name].dequantize(torch.bfloat16))
