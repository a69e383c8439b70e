"""/v1/models, /health, /version, /metrics, /openapi.json."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dacheng.serve.exchange import JSON, Exchange
from dacheng.serve.served_model import ServedModel


async def list_models(exchange: Exchange) -> Any:
    cards = [_card(model, name) for model in exchange.models.served for name in model.names]
    return {"object": "list", "data": cards}


async def retrieve_model(exchange: Exchange) -> Any:
    name = exchange.request.path_params["name"]
    return _card(exchange.models.find(name), name)


def _card(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": model.created, "owned_by": "dacheng",
        "root": model.root or model.name, "parent": model.parent, "max_model_len": model.max_context,
    }  # fmt: skip


async def health(exchange: Exchange) -> Any:
    """200 when every engine works, else 503."""
    healthy = all(model.engine.healthy for model in exchange.models.served)
    return JSON({"status": "ok" if healthy else "failed"}, 200 if healthy else 503)


async def version(exchange: Exchange) -> Any:
    from dacheng import __version__

    return {"version": __version__}


async def metrics(exchange: Exchange) -> Any:
    return Response(exchange.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(exchange: Exchange) -> Any:
    """What is served here, as an OpenAPI document."""
    from dacheng import __version__
    from dacheng.serve.openapi.document import document

    paths = {getattr(route, "path", "").replace(":path}", "}") for route in exchange.request.app.routes}
    return document(exchange.limits, paths, __version__)
