"""Qwen3 (Yang et al. 2025): Qwen2 without its biases, with norms on every head's query and key."""

from __future__ import annotations

from typing import ClassVar

from dacheng.formats.huggingface.llama_like import LLAMA_NAMES, QK_NORM_NAMES
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.qwen2 import QWEN_DEFAULTS, Qwen2
from dacheng.formats.typed_values import REQUIRED


class Qwen3(Qwen2):
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    names = NameTable(LLAMA_NAMES | QK_NORM_NAMES)
    defaults = QWEN_DEFAULTS | {"head_dim": REQUIRED}
    fixed: ClassVar = {"qk_norm": True, "qk_norm_weight": True}
    flags: ClassVar = {"attention_bias": False}
