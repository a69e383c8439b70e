"""A whole step of a Llama-like decoder in one compiled call (kernels/decoder.cpp): what is left of a step at batch 1
when its products are fast is the handing over from one small operation to the next."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.ops import native
from dacheng.ops.packed_linear import PanelMatrix
from dacheng.ops.step_adapters import MAPS, Pointers, RowAdapters

HEAD_WIDTHS = (32, 64, 80, 96, 128, 256)
LARGEST_GROUP = 16  # query heads to a key head


_NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "attention_post_norm", "mlp_post_norm")


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in _NORMS],
        *[(name, native.Linear) for name in MAPS],
        *[(name, c_int64) for name in ("window", "rotation", "tables")],
    ]


class _Decoder(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_width", "mlp_width", "rotated")],
        *[(name, c_int64) for name in ("interleaved", "gelu")],
        ("eps", c_float),
        ("scale", c_float),
        ("norm", c_void_p),
        ("head", native.Linear),
        ("layer", POINTER(_Layer)),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("block_tokens", "block_stride", "head_stride", "token_stride")],
        ("tables", c_void_p),
        ("table_width", c_int64),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("rows", c_int64),
        ("x", c_void_p),
        ("cosine", c_void_p * 2),
        ("sine", c_void_p * 2),
        *[(name, c_void_p) for name in ("texts", "places", "attended")],
        ("cache", _Cache * 2),
        ("k", POINTER(c_void_p)),
        ("v", POINTER(c_void_p)),
        ("narrow", c_int64),
        ("adapter", c_void_p),
        ("low_rank", POINTER(Pointers)),
        ("logit_rows", c_int64),
        *[(name, c_void_p) for name in ("wanted", "logits")],
        ("threads", c_int64),
    ]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: x + o(attention(norm(x))), then x + down(act(gate(n)) · up(n)) with n = norm(x); with post norms, x +
    post_norm(…) both times. Norms (D,) float32; q_norm and k_norm (E,), over each head before the rotation, or None.
    window: positions that a row looks back over, its own among them. second_rotation: turned by the second of a step's
    tables of angles."""

    attention_norm: Tensor
    mlp_norm: Tensor
    q: PanelMatrix
    k: PanelMatrix
    v: PanelMatrix
    o: PanelMatrix
    gate: PanelMatrix
    up: PanelMatrix
    down: PanelMatrix
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_post_norm: Tensor | None = None
    mlp_post_norm: Tensor | None = None
    window: int | None = None
    second_rotation: bool = False


