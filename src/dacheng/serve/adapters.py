"""LoRA adapters as models of their own name over the engine of their base, at the start and while it serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from starlette.responses import Response

from dacheng.errors import DachengError
from dacheng.serve.api_error import APIError, bad_request
from dacheng.serve.served_model import Models, ServedModel

if TYPE_CHECKING:
    from dacheng.engine.async_engine import AsyncEngine
    from dacheng.serve.exchange import Exchange

LONGEST_NAME = 200


def serve_adapters(base: ServedModel, adapters: Sequence[tuple[str, Path]]) -> list[ServedModel]:
    """Loads (name, directory) pairs onto the engine of `base`, which is not started yet. Raises DachengError naming the
    adapter that cannot be read or does not fit."""
    if not adapters:
        return []
    from dacheng.engine.adapters import need_bank

    bank = need_bank(cast("AsyncEngine", base.engine).engine.adapters)
    served = []
    for name, path in adapters:
        bank.load(name, path)
        served.append(adapter_model(base, name, path))
    return served


def adapter_model(base: ServedModel, name: str, path: Path) -> ServedModel:
    """`base` with an adapter of its engine: clients choose it by its name."""
    return replace(base, names=(name,), adapter=name, root=path.name, parent=base.name, created=int(time.time()))


async def load_lora_adapter(exchange: Exchange) -> Any:
    """{lora_name, lora_path}, and base_model_name where several models are served: vLLM's route. The path is taken
    below the folder that the server was told to take adapters from."""
    body, models = exchange.body, exchange.models
    name = body.demand("lora_name", body.text("lora_name", longest=LONGEST_NAME))
    given = body.demand("lora_path", body.text("lora_path", longest=4096))
    base = _base(models, body.text("base_model_name"))
    body.done()
    if not name.strip() or name in models.names:
        raise bad_request("lora_name", "a model has this name" if name.strip() else "a name is needed")
    path, folder = _below(models.adapters_dir, given)
    try:
        await cast("AsyncEngine", base.engine).load_adapter(name, path)
    except DachengError as error:
        where = "lora_name" if error.field in ("adapter", "max_adapters") and path.is_dir() else "lora_path"
        raise bad_request(where, _without(folder, f"{error.problem}: {error.field}")) from error
    if name in models.names:  # asked for at once for two bases
        await cast("AsyncEngine", base.engine).unload_adapter(name)
        raise bad_request("lora_name", "a model has this name")
    models.served.append(adapter_model(base, name, path))
    return Response(f"Success: LoRA adapter '{name}' added successfully.", media_type="text/plain")


async def unload_lora_adapter(exchange: Exchange) -> Any:
    """{lora_name}. Requests that have it go on to their end; the name is free at once."""
    body, models = exchange.body, exchange.models
    name = body.demand("lora_name", body.text("lora_name", longest=LONGEST_NAME))
    body.integer("lora_int_id")  # vLLM's clients may send it; the name says which
    body.done()
    model = next((model for model in models.served if model.adapter == name), None)
    if model is None:
        raise APIError(404, "there is no adapter of this name", param="lora_name", code="model_not_found")
    models.served.remove(model)
    await cast("AsyncEngine", model.engine).unload_adapter(name)
    return Response(f"Success: LoRA adapter '{name}' removed successfully.", media_type="text/plain")


ROUTES = {"/v1/load_lora_adapter": load_lora_adapter, "/v1/unload_lora_adapter": unload_lora_adapter}


def _base(models: Models, name: str | None) -> ServedModel:
    bases = [model for model in models.served if not model.adapter]
    if name is None and len(bases) > 1:
        raise bad_request("base_model_name", "which model is it for? " + ", ".join(base.name for base in bases))
    found = models.find(name) if name is not None else bases[0]
    if found.adapter:
        raise bad_request("base_model_name", "an adapter has no adapters")
    return found


def _below(folder: Path | None, given: str) -> tuple[Path, Path]:
    """The directory that is meant, and the folder that it has to be in, links followed. What lies elsewhere is refused
    in the same words whether it is there or not."""
    refused = bad_request("lora_path", "not a directory below the server's folder of adapters")
    if folder is None:
        raise refused
    root = folder.resolve()
    try:
        path = (root / given).resolve()
        if path == root or not path.is_relative_to(root) or not path.is_dir():
            raise refused
    except (ValueError, OSError, RuntimeError):  # a zero byte, a loop of links, a name too long
        raise refused from None
    return path, root


def _without(folder: Path, message: str) -> str:
    """Clients are not told where on the machine the folder lies."""
    return message.replace(f"{folder}/", "")
