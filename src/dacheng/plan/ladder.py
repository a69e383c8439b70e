"""The shapes a plan chooses from: depth and width growing together, and what each costs per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dacheng.errors import UsageError
from dacheng.models.traits import DecoderTraits
from dacheng.plan.memory import model_costs

ASPECT = 64  # width per layer: between GPT-2 small (64) and the flat optimum of Kaplan et al. 2020, figure 5
DEEPEST = 128
_SHAPE = ("width", "layers", "heads", "head_width")


@dataclass(frozen=True, slots=True)
class Rung:
    """One shape. multiplied: parameters that take part in matrix products (matrices and head, a tied head included):
    the N of C = 6·N·D. flops_per_token: of training, attention and head included."""

    traits: DecoderTraits
    params: dict[str, int]
    multiplied: int
    flops_per_token: float

    @property
    def vocabulary_share(self) -> float:
        """Embedding and head over all parameters."""
        return (self.params["embedding"] + self.params["head"]) / self.params["total"]


def rung(traits: DecoderTraits, context_length: int) -> Rung:
    """The costs of a shape. Raises UsageError for traits that cannot be built."""
    params, flops = model_costs(traits, context_length)
    multiplied = params["matrices"] + traits.vocab_size * traits.width
    return Rung(traits, dict(params), multiplied, flops)


def ladder(vocab_size: int, context_length: int, traits: Mapping[str, Any] | None = None) -> list[DecoderTraits]:
    """Shapes of growing size: width 64 a layer, with half steps (32) below width 512; heads of 32 there, of 64 above.

    traits: further fields of DecoderTraits (activation, tied_head …); kv_heads is taken as near as each shape's heads
    divide. With `width` and `layers` among them the ladder is that one shape. Raises UsageError for a part of a shape
    alone, and for a trait that there is not.
    """
    extra = dict(traits or {})
    for name, value in (("vocab_size", vocab_size), ("max_positions", context_length)):
        if extra.setdefault(name, value) != value and (name == "vocab_size" or extra[name] < value):
            raise UsageError(
                f"the plan has {name} {value}", field=f"traits.{name}", value=extra[name], remedy="drop it"
            )
    given = [name for name in _SHAPE if name in extra]
    if "width" in extra and "layers" in extra:
        return [DecoderTraits.from_dict(extra)]
    if given:
        raise UsageError(
            "part of a shape", field="traits", value=given, remedy="give width and layers both, or leave the shape open"
        )
    base = DecoderTraits.from_dict(extra)
    shapes = []
    for layers in range(1, DEEPEST + 1):
        for width in (ASPECT * layers, ASPECT * layers + 32):
            if width < 512 or width % 64 == 0:
                heads = width // (32 if width < 512 else 64)
                kv_heads = None if base.kv_heads is None else _divisor(heads, base.kv_heads)
                shapes.append(replace(base, layers=layers, width=width, heads=heads, kv_heads=kv_heads))
    return shapes


def _divisor(heads: int, wanted: int) -> int:
    """The divisor of `heads` nearest to `wanted`."""
    return min((d for d in range(1, heads + 1) if heads % d == 0), key=lambda d: (abs(d - wanted), d))
