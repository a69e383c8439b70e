"""Mistral (Jiang et al. 2023): Llama with a window in all layers, or, from 7B v0.2 on, in none."""

from __future__ import annotations

from typing import Any

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import LLAMA_DEFAULTS, LlamaLike
from dacheng.formats.huggingface.windows import one_window, one_window_config
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits


class Mistral(LlamaLike):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    defaults = LLAMA_DEFAULTS | {"num_key_value_heads": REQUIRED, "max_position_embeddings": 4096 * 32}

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        return one_window(fields, values, default=4096)

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return one_window_config(traits)
