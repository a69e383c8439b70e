"""Rotary positions in config.json: `rope_parameters` (transformers 5), and `rope_theta` beside `rope_scaling` (4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dacheng.formats.huggingface.fields import Fields
from dacheng.models.traits import DecoderTraits
from dacheng.nn.rope import RopeScaling

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class _Form:
    """What one of the two objects says; None: nothing."""

    theta: float | None
    fraction: float | None
    scaling: RopeScaling | None


def read_rope(
    fields: Fields,
    *,
    default_theta: float,
    default_fraction: float = 1.0,
    partial: bool = False,
    theta_field: str = "rope_theta",
    fraction_field: str = "partial_rotary_factor",
    default_positions: int = 2048,
) -> dict[str, Any]:
    """Traits rope_theta, rope_scaling, rope_fraction and max_positions. `partial`: whether the family may rotate a part
    of a head.

    Raises DachengError on a scaling that is not built ("dynamic", whose angles change while a text grows, among them),
    and when the two forms disagree.
    """
    max_positions = fields.integer("max_position_embeddings", default_positions)
    original = fields.integer(ORIGINAL, None)
    objects = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = fields.get(name, {})
        if not isinstance(value, dict):
            raise fields.error("must be an object", name, value)
        if value:
            objects[name] = value
    forms = {name: read_form(fields, name, value, max_positions, original) for name, value in objects.items()}
    thetas = {theta_field: fields.number(theta_field, None)} | {name: form.theta for name, form in forms.items()}
    fractions = {fraction_field: fields.number(fraction_field, None)}
    fractions |= {name: form.fraction for name, form in forms.items()}
    fraction = _agreed(fields, fraction_field, fractions, default_fraction if partial else 1.0)
    if fraction != 1.0 and not partial:
        raise fields.error(
            "asks for partly rotated heads, which this family does not have", fraction_field, fraction, "remove it"
        )
    if len({form.scaling for form in forms.values()}) > 1:
        raise fields.error("and rope_parameters say different things", "rope_scaling", objects, "keep one of them")
    scaling = next((form.scaling for form in forms.values()), None)
    note_longrope(fields, scaling)
    return {
        "rope_theta": _agreed(fields, theta_field, thetas, default_theta),
        "rope_fraction": fraction,
        "rope_scaling": scaling,
        "max_positions": max_positions,
    }


def note_longrope(fields: Fields, scaling: RopeScaling | None) -> None:
    if scaling is not None and scaling.kind == "longrope":
        fields.note(
            f"angles are those of texts of up to {scaling.original_positions} tokens, and positions end there;"
            " for longer texts the model must be built with rope_scaling.long"
        )


def _agreed(fields: Fields, name: str, found: Mapping[str, float | None], default: float) -> float:
    values = {value for value in found.values() if value is not None}
    if len(values) > 1:
        raise fields.error("has several values", name, dict(found), "keep the one that the model was trained with")
    return values.pop() if values else default


def read_form(fields: Fields, name: str, value: dict[str, Any], max_positions: int, original: int | None) -> _Form:
    """One object. `original`: what the config says of the length of training outside of it."""
    inner = Fields(value, fields.path / name)
    kinds = {key: inner.get(key) for key in ("rope_type", "type") if inner.get(key) is not None}
    if len(set(map(str, kinds.values()))) > 1:
        raise inner.error("and type name different kinds", "rope_type", kinds)
    key, kind = next(iter(kinds.items()), ("rope_type", "default"))
    scaling = None
    if kind == "dynamic":
        raise inner.error(
            "asks for dynamic NTK scaling: angles that change with the length of the text would not fit the keys that"
            " are already in the cache",
            key,
            kind,
            "use a model without it, or set the type to yarn or linear if the model was trained so",
        )
    if kind != "default":
        if not isinstance(kind, str) or kind not in _READERS:
            supported = "supported: default, " + ", ".join(_READERS)
            raise inner.error("names a scaling of rotary positions that is not built", key, kind, supported)
        scaling = _READERS[kind](inner, max_positions, original)
    form = _Form(inner.number("rope_theta", None), inner.number("partial_rotary_factor", None), scaling)
    fields.notes.extend(inner.finish())
    return form


def _original(inner: Fields, max_positions: int, original: int | None) -> int:
    found = inner.integer(ORIGINAL, None)
    if found is not None and original is not None and found != original:
        raise inner.error(f"is not the {original} of config.json", ORIGINAL, found)
    return found or original or max_positions


def _linear(inner: Fields, max_positions: int, original: int | None) -> RopeScaling:
    return RopeScaling(kind="linear", factor=inner.number("factor"))


def _llama3(inner: Fields, max_positions: int, original: int | None) -> RopeScaling:
    return RopeScaling(
        kind="llama3",
        factor=inner.number("factor"),
        original_positions=_original(inner, max_positions, original),
        low_frequency_factor=inner.number("low_freq_factor"),
        high_frequency_factor=inner.number("high_freq_factor"),
    )


def _yarn(inner: Fields, max_positions: int, original: int | None) -> RopeScaling:
    return RopeScaling(
        kind="yarn",
        factor=inner.number("factor"),
        original_positions=_original(inner, max_positions, original),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        mscale=inner.number("mscale", None, or_zero=True),
        mscale_all_dim=inner.number("mscale_all_dim", None, or_zero=True),
        attention_factor=inner.number("attention_factor", None),
        truncate=inner.boolean("truncate", True),
    )


def _longrope(inner: Fields, max_positions: int, original: int | None) -> RopeScaling:
    positions = _original(inner, max_positions, original)
    return RopeScaling(
        kind="longrope",
        factor=inner.number("factor", max(1.0, max_positions / positions)),
        original_positions=positions,
        attention_factor=inner.number("attention_factor", None),
        short_factors=inner.numbers("short_factor"),
        long_factors=inner.numbers("long_factor"),
    )


_READERS: dict[str, Callable[[Fields, int, int | None], RopeScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first Phi-3 files
}


def write_rope(traits: DecoderTraits) -> dict[str, Any]:
    """Both forms: readers of either find what they know, and those of both find the same twice."""
    partial = {} if traits.rope_fraction == 1.0 else {"partial_rotary_factor": traits.rope_fraction}
    scaling = write_scaling(traits.rope_scaling)
    written = {
        "rope_parameters": {"rope_theta": traits.rope_theta, **partial, **scaling},
        "rope_theta": traits.rope_theta,
        **partial,
    }
    if traits.rope_scaling is not None:
        written["rope_scaling"] = scaling
    return written


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """The object without the base. Values that every reader takes when they are absent are left out."""
    if scaling is None:
        return {"rope_type": "default"}
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.original_positions is not None:
        written[ORIGINAL] = scaling.original_positions
    if scaling.kind == "llama3":
        written |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        }
    if scaling.kind == "yarn":
        written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    if scaling.kind == "longrope":
        written |= {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    optional = ("mscale", "mscale_all_dim", "attention_factor")
    return written | {name: getattr(scaling, name) for name in optional if getattr(scaling, name) is not None}
