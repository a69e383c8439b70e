"""Whole numbers in place of weights: round(w / scale) + zero in 2 to 8 bits, a scale for a group of columns, a row or
the whole matrix (Jacob et al. 2018, eq. 1; scales as in the Quantizer of GPTQ's code)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dacheng.errors import DachengError, UsageError
from dacheng.ops.block_formats import FORMATS
from dacheng.ops.qtensor import QTensor

SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_BLOCK = 32
_PATTERN = re.compile(r"(?:int)?([2-8])(?:-?(?:g([1-9][0-9]{0,5})|(channel|tensor)))?(?:-?(a|asym|sym))?")


@dataclass(frozen=True, slots=True)
class QSpec:
    """bits: 2 to 8. group: how many columns share a scale; "channel": a row, "tensor": all. symmetric: zero is the
    middle of the codes and stored nowhere. scale: its dtype; float16 is what the blocks of the kernels hold.

    "4g64", "int3-channel", "8", "4g128-asym" say the same in one word.
    """

    bits: int = 4
    group: int | str = "channel"
    symmetric: bool = True
    scale: str = "float16"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise UsageError("codes have 2 to 8 bits", field="bits", value=self.bits, remedy="8, 4 or 3 are usual")
        sized = type(self.group) is int and self.group >= 1
        if not sized and self.group not in ("channel", "tensor"):
            raise UsageError("what shares a scale?", field="group", value=self.group,
                             remedy='a number of columns (128, 64, 32), "channel" or "tensor"')  # fmt: skip
        if self.scale not in SCALE_DTYPES:
            raise UsageError("scales are not kept like that", field="scale", value=self.scale,
                             remedy="one of " + ", ".join(SCALE_DTYPES))  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> QSpec:
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise UsageError("this is no number format", field="bits", value=text, remedy='for example "4g64", "8"')
        bits, group, word, zero = found.groups()
        return cls(int(bits), int(group) if group else word or "channel", zero not in ("a", "asym"))

    def __str__(self) -> str:
        group = f"g{self.group}" if isinstance(self.group, int) else f"-{self.group}"
        return f"int{self.bits}{group}{'' if self.symmetric else '-asym'}"

    @property
    def top(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)

    def columns(self, width: int) -> int:
        """That share a scale, of a matrix of `width` columns. Raises UsageError where they don't divide it."""
        if not isinstance(self.group, int):
            return width
        if width % self.group:
            raise UsageError(
                f"groups of {self.group} columns don't divide {width}", field="group", value=self.group,
                remedy=f"one that divides {width}, or channel",
            )  # fmt: skip
        return self.group


def scales_of(w: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """w (..., n) -> scale and zero (...) float32 of its last dimension, the scale as it will be stored. The range
    always holds 0; one that is empty is taken as [-1, 1], as GPTQ's code has it."""
    low, high = w.amin(-1).clamp(max=0.0).float(), w.amax(-1).clamp(min=0.0).float()
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -torch.ones_like(low), low), torch.where(empty, torch.ones_like(high), high)
    exact = (high - low) / spec.top
    stored = exact.to(SCALE_DTYPES[spec.scale]).float()
    if not bool(stored.isfinite().all()):
        raise DachengError(
            f"a scale does not fit {spec.scale}", field="scale", value=float(exact.max()),
            remedy="keep scales in float32, or look for a damaged weight",
        )  # fmt: skip
    smallest = torch.finfo(SCALE_DTYPES[spec.scale]).smallest_normal
    scale = torch.where(stored == 0, torch.full_like(stored, smallest), stored)
    zero = torch.full_like(scale, spec.middle) if spec.symmetric else torch.round(-low / scale).clamp(0, spec.top)
    return scale, zero


