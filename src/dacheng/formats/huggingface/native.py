"""Our own recipe (QK-norm, value embeddings, residual scalars …): traits and weights under their own names."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.typed_values import REQUIRED, is_positive
from dacheng.models.traits import NESTED, DecoderTraits

# An absurd count must fail here and not while something that large is being built.
_LIMITS = {"layers": 2**12, "heads": 2**16, "kv_heads": 2**16, "head_width": 2**20, "width": 2**20}
_LIMITS |= {"moe.experts": 2**12, "latent.rope_width": 2**16, "latent.plain_width": 2**16, "latent.value_width": 2**16}
_MAY_BE_ZERO = {
    "initializer_range", "moe.shared_width", "moe.balance_loss", "moe.router_z_loss", "rope_scaling.mscale",
    "rope_scaling.mscale_all_dim",
}  # fmt: skip
MAX_FACTORS = 2**16
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
        _check_types(fields, values, DecoderTraits, "")
        if "vocab_size" not in values:
            raise fields.error("lacks a size", "traits.vocab_size", None)
        return DecoderTraits.from_dict(values)

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        values = traits.to_dict()
        if values["rope_scaling"] is not None:
            del values["rope_scaling"]["long"]  # a choice of whoever builds the model, and none of the model's
            values["rope_scaling"] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in values["rope_scaling"].items()
            }
        return {"model_type": self.model_type, "architectures": [self.architecture], "traits": values}


def _check_types(fields: Fields, values: dict[str, Any], record: type, where: str) -> None:
    """Each value against the type that the trait declares. Unknown names are left to DecoderTraits.from_dict."""
    kinds = get_type_hints(record)
    for name, value in values.items():
        key = where + name
        if name in NESTED and not where and isinstance(value, dict):
            _check_types(fields, value, NESTED[name], f"{name}.")
        elif name in kinds and not _fits(value, kinds[name], _LIMITS.get(key, 2**24), key in _MAY_BE_ZERO):
            raise fields.error("has the wrong type or an absurd value", f"traits.{key}", value)


def _fits(value: Any, kind: Any, limit: int, zero: bool) -> bool:
    """Whether a JSON value has the declared type (`int | None`, `float`, `str` …) and, if a number, is in range."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None:
        return type(None) in kinds
    if isinstance(value, bool | str):
        return type(value) in kinds  # a bool is an int to Python, and not to a config
    if isinstance(value, list):
        return any(get_origin(k) is tuple for k in kinds) and len(value) <= MAX_FACTORS and all(map(is_positive, value))
    if float in kinds:
        return is_positive(value, zero)
    return isinstance(value, int) and int in kinds and (0 if zero else 1) <= value <= limit
