"""The decoder-only transformer, assembled from traits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dacheng.models.cache import LayerCache
from dacheng.models.traits import DecoderTraits
from dacheng.nn.attention import Attention
from dacheng.nn.contexts import AttentionLayer, Context
from dacheng.nn.linear import Dense
from dacheng.nn.mlp import MLP
from dacheng.nn.ngrams import NgramEmbedding
from dacheng.nn.norms import RMSNorm
from dacheng.nn.rope import Rotary


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm (Xiong et al. 2020)."""

    def __init__(self, traits: DecoderTraits, index: int) -> None:
        super().__init__()
        t = traits
        self.attention_norm = RMSNorm(t.width, t.norm_eps, t.norm_weight)
        self.attention = Attention(
            width=t.width,
            heads=t.heads,
            kv_heads=t.n_kv_heads,
            head_width=t.head_size,
            bias=t.attention_bias,
            qk_norm=t.qk_norm,
            qk_norm_weight=t.qk_norm_weight,
            norm_eps=t.norm_eps,
            value_gate=t.has_value_embedding(index),
            layer=AttentionLayer(index, window=t.layer_window(index), soft_cap=t.attention_soft_cap),
        )
        self.mlp_norm = RMSNorm(t.width, t.norm_eps, t.norm_weight)
        self.mlp = MLP(t.width, t.mlp_size, t.activation, t.gated, t.mlp_bias)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], context: Context, value_embedding: Tensor | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, context, value_embedding)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """model(tokens (B, T), positions (B, T), context) -> hidden (B, T, D); model.head(hidden) -> logits (..., V).

    The model never knows what `context` does with keys and values: see dacheng.nn.contexts.
    """

    def __init__(self, traits: DecoderTraits) -> None:
        """Raises UsageError when the traits cannot be built. Weights are as torch leaves them: call init_weights."""
        super().__init__()
        t = self.traits = traits.validate()
        self.checkpoint_activations = False
        self.embed = nn.Embedding(t.vocab_size, t.width)
        self.embed_norm = RMSNorm(t.width, t.norm_eps, weight=False) if t.embedding_norm else None
        self.rotary = Rotary(t.head_size, t.rope_theta, t.max_positions)
        self.blocks = nn.ModuleList(Block(t, i) for i in range(t.layers))
        self.norm = RMSNorm(t.width, t.norm_eps, t.norm_weight)
        self.lm_head = None if t.tied_head else Dense(t.width, t.vocab_size, bias=False)
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): nn.Embedding(t.vocab_size, t.n_kv_heads * t.head_size)
                for i in range(t.layers)
                if t.has_value_embedding(i)
            }
        )
        self.ngram_embeddings = nn.ModuleDict(
            {str(n): NgramEmbedding(n, t.ngram_rows or 0, t.width) for n in t.ngram_lengths}
        )
        if t.ngram_lengths:  # how much of each table each block is given: (lengths · L,), by length
            self.ngram_lambdas = nn.Parameter(torch.full((len(t.ngram_lengths) * t.layers,), 0.1))
        if t.residual_scalars:
            # x ← r·x + s·x₀ before each block, x₀ the embedding (modded-nanogpt; nanochat measured −.004 to −.008 bpb)
            self.residual_lambdas = nn.Parameter(torch.ones(t.layers))
            self.input_lambdas = nn.Parameter(torch.zeros(t.layers))

    def forward(self, tokens: Tensor, positions: Tensor, context: Context) -> Tensor:
        """tokens, positions (B, T) int64 -> hidden states after the final norm (B, T, D).

        Raises IndexError for an id outside the vocabulary or a position past max_positions.
        """
        x = self.embed(tokens)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x0, rotation = x, self.rotary(positions)
        ngrams = [table(tokens, context).to(x.dtype) for table in self.ngram_embeddings.values()]
        for i, block in enumerate(self.blocks):
            if self.traits.residual_scalars:
                x = self.residual_lambdas[i] * x + self.input_lambdas[i] * x0
            for j, ngram in enumerate(ngrams):
                x = x + self.ngram_lambdas[j * self.traits.layers + i] * ngram
            key = str(i)
            value_embedding = self.value_embeddings[key](tokens) if key in self.value_embeddings else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, context, value_embedding, use_reentrant=False)
            else:
                x = block(x, rotation, context, value_embedding)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) in float32, soft-capped where the traits say so."""
        logits = nn.functional.linear(hidden, self.head_weight).float()
        cap = self.traits.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the embedding itself when tied."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Decoder:
        """Normal(0, initializer_range) everywhere, outputs of the residual branches scaled by 1/sqrt(2L) (GPT-2,
        section 2.3). With `embedding_norm`, our recipe's start: unit embeddings, 1/sqrt(D) matrices, silent residual
        branches and a near-silent head, so that the first loss is ln V (nanochat). Returns self."""
        t = self.traits
        ours = t.embedding_norm
        std = t.width**-0.5 if ours else t.initializer_range
        residual_std = 0.0 if ours else t.initializer_range / math.sqrt(2 * t.layers)
        tied_std = t.initializer_range
        self.embed.weight.normal_(0.0, 1.0 if ours and not t.tied_head else tied_std, generator=generator)
        for module in self.modules():
            if isinstance(module, RMSNorm) and module.weight is not None:
                module.weight.fill_(1.0)
        for module in self.modules():
            if isinstance(module, Attention | MLP):
                module.reset(std, residual_std, generator)
        for embedding in self.value_embeddings.values():
            assert isinstance(embedding, nn.Embedding)
            embedding.weight.normal_(0.0, std, generator=generator)
        for table in self.ngram_embeddings.values():
            assert isinstance(table, NgramEmbedding)
            table.weight.zero_()
        if t.ngram_lengths:
            self.ngram_lambdas.fill_(0.1)
        if self.lm_head is not None:
            self.lm_head.reset(0.001 if ours else t.initializer_range, generator)
        if t.residual_scalars:
            self.residual_lambdas.fill_(1.0)
            self.input_lambdas.fill_(0.1)
        return self

    def params(self) -> dict[str, int]:
        """Numbers of parameters: total, embedding (every table), head (0 when tied), matrices, other."""
        counts = {"embedding": 0, "head": 0, "matrices": 0, "other": 0}
        for name, parameter in self.named_parameters():
            if name.startswith(("embed.", "value_embeddings.", "ngram_embeddings.")):
                counts["embedding"] += parameter.numel()
            elif name.startswith("lm_head."):
                counts["head"] += parameter.numel()
            else:
                counts["matrices" if parameter.ndim == 2 else "other"] += parameter.numel()
        return {"total": sum(counts.values()), **counts}

    def flops(self, context_length: int, training: bool = True) -> float:
        """FLOPs of one token at a mean position of a `context_length`-token text: 2 per weight of every matrix product
        (the head included, embeddings not) and 4·H·E per token looked at; times 3 in training (Kaplan et al. 2020,
        table 1; backward is twice the forward)."""
        t = self.traits
        weights = self.params()["matrices"] + t.vocab_size * t.width
        looked_at = 0.0
        for i in range(t.layers):
            window = min(t.layer_window(i) or context_length, context_length)
            # mean over positions p of min(p + 1, window)
            looked_at += window - window * (window - 1) / (2 * context_length)
        forward = 2.0 * weights + 4.0 * t.heads * t.head_size * looked_at
        return forward * (3.0 if training else 1.0)

    def cache_spec(self) -> list[LayerCache]:
        """What generation keeps, layer by layer."""
        t = self.traits
        return [
            LayerCache("window" if (w := t.layer_window(i)) else "paged", t.n_kv_heads, t.head_size, w)
            for i in range(t.layers)
        ]
