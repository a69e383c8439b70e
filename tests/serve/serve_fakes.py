"""An engine that says what it is told to, a tokenizer with a chat template, and a real server in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from dacheng.engine.engine import StepOutput
from dacheng.engine.stops import OutputText
from dacheng.errors import DachengError
from dacheng.protocols import SamplingParams
from dacheng.serve.app import make_app
from dacheng.serve.keys import Keys
from dacheng.serve.limits import Limits
from dacheng.serve.served_model import Models, ServedModel
from dacheng.serve.server import bind, make_server
from dacheng.text import Tokenizer, train_tokenizer
from dacheng.text.chat.builtin import TEMPLATES

TEXTS = [
    "the cat sat on the mat, 大成 若缺 。\n\n",
    'def main():\n    return {"name": "f", "arguments": {"x": 1}}\n',
    "🙂 the END of the story END <think> </think> <tool_call> </tool_call>\n",
] * 20


@lru_cache
def chat_tokenizer(template: str | None = "qwen") -> Tokenizer:
    special = ["<|im_start|>", "<|im_end|>"]
    if template == "mistral":
        special += ["[TOOL_CALLS]", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    tokenizer = train_tokenizer(TEXTS, vocab_size=360, special_tokens=special)
    if template is not None:
        tokenizer.config["chat_template"] = TEMPLATES.get(template, template)
    return tokenizer


class Full(DachengError):
    retry_after_s = 0.2


class FakeEngine:
    """say(prompt ids, params) is what is answered, a token a step, `pause_s` apart. As many run at once as there is
    `room` for, `max_waiting` more wait."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        say: Callable[[Sequence[int], SamplingParams], str] | str = "the cat sat",
        *,
        pause_s: float = 0.0,
        room: int = 1000,
        max_waiting: int = 64,
        ends: str | None = None,
    ) -> None:
        self.tokenizer, self.pause_s, self.max_waiting, self.ends = tokenizer, pause_s, max_waiting, ends
        self.say = (lambda prompt, params: say) if isinstance(say, str) else say
        self.free, self.waiting, self.running, self.cancelled, self.tokens = room, 0, 0, 0, 0
        self.healthy, self.started, self.asked = True, False, list[tuple[list[int], SamplingParams, str]]()

    def start(self) -> None:
        self.started, self.changed = True, asyncio.Condition()

    async def stop(self, drain: bool = True, timeout_s: float = 30) -> None:
        self.started = False

    def stats(self) -> dict[str, float]:
        return {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage": 0.25,
            "prompt_tokens": 7,
            "generation_tokens": self.tokens,
        }

    async def embed(self, token_ids: list[list[int]]) -> list[torch.Tensor]:
        return [torch.tensor([len(ids), 0.5, -1.0]) for ids in token_ids]

    async def generate(
        self, prompt: Sequence[int], params: SamplingParams, *, deadline_s: float | None = None, salt: str = ""
    ) -> AsyncIterator[StepOutput]:
        self.asked.append((list(prompt), params, salt))
        if self.waiting >= self.max_waiting and self.running >= self.free:
            raise Full("the queue is full", field="max_waiting", value=self.waiting, remedy="try again later")
        self.waiting += 1
        try:
            async with self.changed:
                await self.changed.wait_for(lambda: self.running < self.free)
                self.running += 1
        finally:
            self.waiting -= 1
        done = False
        try:
            for step in self._steps(list(prompt), params):
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
                self.tokens += 1
                done = step.finish_reason is not None
                yield step
        finally:
            self.running -= 1
            self.cancelled += not done
            async with self.changed:
                self.changed.notify_all()

    def _steps(self, prompt: list[int], params: SamplingParams) -> Iterator[StepOutput]:
        tokenizer = self.tokenizer
        said = tokenizer.encode(self.say(prompt, params), allow_special=True)
        text = OutputText(tokenizer.stream_decoder(), params.stop, prompt)
        for k, token in enumerate([*said, tokenizer.eos_id], 1):
            output = StepOutput(1, [token])
            if params.logprobs:
                output.logprobs = [-0.5]
                output.top_logprobs = [[(token, -0.5), (5, float("-inf"))][: params.top_logprobs]]
            if params.prompt_logprobs is not None and k == 1:
                output.prompt_logprobs = [None, *([(i, -1.0)] for i in prompt[1:])]
            if token != tokenizer.eos_id:
                output.text = text.push(token)
            ended = token == tokenizer.eos_id or text.stopped
            if ended or k == params.max_tokens:
                output.text += text.finish()
                output.finish_reason = self.ends or ("stop" if ended else "length")
                yield output
                return
            yield output


def served(engine: FakeEngine, names: Sequence[str] = ("tiny", "alias"), **more) -> ServedModel:
    tokenizer = engine.tokenizer
    known = {"max_context": 512, "vocab_size": tokenizer.vocab_size} | more
    return ServedModel.of(names, engine, tokenizer, **known)


@contextlib.contextmanager
def running(
    *models: ServedModel,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    header_s: float = 5.0,
    small: bool = False,
    adapters_dir: Path | None = None,
) -> Iterator[str]:
    """A real server; yields its URL. small: with small buffers for what it sends."""
    app = make_app(
        Models(list(models), adapters_dir), keys=Keys(keys), limits=limits, hosts=("127.0.0.1", "localhost"), drain_s=5
    )
    listener = bind("127.0.0.1", 0)
    if small:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = make_server(app, header_s=header_s, drain_s=5)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it comes to hold."""
    for _ in range(int(seconds / 0.02)):
        if holds():
            return True
        threading.Event().wait(0.02)
    return holds()


def talk(url, raw, *, wait=5.0):
    """(status, all that came back) of raw bytes; status 0 when the server closed the connection."""
    with connected(url) as found:
        found.settimeout(wait)
        found.sendall(raw)
        answer = b""
        try:
            while piece := found.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer:
                    break
        except ConnectionResetError:
            pass
    return (int(answer.split(b" ")[1]) if answer else 0), answer


def connected(url):
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 5)
