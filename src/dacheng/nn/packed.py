"""Linear maps and embeddings whose weights stay in their blocks (QTensor).

On the CPU, for float32 without a gradient, a compiled kernel multiplies with the blocks themselves (see
dacheng.ops.packed_linear for what it rounds). Everywhere else, and with `exact`, the weights are dequantised when they
are used: the same numbers on any device, and no faster than floats. How often, and why: ops.packed_linear.fallbacks().
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.errors import DachengError
from dacheng.nn.factored import factor_module
from dacheng.ops.low_rank import LowRankTensor
from dacheng.ops.packed_linear import PanelMatrix, make_panels, note_fallback, packed_linear, why_no_kernel
from dacheng.ops.qtensor import QTensor

_HEAD_ROWS = 8192  # rows of a head dequantised at a time: a vocabulary of 262,144 would be most of a small model


class _Holder(nn.Module):
    """Keeps a QTensor's bytes as the buffer `packed`, moved by `.to(device)`, left alone by a cast. In state_dict they
    are in the order of the values, whatever order they are kept in."""

    packed: Tensor
    order: Tensor | None
    exact = False  # True: never by a kernel that rounds x

    def __init__(self, weight: QTensor) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise DachengError("a packed weight is a matrix", field="shape", value=list(weight.shape))
        self.format = weight.format
        self.shape = weight.shape  # (out, in), or (rows, width)
        self.register_buffer("packed", weight.data)
        self.register_buffer("order", weight.order, persistent=False)
        self._panels: tuple[object, Tensor] | None = None  # made when first used, and of which bytes
        self._dropped = False

    @property
    def qtensor(self) -> QTensor:
        """Raises DachengError where only the kernel's copy was kept."""
        if self._dropped:
            raise DachengError(
                "of this matrix only the kernels' copy is in memory", field="weights_memory", value="small",
                remedy="load it with weights_memory fast",
            )  # fmt: skip
        return QTensor(self.format, self.shape, self.packed, self.order)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.order is not None or self._dropped:
            destination[f"{prefix}packed"] = self.qtensor.blocks()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        given = state_dict.get(f"{prefix}packed")
        if self.order is not None and given is not None and given.data_ptr() != self.packed.data_ptr():
            self.packed, self.order = self.qtensor.blocks(), None  # others than `pack_weights` has put here
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def panels(self) -> Tensor:
        """The weights in the kernel's order: a second copy, kept for as long as the bytes stay the same."""
        if self._dropped and self._panels is not None:
            return self._panels[1]
        version = None if self.packed.is_inference() else self.packed._version
        source = (self.packed.data_ptr(), version)
        if self._panels is None or self._panels[0] != source:
            self._panels = (source, make_panels(self.qtensor))
        return self._panels[1]

    def drop_blocks(self) -> None:
        """Keeps the kernels' copy alone: where the blocks are no pages of a file, which the system could take back.
        What then asks for the numbers themselves is refused."""
        self.panels  # noqa: B018 (made now)
        self.packed, self.order, self._dropped = self.packed.new_empty(0, 0), None, True

    def matrix(self, bias: Tensor | None = None) -> PanelMatrix:
        """For kernels that multiply with several matrices in one call; only where `why_exact` has nothing to say."""
        bias = None if bias is None else bias.detach().float().contiguous()
        return PanelMatrix(self.panels, bias, self.format, self.shape[0], self.shape[1])

    def why_exact(self, x: Tensor) -> str:
        """Why no kernel multiplies this x; "" when one does."""
        if self.exact:
            return "exact products were asked for"
        if torch.compiler.is_compiling():
            return "under torch.compile"
        if x.device.type != "cpu" or self.packed.device.type != "cpu":
            return "not on the CPU"
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return "x is not float32"
        if x.requires_grad and torch.is_grad_enabled():
            return "x needs a gradient"
        return why_no_kernel(self.format, self.shape[1])

    def _linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out)."""
        reason = self.why_exact(x)
        if not reason:
            return packed_linear(x, self.panels, bias, self.format, self.shape[0])
        note_fallback(reason)
        return self._exact_linear(x, bias)

    def _exact_linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """A part of the outputs at a time where there are very many."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if bias is None else bias.to(x.dtype)
        if self.shape[0] <= _HEAD_ROWS:
            return nn.functional.linear(x, self.qtensor.dequantize(x.dtype), bias)
        parts = []
        for start in range(0, self.shape[0], _HEAD_ROWS):
            stop = min(start + _HEAD_ROWS, self.shape[0])
            weight = self.qtensor.rows(torch.arange(start, stop, device=x.device), x.dtype)
            parts.append(nn.functional.linear(x, weight, None if bias is None else bias[start:stop]))
        return torch.cat(parts, dim=-1)

    def extra_repr(self) -> str:
        return f"{self.format.name}, {list(self.shape)}"


