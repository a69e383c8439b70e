"""What stays of a network: layers, heads, neurons, channels of the residual stream, tokens of the vocabulary.

One object says it; `shrink` cuts the rest out, `mask_out` sets it to zero, and both compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.models.traits import DecoderTraits

Indices = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Ascending indices of what stays; None: all of it.

    layers: of the blocks. heads: query heads of each block that stays; neurons: of the hidden layer of each mlp that
    stays (both one tuple a block of `layers`, all of one length: a decoder's layers are alike). width: channels of the
    residual stream. vocabulary: token ids. Key heads go when none of their query heads is left.
    """

    layers: Indices | None = None
    heads: tuple[Indices, ...] | None = None
    neurons: tuple[Indices, ...] | None = None
    width: Indices | None = None
    vocabulary: Indices | None = None

    def check(self, traits: DecoderTraits) -> Keep:
        """Returns self. Raises UsageError for what is out of range or cannot be cut out of such a model."""
        t = traits
        depth = t.layers if self.layers is None else len(self.layers)
        _check_indices("layers", self.layers, t.layers)
        _check_indices("width", self.width, t.width)
        _check_indices("vocabulary", self.vocabulary, t.vocab_size)
        for name, parts, count in (("heads", self.heads, t.heads), ("neurons", self.neurons, t.mlp_size)):
            if parts is None:
                continue
            if len(parts) != depth or len({len(part) for part in parts}) != 1:
                raise UsageError(
                    "every layer that stays keeps as many", field=name, value=[len(part) for part in parts],
                    remedy=f"give {depth} tuples of one length",
                )  # fmt: skip
            for part in parts:
                _check_indices(name, part, count)
        _check_supported(self, t)
        if self.heads is not None:
            shapes = {(len(groups), served) for groups, served in (group_sizes(heads, t) for heads in self.heads)}
            if len(shapes) > 1:
                raise UsageError(
                    "every layer that stays keeps as many key heads", field="heads", value=sorted(shapes),
                    remedy="keep as many groups in each",
                )  # fmt: skip
        return self


def group_sizes(heads: Indices, traits: DecoderTraits) -> tuple[Indices, int]:
    """(key heads that stay, query heads that each of them serves). UsageError where they serve different numbers: a
    layer has one number for all."""
    per_group = traits.heads // traits.n_kv_heads
    counts: dict[int, int] = {}
    for head in heads:
        counts[head // per_group] = counts.get(head // per_group, 0) + 1
    if len(set(counts.values())) != 1:
        raise UsageError(
            "key heads would serve different numbers of query heads", field="heads", value=list(heads),
            remedy="keep as many of each group, or whole groups",
        )  # fmt: skip
    return tuple(counts), next(iter(counts.values()))


def _check_indices(name: str, indices: Sequence[int] | None, count: int) -> None:
    if indices is None:
        return
    ordered = list(indices)
    if not ordered or ordered != sorted(set(ordered)) or ordered[0] < 0 or ordered[-1] >= count:
        raise UsageError(
            f"ascending numbers from 0 to {count - 1}, at least one", field=name, value=ordered[:8],
            remedy="sort them, each once",
        )  # fmt: skip


def _check_supported(keep: Keep, t: DecoderTraits) -> None:
    def refuse(field: str, why: str) -> None:
        raise UsageError(f"cannot be cut out of this model: {why}", field=field, remedy="prune another part of it")

    if keep.layers is not None and (t.value_embeddings or t.ngram_lengths):
        refuse("layers", "its value embeddings or n-gram tables belong to certain layers")
    if keep.heads is not None:
        if t.latent is not None:
            refuse("heads", "latent attention shares its keys between all heads")
        if t.qk_norm and t.qk_norm_whole:
            refuse("heads", "its queries are normed over all heads at once")
        if t.value_embeddings:
            refuse("heads", "its value embeddings are as wide as all key heads")
    if keep.neurons is not None and t.moe is not None:
        refuse("neurons", "it has experts")
    if keep.width is not None:
        if t.norm != "rms" or not t.norm_weight:
            refuse("width", "only RMS norms with a gain can make up for the missing channels")
        if t.qk_norm or t.latent is not None or t.moe is not None:
            refuse("width", "norms inside of attention share the epsilon, or experts read the stream")
        if t.value_embeddings or t.ngram_lengths or t.embedding_norm:
            refuse("width", "further tables feed the residual stream")
    if keep.vocabulary is not None and (t.value_embeddings or t.ngram_lengths):
        refuse("vocabulary", "further tables are indexed by token")


def rows_of_heads(heads: Indices, head_width: int) -> Tensor:
    """The places of these heads among the outputs of q (or the inputs of o)."""
    starts = torch.tensor(heads) * head_width
    return (starts.unsqueeze(1) + torch.arange(head_width)).flatten()


__all__ = ["Indices", "Keep", "group_sizes", "rows_of_heads"]
