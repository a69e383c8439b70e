"""The two ways in which families say which layers have a window: `sliding_window` for all layers or none (Mistral), or
a switch, its length and `layer_types` (Qwen)."""

from __future__ import annotations

from typing import Any

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.patterns import layer_list, layer_types
from dacheng.models.traits import DecoderTraits


def switched_window(fields: Fields) -> int | None:
    """`sliding_window` where `use_sliding_window` says that it counts."""
    if fields.boolean("use_sliding_window", False):
        return fields.integer("sliding_window", None)
    fields.get("sliding_window")  # off: files keep the length all the same
    return None


def switched_config(traits: DecoderTraits) -> dict[str, Any]:
    return {
        "use_sliding_window": traits.window is not None,
        "sliding_window": traits.window,
        "layer_types": layer_types(traits),
    }


def one_window(fields: Fields, values: dict[str, Any], default: int | None = None) -> dict[str, Any]:
    """Traits of `sliding_window`, which holds for all layers; null: none; absent: `default`."""
    window = fields.integer("sliding_window", None if fields.given("sliding_window") else default)
    kind = {"full_attention": "L"} if window is None else {"sliding_attention": "S"}
    if fields.get("layer_types") is not None:
        layer_list(fields, "layer_types", values["layers"], kind)
    return {"window": window, "window_pattern": "L" if window is None else "S"}


def one_window_config(traits: DecoderTraits) -> dict[str, Any]:
    return {"sliding_window": traits.layer_window(0)}
