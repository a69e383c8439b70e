"""dacheng serve: a model over HTTP, and the self-test of a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from dacheng.serve.served_model import ServedModel

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    url: str | None = None,
    /,
    *,
    model: str | None = None,
    port: int = 8000,
    host: str = "127.0.0.1",
    name: tuple[str, ...] = (),
    api_key_file: Path | None = None,
    without_key: bool = False,
    allow_host: tuple[str, ...] = (),
    max_waiting: int = 64,
    max_batch: int = 16,
    max_context: int | None = None,
    deadline: float = 600.0,
    drain: float = 30.0,
    chat_template: str | None = None,
    unpack: bool = False,
    check: bool = False,
) -> int:
    """Serves a model: OpenAI's and Anthropic's APIs, and a chat page at /.

    Example: dacheng serve --model quickstart --port 8000

    Parameters
    ----------
    url
        With --check: the server to test, http://127.0.0.1:8000 by default.
    model
        A model directory, a .gguf file, the directory of a run, or the name of a run (dacheng history).
    port
        0 takes any that is free.
    host
        The address to listen on. Beyond this machine, a key is needed.
    name
        Names of the model for clients, the first its own; may be given several times.
    api_key_file
        Keys that are let in, one a line. Without: those in DACHENG_API_KEY, separated by commas, or no key at all.
    without_key
        Listen beyond this machine without a key.
    allow_host
        Further names that a Host header may have (behind a proxy).
    max_waiting
        Requests in the queue; further ones are refused with 429.
    max_batch
        Requests that run together.
    max_context
        Tokens of one request, its answer included; the model's own by default.
    deadline
        Seconds for one answer.
    drain
        Seconds that running requests have to finish after SIGTERM.
    chat_template
        In place of the model's own: chatml, llama3, mistral, gemma, qwen, deepseek, or Jinja text.
    unpack
        Turn the weights of a .gguf file into float32, instead of computing with its blocks.
    check
        Test a running server instead, and exit with 1 if it fails.
    """
    if check:
        return _check(url or f"http://{host}:{port}", api_key_file)
    if url is not None:
        raise UsageError("a URL is only for --check", field="url", value=url, remedy="dacheng serve --model DIR")
    if model is None:
        raise UsageError("which model?", field="--model", remedy="dacheng serve --model DIR")
    _need_extra()
    from dacheng.serve.keys import Keys
    from dacheng.serve.limits import Limits
    from dacheng.serve.server import bind, log_to_stderr
    from dacheng.serve.server import serve as serve_until_signal

    keys = Keys.read(api_key_file)
    if host not in LOOPBACK and not keys and not without_key:
        raise UsageError("a server beyond this machine needs a key", field="--host", value=host,
                         remedy="--api-key-file FILE, or --without-key if everyone may use it")  # fmt: skip
    listener = bind(host, port)
    try:
        served = _load(model, name, max_waiting, max_batch, max_context, chat_template, unpack)
        from dacheng.serve.app import make_app
        from dacheng.serve.served_model import Models

        hosts = (*LOOPBACK, *allow_host) if host in LOOPBACK else None
        limits = Limits(deadline_s=deadline)
        app = make_app(Models([served]), keys=keys, limits=limits, hosts=hosts, drain_s=drain)
        log_to_stderr()
        where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        whole = serve_until_signal(
            app, listener, ready=lambda: _announce(where, served, bool(keys)), header_s=limits.header_s, drain_s=drain
        )
    finally:
        listener.close()
    return 0 if whole else 130


def _need_extra() -> None:
    from importlib.util import find_spec

    for library, module in (
        ("starlette", "starlette"),
        ("uvicorn", "uvicorn"),
        ("prometheus-client", "prometheus_client"),
    ):
        if find_spec(module) is None:
            raise MissingExtra(library, "serve")


def _load(
    model: str,
    names: tuple[str, ...],
    max_waiting: int,
    max_batch: int,
    max_context: int | None,
    template: str | None,
    unpack: bool,
) -> ServedModel:
    """Checks the memory, loads the model, and puts an engine around it."""
    from dacheng.cli.console import use_threads
    from dacheng.cli.models import find_model
    from dacheng.serve.start import start_model

    use_threads()
    path = find_model(model)
    served, notes = start_model(
        path, names or (path.name,), max_waiting=max_waiting, max_batch=max_batch, max_context=max_context,
        packed=not unpack, template=template,
    )  # fmt: skip
    for note in notes:
        print(note, file=sys.stderr)
    return served


def _announce(url: str, served: ServedModel, with_key: bool) -> None:
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    path, body = "v1/chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
    if served.renderer is None:
        print(f"no chats: {served.no_chat}", file=sys.stderr)
        path, body = "v1/completions", '"prompt": "Hello"'
    print(f"serving {', '.join(served.names)} at {url} (a chat page; Ctrl-C stops)")
    print(
        f"  curl {url}/{path} -H 'Content-Type: application/json'{key} \\\n"
        f'    -d \'{{"model": "{served.name}", {body}, "max_tokens": 64}}\'',
        flush=True,
    )


def _check(url: str, api_key_file: Path | None) -> int:
    from dacheng.serve.check import run_check
    from dacheng.serve.client import Client

    failed = run_check(Client(url, first_key(api_key_file)), print)
    print("all is well" if not failed else f"{failed} failed")
    return 1 if failed else 0


def first_key(file: Path | None, environment: Any = os.environ) -> str | None:
    """The key to send: the first in the file, or in DACHENG_API_KEY."""
    if file is None:
        return environment.get("DACHENG_API_KEY", "").split(",")[0].strip() or None
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line and not line.startswith("#")), None)
