"""A model for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.formats.gguf.writer import write_gguf
from dacheng.formats.huggingface.families import family_of_traits
from dacheng.formats.loading import LoadedModel, load_model
from dacheng.formats.model_directory import family_name
from dacheng.formats.packed import Stored
from dacheng.models.decoder import Decoder
from dacheng.ops.integers import IntTensor

if TYPE_CHECKING:
    from dacheng.text import Tokenizer


def export_gguf(model: Path | str, out: Path | str, format: str, *, loaded: LoadedModel | None = None) -> list[str]:
    """Writes the model directory (or .gguf file) `model` as one GGUF file with its tokenizer and chat template.

    format: of the matrices, "f32", "f16", "bf16", "q8_0", "q4_0" or "q4_1". Weights stay mapped, and one at a time is
    converted. loaded: what was read of `model`, and changed since. Returns notes on what is not stored as asked.
    Raises DachengError for a family that is not written to GGUF, for what would be lost, and when the disk is too full;
    an existing `out` is then as it was.
    """
    loaded = load_model(model) if loaded is None else loaded
    traits = loaded.model.traits
    family = family_of_traits(traits, loaded.model.family)
    tokenizer = loaded.tokenizer
    notes = write_gguf(
        out,
        family.from_traits(traits),
        family.export_tensors(loaded.model.state_dict(), traits),
        tokenizer,
        None if tokenizer is None else tokenizer.chat_template,
        format,
        name=Path(model).stem,
    )
    return [*loaded.notes, *notes]


def export_packed_gguf(
    model: Decoder, tokenizer: Tokenizer | None, weights: Mapping[str, Stored], out: Path | str, *, name: str = "model"
) -> list[str]:
    """A quantised model as a GGUF file that holds the very codes: integers of 5 to 8 bits as Q8_0, of fewer as Q4_0 or,
    with a zero point, Q4_1; each block of 32 gets its group's scale. weights: by the model's names; other matrices are
    stored as F16.

    Returns notes. Raises DachengError for codes that have no such blocks, and what `write_gguf` raises.
    """
    family = family_of_traits(model.traits, model.family)
    tensors: dict[str, Any] = dict(family.export_tensors(model.state_dict(), model.traits))
    names: dict[str, int] = {}
    for ours, weight in weights.items():
        reason = weight.why_no_blocks() if isinstance(weight, IntTensor) else f"{type(weight).__name__} has no blocks"
        if reason:
            raise DachengError(f"GGUF can't hold these codes: {reason}", field=ours, value=list(weight.shape),
                               remedy="save it in our own layout, or quantise in groups of 32, 64 or 128")  # fmt: skip
        assert isinstance(weight, IntTensor)
        blocks = weight.to_blocks()
        tensors[family_name(family, ours)] = blocks
        names[blocks.format.name] = names.get(blocks.format.name, 0) + 1
    most = max(names, key=lambda one: names[one]) if names else "F16"
    template = None if tokenizer is None else tokenizer.chat_template
    return write_gguf(
        out, family.from_traits(model.traits), tensors, tokenizer, template, most.lower(), name=name, keep_blocks=True
    )
