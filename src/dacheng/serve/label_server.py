"""The labelling page behind a server of this machine only."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from dacheng.align.labelling.session import Session
from dacheng.errors import UsageError
from dacheng.serve.app import make_app
from dacheng.serve.run_server import HOST, listen, short_wait
from dacheng.serve.served_model import Models
from dacheng.serve.server import make_server


@contextlib.contextmanager
def serve_labels(session: Session, port: int = 8000, drain_s: float = 2.0) -> Iterator[str]:
    """The URL of a server that runs inside the block, with the page at /label. Another port is taken where this one is
    not free. Raises UsageError when it cannot be served."""
    from dacheng.stages.adapting.model_room import LoopThread

    logging.getLogger("dacheng.access").setLevel(logging.WARNING)
    listener, thread = listen(port), LoopThread()
    app = make_app(Models([]), hosts=(HOST, "localhost"), drain_s=drain_s, label=session)
    server: Any = make_server(app, drain_s=drain_s)
    server.quiet = True
    serving: Future[Any] = thread.start(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():
            short_wait(serving)
        if serving.done():
            serving.result()
            raise UsageError("the page could not be served", field="--port", value=port, remedy="--terminal")
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        with contextlib.suppress(Exception):
            serving.result(drain_s + 10)
        listener.close()
        thread.close()
