"""Where attention happens. The model calls `context.attend(layer, q, k, v)` and does not know what is behind it:
a dense causal batch, packed documents, a cache of a generation, or a ring of processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What a context must know of the layer that calls. `window`: tokens a query looks back over, itself included
    (None: all). `scale`: multiplies q·k (None: 1/sqrt(E)). `soft_cap` c: scores become c·tanh(score/c) (Gemma 2).
    `sinks` (H,): a further score per head that has no value behind it (gpt-oss)."""

    index: int
    window: int | None = None
    scale: float | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None


class Context(Protocol):
    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        """Attention of the new queries over the new (and remembered) keys and values -> (B, H, T, E)."""
        ...

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        """For each of the new tokens (B, T), the one `distance` places before it in its text, or -1: (B, T)."""
        ...


def attention(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Tensor | None, causal: bool, layer: AttentionLayer
) -> Tensor:
    """Scaled dot-product attention with grouped heads (Ainslie et al. 2023), and optionally a soft-cap and sinks.

    mask: None, or broadcastable to (B, 1, T, S): boolean (True = may look) or additive float. `causal` (only where
    T = S) hides the future and is cheaper than a mask. Returns (B, H, T, E of v).
    """
    B, H, T, E = q_BHTE.shape
    K = k_BKSE.shape[1]
    if layer.soft_cap is not None or layer.sinks is not None:
        return _plain(q_BHTE, k_BKSE, v_BKSE, mask, causal, layer)
    if H != K and T == 1:
        # One query: the heads of a group become rows over the same keys, which saves repeating the cache.
        q = q_BHTE.reshape(B, K, H // K, E)
        out = scaled_dot_product_attention(q, k_BKSE, v_BKSE, attn_mask=mask, scale=layer.scale)
        return out.reshape(B, H, T, out.shape[-1])
    if H != K:
        k_BKSE, v_BKSE = _repeat(k_BKSE, H // K), _repeat(v_BKSE, H // K)
    return scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=causal and T > 1, scale=layer.scale
    )


def _repeat(x_BKSE: Tensor, times: int) -> Tensor:
    B, K, S, E = x_BKSE.shape
    return x_BKSE[:, :, None].expand(B, K, times, S, E).reshape(B, K * times, S, E)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: AttentionLayer) -> Tensor:
    """The formula itself: fused kernels have neither soft-cap nor sinks."""
    times = q.shape[1] // k.shape[1]
    k, v = _repeat(k, times), _repeat(v, times)
    scale = layer.scale if layer.scale is not None else q.shape[-1] ** -0.5
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if layer.soft_cap is not None:
        scores = layer.soft_cap * torch.tanh(scores / layer.soft_cap)
    if causal and q.shape[2] > 1:
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if layer.sinks is not None:
        sinks = layer.sinks.float().view(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], 1)
        return torch.softmax(torch.cat((scores, sinks), -1), dim=-1)[..., :-1].to(v.dtype) @ v
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


def causal_mask(positions_q: Tensor, positions_k: Tensor, window: int | None) -> Tensor:
    """True where a query may look: not at the future, and at most `window` tokens back, itself included.

    positions_q (..., T), positions_k (..., S) -> boolean (..., T, S).
    """
    distance = positions_q.unsqueeze(-1) - positions_k.unsqueeze(-2)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def shifted(tokens: Tensor, distance: int) -> Tensor:
    """tokens (B, T) moved right by `distance`, -1 where nothing was."""
    return nn.functional.pad(tokens, (distance, 0), value=-1)[:, : tokens.shape[1]]


class DenseCausal:
    """Every row is one text from its first token: training without packing, and scoring."""

    def __init__(self) -> None:
        self._masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        T = q_BHTE.shape[2]
        if layer.window is None or layer.window >= T:
            return attention(q_BHTE, k_BKTE, v_BKTE, None, True, layer)
        key = (T, layer.window)
        if key not in self._masks:
            steps = torch.arange(T, device=q_BHTE.device)
            self._masks[key] = causal_mask(steps, steps, layer.window)[None, None]
        return attention(q_BHTE, k_BKTE, v_BKTE, self._masks[key], False, layer)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        return shifted(tokens, distance)


class PackedDocuments:
    """Several documents in a row: a token sees only its own document's earlier tokens (document_ids (B, T) equal).

    The mask of each window is made once for all layers. Padding is a document like another: it is never a target.
    """

    def __init__(self, document_ids: Tensor) -> None:
        self.document_ids = document_ids
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        return attention(q_BHTE, k_BKTE, v_BKTE, self._mask(layer.window, q_BHTE.dtype), False, layer)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        same = shifted(self.document_ids, distance) == self.document_ids
        # Padding is numbered -1 as well: what lies before it never matters.
        return torch.where(same, shifted(tokens, distance), torch.full_like(tokens, -1))

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        T = self.document_ids.shape[1]
        if window is not None and window >= T:
            window = None
        key = (window, dtype)
        if key not in self._masks:
            steps = torch.arange(T, device=self.document_ids.device)
            same = self.document_ids[:, :, None] == self.document_ids[:, None, :]
            allowed = (same & causal_mask(steps, steps, window))[:, None]  # (B, 1, T, T)
            # An additive mask: the CPU kernel would convert a boolean one again in every layer.
            self._masks[key] = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
                ~allowed, float("-inf")
            )
        return self._masks[key]


class Bidirectional:
    """Every row is one text, and a token sees all of it, the later tokens too; behind `lengths` (B,) is padding, which
    nobody sees. An encoder's context."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self._masks: dict[tuple[int, torch.dtype], Tensor | None] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        if layer.window is not None:
            raise ValueError("windows look back only: this context has none")
        return attention(q_BHTE, k_BKTE, v_BKTE, self._mask(q_BHTE.shape[2], q_BHTE.dtype), False, layer)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        return shifted(tokens, distance)

    def _mask(self, T: int, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, 1, T), additive as that of PackedDocuments; None where no row is padded, which is cheaper."""
        key = (T, dtype)
        if key not in self._masks:
            padding = torch.arange(T, device=self.lengths.device) >= self.lengths[:, None]
            mask = torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill_(padding, float("-inf"))
            self._masks[key] = mask[:, None, None] if bool(padding.any()) else None
        return self._masks[key]
