"""The application: routes, the page, and the door in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dacheng.serve import (
    adapters,
    anthropic_messages,
    embeddings,
    listing,
    openai_chat,
    openai_completions,
    responses,
    tokens,
)
from dacheng.serve.api_error import APIError
from dacheng.serve.endpoint import endpoint
from dacheng.serve.exchange import JSON
from dacheng.serve.gateway import Gateway
from dacheng.serve.keys import Keys
from dacheng.serve.limits import Limits
from dacheng.serve.metrics import Metrics
from dacheng.serve.page import page_routes
from dacheng.serve.run_page import ShownRun, run_handlers
from dacheng.serve.served_model import Models

if TYPE_CHECKING:
    from dacheng.align.labelling.session import Session

POST = {
    "/v1/chat/completions": openai_chat.chat_completions,
    "/v1/completions": openai_completions.completions,
    "/v1/responses": responses.create_response,
    "/v1/embeddings": embeddings.embeddings,
    "/v1/messages": anthropic_messages.messages,
    "/v1/messages/count_tokens": anthropic_messages.count_tokens,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
}
GET = {
    "/v1/models": listing.list_models,
    "/v1/models/{name:path}": listing.retrieve_model,
    "/tokenizer_info": tokens.tokenizer_info,
    "/health": listing.health,
    "/metrics": listing.metrics,
    "/version": listing.version,
    "/openapi.json": listing.openapi,
}


def make_app(
    models: Models,
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    drain_s: float = 30.0,
    run: ShownRun | None = None,
    label: Session | None = None,
) -> Gateway:
    """The server as an ASGI application, which starts and stops the engines of `models` (lifespan).

    hosts: names that a Host header may have; None for any. drain_s: how long stopping waits for what is running.
    run: shown at /run (see run_page). label: pairs that are labelled at /label (see label_page).
    """
    limits, metrics = limits or Limits(), Metrics(models)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        for model in models.served:
            model.engine.start()
        try:
            yield
        finally:
            stops = [model.engine.stop(drain=True, timeout_s=drain_s) for model in models.served if not model.adapter]
            await asyncio.gather(*stops)

    routes = [Route(path, endpoint(work, models, limits, metrics), methods=["POST"]) for path, work in POST.items()]
    routes += [Route(path, endpoint(work, models, limits, metrics), methods=["GET"]) for path, work in GET.items()]
    if models.adapters_dir is not None:
        for path, work in adapters.ROUTES.items():
            routes.append(Route(path, endpoint(work, models, limits, metrics), methods=["POST"]))
    shown = [] if run is None else run_handlers(run)
    if label is not None:
        from dacheng.serve.label_page import label_handlers

        shown = [*shown, *label_handlers(label)]
    for method, path, answer in shown:
        routes.append(Route(path, endpoint(answer, models, limits, metrics), methods=[method]))
    handlers: Any = {HTTPException: _refused}
    app = Starlette(
        routes=[*routes, *page_routes(run is not None, label is not None)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Gateway(app, keys or Keys(), hosts)


async def _refused(request: Request, error: Any) -> Response:
    """404 and 405 of the router, in the API's own shape."""
    said = {404: "there is no such route", 405: f"this route does not take {request.method}"}
    known = APIError(error.status_code, said.get(error.status_code, "refused"), headers=dict(error.headers or {}))
    path, request_id = request.url.path, request.scope.get("state", {}).get("request_id", "")
    return JSON(known.body(path, request_id), known.status, known.headers)
