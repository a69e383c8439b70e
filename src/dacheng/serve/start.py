"""From paths to models that can be served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import DachengError
from dacheng.serve.adapters import serve_adapters
from dacheng.serve.memory import (
    PROCESS,
    cache_room,
    check_weights,
    divide,
    request_bytes,
    room_left,
    show,
    weight_bytes,
)
from dacheng.serve.options import EngineOptions, ModelPath, check_names
from dacheng.serve.served_model import ServedModel

if TYPE_CHECKING:
    from dacheng.engine.executor import Executor
    from dacheng.engine.turns import Turns
    from dacheng.formats.loading import LoadedModel
    from dacheng.models.decoder import Decoder
    from dacheng.text import Tokenizer


def start_model(
    path: Path, names: Sequence[str], options: EngineOptions | None = None, *, memory: int | None = None
) -> tuple[ServedModel, list[str]]:
    """(model, notes for the user). As `start_models`, of one."""
    (served,), notes = start_models([ModelPath(path, tuple(names))], options, memory=memory)
    return served, notes


def start_models(
    models: Sequence[ModelPath], options: EngineOptions | None = None, *, memory: int | None = None
) -> tuple[list[ServedModel], list[str]]:
    """(models, notes for the user). The engines' threads are started by the server. memory: bytes that all of it may
    take; what is available by default.

    Raises DachengError when a model cannot be read, has no tokenizer, or when they do not fit the memory together: then
    it names what does.
    """
    from dacheng.machine import available_bytes

    options = options or EngineOptions()
    check_names(list(models), options)
    weights = [_weights(path, options) for path in _paths(models, options)]
    check_weights(sum(weights), available_bytes() if memory is None else memory)
    loaded = [_load(model.path, options) for model in models]
    draft = None if options.draft_model is None else _load(options.draft_model, options)
    if draft is not None and options.draft_model is not None:
        from dacheng.formats.draft import check_draft_tokens

        check_draft_tokens(draft, loaded[0], options.draft_model)
    left = available_bytes() if memory is None else memory - sum(weights) - PROCESS // 2
    rooms = _rooms(loaded, draft, options, left)
    turns = _turns() if len(models) > 1 else None
    served, notes = [], []
    for model, found, room in zip(models, loaded, rooms):
        one, how = _serve(model, found, draft, room, options, turns)
        served += [one, *serve_adapters(one, options.adapters)]
        where = f"{one.name}: " if len(models) > 1 else ""
        notes += [where + note for note in (*found.notes, how)]
    if draft is not None:
        notes += [f"draft model: {note}" for note in draft.notes]
    together = f"memory: weights {show(sum(weights))}, keys and values up to {show(sum(rooms))}"
    return served, [*notes, together]


def _paths(models: Sequence[ModelPath], options: EngineOptions) -> list[Path]:
    """Of everything that is loaded."""
    return [model.path for model in models] + ([] if options.draft_model is None else [options.draft_model])


def _weights(path: Path, options: EngineOptions) -> int:
    import torch

    from dacheng.formats.loading import fast_dtype
    from dacheng.formats.packed import is_packed

    widened = fast_dtype(torch.device("cpu")) == torch.float32
    packed = options.packed and is_packed(path)
    return weight_bytes(path, packed, weights_memory=options.weights_memory, widened=widened)


def _load(path: Path, options: EngineOptions) -> LoadedModel:
    from dacheng.formats.model_directory import load_model
    from dacheng.formats.packed import is_packed

    packed = options.packed and is_packed(path)
    loaded = load_model(path, dtype="fast", packed=packed, weights_memory=options.weights_memory)
    need_tokenizer(loaded.tokenizer, path)
    return loaded


def _rooms(loaded: Sequence[LoadedModel], draft: LoadedModel | None, options: EngineOptions, left: int) -> list[int]:
    """Bytes for the keys and values of each model, those of its draft model with them."""
    contexts = [
        found.model.traits.longest_text if options.max_context is None else options.max_context for found in loaded
    ]
    extra = 0 if draft is None else _per_token(draft.model, options)
    per_token = [_per_token(found.model, options) + extra for found in loaded]
    if len(loaded) == 1:
        return [cache_room(per_token[0], left, max_batch=options.max_batch, max_context=contexts[0])]
    ones = [request_bytes(each, context) for each, context in zip(per_token, contexts)]
    return divide(room_left(left), ones, options.max_batch)


def _per_token(model: Decoder, options: EngineOptions) -> int:
    from dacheng.engine.capacity import kv_bytes_per_token
    from dacheng.engine.storage import kv_format

    return kv_bytes_per_token(model.cache_spec(), kv_format(options.kv_dtype, next(model.parameters()).dtype))


def _turns() -> Turns:
    from dacheng.engine.turns import Turns

    return Turns()


def _serve(
    model: ModelPath, loaded: LoadedModel, draft: LoadedModel | None, room: int, options: EngineOptions,
    turns: Turns | None,
) -> tuple[ServedModel, str]:  # fmt: skip
    from dacheng.adapt.bank import AdapterBank
    from dacheng.engine.async_engine import AsyncEngine
    from dacheng.engine.engine import Engine

    tokenizer = need_tokenizer(loaded.tokenizer, model.path)
    executor, how = executor_for(loaded.model, options.kv_dtype)
    # where texts must be the same in any batch there are none: Engine says so to those who ask for both
    bank = AdapterBank(loaded.model) if options.adapters or not options.deterministic else None
    engine = Engine(
        loaded.model, tokenizer, max_batch=options.max_batch, max_context=options.max_context, cache_bytes=room,
        executor=executor, adapters=bank, kv_dtype=options.kv_dtype, deterministic=options.deterministic,
        speculate=options.speculate, draft=None if draft is None else draft.model, prefix_cache=options.prefix_cache,
        max_tokens_per_step=options.max_tokens_per_step,
    )  # fmt: skip
    served = ServedModel.of(
        model.names,
        AsyncEngine(engine, max_waiting=options.max_waiting, turns=turns),
        tokenizer,
        max_context=engine.max_context,
        vocab_size=engine.vocab_size,
        generation=loaded.generation,
        template=options.template,
    )
    if options.deterministic and how.startswith("executor: eager"):
        how = f"executor: {engine.executor.name}, whose numbers do not depend on the batch"
    return served, how


def executor_for(model: Decoder, kv_dtype: str | None = None) -> tuple[Executor, str]:
    """The fastest that can run this model here, and a note that says which, and why not the compiled one."""
    import torch

    from dacheng.engine.executor import Eager
    from dacheng.engine.fused import FusedCPU
    from dacheng.engine.storage import kv_format

    reason = FusedCPU.why_not(model)
    if not reason and kv_format(kv_dtype, torch.float32).dtype != torch.float32:
        reason = f"it reads keys and values in float32, not {kv_dtype}"
    if reason:
        return Eager(model), f"executor: eager; the compiled one does not take this model: {reason}"
    return FusedCPU(model), "executor: fused-cpu"


def need_tokenizer(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    if tokenizer is None:
        raise DachengError("this model has no tokenizer: it cannot be asked anything", field="model", value=str(path),
                           remedy="copy the tokenizer's files beside the weights")  # fmt: skip
    return tokenizer
