"""What a decoder is made of: a frozen record of traits. A family of models is a mapping onto these, not a subclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from dacheng.errors import UsageError
from dacheng.nn.latent import LatentTraits
from dacheng.nn.mlp import GATED
from dacheng.nn.moe import MoETraits
from dacheng.nn.rope import RopeScaling

NESTED: dict[str, type] = {"rope_scaling": RopeScaling, "moe": MoETraits, "latent": LatentTraits}


@dataclass(frozen=True, kw_only=True)
class DecoderTraits:
    """The shape and the choices of a decoder-only transformer.

    Sources: SwiGLU (Shazeer 2020, eq. 6), ReLU² (So et al. 2021, Primer), GQA (Ainslie et al. 2023), RoPE (Su et al.
    2021, eq. 34), QK-norm (Dehghani et al. 2023; Henry et al. 2020), logit soft-cap (Gemma 2, section 2), sliding
    windows (Mistral 7B; Longformer), value embeddings with gates and residual scalars (modded-nanogpt; nanochat),
    n-gram tables (N-Grammer, Roy et al. 2022), norms around a branch (Gemma 2), norms behind it (OLMo 2, section 3.1),
    norms of the sum (Vaswani et al. 2017, section 3.1), parallel branches (GPT-J), layers without positions
    (Kazemnejad et al. 2023), latent attention (DeepSeek-V2).

    A pattern names a choice by one letter a layer, and is repeated over the layers.
    """

    vocab_size: int
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  # None: as many as heads
    head_width: int | None = None  # None: width / heads
    mlp_width: int | None = None  # None: 4 * width, or 8/3 * width rounded up to 32 when gated
    activation: str = "swiglu"
    norm: str = "rms"  # or "layer"
    norm_eps: float = 1e-6
    norm_weight: bool = True  # RMS norms carry a learnt gain
    norm_offset: bool = False  # stored as its difference from 1
    # of a branch f: x + f(norm x); "post": x + norm(f x); "both": x + norm(f(norm x)); "sum": norm(x + f x)
    norm_placement: str = "pre"
    parallel_branches: bool = False  # attention and mlp read the same x
    positions: str = "rotary"  # or "learned": a table added to the embeddings
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_fraction: float = 1.0  # of a head's dimensions that are rotated
    rope_interleaved: bool = False
    rope_pattern: str = "R"  # R: rotated, N: a layer without positions
    rope_window_theta: float | None = None  # the base in layers with a window, unscaled; None: as in all others
    max_positions: int = 2048
    tied_head: bool = True
    embedding_scale: float | None = None  # multiplies the embeddings
    attention_bias: bool = False  # on q, k, v and o
    output_bias: bool | None = None  # on o; None: as attention_bias
    attention_scale: float | None = None  # multiplies q·k; None: 1 / sqrt(head_width)
    attention_sinks: bool = False
    latent: LatentTraits | None = None
    mlp_bias: bool = False
    moe: MoETraits | None = None
    qk_norm: bool = False
    qk_norm_weight: bool = False
    qk_norm_whole: bool = False  # over all heads at once
    logit_soft_cap: float | None = None
    attention_soft_cap: float | None = None
    window: int | None = None  # tokens an "S" layer looks back over, itself included
    window_pattern: str = "L"  # S: sliding window, L: long
    value_embeddings: bool = False  # every second layer, the last included
    residual_scalars: bool = False
    embedding_norm: bool = False
    ngram_rows: int | None = None  # rows of each hashed n-gram table; None: no tables
    ngram_longest: int = 3  # a table for each length from 2 to this
    initializer_range: float = 0.02

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None or self.latent is not None else self.kv_heads

    @property
    def head_size(self) -> int:
        """Of a query and a key."""
        if self.latent is not None:
            return self.latent.head_width
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def value_size(self) -> int:
        return self.head_size if self.latent is None else self.latent.value_width

    @property
    def rotated_size(self) -> int:
        """Dimensions of a head that are turned by its position."""
        return self.latent.rope_width if self.latent is not None else int(self.head_size * self.rope_fraction)

    @property
    def longest_text(self) -> int:
        """Positions that the model can take: fewer than max_positions where longrope's short factors are chosen."""
        s = self.rope_scaling
        if s is None or s.kind != "longrope" or s.long or s.original_positions is None:
            return self.max_positions
        return min(self.max_positions, s.original_positions)

    @property
    def mlp_size(self) -> int:
        if self.mlp_width is not None:
            return self.mlp_width
        if self.activation in GATED:
            return (self.width * 8 // 3 + 31) // 32 * 32
        return 4 * self.width

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def has_output_bias(self) -> bool:
        return self.attention_bias if self.output_bias is None else self.output_bias

    def layer_window(self, layer: int) -> int | None:
        """Tokens that layer `layer` looks back over (itself included), or None for all."""
        return self.window if _letter(self.window_pattern, layer) == "S" else None

    def is_rotated(self, layer: int) -> bool:
        return self.positions == "rotary" and _letter(self.rope_pattern, layer) == "R"

    def is_moe(self, layer: int) -> bool:
        return self.moe is not None and _letter(self.moe.pattern, layer) == "M"

    def has_value_embedding(self, layer: int) -> bool:
        return self.value_embeddings and layer % 2 == (self.layers - 1) % 2

    @property
    def ngram_lengths(self) -> tuple[int, ...]:
        return () if self.ngram_rows is None else tuple(range(2, self.ngram_longest + 1))

    def validate(self) -> DecoderTraits:
        """Returns self. Raises UsageError naming the first trait that cannot be built, its value and what would do."""
        from dacheng.models.checks import check_traits

        check_traits(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderTraits:
        """Raises UsageError on a key that is no trait: a field that would be ignored is an error."""
        return _from_dict(cls, values, "").validate()


def _letter(pattern: str, layer: int) -> str:
    return pattern[layer % len(pattern)]


def _from_dict(cls: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(cls)}
    for name in values:
        if name not in known:
            raise UsageError(
                "unknown trait", field=where + name, value=values[name], remedy="remove it, or update dacheng"
            )
    built = {
        name: _from_dict(NESTED[name], value, f"{name}.") if name in NESTED and isinstance(value, dict) else value
        for name, value in values.items()
    }
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in built.items()})
    except TypeError:  # a size without default
        missing = [f.name for f in fields(cls) if f.name not in values]
        raise UsageError("a trait is missing", field=where + missing[0], value=None, remedy="set it") from None
