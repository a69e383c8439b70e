"""A router with its engine processes, from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from typing import Any

from dacheng.errors import DachengError
from dacheng.serve.gateway import Gateway
from dacheng.serve.keys import Keys
from dacheng.serve.options import WorkerPlan
from dacheng.serve.router import Router
from dacheng.serve.server import Server, make_server, run
from dacheng.serve.workers import CRASHES, Workers


def serve_fleet(
    plan: WorkerPlan,
    processes: int,
    listener: socket.socket,
    *,
    keys: Keys | None = None,
    hosts: Collection[str] | None = None,
    ready: Callable[[dict[str, Any]], None],
) -> bool:
    """Serves until a signal. ready gets what an engine process said of its models ("names", "no_chat", "notes") once
    all take requests. Returns False when stopping was cut short.

    Raises DachengError when a process does not start, or when all have been given up.
    """
    return asyncio.run(_serve(plan, processes, listener, keys or Keys(), hosts, ready))


async def _serve(
    plan: WorkerPlan,
    processes: int,
    listener: socket.socket,
    keys: Keys,
    hosts: Collection[str] | None,
    ready: Callable[[dict[str, Any]], None],
) -> bool:
    workers = Workers(plan, processes)
    app = Gateway(Router(workers, plan.limits), keys, hosts)
    server = make_server(app, header_s=plan.limits.header_s, drain_s=plan.drain_s)
    server.on_stop = workers.stop_restarting
    async with workers.running():
        watch = asyncio.create_task(_end_when_lost(workers, server))
        try:
            await run(server, listener, lambda: ready(workers.ready[0].said))
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
    if workers.lost.is_set():
        raise DachengError("the engine processes end again and again: given up", field="crashes", value=CRASHES,
                           remedy="what they wrote is above")  # fmt: skip
    return not server.force_exit


async def _end_when_lost(workers: Workers, server: Server) -> None:
    await workers.lost.wait()
    server.should_exit = True