def round_codes(w: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """Codes 0 to `top` as floats; scale and zero broadcast over w."""
    return torch.clamp(torch.round(w / scale) + zero, 0, top)


@dataclass(frozen=True, slots=True, eq=False)
class IntTensor:
    """A matrix (out, in): codes (out, in) uint8, one to a byte; scale (out, groups), or (1, 1) of "tensor"; zero
    (out, groups) uint8, None where symmetric."""

    spec: QSpec
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @classmethod
    def from_float(cls, w: Tensor, spec: QSpec) -> IntTensor:
        """Rounded to nearest (RTN). Raises DachengError for values that are not finite."""
        if w.ndim != 2 or not bool(w.isfinite().all()):
            raise DachengError("only a finite matrix is quantised", field="weight", value=list(w.shape),
                               remedy="look for NaN or infinite weights")  # fmt: skip
        grouped = _grouped(w.float(), spec)
        scale, zero = scales_of(grouped, spec)
        codes = round_codes(grouped, scale[..., None], zero[..., None], spec.top)
        return cls.of(codes.reshape(w.shape), scale, zero, spec)

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, zero: Tensor, spec: QSpec) -> IntTensor:
        """From floats that hold whole numbers."""
        kept = None if spec.symmetric else zero.to(torch.uint8)
        return cls(spec, codes.to(torch.uint8), scale.to(SCALE_DTYPES[spec.scale]), kept)

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """As it is stored."""
        zeros = 0 if self.zero is None else -(-self.zero.numel() * self.spec.bits // 8)
        rows, width = self.shape
        return rows * -(-width * self.spec.bits // 8) + self.scale.numel() * self.scale.element_size() + zeros

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        zero = float(self.spec.middle) if self.zero is None else self.zero.float()[..., None]
        grouped = _grouped(self.codes.float(), self.spec)
        return ((grouped - zero) * self.scale.float()[..., None]).reshape(self.shape).to(dtype)

    def rows(self, start: int, stop: int) -> IntTensor:
        """Some rows of it: of several matrices that were solved as one."""
        if self.spec.group == "tensor":
            return replace(self, codes=self.codes[start:stop])
        zero = None if self.zero is None else self.zero[start:stop]
        return replace(self, codes=self.codes[start:stop], scale=self.scale[start:stop], zero=zero)

    def why_no_blocks(self) -> str:
        """Why these codes can't stand in the blocks of a kernel; "" where they can."""
        width = self.shape[1]
        if width % _BLOCK or (isinstance(self.spec.group, int) and self.spec.group % _BLOCK):
            return f"rows of {width} in groups of {self.spec.group} are no whole blocks of {_BLOCK}"
        if self.spec.bits > 4 and not self.spec.symmetric:
            return f"{self.spec.bits} bits with a zero point have no kernel"
        if float(self.scale.float().abs().max()) > torch.finfo(torch.float16).max:
            return "a scale does not fit float16"
        return ""

    def to_blocks(self) -> QTensor:
        """The same codes as Q8_0 (5 to 8 bits), Q4_0 or (with a zero point) Q4_1, each block with its group's scale: a
        number more for every 32 values, and the kernels of these formats. Equal to `dequantize` for float16 scales; in
        Q4_1 up to the rounding of -zero · scale to float16. Raises ValueError where `why_no_blocks` says why."""
        if reason := self.why_no_blocks():
            raise ValueError(reason)
        out, width = self.shape
        blocks = width // _BLOCK
        scale = self._per_block(self.scale.float())
        codes = self.codes.reshape(-1, _BLOCK)
        d = scale.to(torch.float16).reshape(-1, 1)
        if self.spec.bits > 4:
            values = (codes.to(torch.int16) - self.spec.middle).to(torch.int8).view(torch.uint8)
            name, parts = "Q8_0", [d.view(torch.uint8), values]
        elif self.zero is None:
            name, parts = "Q4_0", [d.view(torch.uint8), _nibbles(codes + (8 - self.spec.middle))]
        else:
            low = -(self._per_block(self.zero.float()) * scale).to(torch.float16).reshape(-1, 1)
            name, parts = "Q4_1", [d.view(torch.uint8), low.view(torch.uint8), _nibbles(codes)]
        format = FORMATS[name]
        data = torch.cat(parts, dim=1).reshape(out, blocks * format.bytes)
        return QTensor(format, self.shape, data)

    def _per_block(self, values: Tensor) -> Tensor:
        """(out, groups) -> (out, blocks)."""
        out, width = self.shape
        values = values.expand(out, values.shape[1])
        return values.repeat_interleave(width // _BLOCK // values.shape[1], dim=1)


def _grouped(w: Tensor, spec: QSpec) -> Tensor:
    """(out, in) -> (out, groups, columns); of "tensor", (1, 1, all)."""
    if spec.group == "tensor":
        return w.reshape(1, 1, -1)
    return w.reshape(w.shape[0], -1, spec.columns(w.shape[1]))


def _nibbles(codes: Tensor) -> Tensor:
    half = _BLOCK // 2
    return codes[:, :half] | (codes[:, half:] << 4)
