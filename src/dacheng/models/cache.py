"""What a layer keeps of the past, as a model declares it and an engine allocates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's memory per token: keys and values of (kv_heads, head_width) each.

    kind "paged" keeps every token; "window" needs only the last `window` tokens.
    """

    kind: Literal["paged", "window"]
    kv_heads: int
    head_width: int
    window: int | None = None

    def bytes_per_token(self, itemsize: int) -> int:
        return 2 * self.kv_heads * self.head_width * itemsize
