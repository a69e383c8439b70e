"""From a path to a model that can be served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import DachengError
from dacheng.serve.served_model import ServedModel

if TYPE_CHECKING:
    from dacheng.engine.executor import Executor
    from dacheng.models.decoder import Decoder
    from dacheng.text import Tokenizer


def start_model(
    path: Path,
    names: Sequence[str],
    *,
    max_waiting: int = 64,
    max_batch: int = 16,
    max_context: int | None = None,
    packed: bool = True,
    template: str | None = None,
) -> tuple[ServedModel, list[str]]:
    """(model, notes for the user). The engine's thread is started by the server. packed: weights of a .gguf file stay
    in its blocks where they can.

    Raises DachengError when the model cannot be read, has no tokenizer, or does not fit the memory: then it names what
    does.
    """
    from dacheng.engine.async_engine import AsyncEngine
    from dacheng.engine.engine import Engine
    from dacheng.formats.model_directory import load_model
    from dacheng.machine import available_bytes
    from dacheng.serve.memory import cache_room, check_weights, show, weight_bytes

    packed = packed and path.suffix == ".gguf"
    weights = weight_bytes(path, packed)
    check_weights(weights, available_bytes())
    loaded = load_model(path, dtype="fast", packed=packed)
    tokenizer = need_tokenizer(loaded.tokenizer, path)
    model = loaded.model
    context = model.traits.longest_text if max_context is None else max_context
    itemsize = next(model.parameters()).element_size()
    room = cache_room(
        model.cache_spec(), available_bytes(), max_batch=max_batch, max_context=context, itemsize=itemsize
    )
    executor, how = executor_for(model)
    engine = Engine(model, tokenizer, max_batch=max_batch, max_context=max_context, cache_bytes=room, executor=executor)
    served = ServedModel.of(
        names,
        AsyncEngine(engine, max_waiting=max_waiting),
        tokenizer,
        max_context=engine.max_context,
        vocab_size=engine.vocab_size,
        generation=loaded.generation,
        template=template,
    )
    memory = f"memory: weights {show(weights)}, keys and values up to {show(room)}"
    return served, [*loaded.notes, memory, how]


def executor_for(model: Decoder) -> tuple[Executor, str]:
    """The fastest that can run this model here, and a note that says which, and why not the compiled one."""
    from dacheng.engine.executor import Eager
    from dacheng.engine.fused import FusedCPU

    reason = FusedCPU.why_not(model)
    if reason:
        return Eager(model), f"executor: eager; the compiled one does not take this model: {reason}"
    return FusedCPU(model), "executor: fused-cpu"


def need_tokenizer(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    if tokenizer is None:
        raise DachengError("this model has no tokenizer: it cannot be asked anything", field="model", value=str(path),
                           remedy="copy the tokenizer's files beside the weights")  # fmt: skip
    return tokenizer
