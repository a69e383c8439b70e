"""The student: some of its teacher's layers (Sanh et al. 2019, section 3: one of two)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from dacheng.compress.encoders import shrink_classifier, shrink_encoder
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.shrink import shrink
from dacheng.errors import UsageError
from dacheng.models.classifier import Classifier
from dacheng.models.decoder import Decoder
from dacheng.models.encoder import Encoder
from dacheng.nn.linear import Dense

M = TypeVar("M", Classifier, Encoder, Decoder)


def spread(total: int, count: int) -> tuple[int, ...]:
    """`count` layers of `total`, the first and the last among them, evenly spread: of 12 the 6 that DistilBERT takes,
    0, 2, 4, 7, 9, 11. Raises UsageError for more than there are."""
    if not 1 <= count <= total:
        raise UsageError("a student has some of its teacher's layers", field="layers", value=count,
                         remedy=f"1 to {total}")  # fmt: skip
    if count == 1:
        return (total - 1,)
    return tuple(round(i * (total - 1) / (count - 1)) for i in range(count))


def pick_layers(model: M, layers: tuple[int, ...] | int | None) -> M:
    """A new network of these layers of `model` (a number: evenly spread; None: half of them), and all the rest of it,
    weights copied."""
    depth = len(model.encoder.blocks if isinstance(model, Classifier) else model.blocks)
    wanted = max(1, depth // 2) if layers is None else layers
    chosen = spread(depth, wanted) if isinstance(wanted, int) else wanted
    keep = Keep(layers=chosen)
    if isinstance(model, Classifier):
        return shrink_classifier(model, keep)
    if isinstance(model, Encoder):
        return shrink_encoder(model, keep)
    return shrink(model, keep)


@contextmanager
def projected(network: Any, width: int, generator: torch.Generator | None = None) -> Iterator[Any]:
    """While it lasts, a narrower student has a `projection` to the teacher's width, which is trained with it and
    belongs to nothing that is saved (Jiao et al. 2020, W_h of eq. 8)."""
    network.projection = Dense(network.traits.width, width, bias=False)
    network.projection.reset(network.traits.width**-0.5, generator)
    try:
        yield network
    finally:
        del network.projection
