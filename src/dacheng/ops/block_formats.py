"""The block formats of GGUF: how many values share a block, and how many bytes a block takes.

A row of a matrix is a whole number of blocks. Layouts: ggml-common.h of llama.cpp; the ids are `enum ggml_type`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dacheng.errors import DachengError


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """`values` numbers are stored together in `bytes` bytes. `dtype` is set where they are plain floats."""

    name: str
    id: int
    values: int
    bytes: int
    dtype: torch.dtype | None = None

    @property
    def is_float(self) -> bool:
        return self.dtype is not None

    @property
    def bits(self) -> float:
        """Bits per value, scales included."""
        return 8 * self.bytes / self.values

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` values. Raises DachengError when it is not a whole number of blocks."""
        if width % self.values:
            raise DachengError(
                f"{self.name} stores {self.values} values together, and a row has {width}",
                field="row",
                value=width,
                remedy=f"choose a format whose blocks divide {width}",
            )
        return width // self.values * self.bytes


FORMATS: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("F32", 0, 1, 4, torch.float32),
        BlockFormat("F16", 1, 1, 2, torch.float16),
        BlockFormat("BF16", 30, 1, 2, torch.bfloat16),
        BlockFormat("Q4_0", 2, 32, 18),
        BlockFormat("Q4_1", 3, 32, 20),
        BlockFormat("Q5_0", 6, 32, 22),
        BlockFormat("Q5_1", 7, 32, 24),
        BlockFormat("Q8_0", 8, 32, 34),
        BlockFormat("Q2_K", 10, 256, 84),
        BlockFormat("Q3_K", 11, 256, 110),
        BlockFormat("Q4_K", 12, 256, 144),
        BlockFormat("Q5_K", 13, 256, 176),
        BlockFormat("Q6_K", 14, 256, 210),
        BlockFormat("IQ4_NL", 20, 32, 18),
        BlockFormat("IQ4_XS", 23, 256, 136),
        BlockFormat("MXFP4", 39, 32, 17),
    )
}
NF4 = BlockFormat("NF4", -1, 64, 36)  # ours, in no GGUF file: float32 absmax, then codes (dacheng.ops.nf4)
BY_ID: dict[int, BlockFormat] = {f.id: f for f in FORMATS.values()}

# Types that ggml has and this package does not, so that a file with them is not called damaged.
OTHER_TYPES: dict[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip


def block_format(format: str | BlockFormat) -> BlockFormat:
    """ "q8_0", "Q8_0" or the format itself. Raises DachengError naming those there are."""
    if isinstance(format, BlockFormat):
        return format
    found = FORMATS.get(str(format).upper())
    if found is None:
        raise DachengError("no such number format", field="format", value=format, remedy="one of " + ", ".join(FORMATS))
    return found


def byte_shape(shape: Sequence[int], format: BlockFormat) -> tuple[int, int]:
    """(rows, bytes per row) of a tensor of `shape`, its last dimension in blocks."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows, format.row_bytes(shape[-1])
