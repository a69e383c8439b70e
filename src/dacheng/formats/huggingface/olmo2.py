"""OLMo 2 (Walsh et al. 2024): Llama with norms behind its branches, and over all heads of q and of k."""

from __future__ import annotations

from typing import ClassVar

from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_DEFAULTS, LLAMA_NAMES, QK_NORM_NAMES, LlamaLike
from dacheng.formats.huggingface.names import NameTable

POST_NORM_NAMES = {
    "blocks.{i}.attention_post_norm.weight": BLOCK + "post_attention_layernorm.weight",
    "blocks.{i}.mlp_post_norm.weight": BLOCK + "post_feedforward_layernorm.weight",
}


class Olmo2(LlamaLike):
    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    names = NameTable(
        {ours: theirs for ours, theirs in LLAMA_NAMES.items() if not ours.endswith("_norm.weight")}
        | QK_NORM_NAMES
        | POST_NORM_NAMES
    )
    defaults = LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5}
    fixed: ClassVar = {"norm_placement": "post", "qk_norm": True, "qk_norm_weight": True, "qk_norm_whole": True}
    flags: ClassVar = {"attention_bias": False}
