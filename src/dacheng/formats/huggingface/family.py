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
from dacheng.formats.huggingface.patterns import shortest
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits


class Layout:
    """A mapping between a config.json and traits, and between two sets of weight names. Subclasses say which, and what
    is built of the traits.

    One whose weights are not ours one by one (fused q, k, v; transposed; stacked experts) overrides `import_tensors`
    and `export_tensors`; both must also work on meta tensors, whose shapes are the expected ones.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]  # the class that transformers builds for it
    architectures: ClassVar[tuple[str, ...]] = ()  # others that hold the same network, with what is left aside
    names: ClassVar[NameTable]
    derived: ClassVar[tuple[str, ...]] = ()  # ends of names of stored tensors that follow from the config

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.model_type

    def to_traits(self, fields: Fields) -> Any:
        """Takes every field that the family knows. Raises DachengError on what the traits cannot express."""
        raise NotImplementedError

    def from_traits(self, traits: Any) -> dict[str, Any]:
        """The config of these traits, as far as the family can express them."""
        raise NotImplementedError

    def resolved(self, traits: Any) -> Any:
        """Traits in one form, where there are several that build alike."""
        return traits

    def read(self, config: Mapping[str, Any], path: Path) -> tuple[Any, list[str]]:
        """Traits, and notes on what was understood to be off. Raises DachengError; no field is ignored silently."""
        fields = Fields(config, path)
        fields.get("model_type")
        architectures = fields.get("architectures", [self.architecture])
        known = (self.architecture, *self.architectures)
        if architectures not in [[name] for name in known]:
            raise fields.error(
                "names another network", "architectures", architectures, f"supported: {', '.join(known)}"
            )
        try:
            traits = self.resolved(self.to_traits(fields).validate())
        except UsageError as error:  # the file is wrong here, and not the command
            raise DachengError(
                f"{path}: {error.problem}", field=error.field, value=error.value, remedy=error.remedy
            ) from None
        return traits, fields.finish()

    def build(self, traits: Any) -> Any:
        raise NotImplementedError

    def stored_tensors(self, tensors: Mapping[str, Tensor], traits: Any) -> dict[str, Tensor]:
        """A file's tensors under the names that `export_tensors` gives, where the family is written in several ways."""
        return dict(tensors)

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: Any) -> dict[str, Tensor]:
        """Their names and layouts -> ours. Takes exactly the tensors that `export_tensors` gives."""
        return {_known(self.names.ours(name), name): tensor for name, tensor in tensors.items()}

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: Any) -> dict[str, Tensor]:
        """Our names and layouts -> theirs. Raises DachengError for a tensor that the family has no name for."""
        return {_known(self.names.theirs(name), name): tensor for name, tensor in tensors.items()}

    def redundant(self, name: str, tensors: Mapping[str, Tensor], traits: Any) -> str | None:
        """Why a stored tensor that is not expected may be left aside, or None when it may not."""
        return "it follows from the config" if name.endswith(self.derived) else None


class Family(Layout):
    """A family of decoders."""

    needs: ClassVar[tuple[str, ...]] = ()  # traits without which `from_traits` has nothing to say
    heads_divide_width: ClassVar[bool] = False  # transformers refuses to build others, though head_dim says the width

    def resolved(self, traits: DecoderTraits) -> DecoderTraits:
        return resolved(traits)

    def fits(self, traits: DecoderTraits) -> bool:
        """Whether the traits survive the way into a config of this family and back: nothing would be lost."""
        if any(getattr(traits, name) is None for name in self.needs):
            return False
        if self.heads_divide_width and traits.width % traits.heads:
            return False
        try:
            back, _ = self.read(self.from_traits(traits), Path("config.json"))
        except DachengError:
            return False
        return _without_idle(back) == _without_idle(resolved(traits))

    def build(self, traits: DecoderTraits) -> Decoder:
        return Decoder(traits)

    def redundant(self, name: str, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> str | None:
        if reason := super().redundant(name, tensors, traits):
            return reason
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


def resolved(traits: DecoderTraits) -> DecoderTraits:
    """The same decoder with every default written out and every pattern as short as it can be: two traits that build
    alike compare equal."""
    t, moe, layers = traits, traits.moe, range(traits.layers)
    if moe is not None:
        moe = replace(moe, pattern=shortest("".join("M" if t.is_moe(i) else "D" for i in layers)))
        if moe.groups == 1:
            moe = replace(moe, groups_per_token=1, group_score="best")
    return replace(
        t,
        kv_heads=t.n_kv_heads,
        head_width=t.head_size,
        mlp_width=t.mlp_size,
        output_bias=t.has_output_bias,
        attention_scale=None if t.attention_scale == t.head_size**-0.5 else t.attention_scale,
        window_pattern=shortest("".join(t.window_pattern[i % len(t.window_pattern)] for i in layers)),
        rope_pattern=shortest("".join(t.rope_pattern[i % len(t.rope_pattern)] for i in layers)),
        moe=moe,
    )


def _without_idle(traits: DecoderTraits) -> DecoderTraits:
    """Without the width of dense layers where there are none: some families have no field for it."""
    idle = traits.moe is not None and all(traits.is_moe(i) for i in range(traits.layers))
    return replace(traits, mlp_width=None) if idle else traits


def _known(translated: str | None, name: str) -> str:
    if translated is None:
        raise DachengError(
            "the family has no name for this tensor", field=name, remedy="save it in dacheng's own format"
        )
    return translated
