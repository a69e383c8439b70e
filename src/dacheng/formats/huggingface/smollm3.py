"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer has no positions."""

from __future__ import annotations

from typing import Any, ClassVar

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import LLAMA_DEFAULTS, LlamaLike
from dacheng.formats.huggingface.patterns import layer_list, read_layer_types, shortest
from dacheng.formats.huggingface.windows import switched_config, switched_window
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits


class SmolLM3(LlamaLike):
    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    defaults = LLAMA_DEFAULTS | {
        "num_key_value_heads": REQUIRED,
        "rope_theta": 2e6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    }
    flags: ClassVar = {"attention_bias": False, "mlp_bias": False}

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        layers, window = values["layers"], switched_window(fields)
        fields.understood({"max_window_layers": "layer_types says it"})
        interval = fields.integer("no_rope_layer_interval", 4)
        rotated = "".join("NR"[(i + 1) % interval != 0] for i in range(layers))
        if fields.get("no_rope_layers") is not None:  # 1: with positions
            rotated = "".join(layer_list(fields, "no_rope_layers", layers, {1: "R", 0: "N"}))
        default = "L" if window is None else rotated.translate({ord("N"): "S", ord("R"): "L"})
        return {"rope_pattern": shortest(rotated)} | read_layer_types(fields, layers, window, default)

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return switched_config(traits) | {"no_rope_layers": [int(traits.is_rotated(i)) for i in range(traits.layers)]}
