"""A decoder whose whole step is one compiled call: which models have one, and how their weights are handed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dacheng.models.decoder import Block, Decoder
from dacheng.models.fused_adapters import FusedAdapters
from dacheng.nn.attention import Attention
from dacheng.nn.embedding import Embedding
from dacheng.nn.linear import Dense
from dacheng.nn.lora import BASE, LoRA
from dacheng.nn.mlp import MLP
from dacheng.nn.norms import RMSNorm
from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.ops.decoder_step import CacheView, DecoderStep, LayerWeights, why_no_step
from dacheng.ops.packed_linear import PanelMatrix, float_matrix

# What the call computes: each of these traits must have this value. What is not named here is either free (sizes, eps,
# biases, scales of rotation and embedding) or looked at in `why_not_fused`.
_NEEDED = {
    "norm": "rms",
    "parallel_branches": False,
    "positions": "rotary",
    "rope_pattern": "R",
    "attention_sinks": False,
    "latent": None,
    "moe": None,
    "qk_norm_whole": False,
    "logit_soft_cap": None,
    "attention_soft_cap": None,
    "value_embeddings": False,
    "residual_scalars": False,
    "ngram_rows": None,
}

_GELU = {"swiglu": False, "geglu_tanh": True}  # activations, and whether that is gelu


def why_not_fused(model: Decoder, floats: bool = False) -> str:
    """Why this model has no fused step over packed weights, or over float32 ones; "" when it has one. Of its adapters
    each is asked apart."""
    t = model.traits
    if t.activation not in _GELU:
        return f"activation is {t.activation!r}"
    if t.norm_placement not in ("pre", "both"):
        return f"norm_placement is {t.norm_placement!r}"
    for name, value in _NEEDED.items():
        if getattr(t, name) != value:
            return f"{name} is {getattr(t, name)!r}"
    for name, module in _multiplied(model):
        if reason := _why_not_floats(module) if floats else _why_not_packed(module):
            return f"{name}{reason}"
    if {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        return "its norms are not float32"
    return why_no_step(t.heads, t.n_kv_heads, t.head_size, t.width, t.mlp_size)


def _why_not_packed(module: nn.Module) -> str:
    if type(module) not in (Packed, PackedEmbedding):
        return " is not packed"
    assert isinstance(module, Packed | PackedEmbedding)
    reason = module.why_exact(torch.empty(0))
    return reason and f": {reason}"


def _why_not_floats(module: nn.Module) -> str:
    if type(module) not in (Dense, Embedding):
        return f" is a {type(module).__name__}"
    assert isinstance(module, Dense | Embedding)
    w = module.weight
    sound = w.dtype == torch.float32 and w.device.type == "cpu" and w.is_contiguous()
    return "" if sound else f" is {w.dtype} on {w.device}, strides {w.stride()}"


def default_adapter(model: Decoder) -> int:
    """What rows go through of which nothing is said: now, it may be another in the next step."""
    rows = getattr(model, "_rows", None)  # see adapt.rows_of
    return BASE if rows is None else rows.default


def _plain(module: nn.Module) -> nn.Module:
    """What an adapter, where there is one, has been put around."""
    return module.base if isinstance(module, LoRA) else module


def _multiplied(model: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """What the step multiplies with, by name."""
    for i in range(model.traits.layers):
        for name in ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down"):
            yield f"blocks.{i}.{name}", _plain(model.get_submodule(f"blocks.{i}.{name}"))
    head = "embed" if model.lm_head is None else "lm_head"
    yield head, _plain(model.get_submodule(head))


class FusedDecoder:
    """The step of one model: `model(...)` and `model.head(...)` over a cache, in one call. Equal to them up to what the
    order of a sum changes, given the same packed products; a token's numbers are the same to the bit in every batch and
    chunk. Weights that are replaced later are not seen: make a new one. floats: of float32 weights, which are read
    where they lie; adapters in training are taken as they are now, and what they become is not seen either. Raises
    ValueError where `why_not_fused` says why."""

    def __init__(self, model: Decoder, floats: bool = False) -> None:
        reason = why_not_fused(model, floats)
        if reason:
            raise ValueError(reason)
        t = model.traits
        head = model.embed if model.lm_head is None else model.lm_head
        self.model = model
        self._adapters = FusedAdapters(model, trained=floats)
        self._step = DecoderStep(
            [_layer_weights(block) for block in model.blocks], _gain(model.norm, t.width), _matrix(head),
            heads=t.heads, kv_heads=t.n_kv_heads, head_width=t.head_size, rotated=t.rotated_size,
            interleaved=t.rope_interleaved, eps=t.norm_eps, scale=t.attention_scale, gelu=_GELU[t.activation],
        )  # fmt: skip

    def why_not(self, number: int) -> str:
        """Why rows can't go through the adapter of this number; "" when they can, and for the base."""
        return "" if number == BASE else self._adapters.why_not(number)

    @torch.inference_mode()
    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        texts: Tensor,
        cache: CacheView,
        wanted: Tensor,
        adapters: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """tokens, positions, texts (N,) int64 -> logits (R, V) of the rows `wanted` (R,), and the hidden states (N, D)
        of all. `texts`: which of the cache's tables a token belongs to; it attends to its text up to itself. adapters:
        the number of each token's, if some go through one that `why_not` has nothing against. Raises IndexError as the
        model does."""
        x = self._embedded(tokens)
        main, window = (self._angles(name, positions) for name in ("main", "window"))
        first = main or window
        assert first is not None
        through = self._adapters.of(adapters)
        logits = self._step.run(x, *first, texts, positions, positions + 1, cache, wanted, window or first, through)
        return logits, x

    def _angles(self, name: str, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine (N, rotated / 2)."""
        if name not in self.model.rotaries:
            return None
        cosine, sine = self.model.rotaries[name](positions.unsqueeze(0))
        half = cosine.shape[-1]
        return cosine.reshape(-1, half).contiguous(), sine.reshape(-1, half).contiguous()

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.model._embedded(tokens.unsqueeze(0), tokens.unsqueeze(0))[0]
        return x.float().contiguous()


def _layer_weights(block: nn.Module) -> LayerWeights:
    assert isinstance(block, Block) and isinstance(block.attention, Attention) and isinstance(block.mlp, MLP)
    a, m = block.attention, block.mlp
    assert a.q.in_features == m.up.in_features and m.gate is not None
    width = a.q.in_features
    return LayerWeights(
        _gain(block.attention_norm, width), _gain(block.mlp_norm, width),
        _matrix(a.q), _matrix(a.k), _matrix(a.v), _matrix(a.o), _matrix(m.gate), _matrix(m.up), _matrix(m.down),
        None if a.q_norm is None else _gain(a.q_norm, a.head_width),
        None if a.k_norm is None else _gain(a.k_norm, a.head_width),
        None if block.attention_post_norm is None else _gain(block.attention_post_norm, width),
        None if block.mlp_post_norm is None else _gain(block.mlp_post_norm, width),
        a.layer.window, block.rotation == "window",
    )  # fmt: skip


def _matrix(module: nn.Module) -> PanelMatrix:
    module = _plain(module)
    if isinstance(module, Dense | Embedding):
        bias = module.bias if isinstance(module, Dense) else None
        return float_matrix(module.weight.detach(), None if bias is None else bias.detach())
    assert isinstance(module, Packed | PackedEmbedding)
    return module.matrix(module.bias if isinstance(module, Packed) else None)


def _gain(norm: nn.Module | None, width: int) -> Tensor:
    """What a normalised x is multiplied with: (width,) float32."""
    assert isinstance(norm, RMSNorm)
    if norm.weight is None:
        return torch.ones(width)
    weight = norm.weight.detach().float()
    return (weight + 1.0 if norm.offset else weight).contiguous()
