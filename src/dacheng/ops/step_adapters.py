"""Adapters in a compiled step: which rows go through which, and where their matrices lie (kernels/low_rank.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

MAPS = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, in the kernel's order
MOST_RANK = 1024
NONE = -1


class _LowRank(ctypes.Structure):
    _fields_ = [("a", c_void_p), ("b", c_void_p), ("rank", c_int64)]


Pointers = POINTER(_LowRank)


class StepAdapter:
    """One adapter laid out for the call: it holds copies, so what is trained later is not seen.

    layers: of each layer, in the order of MAPS, (A (r, in), scale · B (out, r)) or None where it adds nothing. Raises
    ValueError for a rank over MOST_RANK.
    """

    def __init__(self, layers: Sequence[Sequence[tuple[Tensor, Tensor] | None]]) -> None:
        self._kept: list[Tensor] = []
        self._table = (_LowRank * (len(layers) * len(MAPS)))()
        for layer, maps in enumerate(layers):
            for place, pair in enumerate(maps):
                if pair is not None:
                    self._table[layer * len(MAPS) + place] = self._laid_out(*pair)

    def _laid_out(self, a: Tensor, b: Tensor) -> _LowRank:
        if a.shape[0] > MOST_RANK:
            raise ValueError(f"a rank of {a.shape[0]} is more than {MOST_RANK}")
        a, b = a.detach().float().contiguous(), b.detach().float().T.contiguous()
        self._kept += [a, b]
        return _LowRank(a.data_ptr(), b.data_ptr(), a.shape[0])

    def pointer(self) -> ctypes._Pointer[_LowRank]:
        return ctypes.cast(self._table, Pointers)


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """rows (N,) int64: the place in `adapters` of the one that a row goes through, NONE for the base."""

    rows: Tensor
    adapters: Sequence[StepAdapter]

    @classmethod
    def of(cls, numbers: Sequence[int], known: dict[int, StepAdapter]) -> RowAdapters | None:
        """numbers: of each row, that of its adapter; one not in `known` means the base. None where no row has any."""
        used = sorted({number for number in numbers if number in known})
        if not used:
            return None
        places = {number: place for place, number in enumerate(used)}
        rows = torch.tensor([places.get(number, NONE) for number in numbers])
        return cls(rows, [known[number] for number in used])

    def pointers(self) -> ctypes.Array[ctypes._Pointer[_LowRank]]:
        return (Pointers * len(self.adapters))(*(adapter.pointer() for adapter in self.adapters))
