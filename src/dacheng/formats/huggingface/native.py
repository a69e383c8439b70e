"""Our own recipe (QK-norm, value embeddings, residual scalars …): traits and weights under their own names."""

from __future__ import annotations

from typing import Any, get_type_hints

from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.fields import REQUIRED, Fields, is_positive
from dacheng.formats.huggingface.names import NameTable
from dacheng.models.traits import DecoderTraits

# An absurd count must fail here and not while something that large is being built.
_LIMITS = {"layers": 2**12, "heads": 2**16, "kv_heads": 2**16, "head_width": 2**16, "width": 2**20}
_MAY_BE_ZERO = {"initializer_range"}
_UNDERSTOOD = {
    "dtype": "the tensors say it themselves",
    "bos_token_id": "the tokenizer's and generation's",
    "eos_token_id": "the tokenizer's and generation's",
    "pad_token_id": "the tokenizer's and generation's",
}


class _OwnNames(NameTable):
    """Each name is its own."""

    def __init__(self) -> None:
        super().__init__({})

    def theirs(self, name: str) -> str:
        return name

    def ours(self, name: str) -> str:
        return name


class Native(Family):
    model_type = "dacheng"
    architecture = "DachengDecoder"
    names = _OwnNames()

    def to_traits(self, fields: Fields) -> DecoderTraits:
        """The object `traits`, each value checked against the type that the trait declares."""
        fields.understood(_UNDERSTOOD)
        values = fields.get("traits", REQUIRED)
        if not isinstance(values, dict):
            raise fields.error("must be an object", "traits", values)
        kinds = get_type_hints(DecoderTraits)
        for name, value in values.items():
            if name in kinds and not _fits(value, kinds[name], _LIMITS.get(name, 2**24), name in _MAY_BE_ZERO):
                raise fields.error("has the wrong type or an absurd value", f"traits.{name}", value)
        if "vocab_size" not in values:
            raise fields.error("lacks a size", "traits.vocab_size", None)
        return DecoderTraits.from_dict(values)

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        return {"model_type": self.model_type, "architectures": [self.architecture], "traits": traits.to_dict()}


def _fits(value: Any, kind: Any, limit: int, zero: bool) -> bool:
    """Whether a JSON value has the declared type (`int | None`, `float`, `str` …) and, if a number, is in range."""
    if value is None:
        return isinstance(None, kind)
    if isinstance(value, bool | str):
        return kind is type(value)  # a bool is an int to Python, and not to a config
    if kind in (float, float | None):
        return is_positive(value, zero)
    return isinstance(value, int) and isinstance(value, kind) and 1 <= value <= limit
