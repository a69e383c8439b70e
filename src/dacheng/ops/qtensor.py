"""A tensor that stays in its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.ops.block_formats import BlockFormat, block_format, byte_shape
from dacheng.ops.dequantize import dequantize
from dacheng.ops.quantize import quantize


@dataclass(frozen=True, slots=True, eq=False)
class QTensor:
    """Values of `shape`, the last dimension in blocks of `format`; `data` is (rows, bytes per row) uint8.

    `order` (rows,) int64: row i of the values is row order[i] of `data`; None: they lie in order. So a matrix whose
    rows are rearranged stays where it is, in a mapped file perhaps, and is not there twice. `shape` and `dtype` are
    those of the values, so that it can stand beside tensors where only these are looked at. Raises DachengError when
    the bytes are not those of the shape.
    """

    format: BlockFormat
    shape: torch.Size
    data: Tensor
    order: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        expected = byte_shape(self.shape, self.format)
        rows = self.data.shape[:1] if self.order is None else self.order.shape
        fits = self.data.ndim == 2 and (*rows, self.data.shape[1]) == expected
        if self.data.dtype != torch.uint8 or not fits:
            raise DachengError(
                f"{self.format.name} of shape {list(self.shape)} takes {list(expected)} bytes",
                field="data",
                value=f"{self.data.dtype} {list(self.data.shape)}",
                remedy="pass (rows, bytes per row) uint8",
            )

    @classmethod
    def from_float(cls, x: Tensor, format: str | BlockFormat) -> QTensor:
        """x (..., width) rounded to `format`."""
        format = block_format(format)
        return cls(format, x.shape, quantize(x, format).reshape(byte_shape(x.shape, format)))

    @property
    def dtype(self) -> torch.dtype:
        """What `dequantize` computes in."""
        return torch.float32

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the rows that it has."""
        return self.shape.numel() // self.format.values * self.format.bytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def numel(self) -> int:
        return self.shape.numel()

    def __repr__(self) -> str:
        return f"QTensor({self.format.name}, {list(self.shape)}, {self.nbytes} bytes)"

    def blocks(self) -> Tensor:
        """The bytes in the order of the values, (rows, bytes per row): `data` itself where that is theirs."""
        return self.data if self.order is None else self.data[self.order]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All values, (shape) of `dtype`."""
        return dequantize(self.blocks(), self.format, dtype).reshape(self.shape)

    def rows(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of the rows in `index` (any shape, int64) -> (*index, width): an embedding's look-up.

        Raises IndexError for a row that is not there.
        """
        flat, count = index.reshape(-1), self.shape[:-1].numel()
        if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= count):
            raise IndexError(f"rows are 0 to {count - 1}")
        if self.order is not None:
            flat = self.order[flat]
        return dequantize(self.data[flat], self.format, dtype).reshape(*index.shape, self.shape[-1])

    def select_rows(self, index: Tensor) -> QTensor:
        """A matrix of the rows in `index` (N,), still packed and still where it was: a permutation, a slice. A block
        never spans two rows."""
        order = index if self.order is None else self.order[index]
        return QTensor(self.format, torch.Size((index.numel(), self.shape[-1])), self.data, order)

    def __getitem__(self, index: int) -> QTensor:
        """One of the first dimension of a stack of matrices (an expert), a view of its bytes."""
        if self.ndim < 3:
            raise DachengError("only a stack of matrices is indexed", field="shape", value=list(self.shape))
        rest = self.shape[1:]
        blocks = self.blocks()
        rows = blocks.shape[0] // self.shape[0]
        index = range(self.shape[0])[index]
        return QTensor(self.format, rest, blocks[index * rows : (index + 1) * rows])

    def to(self, device: torch.device | str) -> QTensor:
        return QTensor(
            self.format, self.shape, self.data.to(device), None if self.order is None else self.order.to(device)
        )
