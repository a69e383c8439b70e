"""A route: reads the request, runs its handler, and turns whatever goes wrong into an answer of the API's shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dacheng.errors import DachengError
from dacheng.serve.api_error import APIError, from_dacheng
from dacheng.serve.exchange import JSON, ClientGone, EventStream, Exchange, new_meter
from dacheng.serve.failures import log_failure
from dacheng.serve.limits import Limits
from dacheng.serve.metrics import Metrics
from dacheng.serve.served_model import Models

Handler = Callable[[Exchange], Awaitable[Any]]


def endpoint(handler: Handler, models: Models, limits: Limits, metrics: Metrics) -> Callable[[Request], Any]:
    """A Starlette endpoint. The handler returns a Response, or what becomes JSON."""

    async def answer(request: Request) -> Response:
        state = request.scope.setdefault("state", {})
        meter = state["meter"] = new_meter(metrics)
        state["handler"] = request.scope["route"].path if "route" in request.scope else request.url.path
        exchange = Exchange(request, models, limits, metrics, meter)
        response: Response | None = None
        try:
            if request.method == "POST":
                await exchange.read()
            found = await handler(exchange)
            response = found if isinstance(found, Response) else JSON(found)
        except ClientGone:
            state["gone"] = True
            response = Response(status_code=499)  # nobody reads it
        except (APIError, DachengError) as error:
            response = refusal(error, exchange)
        except Exception as error:
            log_failure(error, exchange.request_id)
            response = refusal(APIError(500, "the server failed; its log says where", code="internal_error"), exchange)
        finally:
            if not isinstance(response, EventStream):
                await exchange.close()
        return response

    answer.__name__ = handler.__name__
    return answer


def refusal(error: APIError | DachengError, exchange: Exchange) -> Response:
    known = error if isinstance(error, APIError) else from_dacheng(error, "prompt")
    return JSON(known.body(exchange.path, exchange.request_id), known.status, known.headers)
