"""From scores to what stays: the best of each layer, as many in all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from dacheng.compress.prune.keep import Indices, Keep
from dacheng.errors import UsageError
from dacheng.models.traits import DecoderTraits


def keep_layers(influence: Tensor, drop: int) -> Keep:
    """influence (layers,): the `drop` lowest go (ShortGPT, section 3.2)."""
    depth = len(influence)
    if not 0 < drop < depth:
        raise UsageError(
            "at least one layer goes and one stays", field="layers", value=drop, remedy=f"1 to {depth - 1}"
        )
    return Keep(layers=_best(influence, depth - drop))


def keep_neurons(importance: Tensor, count: int) -> Keep:
    """importance (layers, mlp width): the `count` best of each layer stay."""
    return Keep(neurons=tuple(_best(row, _checked("neurons", count, len(row))) for row in importance))


def keep_width(importance: Tensor, count: int) -> Keep:
    """importance (width,): the `count` best channels stay."""
    return Keep(width=_best(importance, _checked("width", count, len(importance))))


def keep_heads(importance: Tensor, traits: DecoderTraits, count: int) -> Keep:
    """importance (layers, heads): `count` query heads of each layer stay.

    With grouped heads (K key heads, each of G query heads), whole groups go where `count` is a multiple of G, by the
    sum of their heads' scores; else as many of each group, where it is one of K. Raises UsageError where it is neither.
    """
    total, groups = traits.heads, traits.n_kv_heads
    served = total // groups
    _checked("heads", count, total)
    by_group = importance.view(len(importance), groups, served)
    if count % served == 0:
        kept_groups = [_best(row, count // served) for row in by_group.sum(-1)]
        return Keep(heads=tuple(tuple(g * served + i for g in row for i in range(served)) for row in kept_groups))
    if count % groups == 0:
        each = count // groups
        kept = [[_best(group, each) for group in layer] for layer in by_group]
        return Keep(heads=tuple(tuple(g * served + i for g, row in enumerate(layer) for i in row) for layer in kept))
    near = sorted({*range(served, total + 1, served), *range(groups, total + 1, groups)} - {total})
    raise UsageError(
        f"{groups} key heads serve {served} query heads each: so many cannot be kept", field="heads", value=count,
        remedy="one of " + ", ".join(map(str, near)),
    )  # fmt: skip


def _best(scores: Tensor, count: int) -> Indices:
    best = scores.sort(descending=True, stable=True).indices[:count]
    return tuple(torch.sort(best).values.tolist())


def _checked(name: str, count: int, total: int) -> int:
    if not 0 < count <= total:
        raise UsageError("so many cannot stay", field=name, value=count, remedy=f"1 to {total}")
    return count
