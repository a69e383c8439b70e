"""Steps in which a token's numbers do not depend, to the bit, on what else is computed.

Matrix products sum in another order when they have another number of rows, and so do attention and its kernels when
texts are padded together (He et al. 2025, "Defeating nondeterminism in LLM inference"). Here every product has the same
number of rows, and every token attends by itself over a copy of its past.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dacheng.engine.cache import KVCache
from dacheng.engine.context import first_visible
from dacheng.engine.executor import Eager, StepResult, flat
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.engine.storage import Ranges
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.contexts import AttentionLayer, attention

TILE = 8  # rows of every product: a lone token pays for seven that are not there, a prompt reads the weights more often


class Tiled(Eager):
    """The model itself, TILE rows at a time. Raises UsageError for a model, or a number of threads, with which a row's
    numbers depend on its neighbours all the same: that is tried, once, on rows in other places."""

    name = "tiled"
    invariant = True

    def __init__(self, model: Decoder) -> None:
        super().__init__(model)
        if model.traits.moe is not None:
            raise UsageError(
                "experts take as many rows as choose them: their sums depend on the batch",
                field="deterministic",
                value=True,
                remedy="use a dense model, or leave deterministic out",
            )
        self._probe()

    def _run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        _, _, wanted = flat(plan)
        hidden = torch.cat([self._tile(StepPlan(chunks), cache) for chunks in tiles(plan)])  # (N, D)
        rows = hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)]
        logits = [self.model.head(padded(part))[: len(part)] for part in rows.split(TILE)]
        return StepResult(torch.cat(logits), self.hidden_sums(plan, hidden))

    def _tile(self, plan: StepPlan, cache: KVCache) -> Tensor:
        tokens, positions, _ = flat(plan)
        inputs = padded(torch.tensor([tokens, positions], device=self.device).T).T.unsqueeze(1)  # (2, 1, TILE)
        return self.model(inputs[0], inputs[1], RowByRow(cache, plan))[0, : len(tokens)]

    @torch.inference_mode()
    def _probe(self) -> None:
        """Each row, wherever it is in a tile and whatever is beside it."""
        traits = self.model.traits
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(traits.vocab_size, (2 * TILE,), generator=random).to(self.device)
        positions = torch.randint(traits.longest_text, (2 * TILE,), generator=random).to(self.device)

        def logits(rows: Tensor) -> Tensor:
            hidden = self.model(tokens[rows][None], positions[rows][None], _Alone())
            return torch.cat((self.model.head(hidden[0]), hidden[0].float()), -1)

        rows = torch.arange(TILE)
        expected = logits(rows)
        for order in (rows.roll(1), rows.roll(3), rows.flip(0), torch.where(rows % 2 == 0, rows, rows + TILE)):
            found = logits(order)
            same = order < TILE
            if not torch.equal(found[same], expected[order[same]]):
                raise UsageError(
                    f"with {torch.get_num_threads()} threads a row's numbers depend on its neighbours here",
                    field="deterministic",
                    value=True,
                    remedy="use another number of threads, or leave deterministic out",
                )


def tiles(plan: StepPlan) -> Iterator[list[Chunk]]:
    """The plan's chunks, in order, cut into TILE tokens at a time. Nothing of them asks for logits."""
    tile, room = list[Chunk](), TILE
    for chunk in plan.chunks:
        start = chunk.start
        while start < chunk.stop:
            stop = min(chunk.stop, start + room)
            tile.append(replace(chunk, start=start, stop=stop, logit_rows=range(0)))
            room, start = room - (stop - start), stop
            if not room:
                yield tile
                tile, room = [], TILE
    if tile:
        yield tile


def padded(rows: Tensor) -> Tensor:
    """(n, ...) with n <= TILE -> (TILE, ...): zeros below."""
    return torch.cat((rows, rows.new_zeros(TILE - len(rows), *rows.shape[1:]))) if len(rows) < TILE else rows


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the layers that store alike write a tile, and what each of its rows looks at."""

    written: Tensor
    ranges: list[Ranges]


class RowByRow:
    """The context of one tile (see dacheng.nn.contexts.Context): B = 1, T = TILE; the first rows of it are tokens."""

    def __init__(self, cache: KVCache, plan: StepPlan) -> None:
        self.cache, self.plan, self.tokens = cache, plan, plan.tokens
        self._groups: dict[Hashable, _Places] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        places = self._places(layer)
        self.cache.append(layer.index, places.written, k_BKTE[:, :, : self.tokens], v_BKTE[:, :, : self.tokens])
        rows = []
        for row, ranges in enumerate(places.ranges):
            k_KSE, v_KSE = self.cache.read(layer.index, ranges)
            q = q_BHTE[:, :, row : row + 1].contiguous()
            rows.append(attention(q, k_KSE.contiguous()[None], v_KSE.contiguous()[None], None, False, layer))
        out_BHTE = torch.cat(rows, 2)
        empty = out_BHTE.new_zeros(1, out_BHTE.shape[1], q_BHTE.shape[2] - self.tokens, out_BHTE.shape[3])
        return torch.cat((out_BHTE, empty), 2)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        before = [
            chunk.text[position - distance] if position >= distance else -1
            for chunk in self.plan.chunks
            for position in range(chunk.start, chunk.stop)
        ]
        return torch.tensor([before + [-1] * (tokens.shape[1] - len(before))], device=tokens.device)

    def _places(self, layer: AttentionLayer) -> _Places:
        key = self.cache.group(layer.index)
        if key not in self._groups:
            spans = [(chunk.request.slot, chunk.start, chunk.stop) for chunk in self.plan.chunks]
            ranges = [
                self.cache.ranges(layer.index, slot, first_visible(layer, position), position + 1)
                for slot, start, stop in spans
                for position in range(start, stop)
            ]
            self._groups[key] = _Places(self.cache.places(layer.index, spans), ranges)
        return self._groups[key]


class _Alone:
    """Each row is a text of one token: for the probe."""

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        rows = []
        for row in range(q_BHTE.shape[2]):
            q, k, v = (x[:, :, row : row + 1].contiguous() for x in (q_BHTE, k_BKTE, v_BKTE))
            rows.append(attention(q, k, v, None, False, layer))
        return torch.cat(rows, 2)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        return torch.full_like(tokens, -1)
