"""dacheng serve: models over HTTP, and the self-test of a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dacheng.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    import socket

    from dacheng.serve.keys import Keys
    from dacheng.serve.limits import Limits
    from dacheng.serve.options import EngineOptions, ModelPath

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    url: str | None = None,
    /,
    *,
    model: tuple[str, ...] = (),
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
    weights_memory: str = "fast",
    kv_dtype: str | None = None,
    speculate: int = 0,
    draft_model: str | None = None,
    deterministic: bool = False,
    no_prefix_cache: bool = False,
    max_tokens_per_step: int = 512,
    adapter: tuple[str, ...] = (),
    adapters_dir: Path | None = None,
    processes: int = 1,
    threads_per_process: int | None = None,
    check: bool = False,
) -> int:
    """Serves models: OpenAI's and Anthropic's APIs, and a chat page at /.

    Example: dacheng serve --model quickstart --port 8000

    Parameters
    ----------
    url
        With --check: the server to test, http://127.0.0.1:8000 by default.
    model
        A model directory, a .gguf file, the directory of a run, or the name of a run (dacheng history); NAME=MODEL
        names it for clients. Several, each with a --model of its own, share one server.
    port
        0 takes any that is free.
    host
        The address to listen on. Beyond this machine, a key is needed.
    name
        Names of the model for clients, the first its own; may be given several times where there is one model.
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
    weights_memory
        Of a .gguf file: "fast" keeps its pages beside the copy that the kernels read, "small" gives them back.
    kv_dtype
        Of keys and values: float32, bfloat16 or int8; the weights' by default.
    speculate
        Tokens that are guessed in a step, at most: looked up in the text, or by a draft model.
    draft_model
        A small model with the same vocabulary, which guesses them.
    deterministic
        The same text whatever else is in the batch; slower.
    no_prefix_cache
        Compute every prompt anew, even where an earlier text began alike.
    max_tokens_per_step
        Longer prompts are computed in chunks of that, so that running answers wait no longer for them.
    adapter
        NAME=DIRECTORY of a LoRA adapter, which is served as a model of that name; may be given several times.
    adapters_dir
        Clients may load the adapters that lie in this directory (/v1/load_lora_adapter).
    processes
        Engine processes behind a router: each with the models in its own memory. One that ends is started again.
    threads_per_process
        The machine's cores shared out evenly, by default.
    check
        Test a running server instead, and exit with 1 if it fails.
    """
    if check:
        return _check(url or f"http://{host}:{port}", api_key_file)
    if url is not None:
        raise UsageError("a URL is only for --check", field="url", value=url, remedy="dacheng serve --model DIR")
    if not model:
        raise UsageError("which model?", field="--model", remedy="dacheng serve --model DIR")
    _need_extra()
    from dacheng.serve.keys import Keys
    from dacheng.serve.limits import Limits
    from dacheng.serve.options import EngineOptions, check_names
    from dacheng.serve.server import bind, leave_on_signal, log_to_stderr

    keys = Keys.read(api_key_file)
    if host not in LOOPBACK and not keys and not without_key:
        raise UsageError("a server beyond this machine needs a key", field="--host", value=host,
                         remedy="--api-key-file FILE, or --without-key if everyone may use it")  # fmt: skip
    options = EngineOptions(
        max_batch=max_batch, max_context=max_context, max_waiting=max_waiting, packed=not unpack,
        template=chat_template, weights_memory=weights_memory, kv_dtype=kv_dtype, speculate=speculate,
        draft_model=None if draft_model is None else _model_path(draft_model), deterministic=deterministic,
        adapters=_adapters(adapter), prefix_cache=not no_prefix_cache, max_tokens_per_step=max_tokens_per_step,
    )  # fmt: skip
    if adapters_dir is not None and not adapters_dir.is_dir():
        raise UsageError("there is no such directory", field="--adapters-dir", value=str(adapters_dir),
                         remedy="name the one that the adapters lie in")  # fmt: skip
    threads = _threads(processes, threads_per_process)
    listener = bind(host, port)
    try:
        models = _find(model, name)
        check_names(models, options)
        log_to_stderr()
        leave_on_signal()
        hosts = (*LOOPBACK, *allow_host) if host in LOOPBACK else None
        limits = Limits(deadline_s=deadline)
        where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        front = _Front(listener, where, keys, hosts, limits, drain, adapters_dir)
        if processes > 1:
            whole = _serve_fleet(front, models, options, processes, threads)
        else:
            whole = _serve_here(front, models, options, threads)
    finally:
        listener.close()
    return 0 if whole else 130


class _Front(NamedTuple):
    """Where requests come in, and who may send them."""

    listener: socket.socket
    url: str
    keys: Keys
    hosts: tuple[str, ...] | None
    limits: Limits
    drain_s: float
    adapters_dir: Path | None


def _serve_here(front: _Front, models: list[ModelPath], options: EngineOptions, threads: int | None) -> bool:
    """In this process."""
    from dacheng.cli.console import use_threads
    from dacheng.machine import set_threads
    from dacheng.serve.app import make_app
    from dacheng.serve.served_model import Models
    from dacheng.serve.server import serve
    from dacheng.serve.start import start_models

    if threads is None:
        use_threads()
    else:
        set_threads(threads)
    served, notes = start_models(models, options)
    app = make_app(
        Models(served, front.adapters_dir),
        keys=front.keys,
        limits=front.limits,
        hosts=front.hosts,
        drain_s=front.drain_s,
    )
    names = [name for model in served for name in model.names]
    no_chat = {model.name: model.no_chat for model in served if model.renderer is None}
    _note(notes)
    return serve(
        app, front.listener, ready=lambda: _announce(front, names, no_chat), header_s=front.limits.header_s,
        drain_s=front.drain_s,
    )  # fmt: skip


def _serve_fleet(
    front: _Front, models: list[ModelPath], options: EngineOptions, processes: int, threads: int | None
) -> bool:
    """In processes of their own, which share the memory and the cores."""
    from dacheng.machine import available_bytes, usable_cores
    from dacheng.serve.fleet import serve_fleet
    from dacheng.serve.options import WorkerPlan

    plan = WorkerPlan(
        models=tuple(models), options=options, limits=front.limits, drain_s=front.drain_s,
        threads=max(1, usable_cores() // processes) if threads is None else threads,
        memory=available_bytes() // processes, adapters_dir=front.adapters_dir,
    )  # fmt: skip

    def ready(said: dict[str, Any]) -> None:
        _note([*said["notes"], f"each of {processes} engine processes as above, with {plan.threads} threads"])
        _announce(front, said["names"], said["no_chat"])

    return serve_fleet(plan, processes, front.listener, keys=front.keys, hosts=front.hosts, ready=ready)


def _model_path(name: str) -> Path:
    from dacheng.cli.models import find_model

    return find_model(name)


def _adapters(texts: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """What --adapter says."""
    from dacheng.serve.options import named

    found = []
    for text in texts:
        name, path = named(text, "--adapter")
        if not Path(path).is_dir():
            raise UsageError("there is no such directory", field="--adapter", value=text,
                             remedy="NAME=DIRECTORY, with adapter_config.json in it")  # fmt: skip
        found.append((name or Path(path).name, Path(path)))
    return tuple(found)


def _threads(processes: int, threads: int | None) -> int | None:
    for flag, value in (("--processes", processes), ("--threads-per-process", threads)):
        if value is not None and value < 1:
            raise UsageError("too few", field=flag, value=value, remedy="at least 1")
    return threads


def _note(notes: list[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def _need_extra() -> None:
    from importlib.util import find_spec

    for library, module in (
        ("starlette", "starlette"),
        ("uvicorn", "uvicorn"),
        ("prometheus-client", "prometheus_client"),
    ):
        if find_spec(module) is None:
            raise MissingExtra(library, "serve")


def _find(models: tuple[str, ...], names: tuple[str, ...]) -> list[ModelPath]:
    """What --model and --name say."""
    from dacheng.cli.models import find_model
    from dacheng.serve.options import ModelPath, named

    if names and len(models) > 1:
        raise UsageError("which of the models has this name?", field="--name", value=names[0],
                         remedy=f"--model {names[0]}=DIR")  # fmt: skip
    found = []
    for text in models:
        own, rest = named(text, "--model")
        path = find_model(rest)
        found.append(ModelPath(path, names or (own or path.name,)))
    return found


def _announce(front: _Front, names: list[str], no_chat: dict[str, str]) -> None:
    key = " -H 'Authorization: Bearer KEY'" if front.keys else ""
    path, body = "v1/chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
    for name, why in no_chat.items():
        print(f"no chats with {name}: {why}", file=sys.stderr)
    if names[0] in no_chat:
        path, body = "v1/completions", '"prompt": "Hello"'
    print(f"serving {', '.join(names)} at {front.url} (a chat page; Ctrl-C stops)")
    print(
        f"  curl {front.url}/{path} -H 'Content-Type: application/json'{key} \\\n"
        f'    -d \'{{"model": "{names[0]}", {body}, "max_tokens": 64}}\'',
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
