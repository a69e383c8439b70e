"""What a family of models is to the reader and the writer of directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dacheng.errors import DachengError, UsageError
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.names import NameTable
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits

MAX_ROTARY_BYTES = 2**31


class Family:
    """A mapping between a config.json and traits, and between two sets of weight names. Subclasses say which.

    A family whose weights are not ours one by one (fused q, k, v; transposed; stacked experts) overrides
    `import_tensors` and `export_tensors`; both must also work on meta tensors, whose shapes are the expected ones.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]  # the class that transformers builds for it
    names: ClassVar[NameTable]
    derived: ClassVar[tuple[str, ...]] = ()  # ends of names of stored tensors that follow from the config

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.model_type

    def to_traits(self, fields: Fields) -> DecoderTraits:
        """Takes every field that the family knows. Raises DachengError on what the traits cannot express."""
        raise NotImplementedError

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        """The config of these traits, as far as the family can express them: see `fits`."""
        raise NotImplementedError

    def read(self, config: Mapping[str, Any], path: Path) -> tuple[DecoderTraits, list[str]]:
        """Traits, and notes on what was understood to be off. Raises DachengError; no field is ignored silently."""
        fields = Fields(config, path)
        fields.get("model_type")
        architectures = fields.get("architectures", [self.architecture])
        if architectures != [self.architecture]:
            raise fields.error(
                "names another network", "architectures", architectures, f"supported: {self.architecture}"
            )
        try:
            traits = resolved(self.to_traits(fields).validate())
        except UsageError as error:  # the file is wrong here, and not the command
            raise DachengError(
                f"{path}: {error.problem}", field=error.field, value=error.value, remedy=error.remedy
            ) from None
        _check_rotary(traits, path)
        return traits, fields.finish()

    def fits(self, traits: DecoderTraits) -> bool:
        """Whether the traits survive the way into a config of this family and back: nothing would be lost."""
        try:
            back, _ = self.read(self.from_traits(traits), Path("config.json"))
        except DachengError:
            return False
        return back == resolved(traits)

    def build(self, traits: DecoderTraits) -> Decoder:
        return Decoder(traits)

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        """Their names and layouts -> ours. Takes exactly the tensors that `export_tensors` gives."""
        return {_known(self.names.ours(name), name): tensor for name, tensor in tensors.items()}

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        """Our names and layouts -> theirs. Raises DachengError for a tensor that the family has no name for."""
        return {_known(self.names.theirs(name), name): tensor for name, tensor in tensors.items()}

    def redundant(self, name: str, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> str | None:
        """Why a stored tensor that is not expected may be left aside, or None when it may not."""
        if name.endswith(self.derived):
            return "it follows from the config"
        head, embedding = self.names.theirs("lm_head.weight"), self.names.theirs("embed.weight")
        if traits.tied_head and name == head and embedding is not None and embedding in tensors:
            one, other = tensors[name], tensors[embedding]
            if one.dtype == other.dtype and torch.equal(one, other):
                return f"the head is tied, and it equals {embedding}"
            raise DachengError(
                f"the config ties the head to the embedding, and {name} is not {embedding}",
                field=name,
                value=list(tensors[name].shape),
                remedy="set tie_word_embeddings to false in config.json, or remove the tensor",
            )
        return None


def _check_rotary(traits: DecoderTraits, path: Path) -> None:
    """The angles are tabulated: an absurd length must not allocate before anyone can see it."""
    table = 4 * traits.max_positions * traits.head_size  # bytes of cos and sin
    if table > MAX_ROTARY_BYTES:
        raise DachengError(
            f"{path}: the table of rotary angles would take {table} bytes",
            field="max_positions",
            value=traits.max_positions,
            remedy=f"lower it: {MAX_ROTARY_BYTES // (4 * traits.head_size)} is the most for heads this wide",
        )


def resolved(traits: DecoderTraits) -> DecoderTraits:
    """The same decoder with every default size written out: two traits that build alike compare equal."""
    return replace(traits, kv_heads=traits.n_kv_heads, head_width=traits.head_size, mlp_width=traits.mlp_size)


def _known(translated: str | None, name: str) -> str:
    if translated is None:
        raise DachengError(
            "the family has no name for this tensor", field=name, remedy="save it in dacheng's own format"
        )
    return translated
