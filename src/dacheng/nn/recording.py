"""What a forward went through, for losses that compare it: attention's q, k and v, and the states after each block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from dacheng.nn.contexts import AttentionLayer, Context


class Attended(NamedTuple):
    """Of one layer: q (B, H, T, E), k and v (B, K, T, E), and the scale of q·k."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


class Recording:
    """A context around another that keeps what the layers numbered in `layers` attend with (None: all of them). The
    numbers of the forward are those of the inner context alone."""

    def __init__(self, inner: Context, layers: Iterable[int] | None = None) -> None:
        self.inner = inner
        self.layers = None if layers is None else frozenset(layers)
        self.kept: dict[int, Attended] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        if self.layers is None or layer.index in self.layers:
            scale = layer.scale if layer.scale is not None else q_BHTE.shape[-1] ** -0.5
            self.kept[layer.index] = Attended(q_BHTE, k_BKTE, v_BKTE, scale)
        return self.inner.attend(layer, q_BHTE, k_BKTE, v_BKTE)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        return self.inner.preceding(tokens, distance)


@contextmanager
def recorded_states(network: Any, wanted: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Filled by the next forward of an encoder or a decoder: 0 -> what goes into the first block, i -> what leaves
    block i (B, T, D). The states are those of the forward: they carry its gradients."""
    kept: dict[int, Tensor] = {}
    handles = []
    blocks: nn.ModuleList = network.blocks
    for number in set(wanted):
        if number == 0:

            def before(_module: nn.Module, given: tuple[Any, ...]) -> None:
                kept[0] = given[0]

            handles.append(blocks[0].register_forward_pre_hook(before))
        else:

            def after(_module: nn.Module, _given: Any, made: Tensor, number: int = number) -> None:
                kept[number] = made

            handles.append(blocks[number - 1].register_forward_hook(after))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
