"""Choices made layer by layer: a list with an entry a layer in config.json, a short repeated pattern in the traits."""

from __future__ import annotations

from typing import Any

from dacheng.formats.huggingface.fields import Fields
from dacheng.models.traits import DecoderTraits

LAYER_TYPES = {"sliding_attention": "S", "full_attention": "L"}


def shortest(letters: str) -> str:
    """The shortest pattern that, repeated, begins with `letters`.

    >>> shortest("SSLSSLS")
    'SSL'
    """
    for length in range(1, len(letters)):
        if all(letters[i] == letters[i % length] for i in range(length, len(letters))):
            return letters[:length]
    return letters


def read_layer_types(fields: Fields, layers: int, window: int | None, default: str) -> dict[str, Any]:
    """Traits `window` and `window_pattern` from `layer_types`, or, when the field is absent, from `default`: S and L,
    repeated over the layers. Raises DachengError when the list has another length, a name that is not known, or
    sliding layers without a window."""
    if fields.get("layer_types") is None:
        letters = (default * layers)[:layers]
    else:
        letters = "".join(layer_list(fields, "layer_types", layers, LAYER_TYPES))
    if "S" in letters and window is None:
        raise fields.error(
            "has sliding layers, and no window is set", "layer_types", "sliding_attention", "set sliding_window"
        )
    return {"window": window, "window_pattern": shortest(letters)}


def layer_list(fields: Fields, name: str, layers: int, choices: dict[Any, str]) -> list[str]:
    """What `choices` maps the entries of a list with one entry a layer to."""
    values = fields.get(name, [])
    if not isinstance(values, list) or len(values) != layers:
        found = len(values) if isinstance(values, list) else values
        raise fields.error(f"must have an entry for each of {layers} layers", name, found)
    for value in values:
        if isinstance(value, bool | list | dict) or value not in choices:
            raise fields.error(
                "asks for layers that are not built", name, value, "supported: " + ", ".join(map(str, choices))
            )
    return [choices[value] for value in values]


def layer_types(traits: DecoderTraits) -> list[str]:
    names = {letter: name for name, letter in LAYER_TYPES.items()}
    return [names["L" if traits.layer_window(i) is None else "S"] for i in range(traits.layers)]
