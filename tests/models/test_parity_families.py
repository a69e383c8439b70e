"""Every family against transformers, from files that transformers wrote (goldens/families, make_family_parity.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dacheng.engine import Engine
from dacheng.formats.huggingface.families import FAMILIES
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.safetensors_io import read_tensors
from dacheng.models.decoder import Decoder
from dacheng.nn.contexts import DenseCausal
from dacheng.protocols import SamplingParams

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "families"
CASES = sorted(path.name for path in GOLDENS.iterdir())
TOLERANCE = 1e-4
REWRITTEN = ("llama_llama3_of_transformers_4", "gemma3_of_transformers_4", "gpt2_of_the_first_files")

# Fields that transformers writes and that have no influence on what is computed, or that we write under the name that
# published files have.
OTHERS = {
    "attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "classifier_dropout",
    "transformers_version", "use_cache", "pretraining_tp", "eos_token_id", "bos_token_id", "pad_token_id", "is_decoder",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx", "add_cross_attention", "use_bidirectional_attention", "no_rope_layer_interval",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "swiglu_alpha", "num_mtp_layers", "num_nextn_predict_layers", "n_inner", "topk_group", "n_group", "topk_method",
    "max_window_layers", "num_local_experts", "sliding_window_pattern", "_sliding_window_pattern",
}  # fmt: skip


@torch.no_grad()
def logits_of(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return model.head(model(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseCausal()))


def expected_of(case: str) -> dict[str, torch.Tensor]:
    return read_tensors(GOLDENS / case / "expected.safetensors")


def config_of(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())


def test_every_family_has_a_golden():
    found = {config_of(GOLDENS / case)["model_type"] for case in CASES}
    assert found == {family.model_type for family in FAMILIES} - {"dacheng"}


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case):
    expected = expected_of(case)
    logits = logits_of(load_model(GOLDENS / case, dtype="float32").model, expected["ids"])
    assert expected["logits"].std() > 1  # the comparison means something
    assert (logits - expected["logits"]).abs().max() < TOLERANCE


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_a_saved_copy_is_what_transformers_wrote(tmp_path, case):
    loaded = load_model(GOLDENS / case)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    save_model(tmp_path / "copy", loaded.model)
    again = load_model(tmp_path / "copy")
    assert again.model.traits == loaded.model.traits
    assert again.model.family == loaded.model.family == config_of(GOLDENS / case)["model_type"]
    ids = expected_of(case)["ids"]
    assert torch.equal(logits_of(again.model.float(), ids), logits_of(loaded.model.float(), ids))
    if case in REWRITTEN:
        return
    theirs, ours = read_tensors(GOLDENS / case / "model.safetensors"), read_tensors(tmp_path / "copy/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("case", [case for case in CASES if case not in REWRITTEN])
def test_the_written_config_says_what_theirs_says(tmp_path, case):
    save_model(tmp_path / "copy", load_model(GOLDENS / case).model)
    theirs, ours = config_of(GOLDENS / case), config_of(tmp_path / "copy")
    for name, value in theirs.items():
        if name in OTHERS:
            continue
        if (name, value) == ("head_dim", None):  # the default, which we write out
            continue
        if isinstance(value, dict):  # rotary parameters
            neutral = {"partial_rotary_factor": 1.0}
            assert value.items() <= (neutral | ours[name]).items(), name
        else:
            assert ours[name] == value, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [64, 5], ids=["whole prompts", "prompts in pieces"])
def test_greedy_texts_with_a_cache_are_those_of_whole_forwards(case, budget):
    """24 tokens each for two prompts that run together, past every window."""
    model = load_model(GOLDENS / case, dtype="float32").model
    limit = 32 if "longrope" in case else 64  # its angles end there
    engine = Engine(model, max_batch=2, max_tokens_per_step=budget, max_context=limit)
    prompts = [expected_of(case)["ids"][0, :8].tolist(), expected_of(case)["ids"][1, :3].tolist()]
    completions = engine.generate(prompts, SamplingParams(max_tokens=24, temperature=0.0))
    for prompt, completion in zip(prompts, completions):
        assert len(completion.token_ids) == 24
        ids = torch.tensor([prompt + completion.token_ids[:-1]])
        logits = logits_of(model, ids)[0, len(prompt) - 1 :]
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(completion.token_ids).unsqueeze(-1)).squeeze(-1)
        assert (best - chosen).max() < TOLERANCE  # the best token, or one as good


# A trait, and what it would be if it were not understood: the goldens must notice.
MISREAD = [
    ("llama_linear", {"rope_scaling": None}),
    ("llama_llama3", {"rope_scaling": None}),
    ("llama_yarn", {"rope_scaling": None}),
    ("llama_longrope", {"rope_scaling": None}),
    ("mistral_window", {"window_pattern": "L"}),
    ("mistral_window", {"window": 6}),
    ("qwen2_window", {"window_pattern": "S"}),
    ("qwen3_window_biases", {"window_pattern": "SSL"}),
    ("smollm3", {"rope_pattern": "R"}),
    ("smollm3_window", {"window_pattern": "L"}),
    ("gemma", {"embedding_scale": None}),
    ("gemma", {"norm_offset": False}),
    ("gemma2", {"attention_soft_cap": None}),
    ("gemma2", {"logit_soft_cap": None}),
    ("gemma2", {"attention_scale": None}),
    ("gemma2", {"window_pattern": "LS"}),
    ("gemma3", {"rope_window_theta": None}),
    ("gemma3", {"rope_scaling": None}),
    ("gemma3", {"attention_scale": None}),
    ("gemma3_of_transformers_4", {"rope_window_theta": None}),
    ("gemma3_of_transformers_4", {"window_pattern": "SSL"}),
    ("phi3_longrope", {"rope_scaling": None}),
    ("gpt2_untied_unscaled", {"attention_scale": None}),
    ("gpt2_of_the_first_files", {"activation": "gelu_tanh"}),
    ("gpt_neox", {"parallel_branches": False}),
    ("gpt_neox", {"rope_fraction": 1.0}),
    ("deepseek_v2_lite", {"rope_interleaved": False}),
    ("deepseek_v2_groups", {"attention_scale": None}),
    ("deepseek_v3_plain", {"rope_interleaved": True}),
    ("gpt_oss", {"rope_scaling": {"truncate": True}}),
    ("gpt_oss", {"activation": "swiglu"}),
    ("deepseek_v2_groups", {"moe": {"groups": 1, "groups_per_token": 1}}),
    ("deepseek_v2_groups", {"moe": {"routed_scale": 1.0}}),
    ("deepseek_v3_groups", {"moe": {"group_score": "best"}}),
    ("deepseek_v3_groups", {"moe": {"normalize": False}}),
    ("deepseek_v3_groups", {"rope_scaling": {"mscale": 0.8}}),
    ("deepseek_v3_plain", {"moe": {"score": "softmax"}}),
    ("qwen3_moe", {"moe": {"normalize": False}}),
    ("qwen3_moe_dense_layers", {"moe": {"normalize": True}}),
    ("mixtral", {"moe": {"experts_per_token": 1}}),
]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("case", "changes"), MISREAD, ids=lambda value: value if isinstance(value, str) else str(value)
)
def test_the_goldens_notice_a_misread_trait(case, changes):
    """Each trait of each family is hit by a case: with another value, the logits are others."""
    model = load_model(GOLDENS / case, dtype="float32").model
    changed = {
        name: replace(getattr(model.traits, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    other = Decoder(replace(model.traits, **changed))
    other.load_state_dict(model.state_dict())
    expected = expected_of(case)
    assert (logits_of(other, expected["ids"]) - expected["logits"]).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["sinks", "score_bias", "q_norm", "gate_bias", "norm.bias", "post_norm"])
def test_the_goldens_notice_a_weight_left_at_its_start(name):
    """The weights that a fresh model has as 0 or 1 count in some case."""
    differences = []
    for case in CASES:
        model = load_model(GOLDENS / case, dtype="float32").model
        found = [tensor for key, tensor in model.state_dict().items() if name in key]
        if found:
            for tensor in found:
                tensor.zero_() if "norm" not in name or "bias" in name else tensor.fill_(1.0)
            expected = expected_of(case)
            differences.append(float((logits_of(model, expected["ids"]) - expected["logits"]).abs().max()))
    assert differences
    assert min(differences) > 0.01
