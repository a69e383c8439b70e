"""Several sources in given proportions, drawn so that a step's batch follows from the step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dacheng.data.batches import PackedSource, Source, TokenBatch, check_fingerprint
from dacheng.data.order import DrawSchedule
from dacheng.errors import UsageError


class MixtureSource:
    """Draws from `sources` ({name: (source, weight)}; weights need not add up to one).

    by="step": each step is drawn whole from one source, of any kind. by="row": each row of a step is drawn by itself,
    which mixes within a batch; all sources are then PackedSource with the same context, batch and ranks. In either case
    a source is read in its own order, without gaps, whatever is drawn between.

    Raises UsageError for weights that are not positive or too small to be drawn, and for sources that cannot be mixed.
    """

    def __init__(
        self, sources: Mapping[str, tuple[Source, float]], seed: int = 0, *, by: Literal["step", "row"] = "step"
    ) -> None:
        self.schedule = DrawSchedule({name: weight for name, (_, weight) in sources.items()}, seed)
        self.sources: list[Source] = [sources[name][0] for name in self.schedule.names]
        self.by = by
        if by == "row":
            self._check_alike()
        sizes = {source.tokens_per_step for source in self.sources}
        if len(sizes) > 1:
            raise UsageError(
                "the sources differ in tokens per step, so that a step's cost would depend on the draw",
                field="mixture",
                value=sorted(sizes),
                remedy="give all the same batch_rows and context_length",
            )
        quotas = zip(self.schedule.names, self.schedule.quotas, (source.fingerprint for source in self.sources))
        parts = f"{by} {seed} " + " ".join(f"{name!r} {quota} {print_}" for name, quota, print_ in quotas)
        self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()
        self._base_step = self._base_draw = self._next_step = 0

    @property
    def tokens_per_step(self) -> int:
        return self.sources[0].tokens_per_step

    @property
    def proportions(self) -> dict[str, float]:
        """The share of draws each source really gets: the weights, rounded to one in DrawSchedule.BLOCK."""
        return {name: int(q) / DrawSchedule.BLOCK for name, q in zip(self.schedule.names, self.schedule.quotas)}

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[Any]:
        first = self._first_draw(step)
        self._next_step = step + 1
        if self.by == "step":
            source, before = self.schedule.draw(np.array([first], np.int64))
            return self.sources[source[0]].next(int(before[0]), model, weights_version)
        return [self._mixed(first + slots) for slots in self._alike.geometry.slots()]

    def _mixed(self, draws: npt.NDArray[np.int64]) -> TokenBatch:
        source, before = self.schedule.draw(draws)
        parts, places = [], []
        for number in np.unique(source):
            mine = np.flatnonzero(source == number)
            packed = self.sources[number]
            assert isinstance(packed, PackedSource)
            parts.append(packed.rows(before[mine]))
            places.append(mine)
        return _interleave(parts, torch.from_numpy(np.argsort(np.concatenate(places), kind="stable")))

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "next_step": self._next_step,
            "next_draw": self._first_draw(self._next_step),
            "sources": {name: source.state_dict() for name, source in zip(self.schedule.names, self.sources)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DachengError if the state is of other sources, weights or seed."""
        check_fingerprint(state["fingerprint"], self.fingerprint)
        for name, source in zip(self.schedule.names, self.sources):
            source.load_state_dict(state["sources"][name])
        self._base_step, self._base_draw = int(state["next_step"]), int(state["next_draw"])
        self._next_step = self._base_step

    @property
    def _alike(self) -> PackedSource:
        assert isinstance(self.sources[0], PackedSource)
        return self.sources[0]

    def _first_draw(self, step: int) -> int:
        draws = self._alike.geometry.batch_rows if self.by == "row" else 1
        first = self._base_draw + (step - self._base_step) * draws
        if first < 0:
            raise UsageError(
                f"the step lies before the first draw: counting began at step {self._base_step}",
                field="step",
                value=step,
                remedy="load an earlier checkpoint",
            )
        return first

    def _check_alike(self) -> None:
        for name, source in zip(self.schedule.names, self.sources):
            if not isinstance(source, PackedSource):
                raise UsageError(
                    "only packed sources can be mixed by row", field=f"mixture.{name}", value=type(source).__name__,
                    remedy="by: step",
                )  # fmt: skip
            mine, first = (source.context_length, source.geometry), (self._alike.context_length, self._alike.geometry)
            if mine != first:
                raise UsageError(
                    f"sources mixed by row must agree in context and batch with {self.schedule.names[0]}: {first}",
                    field=f"mixture.{name}", value=mine, remedy="give all the same, or by: step",
                )  # fmt: skip


def _interleave(parts: list[TokenBatch], order: torch.Tensor) -> TokenBatch:
    """One batch of several, its rows taken in `order` from all of them in a row."""
    tokens = torch.cat([part.tokens for part in parts])[order]
    targets = torch.cat([part.targets for part in parts])[order]
    positions = torch.cat([part.positions for part in parts])[order]
    if all(part.document_ids is None for part in parts):
        return TokenBatch(tokens, targets, positions)
    # A part without ids has one piece a row: number 0 throughout (its padding follows, and is never a target).
    ids = [torch.zeros_like(part.tokens) if part.document_ids is None else part.document_ids for part in parts]
    return TokenBatch(tokens, targets, positions, torch.cat(ids)[order])
