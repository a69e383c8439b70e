"""An engine process behind a router: `python -m dacheng.serve.worker`, started by workers.py and by nobody else.

The first line of its standard input says what to do (workers.py writes it), so no key is in a list of processes. The
rest of it never comes: it ends when the router does, however that happens, and then so does this process.
Its standard output says, in a line of JSON, that it takes requests, or why it does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from dacheng.errors import DachengError
from dacheng.serve.keys import Keys
from dacheng.serve.options import WorkerPlan

KEY, TENANT, CLIENT = "x-dacheng-key", "x-dacheng-tenant", "x-dacheng-client"
_PR_SET_PDEATHSIG = 1


class RouterKey(Keys):
    """Lets the router in, and takes its word for who asks."""

    def __init__(self, key: str) -> None:
        super().__init__([key])

    def tenant(self, headers: Mapping[str, str]) -> str | None:
        known = super().tenant({"x-api-key": headers.get(KEY, "")})
        return None if known is None else headers.get(TENANT, "")


class FromRouter:
    """An ASGI application that shows `app` the client's address in place of the router's, as the router gives it. What
    the router asks for itself is not logged."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        clients = [value for name, value in scope.get("headers", ()) if name == CLIENT.encode()]
        if clients:
            scope["client"] = (clients[0].decode("latin-1"), 0)
        elif scope["type"] == "http":
            scope.setdefault("state", {})["logged"] = True
        await self._app(scope, receive, send)


def main() -> int:
    task = json.loads(sys.stdin.buffer.readline())
    end_with_parent()
    try:
        return run(WorkerPlan.from_json(task["plan"]), task["key"], task["listener"])
    except DachengError as error:
        say(error={"problem": error.problem, "field": error.field, "value": _plain(error.value),
                   "remedy": error.remedy, "exit_code": error.exit_code})  # fmt: skip
        return error.exit_code


def run(plan: WorkerPlan, key: str, listener: int) -> int:
    """Serves the plan's models on the inherited socket until SIGTERM."""
    from dacheng.machine import set_threads
    from dacheng.serve.app import make_app
    from dacheng.serve.served_model import Models
    from dacheng.serve.server import log_to_stderr, serve
    from dacheng.serve.start import start_models

    set_threads(plan.threads)
    log_to_stderr()
    with socket.socket(fileno=listener) as sock:
        served, notes = start_models(plan.models, plan.options, memory=plan.memory)
        app = make_app(Models(served, plan.adapters_dir), keys=RouterKey(key), limits=plan.limits, drain_s=plan.drain_s)
        ready = {
            "names": [name for model in served for name in model.names],
            "no_chat": {model.name: model.no_chat for model in served if model.renderer is None},
            "notes": notes,
        }
        whole = serve(FromRouter(app), sock, ready=lambda: say(ready=ready), drain_s=plan.drain_s, quiet=True)
    return 0 if whole else 130


def say(**what: Any) -> None:
    """A line to the router."""
    with contextlib.suppress(OSError):
        print(json.dumps(what), flush=True)


def end_with_parent() -> None:
    """This process ends when its parent does, also by kill -9: standard input closes then. Where the kernel can do it,
    it is told to as well: it does not wait for Python."""
    parent = os.getppid()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="dacheng-parent", daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | type(None)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
