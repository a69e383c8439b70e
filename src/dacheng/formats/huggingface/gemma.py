"""Gemma (Mesnard et al. 2024): Llama with embeddings scaled by the root of the width, norms stored as differences from
1, and tanh-gelu in its mlp."""

from __future__ import annotations

from typing import Any, ClassVar

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import LLAMA_DEFAULTS, LlamaLike
from dacheng.formats.typed_values import REQUIRED

GEMMA_DEFAULTS = LLAMA_DEFAULTS | {
    "num_key_value_heads": REQUIRED,
    "head_dim": REQUIRED,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
# The first files say "gelu" and mean the tanh form, which is what transformers builds for it.
GEMMA_ACTIVATIONS = {"gelu_pytorch_tanh": "geglu_tanh", "gelu": "geglu_tanh", "silu": "swiglu"}


class Gemma(LlamaLike):
    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    activations = GEMMA_ACTIVATIONS
    default_activation = "gelu_pytorch_tanh"
    defaults = GEMMA_DEFAULTS
    fixed: ClassVar = {"norm_offset": True}
    flags: ClassVar = {"attention_bias": False}

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        fields.only("hidden_activation", ("gelu_pytorch_tanh",), "is not what the family is built with")
        return super().own_traits(fields, values) | {"embedding_scale": values["width"] ** 0.5}
