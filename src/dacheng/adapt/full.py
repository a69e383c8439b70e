"""Supervised fine-tuning of the weights themselves: all of them, or those of the top blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.adapt.settings import ChatTrainConfig
from dacheng.adapt.training import AdapterResult, block_of, fit_chats, opened
from dacheng.errors import UsageError
from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.records import Record
from dacheng.train.callbacks import Callback
from dacheng.train.outcome import MODEL

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import ChatRenderer


def train_full(
    base: Path | str | Decoder,
    examples: Sequence[Record],
    out: Path | str,
    config: ChatTrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    renderer: ChatRenderer | None = None,
    held_out: Sequence[Record] = (),
    ledger: Ledger | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> AdapterResult:
    """Trains the model itself on what the assistant says in `examples` (records with messages) and writes out/model (a
    model directory, float32), out/training/log.jsonl, result.json and checkpoints; goes on from those of a run that was
    killed, to the same bytes. Memory: four times the weights of what is trained (gradient and Adam's two moments).

    base: a directory, a GGUF file (of which the weights become floats), or a model, which then needs a renderer.
    Raises what train_adapter raises.
    """
    out = Path(out)
    model, renderer, _, generation = opened(base, renderer)

    def prepare() -> list[Callback]:
        choose_top(model, config.layers)
        return []

    def write() -> Path:
        return save_model(out / MODEL, model, renderer.tokenizer, provenance=provenance, generation=generation)

    return fit_chats(
        model, renderer, examples, out, config, prepare, write, callbacks, held_out=held_out, ledger=ledger
    )  # fmt: skip


def choose_top(model: Decoder, layers: int | None) -> None:
    """Trains the top `layers` blocks and what is above them, or with None everything. A tied embedding is below all:
    with `layers` it stays as it is. Raises UsageError for more layers than there are."""
    depth = model.traits.layers
    if layers is not None and layers > depth:
        raise UsageError("the model has fewer blocks", field="layers", value=layers, remedy=f"{depth} at most, or null")
    for name, parameter in model.named_parameters():
        block = block_of(name)
        above = name.startswith(("norm.", "lm_head."))
        parameter.requires_grad_(layers is None or above or (block is not None and block >= depth - layers))
