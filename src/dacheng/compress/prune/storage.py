"""Which matrices of a pruned model are smaller when their zeros are left out."""

from __future__ import annotations

from dacheng.compress.prune.weights import linear_maps
from dacheng.models.decoder import Decoder
from dacheng.ops.sparse import SparseTensor

_WORTH = 0.95  # of the dense bytes: below, it is stored sparse


def sparse_weights(model: Decoder) -> dict[str, SparseTensor]:
    """By the model's names ("blocks.0.mlp.up.weight"), for `save_model(packed=…)`: every matrix of the blocks that this
    makes smaller. Speed stays what it was: products take the whole matrix, zeros included."""
    found = {}
    for name, module in linear_maps(model).items():
        stored = SparseTensor.from_dense(module.weight.detach())
        if stored.nbytes < _WORTH * module.weight.nbytes:
            found[f"{name}.weight"] = stored
    return found
