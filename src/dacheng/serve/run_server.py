"""A run's page and its models behind one server, on the loop that the model's engine is asked from."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import UsageError
from dacheng.serve.adapters import adapter_model
from dacheng.serve.app import make_app
from dacheng.serve.served_model import Models, ServedModel
from dacheng.serve.server import bind, make_server

if TYPE_CHECKING:
    from dacheng.stages.adapting.model_room import ModelRoom
    from dacheng.stages.adapting.parts import Parts
    from dacheng.stages.adapting.run import Run

HOST = "127.0.0.1"
ADAPTED = "adapted"  # the name of the adapted model for clients
DOCUMENTS = "documents"  # the name of what answers from the documents, in the way that the exam found best


class _Shown:
    """What the page asks of a run (run_page.ShownRun)."""

    def __init__(self, run: Run, parts: Parts) -> None:
        self._run, self._parts = run, parts
        self.closed = False

    @property
    def events_path(self) -> Path:
        return self._run.events_path

    def ask(self, question: str, mode: str) -> dict[str, Any]:
        return self._run.ask(question, mode)

    def pull_plug(self) -> bool:
        return self._run.pull_plug()

    def passage(self, number: int) -> dict[str, Any] | None:
        return self._parts.passage(number)


@contextlib.contextmanager
def serve_run(run: Run, parts: Parts, room: ModelRoom | None, port: int = 8000, drain_s: float = 2.0) -> Iterator[str]:
    """The URL of a server that runs inside the block: the page at /run, and OpenAI's and Anthropic's APIs of the model
    of `room`, under its name, as "adapted" with the adapter once there is one, and as "documents" with retrieval, gate
    and citations. It listens on this machine only."""
    from dacheng.stages.adapting.model_room import LoopThread

    served = [] if room is None else [_served(room), _grounded(room, run)]
    models, shown = Models(served), _Shown(run, parts)
    if room is not None:
        room.on_adapter = lambda name, path: _take_adapter(models, served[0], name, path)
    logging.getLogger("dacheng.access").setLevel(logging.WARNING)
    listener = listen(port)
    server = make_server(make_app(models, hosts=(HOST, "localhost"), drain_s=drain_s, run=shown), drain_s=drain_s)
    server.quiet = True
    thread = LoopThread() if room is None else room.thread
    serving = thread.start(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():
            short_wait(serving)
        if serving.done():
            serving.result()
            raise UsageError("the page could not be served", field="--port", value=port, remedy="--no-web")
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        shown.closed = True
        server.should_exit = True
        with contextlib.suppress(Exception):
            serving.result(drain_s + 10)
        listener.close()
        if room is None:
            thread.close()


def short_wait(serving: Any) -> None:
    from concurrent.futures import TimeoutError

    with contextlib.suppress(TimeoutError):
        serving.exception(0.02)


def listen(port: int) -> socket.socket:
    try:
        return bind(HOST, port)
    except UsageError:
        return bind(HOST, 0)  # someone else has it: the page says where it is


def _served(room: ModelRoom) -> ServedModel:
    return ServedModel.of(
        [room.name], room.engine, room.tokenizer, max_context=room.core.max_context, vocab_size=room.core.vocab_size,
        generation=room.generation,
    )  # fmt: skip


def _grounded(room: ModelRoom, run: Run) -> ServedModel:
    def ask(question: str) -> dict[str, Any]:
        return run.ask(question, run.best_mode())

    return replace(_served(room), names=(DOCUMENTS,), grounding=ask)


def _take_adapter(models: Models, base: ServedModel, name: str, path: Path) -> None:
    """Clients that ask for "adapted" get this version of the adapter from now on."""
    made = replace(adapter_model(base, ADAPTED, path), adapter=name)
    models.served = [model for model in models.served if model.names != (ADAPTED,)] + [made]
