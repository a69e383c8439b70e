"""Gemma 2 (Rivière et al. 2024): norms before and behind each branch, a window in every second layer, soft-caps."""

from __future__ import annotations

from typing import Any, ClassVar

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.gemma import GEMMA_DEFAULTS
from dacheng.formats.huggingface.llama_like import BLOCK, GATED_ACTIVATIONS, LLAMA_NAMES, LlamaLike
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.olmo2 import POST_NORM_NAMES
from dacheng.formats.huggingface.patterns import layer_types, read_layer_types
from dacheng.models.traits import DecoderTraits

BOTH_NORM_NAMES = (
    LLAMA_NAMES | {"blocks.{i}.mlp_norm.weight": BLOCK + "pre_feedforward_layernorm.weight"} | POST_NORM_NAMES
)


class Gemma2(LlamaLike):
    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    names = NameTable(BOTH_NORM_NAMES)
    activations = GATED_ACTIVATIONS
    default_activation = "gelu_pytorch_tanh"
    activation_field = "hidden_activation"
    defaults = GEMMA_DEFAULTS
    fixed: ClassVar = {"norm_offset": True, "norm_placement": "both"}
    flags: ClassVar = {"attention_bias": False}
    heads_divide_width = True
    soft_cap, attention_soft_cap = 30.0, 50.0  # of absent fields

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        fields.get("hidden_act")  # of the first files: hidden_activation is what counts
        window = fields.integer("sliding_window", None if fields.given("sliding_window") else 4096)
        fields.only("sliding_window_size", (window,), "is not sliding_window")
        scalar = fields.number("query_pre_attn_scalar", 256.0)
        return {
            "embedding_scale": values["width"] ** 0.5,
            "attention_scale": scalar**-0.5,
            "logit_soft_cap": _cap(fields, "final_logit_softcapping", self.soft_cap),
            "attention_soft_cap": _cap(fields, "attn_logit_softcapping", self.attention_soft_cap),
        } | read_layer_types(fields, values["layers"], window, self.default_windows(fields))

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return {
            "query_pre_attn_scalar": _scalar(traits),
            "final_logit_softcapping": traits.logit_soft_cap,
            "attn_logit_softcapping": traits.attention_soft_cap,
            "sliding_window": traits.window,
            "layer_types": layer_types(traits),
        }

    def default_windows(self, fields: Fields) -> str:
        return "SL"


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    cap: float | None = fields.number(name, None if fields.given(name) else default)
    return cap


def _scalar(traits: DecoderTraits) -> float:
    """What the attention's scale is the inverse root of: a whole number in files, and to transformers' type check."""
    scale = traits.attention_scale
    if scale is None:
        return traits.head_size
    exact = scale**-2.0
    return round(exact) if round(exact) > 0 and round(exact) ** -0.5 == scale else exact
