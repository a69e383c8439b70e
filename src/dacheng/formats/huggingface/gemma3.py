"""Gemma 3, text only (Kamath et al. 2025): Gemma 2 with norms on queries and keys instead of soft-caps, five layers
with a window for one without, and rotary positions of two bases."""

from __future__ import annotations

from typing import Any

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.gemma2 import BOTH_NORM_NAMES, Gemma2
from dacheng.formats.huggingface.llama_like import QK_NORM_NAMES
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.rope import read_form, write_scaling
from dacheng.models.traits import DecoderTraits

_LONG, _LOCAL = "full_attention", "sliding_attention"


class Gemma3(Gemma2):
    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    names = NameTable(BOTH_NORM_NAMES | QK_NORM_NAMES)
    defaults = Gemma2.defaults | {"rope_theta": 1e6, "max_position_embeddings": 131072}
    fixed = Gemma2.fixed | {"qk_norm": True, "qk_norm_weight": True}
    soft_cap = attention_soft_cap = None  # type: ignore[assignment]

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        fields.only("attn_logit_softcapping", (), "asks for a soft-cap that transformers reads and never applies")
        return super().own_traits(fields, values)

    def default_windows(self, fields: Fields) -> str:
        every = fields.integer("sliding_window_pattern", 6, maximum=2**12)
        return "S" * (every - 1) + "L"

    def rope_traits(self, fields: Fields) -> dict[str, Any]:
        """`rope_parameters` by kind of layer (transformers 5), or `rope_theta`, `rope_local_base_freq` and a
        `rope_scaling` that is of the long layers alone (4)."""
        fields.get("_sliding_window_pattern")  # transformers' own note of what layer_types says
        max_positions = fields.integer("max_position_embeddings", self.defaults["max_position_embeddings"])
        both = fields.get("rope_parameters", {})
        if not isinstance(both, dict) or set(both) - {_LONG, _LOCAL}:
            raise fields.error("must say what holds for each kind of layer", "rope_parameters", both)
        objects = {f"rope_parameters.{kind}": both.get(kind) or {} for kind in (_LONG, _LOCAL)}
        objects["rope_scaling"] = fields.get("rope_scaling", {})
        forms = {}
        for name, value in objects.items():
            if not isinstance(value, dict):
                raise fields.error("must be an object", name, value)
            forms[name] = read_form(fields, name, value, max_positions, None)
        long, local, older = forms.values()
        if local.scaling is not None:
            raise fields.error("scales the positions of layers with a window", f"rope_parameters.{_LOCAL}", both)
        said = ((long, both.get(_LONG)), (older, objects["rope_scaling"]))
        scalings = {form.scaling for form, value in said if value}
        if len(scalings) > 1:
            raise fields.error("and rope_parameters say different things", "rope_scaling", objects, "keep one of them")
        if {form.fraction for form in forms.values()} - {None, 1.0}:
            raise fields.error("asks for partly rotated heads, which are not of this family", "rope_parameters", both)
        return {
            "rope_theta": _one(fields, "rope_theta", (long.theta, older.theta), self.defaults["rope_theta"]),
            "rope_window_theta": _one(fields, "rope_local_base_freq", (local.theta,), 10000.0),
            "rope_scaling": scalings.pop() if scalings else None,
            "max_positions": max_positions,
        }

    def rope_config(self, traits: DecoderTraits) -> dict[str, Any]:
        scaling = write_scaling(traits.rope_scaling)
        config = {
            "rope_parameters": {
                _LONG: {"rope_theta": traits.rope_theta, **scaling},
                _LOCAL: {"rope_theta": traits.rope_window_theta, "rope_type": "default"},
            },
            "rope_theta": traits.rope_theta,
            "rope_local_base_freq": traits.rope_window_theta,
        }
        return config if traits.rope_scaling is None else config | {"rope_scaling": scaling}


def _one(fields: Fields, name: str, others: tuple[float | None, ...], default: float) -> float:
    found = {value for value in (fields.number(name, None), *others) if value is not None}
    if len(found) > 1:
        raise fields.error("has several values", name, sorted(found), "keep the one that the model was trained with")
    return found.pop() if found else default
