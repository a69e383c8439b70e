"""The families that directories are read and written as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, UsageError
from dacheng.formats.huggingface.deepseek_v2 import DeepseekV2
from dacheng.formats.huggingface.deepseek_v3 import DeepseekV3
from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.gemma import Gemma
from dacheng.formats.huggingface.gemma2 import Gemma2
from dacheng.formats.huggingface.gemma3 import Gemma3
from dacheng.formats.huggingface.gpt2 import GPT2
from dacheng.formats.huggingface.gpt_neox import GPTNeoX
from dacheng.formats.huggingface.gpt_oss import GptOss
from dacheng.formats.huggingface.llama import Llama
from dacheng.formats.huggingface.mistral import Mistral
from dacheng.formats.huggingface.mixtral import Mixtral
from dacheng.formats.huggingface.native import Native
from dacheng.formats.huggingface.olmo2 import Olmo2
from dacheng.formats.huggingface.phi3 import Phi3
from dacheng.formats.huggingface.qwen2 import Qwen2
from dacheng.formats.huggingface.qwen3 import Qwen3
from dacheng.formats.huggingface.qwen3_moe import Qwen3Moe
from dacheng.formats.huggingface.smollm3 import SmolLM3
from dacheng.models.traits import DecoderTraits

# In order of preference for writing: families that others can load come before our own, which takes everything, and of
# those that say the same, the one that most programs read comes first.
FAMILIES: list[Family] = [
    Llama(), Mistral(), Qwen2(), Qwen3(), SmolLM3(), Phi3(), Gemma(), Gemma2(), Gemma3(), Olmo2(), GPT2(), GPTNeoX(),
    Mixtral(), Qwen3Moe(), DeepseekV2(), DeepseekV3(), GptOss(),
    Native(),
]  # fmt: skip


def register(family: Family) -> None:
    """Adds a family for this process: its directories are read, and written where no earlier family can express the
    traits. Raises UsageError when its model_type is taken."""
    if any(family.model_type == known.model_type for known in FAMILIES):
        raise UsageError(
            "there is a family of this name", field="model_type", value=family.model_type, remedy="choose another"
        )
    FAMILIES.insert(len(FAMILIES) - 1, family)  # our own stays the last resort


def family_of_config(config: Mapping[str, Any], path: Path) -> Family:
    """The family that a config.json belongs to. Raises DachengError naming those there are."""
    for family in FAMILIES:
        if family.matches(config):
            return family
    raise DachengError(
        f"{path}: this kind of model is not supported",
        field="model_type",
        value=config.get("model_type"),
        remedy="supported: " + ", ".join(family.model_type for family in FAMILIES),
    )


def family_of_traits(traits: DecoderTraits, preferred: str | None = None) -> Family:
    """The first family that can express the traits without loss; before all, the one whose model_type is `preferred`
    (what the model was read as). Raises DachengError when not even ours can: some trait has a value that no model can
    be built with."""
    for family in sorted(FAMILIES, key=lambda family: family.model_type != preferred):
        if family.fits(traits):
            return family
    FAMILIES[-1].read(FAMILIES[-1].from_traits(traits), Path("config.json"))
    raise DachengError("the traits do not survive being written", field="traits", value=traits)
