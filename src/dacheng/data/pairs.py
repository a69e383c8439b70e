"""Pairs of answers as token ids, and the source that puts them into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dacheng.data.batches import IGNORED, Geometry, check_fingerprint
from dacheng.data.pooled_order import PooledOrder
from dacheng.errors import UsageError

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class PairBatch:
    """One micro-batch of P pairs. tokens, targets: (2P, T) int64; rows 0 … P-1 are chosen, P … 2P-1 rejected.

    Rows are padded at their end, where causal attention never looks. targets[b, t] is the token after tokens[b, t]
    where it is part of the reply, else -100. lengths (2P,) int64: tokens of each row. reference (2P,) float32: sums of
    the reference policy's log-probabilities over the reply. margin (P,) float32: by how much the chosen one is better,
    where people said so.

    For KTO: rows 0 … P-1 are single answers, desirable (P,) bool says which are wanted, and row P + p is the prompt of
    row p with the answer to another prompt.
    """

    tokens: Tensor
    targets: Tensor
    lengths: Tensor
    reference: Tensor | None = None
    margin: Tensor | None = None
    desirable: Tensor | None = None

    def to(self, device: torch.device | str) -> PairBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: None if v is None else v.to(device) for name, v in values.items()}
        return PairBatch(**moved)

    @property
    def pairs(self) -> int:
        return self.tokens.shape[0] // 2

    @property
    def tokens_in_loss(self) -> int:
        """Positions that have a target."""
        return int((self.targets != IGNORED).sum())


class Row(NamedTuple):
    """One conversation. ids (T,) int32; learnt (T,) bool: which of the ids are the reply's."""

    ids: Ids
    learnt: Mask

    @property
    def key(self) -> str:
        """Hash of the ids and of what is learnt of them."""
        return hashlib.sha256(self.ids.tobytes() + self.learnt.tobytes()).hexdigest()[:32]


class PairRows(NamedTuple):
    """first: the chosen one, or for KTO the answer; second: the rejected one, or for KTO the prompt with another's
    answer. margin, desirable: see PairBatch."""

    first: Row
    second: Row
    margin: float | None = None
    desirable: bool | None = None


def collate_pairs(pairs: Sequence[PairRows], pad_id: int, reference: Tensor | None = None) -> PairBatch:
    """pairs (P) and the reference's sums for them (P, 2) -> one batch. Raises UsageError for no pairs, and where some
    have a label and others none."""
    if not pairs:
        raise UsageError("a batch needs a pair", field="pairs", value=0, remedy="give at least one")
    rows = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    tokens, targets, lengths = collate_rows(rows, pad_id)
    margin = None
    if any(pair.margin is not None for pair in pairs):
        margin = torch.tensor([pair.margin or 0.0 for pair in pairs], dtype=torch.float32)
    labels = [pair.desirable for pair in pairs]
    if len({label is None for label in labels}) > 1:
        raise UsageError("some answers are marked desirable or not, others are not marked", field="desirable",
                         value=labels, remedy="mark all, or none")  # fmt: skip
    return PairBatch(
        tokens, targets, lengths,
        None if reference is None else reference.T.reshape(-1).contiguous(),
        margin,
        None if labels[0] is None else torch.tensor(labels, dtype=torch.bool),
    )  # fmt: skip


def collate_rows(rows: Sequence[Row], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """tokens and targets (B, T), lengths (B,); T is the longest row's."""
    width = max(len(row.ids) for row in rows)
    tokens = np.full((len(rows), width), pad_id, np.int64)
    targets = np.full((len(rows), width), IGNORED, np.int64)
    for b, row in enumerate(rows):
        tokens[b, : len(row.ids)] = row.ids
        targets[b, : len(row.ids) - 1] = np.where(row.learnt[1:], row.ids[1:], IGNORED)
    return torch.from_numpy(tokens), torch.from_numpy(targets), torch.tensor([len(row.ids) for row in rows])


class PairSource:
    """Batches of pairs in a seeded order (see PooledOrder), no pair left out or repeated within an epoch.

    reference: (N, 2) float32, the reference's sums for the first and second rows. Its values are not part of the
    fingerprint: they follow from rows and reference model. Everything follows from the seed and the step, so a resume
    costs nothing. Raises UsageError where the pairs of a step cannot be shared out, or there are none.
    """

    def __init__(
        self,
        pairs: Sequence[PairRows],
        batch_pairs: int,
        *,
        pad_id: int = 0,
        micro_batches: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        reference: Tensor | None = None,
    ) -> None:
        if not pairs:
            raise UsageError("there are no pairs to learn from", field="pairs", value=0, remedy="give at least one")
        if reference is not None and reference.shape != (len(pairs), 2):
            raise UsageError("two figures of the reference for each pair", field="reference",
                             value=list(reference.shape), remedy=f"[{len(pairs)}, 2]")  # fmt: skip
        self.pairs, self.pad_id, self.reference = pairs, pad_id, reference
        self.geometry = Geometry(batch_pairs, micro_batches, rank, world)
        lengths = [max(len(pair.first.ids), len(pair.second.ids)) for pair in pairs]
        self.context_length = max(1, round(sum(lengths) / len(lengths)))
        self._order = PooledOrder(lengths, batch_pairs, seed)
        digest = hashlib.sha256(f"{seed} {batch_pairs} {pad_id}".encode())
        for pair in pairs:
            digest.update(f"{pair.first.key} {pair.second.key} {pair.margin} {pair.desirable}".encode())
        self.fingerprint = digest.hexdigest()
        self._next_step = 0

    @property
    def tokens_per_step(self) -> int:
        """Positions of one step, on average, over all ranks."""
        return 2 * self.geometry.batch_rows * self.context_length

    @property
    def steps_per_epoch(self) -> float:
        return len(self.pairs) / self.geometry.batch_rows

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[PairBatch]:
        """This rank's micro-batches of a step."""
        self._next_step = step + 1
        first = step * self.geometry.batch_rows
        return [self.read(self._order.rows(first + slots)) for slots in self.geometry.slots()]

    def read(self, numbers: Sequence[int]) -> PairBatch:
        """These pairs as one batch."""
        reference = None if self.reference is None else self.reference[list(numbers)]
        return collate_pairs([self.pairs[i] for i in numbers], self.pad_id, reference)

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DachengError if the state is of other pairs, another batch size or another seed."""
        check_fingerprint(state["fingerprint"], self.fingerprint)
        self._next_step = int(state["next_step"])
