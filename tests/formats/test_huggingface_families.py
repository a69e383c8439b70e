"""config.json of the families in the form of published files, and what each family refuses by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dacheng.errors import DachengError
from dacheng.formats.huggingface.families import family_of_config, family_of_traits
from dacheng.formats.huggingface.patterns import layer_types
from dacheng.formats.model_directory import load_model
from dacheng.formats.safetensors_io import read_tensors, write_tensors
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.latent import LatentTraits
from dacheng.nn.rope import RopeScaling

PATH = Path("model/config.json")
GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "families"


def read(config: dict, **changes) -> tuple[DecoderTraits, list[str]]:
    config = {**config, **changes}
    return family_of_config(config, PATH).read(config, PATH)


def golden(case: str) -> dict:
    return json.loads((GOLDENS / case / "config.json").read_text())


LLAMA_32 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "pretraining_tp": 1,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
QWEN_25 = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_size": 896,
    "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 32768, "max_window_layers": 21, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False,
}  # fmt: skip
GEMMA_3 = {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "_sliding_window_pattern": 6,
    "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "max_position_embeddings": 32768,
    "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0,
    "sliding_window": 512, "use_bidirectional_attention": False, "vocab_size": 262144,
}  # fmt: skip
GEMMA_2 = {
    "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "head_dim": 256,
    "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
    "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "sliding_window": 4096, "vocab_size": 256000,
}  # fmt: skip
PHI_4_MINI = {
    "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "embd_pdrop": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "full_attn_mod": 1, "hidden_act": "silu",
    "hidden_size": 3072, "interpolate_factor": 1, "intermediate_size": 8192, "lm_head_bias": False, "mlp_bias": False,
    "max_position_embeddings": 131072, "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}, "rope_theta": 10000.0,
    "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
}  # fmt: skip
PYTHIA = {
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512,
    "intermediate_size": 2048, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_attention_heads": 8,
    "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"}, "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "pretraining_tp": 1,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True, "topk_group": 1,
    "topk_method": "greedy", "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "attention_bias": True, "experts_per_token": 4,
    "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
    "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False, "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
    "tie_word_embeddings": False, "vocab_size": 201088,
}  # fmt: skip


def test_llama_3_scales_its_positions():
    traits, notes = read(LLAMA_32)
    assert notes == []
    assert traits.rope_scaling == RopeScaling(kind="llama3", factor=32.0, original_positions=8192)
    assert (traits.rope_theta, traits.max_positions, traits.head_size) == (5e5, 131072, 64)


def test_qwen_2_5_has_biases_on_q_k_v_and_a_window_only_where_it_is_switched_on():
    traits, notes = read(QWEN_25)
    assert notes == []
    assert (traits.attention_bias, traits.has_output_bias, traits.mlp_bias) == (True, False, False)
    assert (traits.window, traits.window_pattern) == (None, "L")
    traits, _ = read(QWEN_25, use_sliding_window=True, sliding_window=4096)
    assert [traits.layer_window(i) for i in (0, 20, 21, 23)] == [None, None, 4096, 4096]


def test_a_window_of_null_is_none_and_an_absent_one_is_what_transformers_takes():
    config = golden("mistral")
    assert read(config)[0].window is None
    absent = {name: value for name, value in config.items() if name != "sliding_window"}
    assert read(absent)[0].layer_window(0) == 4096


def test_gemma_3_has_two_bases_and_five_windows_for_one_without():
    traits, notes = read(GEMMA_3)
    assert notes == []
    assert (traits.window, traits.window_pattern) == (512, "SSSSSL")
    assert (traits.rope_theta, traits.rope_window_theta, traits.rope_scaling) == (1e6, 1e4, None)
    assert (traits.embedding_scale, traits.attention_scale) == (640**0.5, None)  # 256 is the width of a head
    assert (traits.norm_offset, traits.norm_placement, traits.qk_norm, traits.tied_head) == (True, "both", True, True)
    older = {name: value for name, value in GEMMA_3.items() if "layer_types" not in name}
    assert read(older)[0] == traits
    assert layer_types(traits) == GEMMA_3["layer_types"]


def test_gemma_2_caps_scores_and_logits():
    traits, notes = read(GEMMA_2)
    assert notes == []
    assert (traits.attention_soft_cap, traits.logit_soft_cap, traits.window_pattern) == (50.0, 30.0, "SL")
    traits, _ = read(GEMMA_2, attn_logit_softcapping=None, query_pre_attn_scalar=144)
    assert (traits.attention_soft_cap, traits.attention_scale) == (None, 144**-0.5)


def test_phi_4_mini_says_that_longer_texts_need_a_choice():
    traits, notes = read(PHI_4_MINI)
    assert (traits.rope_fraction, traits.rotated_size, traits.window) == (0.75, 96, 262144)
    assert traits.rope_scaling.factor == 32.0
    assert traits.rope_scaling.original_positions == 4096
    assert not traits.rope_scaling.long
    assert any("rope_scaling.long" in note and "4096" in note for note in notes)
    assert any("auto_map" in note and "never run" in note for note in notes)


def test_pythia_rotates_a_quarter_of_a_head_and_runs_its_branches_side_by_side():
    traits, notes = read(PYTHIA)
    assert notes == []
    assert (traits.norm, traits.parallel_branches, traits.rotated_size) == ("layer", True, 16)
    assert (traits.activation, traits.attention_bias, traits.mlp_bias) == ("gelu", True, True)


def test_deepseek_v2_lite():
    traits, notes = read(DEEPSEEK_V2_LITE)
    assert [note for note in notes if "auto_map" not in note] == []
    assert traits.latent == LatentTraits(kv_rank=512)
    assert traits.moe.shared_width == 2816
    assert traits.moe.balance_loss == 0.001
    assert [traits.is_moe(i) for i in (0, 1, 26)] == [False, True, True]
    mscale = 0.1 * 0.707 * torch.log(torch.tensor(40.0)).item() + 1
    assert traits.attention_scale == pytest.approx(192**-0.5 * mscale**2, rel=1e-6)
    assert traits.rope_scaling.amplitude == 1.0


def test_gpt_oss():
    traits, notes = read(GPT_OSS)
    assert notes == []
    assert (traits.attention_sinks, traits.activation, traits.window_pattern) == (True, "clamped_swiglu", "SL")
    assert (traits.rope_scaling.truncate, traits.moe.expert_width, traits.moe.balance_loss) == (False, 2880, 0.0)
    assert (traits.moe.router_bias, traits.moe.expert_bias, traits.has_output_bias) == (True, True, True)


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("base", "changes", "field"),
    [
        (LLAMA_32, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        (QWEN_25, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type"),
        (GEMMA_3, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        (PYTHIA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type"),
        (GPT_OSS, {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
        (DEEPSEEK_V2_LITE, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        (golden("gpt2"), {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        *[
            (golden(case), {"surprising_factor": 2.0}, "surprising_factor")
            for case in sorted(path.name for path in GOLDENS.iterdir())
        ],
        (QWEN_25, {"layer_types": [FULL] * 23}, "layer_types"),
        (QWEN_25, {"layer_types": [SLIDING] * 24}, "layer_types"),
        (QWEN_25, {"layer_types": [FULL] * 23 + ["chunked_attention"]}, "layer_types"),
        (GEMMA_3, {"layer_types": [FULL] * 17}, "layer_types"),
        (GEMMA_2, {"sliding_window": None}, "layer_types"),
        (GEMMA_2, {"sliding_window_size": 2048}, "sliding_window_size"),
        (GEMMA_2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA_3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (GEMMA_3, {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters"),
        (GEMMA_3, {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}},
         "rope_parameters.sliding_attention"),
        (GEMMA_3, {"rope_parameters": {FULL: {"rope_theta": 2e6}}}, "rope_theta"),
        (golden("smollm3"), {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        (golden("smollm3"), {"no_rope_layers": [1, 0, 1, 2, 1]}, "no_rope_layers"),
        (golden("mistral"), {"layer_types": [SLIDING] * 2}, "layer_types"),
        (PHI_4_MINI, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        (PHI_4_MINI, {"rope_scaling": {**PHI_4_MINI["rope_scaling"], "original_max_position_embeddings": 8192}},
         "original_max_position_embeddings"),
        (PHI_4_MINI, {"partial_rotary_factor": 0.5}, "rope_scaling.short_factors"),
        (PYTHIA, {"num_key_value_heads": 2}, "num_key_value_heads"),
        (PYTHIA, {"head_dim": 32}, "head_dim"),
        (golden("gpt2"), {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (golden("gpt2"), {"add_cross_attention": True}, "add_cross_attention"),
        (golden("gpt2"), {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures"),
        (DEEPSEEK_V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob"),
        (DEEPSEEK_V2_LITE, {"topk_method": "noaux_tc"}, "topk_method"),
        (DEEPSEEK_V2_LITE, {"scoring_func": "sigmoid"}, "scoring_func"),
        (DEEPSEEK_V2_LITE, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK_V2_LITE, {"num_key_value_heads": 4}, "num_key_value_heads"),
        (DEEPSEEK_V2_LITE, {"num_experts_per_tok": 65}, "num_experts_per_tok"),
        (DEEPSEEK_V2_LITE, {"n_routed_experts": 4096}, "n_routed_experts"),
        (DEEPSEEK_V2_LITE, {"n_shared_experts": 0}, "n_shared_experts"),
        (golden("deepseek_v3_groups"), {"n_group": 3}, "moe.groups"),
        (golden("deepseek_v3_groups"), {"num_nextn_predict_layers": 1000}, "num_nextn_predict_layers"),
        (golden("qwen3_moe"), {"mlp_only_layers": [9]}, "mlp_only_layers"),
        (golden("qwen3_moe"), {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
         "max_window_layers"),
        (GPT_OSS, {"swiglu_limit": 5.0}, "swiglu_limit"),
        (GPT_OSS, {"experts_per_token": 2}, "experts_per_token"),
        (GPT_OSS, {"rope_scaling": None}, "rope_parameters"),
        (GPT_OSS, {"num_local_experts": 10**6}, "num_local_experts"),
    ],
)  # fmt: skip
def test_what_a_family_does_not_have_is_refused_by_name(base, changes, field):
    with pytest.raises(DachengError) as caught:
        read(base, **changes)
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize(
    "config",
    [LLAMA_32, QWEN_25, GEMMA_2, GEMMA_3, PHI_4_MINI, PYTHIA, DEEPSEEK_V2_LITE, GPT_OSS],
    ids=lambda c: c["model_type"],
)
def test_a_model_is_written_as_the_family_that_it_was_read_as(config):
    traits, _ = read(config)
    family = family_of_traits(traits, config["model_type"])
    assert family.model_type == config["model_type"]
    assert read(family.from_traits(traits))[0] == traits


def test_a_quantised_checkpoint_is_named_by_its_method():
    with pytest.raises(DachengError, match="mxfp4"):
        read(GPT_OSS, quantization_config={"quant_method": "mxfp4"})


def test_layers_that_guess_further_tokens_are_left_aside_and_said(tmp_path):
    source = GOLDENS / "deepseek_v3_plain"
    tensors = dict(read_tensors(source / "model.safetensors"))
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(16, 32)
    write_tensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    notes = load_model(tmp_path).notes
    assert any("num_nextn_predict_layers" in note for note in notes)
    assert any("model.layers.3.eh_proj.weight was left aside" in note for note in notes)
    tensors["model.layers.99.eh_proj.weight"] = tensors.pop("model.layers.3.eh_proj.weight")
    write_tensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(DachengError, match="no place in the model"):
        load_model(tmp_path)


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDENS.iterdir()))
def test_an_expert_or_a_fused_matrix_that_is_missing_or_misshapen_is_named(tmp_path, case):
    source = GOLDENS / case
    tensors = dict(read_tensors(source / "model.safetensors"))
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    name = max(name for name in tensors if tensors[name].ndim > 1)
    for broken in ({}, {name: torch.zeros(3, 5)}, {name: tensors[name].to(torch.int8)}):
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        write_tensors(tmp_path / "model.safetensors", others | broken, {"format": "pt"})
        with pytest.raises(DachengError) as caught:
            load_model(tmp_path)
        assert str(caught.value.field).endswith(name)


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDENS.iterdir()))
def test_weights_go_there_and_back_to_the_bit_and_keep_their_type(case):
    config = golden(case)
    family = family_of_config(config, PATH)
    traits = family.read(config, PATH)[0]
    model = Decoder(traits).init_weights().to(torch.bfloat16)
    state = model.state_dict()
    there = family.export_tensors(state, traits)
    back = family.import_tensors(there, traits)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == torch.bfloat16
        assert torch.equal(back[name], tensor), name
