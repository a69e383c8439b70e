"""dacheng chat: a conversation in the terminal, with a model here or behind a URL."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError

HELP = "/reset begins anew, /system TEXT sets the system text (and begins anew), /quit ends; Ctrl-C stops an answer"
Answer = Callable[[list[dict[str, Any]]], Iterator[str]]


def chat(
    *,
    model: str,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.7,
    top_p: float = 1.0,
    seed: int | None = None,
    api_key_file: Path | None = None,
    chat_template: str | None = None,
) -> int:
    """Talks with a model; answers appear as they are written.

    Example: dacheng chat --model models/smollm2

    Parameters
    ----------
    model
        A model directory, a .gguf file, a run, or the URL of a server.
    system
        The system text.
    max_tokens
        Tokens of an answer at most; without it, as many as the context has room for.
    temperature
        0 always takes the most likely token.
    top_p
        Sample among the fewest tokens that have this probability together.
    seed
        For answers that repeat.
    api_key_file
        For a URL: the first key in it is sent; without, that in DACHENG_API_KEY.
    chat_template
        In place of the model's own: chatml, llama3, mistral, gemma, qwen, deepseek, or Jinja text.
    """
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if model.startswith(("http://", "https://")):
        answer = _remote(model, sampling, api_key_file)
    else:
        answer = _local(model, sampling, chat_template)
    return converse(answer, system)


def converse(answer: Answer, system: str | None) -> int:
    """Reads lines, prints answers, until the input ends."""
    begin: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(begin)
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        command, _, rest = line.strip().partition(" ")
        if not command:
            continue
        if command == "/quit":
            return 0
        if command == "/system":
            begin = [{"role": "system", "content": rest}] if rest else []
        if command in ("/reset", "/system"):
            messages = list(begin)
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        else:
            said = _say(answer, [*messages, {"role": "user", "content": line}])
            if said:
                messages += [{"role": "user", "content": line}, {"role": "assistant", "content": said}]


def _say(answer: Answer, messages: list[dict[str, Any]]) -> str:
    """Prints the answer and returns it, as far as it came."""
    said = ""
    pieces = answer(messages)
    try:
        with _interrupts():
            for piece in pieces:
                said += piece
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except DachengError as error:
        print(f"error: {error}", file=sys.stderr)
    finally:
        pieces.close()  # type: ignore[attr-defined]
    print(flush=True)
    return said


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever it did before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _remote(url: str, sampling: dict[str, Any], api_key_file: Path | None) -> Answer:
    from dacheng.cli.serve import first_key
    from dacheng.serve.client import Client

    client = Client(url, first_key(api_key_file))
    name = client.json("GET", "/v1/models")["data"][0]["id"]
    known = {key: value for key, value in sampling.items() if value is not None}
    return lambda messages: client.chat({"model": name, "messages": messages, **known})


def _local(model: str, sampling: dict[str, Any], template: str | None) -> Answer:
    from dacheng.cli.console import use_threads
    from dacheng.cli.models import find_model
    from dacheng.engine.engine import Engine
    from dacheng.formats.model_directory import load_model
    from dacheng.formats.packed import is_packed
    from dacheng.protocols import SamplingParams
    from dacheng.serve.served_model import end_ids
    from dacheng.serve.start import executor_for, need_tokenizer
    from dacheng.text import ChatRenderer

    use_threads()
    path = find_model(model)
    loaded = load_model(path, dtype="fast", packed=is_packed(path))
    tokenizer = need_tokenizer(loaded.tokenizer, path)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    executor, _ = executor_for(loaded.model)
    renderer, engine = ChatRenderer(tokenizer, template), Engine(loaded.model, tokenizer, executor=executor)
    ends = end_ids(loaded.generation, engine.vocab_size)
    most = sampling.pop("max_tokens")

    def answer(messages: list[dict[str, Any]]) -> Iterator[str]:
        rendered = renderer.render(messages, add_generation_prompt=True)
        room = max(1, engine.max_context - len(rendered.token_ids))
        params = SamplingParams(**sampling, max_tokens=min(room, most or room), stop_token_ids=ends)
        yield from engine.stream(rendered.token_ids, params)

    return answer