class Packed(_Holder):
    """y = x Wᵀ + b with W (out, in) in blocks: stands where a Dense stands. It is not trained: gradients pass through
    to x (QLoRA trains what is put around it)."""

    bias: Tensor | None

    def __init__(self, weight: QTensor, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        return self._linear(x, self.bias)


class PackedEmbedding(_Holder):
    """A table (rows, width) in blocks. Rows come in the dtype that the module was cast to: float32 at first."""

    _cast: Tensor

    def __init__(self, weight: QTensor) -> None:
        super().__init__(weight)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("_cast", torch.empty(0), persistent=False)  # the bytes do not know of a cast, this does

    def forward(self, index: Tensor) -> Tensor:
        """index (...) int64 -> (..., width). Raises IndexError for an id outside the table."""
        return self.qtensor.rows(index, self._cast.dtype)

    def as_head(self, hidden: Tensor) -> Tensor:
        """hidden (..., width) -> (..., rows): the product with the same table, for tied heads."""
        return self._linear(hidden)


def make_panels_once(model: nn.Module, tied: bool) -> Iterator[str]:
    """Brings the weights into the kernels' order now, not at the first use: the name of each module whose panels were
    made, one at a time. tied: embeddings are a head too; else nobody multiplies with them."""
    kinds = (Packed, PackedEmbedding) if tied else Packed
    for name, module in model.named_modules():
        if isinstance(module, kinds) and not module.why_exact(torch.empty(0)):
            module.matrix()
            yield name


def keep_only_panels(model: nn.Module) -> None:
    """Drops the blocks of every Packed that a kernel multiplies with (an embedding's rows are looked up in its)."""
    for module in model.modules():
        if isinstance(module, Packed) and not module.why_exact(torch.empty(0)):
            module.drop_blocks()


def use_exact(model: nn.Module, exact: bool = True) -> None:
    """Whether the packed modules of a model may use kernels that round their input: for comparisons."""
    for module in model.modules():
        if isinstance(module, _Holder):
            module.exact = exact


def pack_module(model: nn.Module, name: str, weight: QTensor) -> nn.Module:
    """Puts the packed kind of `weight` in the place of the Dense or embedding `name` ("blocks.0.attention.q"); its bias
    stays. Returns the new module. Raises DachengError when there is no such module, or it has another shape."""
    old = model.get_submodule(name)
    found = getattr(old, "weight", None)
    if not isinstance(old, nn.Linear | nn.Embedding) or not isinstance(found, Tensor):
        raise DachengError(
            "only a linear map or an embedding can be packed", field=name, value=type(old).__name__,
            remedy="dequantise this weight",
        )  # fmt: skip
    if found.shape != weight.shape:
        raise DachengError(
            f"{name} has shape {list(found.shape)}", field=name, value=list(weight.shape),
            remedy="take the config and the weights from the same model",
        )  # fmt: skip
    new: nn.Module
    if isinstance(old, nn.Embedding):
        new = PackedEmbedding(weight)
    else:
        bias = None if old.bias is None else old.bias.detach()
        new = Packed(weight, bias)
    new.train(old.training)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
    return new


def pack_weights(model: nn.Module, state: Mapping[str, Tensor | QTensor | LowRankTensor]) -> dict[str, Tensor]:
    """Packs the module of each QTensor in `state` ("blocks.0.attention.q.weight"), and factors that of each
    LowRankTensor. Returns the state that the model
    then asks for, bytes included: `model.load_state_dict(pack_weights(model, state), assign=True)` is strict, and
    works on a model without memory."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, QTensor):
            module = name.removesuffix(".weight")
            pack_module(model, module, value)
            plain[f"{module}.packed"] = value.data
        elif isinstance(value, LowRankTensor):
            module = name.removesuffix(".weight")
            factor_module(model, module, value)
            plain |= {f"{module}.a": value.a, f"{module}.b": value.b}
        else:
            plain[name] = value
    return plain
