"""Linear maps and embeddings whose weights stay in their blocks (QTensor), dequantised when used.

This is the plain form: exact, on any device, and no faster than floats. What it saves is memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dacheng.errors import DachengError
from dacheng.ops.dequantize import dequantize
from dacheng.ops.qtensor import QTensor

_HEAD_ROWS = 8192  # rows of a head dequantised at a time: a vocabulary of 262,144 would be most of a small model


class _Holder(nn.Module):
    """Keeps a QTensor's bytes as the buffer `packed`: in state_dict, moved by `.to(device)`, left alone by a cast."""

    packed: Tensor

    def __init__(self, weight: QTensor) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise DachengError("a packed weight is a matrix", field="shape", value=list(weight.shape))
        self.format = weight.format
        self.shape = weight.shape  # (out, in), or (rows, width)
        self.register_buffer("packed", weight.data)

    @property
    def qtensor(self) -> QTensor:
        return QTensor(self.format, self.shape, self.packed)

    def _linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out), a part of the outputs at a time where there are very many."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if bias is None else bias.to(x.dtype)
        if self.shape[0] <= _HEAD_ROWS:
            return nn.functional.linear(x, self.qtensor.dequantize(x.dtype), bias)
        parts = []
        for start in range(0, self.shape[0], _HEAD_ROWS):
            rows = slice(start, start + _HEAD_ROWS)
            weight = dequantize(self.packed[rows], self.format, x.dtype)
            parts.append(nn.functional.linear(x, weight, None if bias is None else bias[rows]))
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


def pack_weights(model: nn.Module, state: Mapping[str, Tensor | QTensor]) -> dict[str, Tensor]:
    """Packs the module of each QTensor in `state` ("blocks.0.attention.q.weight"). Returns the state that the model
    then asks for, bytes included: `model.load_state_dict(pack_weights(model, state), assign=True)` is strict, and
    works on a model without memory."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, QTensor):
            module = name.removesuffix(".weight")
            pack_module(model, module, value)
            plain[f"{module}.packed"] = value.data
        else:
            plain[name] = value
    return plain
