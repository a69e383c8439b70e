"""Which executor runs the steps."""

from __future__ import annotations

from dacheng.adapt.bank import AdapterBank
from dacheng.engine.adapters import Adapted
from dacheng.engine.cache import PagedCache
from dacheng.engine.deterministic import Tiled
from dacheng.engine.executor import Eager, Executor
from dacheng.engine.fused import FusedCPU
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder


def fastest(model: Decoder, cache: PagedCache) -> Executor:
    """The compiled one where it takes the model and reads the cache."""
    return Eager(model) if FusedCPU.why_not(model) or not FusedCPU.supports(cache) else FusedCPU(model)


def chosen_executor(
    model: Decoder, executor: Executor | None, cache: PagedCache, deterministic: bool, adapters: AdapterBank | None
) -> Executor:
    """The one that was given, else Eager, with the adapters that there are. `deterministic`: one in which a token's
    numbers do not depend on the batch, so Tiled in place of Eager. Raises UsageError for an executor that does not
    promise that, and for adapters."""
    if not deterministic:
        plain = Eager(model) if executor is None else executor
        return plain if adapters is None else Adapted(plain, model, adapters)
    if adapters is not None:
        raise UsageError(
            "rows that share an adapter are multiplied together: their sums depend on the batch",
            field="deterministic",
            value=True,
            remedy="merge the adapter, or leave deterministic out",
        )
    if executor is None or type(executor) is Eager:
        return Tiled(model)
    supports = getattr(executor, "supports", None)
    if not getattr(executor, "invariant", False) or (supports is not None and not supports(cache)):
        raise UsageError(
            "this executor's numbers may depend on the batch",
            field="deterministic",
            value=executor.name,
            remedy="leave the executor, or kv_dtype, out",
        )
    return executor
