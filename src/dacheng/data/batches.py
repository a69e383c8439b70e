"""Batches of token ids, and the source that reads them from packed shards: a step's rows follow from the step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dacheng.data.order import permutation
from dacheng.data.packing import PackingIndex
from dacheng.data.shards import TokenShards
from dacheng.errors import DachengError, UsageError

IGNORED = -100
"""The target of a position that is to predict nothing (torch's ignore_index)."""


@dataclass(slots=True)
class TokenBatch:
    """One micro-batch. tokens, targets, positions: (B, T) int64.

    targets[b, t] is the token that follows tokens[b, t] in its document, or -100: at a document's end, in the
    padding, and where the shard says that it is no target. positions begin at 0 with each piece.

    document_ids (B, T) int64 number a row's pieces from 0, with -1 for padding: attention stays within equal numbers.
    None where no row holds more than one piece, so that plain causal attention is the same (padding only follows).
    branch_ids (1, T) int64, with document_ids: the row holds beginnings (0) with several continuations (1, 2, …), see
    nn.branches. None where there are none.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    document_ids: Tensor | None = None
    branch_ids: Tensor | None = None

    def to(self, device: torch.device | str) -> TokenBatch:
        ids, branches = (None if t is None else t.to(device) for t in (self.document_ids, self.branch_ids))
        return TokenBatch(self.tokens.to(device), self.targets.to(device), self.positions.to(device), ids, branches)

    @property
    def tokens_in_loss(self) -> int:
        """Positions that have a target."""
        return int((self.targets != IGNORED).sum())


@runtime_checkable
class Source(Protocol):
    """What a trainer reads. The batches of a step depend on the step and the state that was loaded, not on what was
    read before: a resumed run reads what an uninterrupted one would have."""

    fingerprint: str

    @property
    def tokens_per_step(self) -> int:
        """Positions of one step over all ranks, padding included: what a step costs."""
        ...

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[Any]:
        """This rank's micro-batches of a step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the rows of a step are shared out: `batch_rows` in the step over all ranks, of which each rank takes
    `micro_batches` parts. Which rows a step has does not depend on the other three."""

    batch_rows: int
    micro_batches: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_rows", "micro_batches", "world"):
            if getattr(self, name) < 1:
                raise UsageError("must be positive", field=name, value=getattr(self, name), remedy="1 or more")
        if not 0 <= self.rank < self.world:
            raise UsageError(f"no such rank among {self.world}", field="rank", value=self.rank, remedy="0 to world - 1")
        parts = self.micro_batches * self.world
        if self.batch_rows % parts:
            near = max(round(self.batch_rows / parts), 1) * parts
            raise UsageError(
                f"cannot be shared out evenly to {self.world} ranks with {self.micro_batches} micro-batches each",
                field="batch_rows",
                value=self.batch_rows,
                remedy=f"for example {near}",
            )

    def slots(self) -> npt.NDArray[np.int64]:
        """(micro_batches, rows each): which of the step's rows 0 … batch_rows - 1 are this rank's."""
        grid = np.arange(self.batch_rows, dtype=np.int64).reshape(self.micro_batches, self.world, -1)
        return grid[:, self.rank]


class PackedSource:
    """Rows of packed shards in a seeded order: a new permutation each epoch, no row left out or repeated within one.

    A step takes the next `batch_rows` rows, over the end of an epoch if need be: `batch_rows` counts the rows of all
    ranks and micro-batches together. Its place (epoch, row) is computed from the step, so resuming costs nothing, at
    any number of ranks and micro-batches. After `load_state_dict` even batch_rows may differ: counting goes on from the
    rows that were consumed.

    Raises UsageError where batch_rows cannot be shared out, DachengError where there is no row.
    """

    def __init__(
        self,
        shards: TokenShards,
        packing: PackingIndex,
        batch_rows: int,
        micro_batches: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if packing.rows == 0:
            raise DachengError(
                "there are no tokens to train on", field="packing", value=0, remedy="tokenize a corpus that has some"
            )
        self.shards, self.packing, self.seed = shards, packing, seed
        self.geometry = Geometry(batch_rows, micro_batches, rank, world)
        self.context_length = packing.context_length
        parts = f"{shards.fingerprint} {packing.fingerprint} {seed}"
        self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()
        self._slots = self.geometry.slots()
        self._base_step = self._base_row = self._next_step = 0
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def tokens_per_step(self) -> int:
        """Positions of one step over all ranks; of these `packing.fill_rate` hold a token."""
        return self.geometry.batch_rows * self.context_length

    @property
    def steps_per_epoch(self) -> float:
        return self.packing.rows / self.geometry.batch_rows

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, row within the epoch's order) of the first row of a step."""
        return divmod(self._first_row(step), self.packing.rows)

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[TokenBatch]:
        """This rank's micro-batches of a step; `model` and `weights_version` are for sources that sample from one."""
        first = self._first_row(step)
        self._next_step = step + 1
        return [self.rows(first + slots) for slots in self._slots]

    def rows(self, numbers: npt.NDArray[np.int64]) -> TokenBatch:
        """The rows of these places in the endless order epoch after epoch, as one batch."""
        epochs, within = np.divmod(numbers, self.packing.rows)
        rows = [self._order(int(epoch))[place] for epoch, place in zip(epochs, within)]
        return self.read(rows)

    def read(self, rows: list[int]) -> TokenBatch:
        """These rows of the packing."""
        return read_rows(self.shards, self.packing, rows)

    def state_dict(self) -> dict[str, Any]:
        """Where the step after the last one read begins."""
        return {
            "fingerprint": self.fingerprint,
            "next_step": self._next_step,
            "next_row": self._first_row(self._next_step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DachengError if the state is of other data, another packing or another seed."""
        check_fingerprint(state["fingerprint"], self.fingerprint)
        self._base_step, self._base_row = int(state["next_step"]), int(state["next_row"])
        self._next_step = self._base_step

    def _first_row(self, step: int) -> int:
        first = self._base_row + (step - self._base_step) * self.geometry.batch_rows
        if first < 0:
            raise UsageError(
                f"the step lies before the first row: counting began at step {self._base_step}",
                field="step",
                value=step,
                remedy="load an earlier checkpoint",
            )
        return first

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # a step reads from two epochs at most, unless it is longer than one
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = permutation(self.packing.rows, self.seed, epoch)
        return self._epochs[epoch]


def check_fingerprint(saved: str, now: str) -> None:
    if saved != now:
        raise DachengError(
            "the checkpoint was made with other data, another packing or another seed",
            field="data.fingerprint",
            value=saved,
            remedy=f"resume with the data it names (this is {now[:16]}…), or start a new run from its weights",
        )


def every_row(shards: TokenShards, packing: PackingIndex, batch_rows: int) -> Iterator[TokenBatch]:
    """Each row once, in the order of the index, `batch_rows` at a time (the last may be fewer): for evaluation."""
    for first in range(0, packing.rows, batch_rows):
        yield read_rows(shards, packing, list(range(first, min(first + batch_rows, packing.rows))))


def read_rows(shards: TokenShards, packing: PackingIndex, rows: list[int]) -> TokenBatch:
    """These rows of the packing as one batch of len(rows) × context_length."""
    shape = (len(rows), packing.context_length)
    tokens = np.full(shape, packing.pad_id, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    positions = np.zeros(shape, np.int64)
    document_ids = np.full(shape, -1, np.int64)
    several = False
    steps = np.arange(packing.context_length)
    for b, row in enumerate(rows):
        first, last = packing.row_offsets[row], packing.row_offsets[row + 1]
        several |= bool(last - first > 1)
        at = 0
        for number, piece in enumerate(range(first, last)):
            shard = shards[packing.shard[piece]]
            source = shard.tokens
            start, length = int(packing.start[piece]), int(packing.length[piece])
            end, goes_on = at + length, int(packing.continues[piece])
            tokens[b, at:end] = source[start : start + length]
            # Targets are the tokens one further; after the last there is one only where the document was cut.
            ahead = slice(start + 1, start + length + goes_on)
            wanted = source[ahead] if shard.targets is None else np.where(shard.targets[ahead], source[ahead], IGNORED)
            targets[b, at : end - 1 + goes_on] = wanted
            positions[b, at:end] = steps[:length]
            document_ids[b, at:end] = number
            at = end
        positions[b, at:] = steps[: packing.context_length - at]
    ids = torch.from_numpy(document_ids) if several else None
    return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(positions), ids)
