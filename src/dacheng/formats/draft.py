"""Reading a model that guesses for another."""

from __future__ import annotations

from pathlib import Path

from dacheng.errors import UsageError
from dacheng.formats.loading import LoadedModel, load_model
from dacheng.models.decoder import Decoder

_SHOWN = 3  # tokens that differ


def load_draft(path: Path | str, loaded: LoadedModel, *, packed: bool = False) -> Decoder:
    """The model at `path`, to guess for `loaded` (see engine.draft). Raises what load_model and check_draft_tokens
    do."""
    found = load_model(path, dtype="fast", packed=packed)
    check_draft_tokens(found, loaded, path)
    return found.model


def check_draft_tokens(draft: LoadedModel, loaded: LoadedModel, path: Path | str) -> None:
    """Raises UsageError when an id means another token to the draft model (at `path`)."""
    own, other = draft.tokenizer, loaded.tokenizer
    if own is None or other is None:
        return
    shared = min(own.vocab_size, other.vocab_size)
    differ = [i for i in range(shared) if own.token_bytes(i) != other.token_bytes(i)]
    differ += range(shared, max(own.vocab_size, other.vocab_size))
    if differ:
        ids = ", ".join(map(str, differ[:_SHOWN]))
        raise UsageError(
            f"the draft model's vocabulary is another: {len(differ)} ids mean other tokens (as {ids})",
            field="draft_model", value=str(path), remedy="use a smaller model of the same family",
        )  # fmt: skip
