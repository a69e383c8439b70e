"""The families that directories are read and written as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError
from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.llama import Llama
from dacheng.formats.huggingface.native import Native
from dacheng.models.traits import DecoderTraits

# In order of preference for writing: a family that others can load comes before our own, which takes everything.
FAMILIES: tuple[Family, ...] = (Llama(), Native())


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


def family_of_traits(traits: DecoderTraits) -> Family:
    """The first family that can express the traits without loss. Raises DachengError when not even ours can: some
    trait has a value that no model can be built with."""
    for family in FAMILIES:
        if family.fits(traits):
            return family
    FAMILIES[-1].read(FAMILIES[-1].from_traits(traits), Path("config.json"))
    raise DachengError("the traits do not survive being written", field="traits", value=traits)
