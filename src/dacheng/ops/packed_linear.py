"""The product with a packed matrix, y = x Wᵀ + b, by a compiled kernel.

The kernel reads the weights exactly as the blocks have them, and rounds x to eight bits in blocks of 32 (dynamic
quantisation with a scale for each block, as llama.cpp has it), so that its products are whole numbers. That changes y
by about half a percent (norm of the difference over norm of y, for normal x). The exact twin is
`torch.nn.functional.linear(x, weight.dequantize(), bias)`.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.ops import native
from dacheng.ops.block_formats import BY_ID, FORMATS, BlockFormat
from dacheng.ops.qtensor import QTensor

COLUMNS = 32  # of a block of x
_FORMATS = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"))
_fallbacks: Counter[str] = Counter()
_library = torch.library.Library("dacheng", "FRAGMENT")
_library.define("packed_linear(Tensor x, Tensor panels, Tensor? bias, int format, int out) -> Tensor")


@dataclass(frozen=True, slots=True)
class PanelMatrix:
    """A matrix (out, in) as the kernels take it, and the bias of its product. Of format F32 the panels are the matrix
    itself, not a copy."""

    panels: Tensor
    bias: Tensor | None
    format: BlockFormat
    out: int
    width: int

    def pointers(self) -> native.Linear:
        """For a call: what it points at must live as long."""
        bias = None if self.bias is None else self.bias.data_ptr()
        return native.Linear(self.panels.data_ptr(), bias, self.format.id, self.out, self.width)


def float_matrix(weight: Tensor, bias: Tensor | None) -> PanelMatrix:
    """A contiguous float32 matrix (out, in) as it is: products with it round nothing. For a whole step
    (ops.decoder_step); one product by itself is torch's."""
    return PanelMatrix(weight, bias, FORMATS["F32"], *weight.shape)


def why_no_kernel(format: BlockFormat, width: int) -> str:
    """Why a matrix with rows of `width` in this format has no kernel here; "" when it has one."""
    if format.name not in _FORMATS:
        return f"{format.name} has no kernel"
    if width % COLUMNS:
        return f"rows of {width} are no whole number of blocks of {COLUMNS}"
    return native.why_not()


def make_panels(weight: QTensor) -> Tensor:
    """The blocks of a matrix (out, in) in the kernel's order (kernels/panels.h): (bytes,) uint8, and the matrix's own
    bytes are not needed by it any more. Only where `why_no_kernel` has nothing to say."""
    library = native.library()
    assert library is not None
    out, width = weight.shape
    data = weight.blocks().contiguous()
    panels = torch.empty(library.dacheng_panel_bytes(weight.format.id, out, width), dtype=torch.uint8)
    library.dacheng_pack(
        weight.format.id, data.data_ptr(), out, width, panels.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return panels


def packed_linear(x: Tensor, panels: Tensor, bias: Tensor | None, format: BlockFormat, out: int) -> Tensor:
    """x (..., in) float32 on the CPU -> (..., out), with the panels of `make_panels`. A torch operator,
    `torch.ops.dacheng.packed_linear`; it has no gradient."""
    return torch.ops.dacheng.packed_linear(x, panels, bias, format.id, out)


def _packed_linear(x: Tensor, panels: Tensor, bias: Tensor | None, format: int, out: int) -> Tensor:
    library = native.library()
    width = x.shape[-1]
    if library is None or library.dacheng_panel_bytes(format, out, width) != panels.numel():
        raise RuntimeError(f"panels of {panels.numel()} bytes are not those of {BY_ID[format].name} ({out}, {width})")
    x = x.contiguous()
    if bias is not None:
        bias = bias.float().contiguous()
    y = torch.empty(*x.shape[:-1], out)
    weight = native.Linear(panels.data_ptr(), None if bias is None else bias.data_ptr(), format, out, width)
    library.dacheng_linear(
        ctypes.byref(weight), x.data_ptr(), x.numel() // width, y.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return y


_library.impl("packed_linear", _packed_linear, "CPU")


@torch.library.register_fake("dacheng::packed_linear", lib=_library)
def _shape(x: Tensor, panels: Tensor, bias: Tensor | None, format: int, out: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out))


def note_fallback(reason: str) -> None:
    """Counts a product that the exact code had to do."""
    _fallbacks[reason] += 1


def fallbacks() -> dict[str, int]:
    """How many products of packed matrices no kernel did, by reason, since the process began."""
    return dict(_fallbacks)
