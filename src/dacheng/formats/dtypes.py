"""Names of the number formats that weights are stored in."""

from __future__ import annotations

import torch

from dacheng.errors import UsageError

FLOATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "bfloat16" or torch.bfloat16 -> torch.bfloat16; None stays None. Raises UsageError on any but a float dtype."""
    if dtype is None or dtype in FLOATS.values():
        return dtype  # type: ignore[return-value]
    if isinstance(dtype, str) and dtype in FLOATS:
        return FLOATS[dtype]
    raise UsageError("not a dtype for weights", field="dtype", value=str(dtype), remedy="one of " + ", ".join(FLOATS))


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")
