"""Llama (Touvron et al. 2023): pre-norm RMS, SwiGLU, rotary positions, grouped heads; from 3.1 on scaled positions.
Also SmolLM, SmolLM2, TinyLlama and all others that say `model_type: llama`. Its rotate-half rotary layout is ours, so
no weight is permuted."""

from __future__ import annotations

from typing import ClassVar

from dacheng.formats.huggingface.llama_like import LlamaLike
from dacheng.models.traits import DecoderTraits


class Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    flags: ClassVar = {"attention_bias": False, "mlp_bias": False}
    heads_divide_width = True

    def fits(self, traits: DecoderTraits) -> bool:
        return traits.initializer_range <= 1 and super().fits(traits)  # transformers refuses more
