"""Causal self-attention with grouped heads, rotary positions, and the optional traits of families and of our own
recipe."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dacheng.nn.contexts import AttentionLayer, Context
from dacheng.nn.linear import Dense
from dacheng.nn.norms import RMSNorm
from dacheng.nn.rope import rotate

GATE_CHANNELS = 32  # the value gate reads this many channels of the residual stream (nanochat)


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D).

    q_norm, k_norm: RMS norms before the rotation, over each head (Henry et al. 2020, in Qwen3's order) or, with
    `whole_norm`, over all heads at once (OLMo 2). value_gate: v += 2·sigmoid(gate(x[:32])) · e, with e (B, T, K·E) a
    learnt embedding of the token (value residual: Zhou et al. 2024; gated form: nanochat). sinks: a learnt logit per
    head that takes part in the softmax and has no value (gpt-oss).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        bias: bool,
        output_bias: bool,
        norms: tuple[RMSNorm, RMSNorm] | None,
        whole_norm: bool,
        interleaved: bool,
        value_gate: bool,
        sinks: bool,
        layer: AttentionLayer,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.layer = heads, kv_heads, head_width, layer
        self.whole_norm, self.interleaved = whole_norm, interleaved
        self.q = Dense(width, heads * head_width, bias=bias)
        self.k = Dense(width, kv_heads * head_width, bias=bias)
        self.v = Dense(width, kv_heads * head_width, bias=bias)
        self.o = Dense(heads * head_width, width, bias=output_bias)
        self.q_norm: RMSNorm | None = None if norms is None else norms[0]
        self.k_norm: RMSNorm | None = None if norms is None else norms[1]
        self.value_gate = Dense(min(GATE_CHANNELS, width), kv_heads, bias=False) if value_gate else None
        self.sinks = nn.Parameter(torch.zeros(heads)) if sinks else None

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        context: Context,
        value_embedding: Tensor | None = None,
    ) -> Tensor:
        """rotation: cos and sin, or None in a layer without positions."""
        B, T, _ = x.shape
        q, k = self._normed(self.q(x), self.k(x))  # (B, T, H|K, E)
        v = self.v(x).view(B, T, self.kv_heads, self.head_width)
        if self.value_gate is not None and value_embedding is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # (B, T, K)
            v = v + gate.unsqueeze(-1) * value_embedding.view(B, T, self.kv_heads, self.head_width).to(v.dtype)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H|K, T, E)
        if rotation is not None:
            q, k = rotate(q, *rotation, self.interleaved), rotate(k, *rotation, self.interleaved)
        layer = self.layer if self.sinks is None else replace(self.layer, sinks=self.sinks)
        out = context.attend(layer, q, k, v)
        return self.o(out.transpose(1, 2).reshape(B, T, self.heads * self.head_width))

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, T, H·E) and k (B, T, K·E) by heads, normalised where the traits say so."""
        if self.whole_norm and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.unflatten(-1, (self.heads, self.head_width)), k.unflatten(-1, (self.kv_heads, self.head_width))
        if not self.whole_norm and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k

    @torch.no_grad()
    def reset(self, std: float, residual_std: float, generator: torch.Generator | None) -> None:
        for linear in (self.q, self.k, self.v):
            linear.reset(std, generator)
        self.o.reset(residual_std, generator)
        if self.value_gate is not None:
            self.value_gate.reset(0.0, generator)  # sigmoid(0)·2 = 1: the embedding counts from the first step
        if self.sinks is not None:
            self.sinks.zero_()
