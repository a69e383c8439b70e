"""Causal self-attention with grouped heads, rotary positions, and the optional traits of our own recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dacheng.nn.contexts import AttentionLayer, Context
from dacheng.nn.linear import Dense
from dacheng.nn.norms import RMSNorm
from dacheng.nn.rope import rotate

GATE_CHANNELS = 32  # the value gate reads this many channels of the residual stream (nanochat)


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D).

    qk_norm: RMS over each head of q and k before the rotation (Henry et al. 2020, in Qwen3's order; without a gain the
    order is immaterial). value_gate: v += 2·sigmoid(gate(x[:32])) · e, with e (B, T, K·E) a learnt embedding of the
    token (value residual: Zhou et al. 2024; gated form: nanochat).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        bias: bool,
        qk_norm: bool,
        qk_norm_weight: bool,
        norm_eps: float,
        value_gate: bool,
        layer: AttentionLayer,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.layer = heads, kv_heads, head_width, layer
        self.q = Dense(width, heads * head_width, bias=bias)
        self.k = Dense(width, kv_heads * head_width, bias=bias)
        self.v = Dense(width, kv_heads * head_width, bias=bias)
        self.o = Dense(heads * head_width, width, bias=bias)
        self.q_norm = RMSNorm(head_width, norm_eps, qk_norm_weight) if qk_norm else None
        self.k_norm = RMSNorm(head_width, norm_eps, qk_norm_weight) if qk_norm else None
        self.value_gate = Dense(min(GATE_CHANNELS, width), kv_heads, bias=False) if value_gate else None

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], context: Context, value_embedding: Tensor | None = None
    ) -> Tensor:
        B, T, _ = x.shape
        q = self.q(x).view(B, T, self.heads, self.head_width)
        k = self.k(x).view(B, T, self.kv_heads, self.head_width)
        v = self.v(x).view(B, T, self.kv_heads, self.head_width)
        if self.value_gate is not None and value_embedding is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # (B, T, K)
            v = v + gate.unsqueeze(-1) * value_embedding.view(B, T, self.kv_heads, self.head_width).to(v.dtype)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H|K, T, E)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        out = context.attend(self.layer, q, k, v)
        return self.o(out.transpose(1, 2).reshape(B, T, self.heads * self.head_width))

    @torch.no_grad()
    def reset(self, std: float, residual_std: float, generator: torch.Generator | None) -> None:
        for linear in (self.q, self.k, self.v):
            linear.reset(std, generator)
        self.o.reset(residual_std, generator)
        if self.value_gate is not None:
            self.value_gate.reset(0.0, generator)  # sigmoid(0)·2 = 1: the embedding counts from the first step
