"""Log-probabilities of answers to shared prompts: what several rows begin with is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from dacheng.models.decoder import Decoder
from dacheng.nn.branches import SharedBeginnings
from dacheng.nn.contexts import DenseCausal
from dacheng.objectives.cross_entropy import IGNORED
from dacheng.objectives.logps import hidden_logps

CALL_FLOPS = 4e6  # what a call of attention costs beside its products: about 100 µs of one core, both ways
WORTH = 0.9  # of the cost of plain rows: where less is saved, they stay


@dataclass(frozen=True, slots=True)
class Trees:
    """The rows of a batch as one row of trees (see SharedBeginnings), without padding: each prompt, then what follows
    it in every row that begins with it. All (1, N) but places (K,): of each target of the batch, row by row, where in
    the row of trees the token before it is; and sizes, the tokens of each tree."""

    tokens: Tensor
    positions: Tensor
    document_ids: Tensor
    branch_ids: Tensor
    places: Tensor
    sizes: list[int]

    @property
    def context(self) -> SharedBeginnings:
        return SharedBeginnings(self.document_ids, self.branch_ids, self.positions)


def plant(tokens: Tensor, targets: Tensor) -> Trees | None:
    """tokens, targets (B, T), targets -100 where nothing is counted. A row's prompt is what precedes its first target.
    None where no two rows share one; rows without a target are left out."""
    rows, wanted = tokens.tolist(), targets.tolist()
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row, (ids, own) in enumerate(zip(rows, wanted)):
        counted = [t for t, target in enumerate(own) if target != IGNORED]
        if counted:
            groups.setdefault(tuple(ids[: counted[0] + 1]), []).append((row, counted))
    if all(len(members) < 2 for members in groups.values()):
        return None
    columns: list[tuple[int, int, int, int]] = []  # token, position, tree, branch
    found: dict[int, list[int]] = {}
    sizes = []
    for tree, (prompt, members) in enumerate(groups.items()):
        start, length = len(columns), len(prompt)
        columns += [(token, t, tree, 0) for t, token in enumerate(prompt)]
        for branch, (row, counted) in enumerate(members, 1):
            behind = len(columns) - length  # where a token of this branch is, less its position
            columns += [(rows[row][t], t, tree, branch) for t in range(length, counted[-1] + 1)]
            found[row] = [start + t if t < length else behind + t for t in counted]
        sizes.append(len(columns) - start)
    places = [place for row in sorted(found) for place in found[row]]
    made = torch.tensor(columns, device=tokens.device).T.unsqueeze(1)  # (4, 1, N)
    return Trees(made[0], made[1], made[2], made[3], torch.tensor(places, device=tokens.device), sizes)


def worth_planting(model: Decoder, trees: Trees, shape: torch.Size) -> bool:
    """Whether the model's products and its attention are so much less than over plain rows (B, T): a tree attends all
    to all, and the others are masked out."""
    t, (B, T) = model.traits, shape
    each = model.flops(1, training=False) - 2.0 * t.vocab_size * t.width  # the head sees the targets in both
    pair = 2.0 * t.layers * t.heads * (t.head_size + t.value_size)
    calls = CALL_FLOPS * t.layers
    shared = each * sum(trees.sizes) + pair * sum(size * size for size in trees.sizes) + calls * len(trees.sizes)
    return shared < WORTH * (each * B * T + pair * B * T * T / 2 + calls)


@overload
def answer_logps(
    model: Any, tokens: Tensor, targets: Tensor, *, temperature: float = ..., chunk: int = ...,
    entropy: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def answer_logps(
    model: Any, tokens: Tensor, targets: Tensor, *, temperature: float = ..., chunk: int = ...,
    entropy: Literal[True, "figure"],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def answer_logps(
    model: Any,
    tokens: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    entropy: bool | Literal["figure"] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`model_logps` of rows that are a prompt and an answer, (B, T); where rows share prompts and that is worth it, a
    prompt is computed once and its gradient is the sum of its answers': the same numbers up to the order of sums."""
    trees = plant(tokens, targets) if _shares(model) else None
    if trees is None or not worth_planting(model, trees, tokens.shape):
        hidden = model(tokens, torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens), DenseCausal())
        return hidden_logps(model, hidden, targets, temperature=temperature, chunk=chunk, entropy=entropy)  # type: ignore[no-any-return]
    hidden_ND = model(trees.tokens, trees.positions, trees.context)[0]
    kept = targets != IGNORED
    of_targets = hidden_ND.index_select(0, trees.places).unsqueeze(0)
    found = hidden_logps(
        model, of_targets, targets[kept].unsqueeze(0), temperature=temperature, chunk=chunk, entropy=entropy
    )
    outputs = tuple(
        torch.zeros(targets.shape, dtype=part.dtype, device=part.device).masked_scatter(kept, part[0])
        for part in (found if entropy else (found,))
    )
    return outputs if entropy else outputs[0]  # type: ignore[return-value]


def _shares(model: Any) -> bool:
    """Not where a table looks at neighbours in the row, nor experts, whose losses count the batch's own tokens."""
    return isinstance(model, Decoder) and model.traits.moe is None and not model.traits.ngram_lengths
