"""A model for other programs."""

from __future__ import annotations

from pathlib import Path

from dacheng.formats.gguf.writer import write_gguf
from dacheng.formats.huggingface.families import family_of_traits
from dacheng.formats.loading import LoadedModel, load_model


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