@dataclass(frozen=True, slots=True)
class CacheView:
    """Where keys and values lie, the same in every layer: those of position p of text i in block
    tables[i, p // block_tokens], at place p % block_tokens.

    keys, values: a tensor for each layer, all float32 or all bfloat16. Strides in numbers: a tensor of (blocks, K,
    block_tokens, E) has block_stride K · block_tokens · E, head_stride block_tokens · E and token_stride E. tables
    (texts, any) int64. windowed: where layers with a window have theirs, if in other blocks: of it, all but the tensors
    counts, which may have another size too.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    tables: Tensor
    block_tokens: int
    block_stride: int
    head_stride: int
    token_stride: int
    windowed: CacheView | None = None

    def _pointers(self) -> _Cache:
        return _Cache(self.block_tokens, self.block_stride, self.head_stride, self.token_stride,
                      self.tables.data_ptr(), self.tables.shape[1])  # fmt: skip


class DecoderStep:
    """Weights laid out for the call. Raises ValueError where the kernel has no code for the shape: `why_no_step`."""

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        head: PanelMatrix,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        rotated: int,
        interleaved: bool,
        eps: float,
        scale: float | None = None,
        gelu: bool = False,
    ) -> None:
        """gelu: the activation is its approximation with tanh, else silu."""
        reason = why_no_step(heads, kv_heads, head_width, norm.shape[0], layers[0].up.out)
        if reason:
            raise ValueError(reason)
        self._kept = (list(layers), norm, head)  # what the pointers point at
        self.width, self.rotated, self.vocab_size = norm.shape[0], rotated, head.out
        self._layers = (_Layer * len(layers))(*(_layer(layer) for layer in layers))
        self._model = _Decoder(
            len(layers), self.width, heads, kv_heads, head_width, layers[0].up.out, rotated, int(interleaved),
            int(gelu), eps, head_width**-0.5 if scale is None else scale, norm.data_ptr(), head.pointers(),
            self._layers,
        )  # fmt: skip

    def run(
        self,
        x: Tensor,
        cosine: Tensor,
        sine: Tensor,
        texts: Tensor,
        places: Tensor,
        attended: Tensor,
        cache: CacheView,
        wanted: Tensor,
        second: tuple[Tensor, Tensor] | None = None,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        """x (N, D) float32, the embeddings, becomes the hidden states after the last norm, in place; returns the logits
        (R, V) of the rows `wanted` (R,) int64.

        cosine, sine (N, rotated / 2); `second`: those of layers with second_rotation. texts (N,) int64: which of the
        cache's tables a row has. places (N,) int64: the position at which its key and value are written. attended (N,)
        int64: how many positions it looks at, 0 and on, or the last of them in a layer with a window; all rows are
        written before any looks, so those of one text may look at one another. adapters: what is added to the products
        of some rows; the others come out the same to the bit.
        """
        library = native.library()
        assert library is not None
        n, layers, windowed = x.shape[0], len(self._layers), cache.windowed or cache
        if second is None and any(layer.rotation for layer in self._layers):
            raise ValueError("some layers have a rotation of their own: pass `second`")
        for name, tensor, dtype, shape in (
            ("x", x, torch.float32, (n, self.width)),
            ("cosine", cosine, torch.float32, (n, self.rotated // 2)),
            ("sine", sine, torch.float32, (n, self.rotated // 2)),
            *[("second", turn, torch.float32, (n, self.rotated // 2)) for turn in second or ()],
            ("texts", texts, torch.int64, (n,)),
            ("places", places, torch.int64, (n,)),
            ("attended", attended, torch.int64, (n,)),
            *[("tables", view.tables, torch.int64, tuple(view.tables.shape)) for view in (cache, windowed)],
            ("wanted", wanted, torch.int64, (wanted.numel(),)),
            *([("adapters.rows", adapters.rows, torch.int64, (n,))] if adapters else []),
        ):
            if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}"
                )
        dtypes = {stored.dtype for stored in (*cache.keys, *cache.values)}
        if dtypes not in ({torch.float32}, {torch.bfloat16}) or not len(cache.keys) == len(cache.values) == layers:
            raise ValueError(f"keys and values of {layers} layers must be all float32 or all bfloat16, not {dtypes}")
        logits = torch.empty(wanted.numel(), self.vocab_size)
        pointers, two = c_void_p * layers, c_void_p * 2
        turns = [[turn.data_ptr() for turn in turns] for turns in ((cosine, sine), second or (cosine, sine))]
        step = _Step(
            n, x.data_ptr(), two(turns[0][0], turns[1][0]), two(turns[0][1], turns[1][1]),
            *(tensor.data_ptr() for tensor in (texts, places, attended)),
            (_Cache * 2)(cache._pointers(), windowed._pointers()), pointers(*[k.data_ptr() for k in cache.keys]),
            pointers(*[v.data_ptr() for v in cache.values]), int(dtypes == {torch.bfloat16}),
            adapters.rows.data_ptr() if adapters else None, adapters.pointers() if adapters else None,
            wanted.numel(), wanted.data_ptr(), logits.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        library.dacheng_decoder_step(ctypes.byref(self._model), ctypes.byref(step))
        return logits


def why_no_step(heads: int, kv_heads: int, head_width: int, width: int, mlp_width: int) -> str:
    """Why a decoder of this shape cannot be run in one call; "" when it can."""
    if head_width not in HEAD_WIDTHS:
        return f"heads of {head_width} are not among {HEAD_WIDTHS}"
    if heads // kv_heads > LARGEST_GROUP:
        return f"more than {LARGEST_GROUP} heads share a key"
    for name, size in (("width", width), ("heads", heads * head_width), ("mlp", mlp_width)):
        if size % 32:
            return f"{name} {size} is no multiple of 32"
    return native.why_not()


def _layer(layer: LayerWeights) -> _Layer:
    norms = (getattr(layer, name) for name in _NORMS)
    matrices = (getattr(layer, name) for name in MAPS)
    return _Layer(
        *(None if norm is None else norm.data_ptr() for norm in norms), *(matrix.pointers() for matrix in matrices),
        layer.window or 0, int(layer.second_rotation), int(layer.window is not None),
    )  # fmt: skip
