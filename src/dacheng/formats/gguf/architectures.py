"""The architectures that GGUF files are read and written as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError
from dacheng.formats.gguf.architecture import Architecture
from dacheng.formats.gguf.classics import GPT2, GPTNeoX
from dacheng.formats.gguf.deepseek import DeepSeek2
from dacheng.formats.gguf.gemma import Gemma, Gemma2, Gemma3
from dacheng.formats.gguf.llama import Llama, SmolLM3
from dacheng.formats.gguf.modern import GptOss, Olmo2, Phi3
from dacheng.formats.gguf.qwen import Qwen2, Qwen3, Qwen3Moe

ARCHITECTURES: tuple[Architecture, ...] = (
    Llama(), Qwen2(), Qwen3(), Qwen3Moe(), Gemma(), Gemma2(), Gemma3(), SmolLM3(), Olmo2(), Phi3(), GPT2(), GPTNeoX(),
    GptOss(), DeepSeek2(),
)  # fmt: skip


def architecture_named(name: str, path: Path) -> Architecture:
    """The one with this general.architecture. Raises DachengError naming those there are."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise DachengError(
        f"{path}: this kind of model is not supported", field="general.architecture", value=name,
        remedy="supported: " + ", ".join(architecture.name for architecture in ARCHITECTURES),
    )  # fmt: skip


def architecture_for(config: Mapping[str, Any]) -> Architecture:
    """The one to write a config.json of this kind as. Raises DachengError naming those there are."""
    writable = [architecture for architecture in ARCHITECTURES if architecture.writable]
    for architecture in writable:
        if architecture.model_type == config.get("model_type"):
            return architecture
    raise DachengError(
        "this kind of model is not written to GGUF", field="model_type", value=config.get("model_type"),
        remedy="written are: " + ", ".join(architecture.model_type for architecture in writable),
    )  # fmt: skip
