"""What a layer keeps of the past, as a model declares it and an engine allocates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's memory per token: keys (kv_heads, head_width) and values (kv_heads, value_width or head_width).

    kind "paged" keeps every token; "window" needs only the last `window` tokens.
    """

    kind: Literal["paged", "window"]
    kv_heads: int
    head_width: int
    window: int | None = None
    value_width: int | None = None

    def bytes_per_token(self, itemsize: int) -> int:
        return self.kv_heads * (self.head_width + (self.value_width or self.head_width)) * itemsize
