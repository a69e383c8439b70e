"""Qwen2 and 2.5 (Yang et al. 2024): Llama with biases on q, k and v, and windows in the layers from
`max_window_layers` on."""

from __future__ import annotations

from typing import Any, ClassVar

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import LLAMA_DEFAULTS, LlamaLike
from dacheng.formats.huggingface.patterns import read_layer_types
from dacheng.formats.huggingface.windows import switched_config, switched_window
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits

QWEN_DEFAULTS = LLAMA_DEFAULTS | {"num_key_value_heads": REQUIRED, "max_position_embeddings": 32768}


class Qwen2(LlamaLike):
    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    defaults = QWEN_DEFAULTS
    fixed: ClassVar = {"attention_bias": True, "output_bias": False}

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        window, layers = switched_window(fields), values["layers"]
        full = fields.integer("max_window_layers", 28, minimum=0)
        default = "L" * layers if window is None else ("L" * min(full, layers) + "S" * layers)[:layers]
        return read_layer_types(fields, layers, window, default)

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        windows = [traits.layer_window(i) for i in range(traits.layers)]
        full = next((i for i, window in enumerate(windows) if window), traits.layers)
        return switched_config(traits) | {"max_window_layers": full}
