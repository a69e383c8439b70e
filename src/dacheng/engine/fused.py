"""The compiled executors on a CPU: for packed decoders, and for float32 ones."""

from __future__ import annotations

import torch

from dacheng.engine.blocks import BLOCK
from dacheng.engine.cache import KVCache, PagedCache
from dacheng.engine.executor import Eager, StepResult, flat
from dacheng.engine.step_plan import StepPlan
from dacheng.models.decoder import Decoder
from dacheng.models.fused import FusedDecoder, default_adapter, why_not_fused
from dacheng.ops.decoder_step import CacheView

MANY = 32  # rows: from here on a library's products of float32 matrices are as fast (docs/lab-notes/reinforcement.md)


class FusedCPU:
    """A whole step in one compiled call that follows the block tables (dacheng.models.fused). Raises ValueError where
    `why_not` says why; steps of a cache that it can't read (see `supports`), or with an adapter that it does not take
    (see `takes`), go to Eager and are counted in `fallbacks`."""

    name = "fused-cpu"
    invariant = True  # see deterministic.py

    _floats = False

    def __init__(self, model: Decoder) -> None:
        self._model, self._step = model, FusedDecoder(model, self._floats)
        self._eager = Eager(model)
        self.fallbacks = 0
        windows = [model.traits.layer_window(layer) is not None for layer in range(model.traits.layers)]
        # A layer of each kind: those that see everything have one table a text, those with a window another.
        self._kinds = [windows.index(kind) for kind in (False, True) if kind in windows]

    @classmethod
    def why_not(cls, model: Decoder) -> str:
        """Why this model, or this machine, has no fused step; "" when it has one."""
        return why_not_fused(model, cls._floats)

    @staticmethod
    def supports(cache: KVCache) -> bool:
        """It reads pages of float32 or bfloat16."""
        return isinstance(cache, PagedCache) and cache.format.dtype in (torch.float32, torch.bfloat16)

    def takes(self, number: int) -> bool:
        """Whether rows may go through the adapter of this number: no DoRA, none in training, none of the head."""
        return not self._step.why_not(number)

    def run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        default = default_adapter(self._model)
        numbers = [chunk.request.adapter_number or default for chunk in plan.chunks for _ in range(chunk.count)]
        if not isinstance(cache, PagedCache) or not self.supports(cache) or not all(map(self.takes, set(numbers))):
            self.fallbacks += 1
            return self._by_eager(plan, cache)
        tokens, positions, wanted = flat(plan)
        texts = [i for i, chunk in enumerate(plan.chunks) for _ in range(chunk.count)]
        logits, hidden = self._step.run(
            torch.tensor(tokens),
            torch.tensor(positions),
            torch.tensor(texts),
            self._view(plan, cache),
            torch.tensor(wanted, dtype=torch.int64),
            numbers,
        )
        return StepResult(logits, self._eager.hidden_sums(plan, hidden))

    def _by_eager(self, plan: StepPlan, cache: KVCache) -> StepResult:
        self._eager.rows = getattr(self._model, "_rows", None)
        return self._eager.run(plan, cache)

    def _view(self, plan: StepPlan, cache: PagedCache) -> CacheView:
        view: CacheView | None = None
        for layer in reversed(self._kinds):
            tables = [cache.table(layer, chunk.request.slot) for chunk in plan.chunks]
            width = max(map(len, tables))
            stored = cache.storage(layer).k
            view = CacheView(
                keys=[storage.k for storage in cache.storages],
                values=[storage.v for storage in cache.storages],
                tables=torch.tensor([table + [0] * (width - len(table)) for table in tables]),
                block_tokens=BLOCK,
                block_stride=BLOCK * stored.shape[-1],
                head_stride=stored.stride(0),
                token_stride=stored.shape[-1],
                windowed=view,
            )
        assert view is not None
        return view


class FusedFloats(FusedCPU):
    """The same over the float32 weights of a model that may be in training, read where they lie, for steps of few
    rows: then all that counts is that the weights come by once. Steps of MANY rows are Eager's. Rounds nothing more
    than Eager does. After a change of the weights `weights_changed` must be called: adapters are laid out as copies."""

    name = "fused-floats"
    invariant = False  # steps of few rows and of many sum in another order
    _floats = True

    def weights_changed(self) -> None:
        """Raises ValueError where the model is one now that `why_not` says something about."""
        self._step = FusedDecoder(self._model, self._floats)

    def run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        return self._by_eager(plan, cache) if plan.tokens >= MANY else super().run(plan, cache)
