"""A model for one run: its engine on a thread, asked from any thread, with an adapter that may change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dacheng.errors import DachengError
from dacheng.protocols import Completion, SamplingParams

if TYPE_CHECKING:
    from dacheng.engine.async_engine import AsyncEngine
    from dacheng.text import ChatRenderer, Tokenizer

T = TypeVar("T")
TOGETHER = 8  # requests in a batch
CONTEXT = 4096  # tokens of one request at most; what models of this size make good use of
CACHED_TOKENS = 3 * CONTEXT


class LoopThread:
    """An asyncio loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="run-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises. Ctrl-C cancels it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


class ModelRoom:
    """path: a model directory or a .gguf file. `base` and `adapted` are LanguageModels over one engine; `adapted` is
    there once `use_adapter` was called.

    Raises DachengError for a model that cannot be read, has no tokenizer, or no chat template.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        from dacheng.adapt.bank import AdapterBank
        from dacheng.engine.async_engine import AsyncEngine
        from dacheng.engine.engine import Engine
        from dacheng.engine.fused import FusedCPU
        from dacheng.formats.model_directory import load_model
        from dacheng.formats.packed import is_packed

        self.path, self.name = path, name or path.stem
        loaded = load_model(path, dtype="fast", packed=is_packed(path))
        self.notes, self.generation = loaded.notes, loaded.generation
        self.tokenizer, self.renderer = _talks(loaded.tokenizer, path)
        executor = None if FusedCPU.why_not(loaded.model) else FusedCPU(loaded.model)
        longest = min(CONTEXT, loaded.model.traits.longest_text)
        self.core = Engine(
            loaded.model, self.tokenizer, max_batch=TOGETHER, max_context=longest, executor=executor,
            cache_tokens=max(CACHED_TOKENS, longest), adapters=AdapterBank(loaded.model),
        )  # fmt: skip
        self.engine: AsyncEngine = AsyncEngine(self.core, max_waiting=256, watchdog_s=600)
        self.thread = LoopThread()
        self.thread.call(self._start())
        self.adapter = ""
        self._versions = 0
        self._changing = threading.Lock()
        self.on_adapter: Callable[[str, Path], None] = lambda name, path: None
        ends = loaded.generation.get("eos_token_id")
        self._ends = tuple(i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int))
        self.base = _View(self, lambda: "")
        self.adapted = _View(self, lambda: self.adapter)

    async def _start(self) -> None:
        self.engine.start()

    def use_adapter(self, path: Path) -> None:
        """`adapted` answers with this PEFT directory from now on; what is being answered keeps the one before."""
        with self._changing:
            self._versions += 1
            before, name = self.adapter, f"adapted-{self._versions}"
            self.thread.call(self.engine.load_adapter(name, path))
            self.adapter = name
            self.on_adapter(name, path)
            if before:
                self.thread.call(self.engine.unload_adapter(before))

    def close(self) -> None:
        self.thread.call(self.engine.stop(drain=False))
        self.thread.close()

    def generate(self, prompts: Sequence[Any], params: Sequence[SamplingParams], adapter: str) -> list[Completion]:
        return self.thread.call(self._all(prompts, params, adapter))

    async def _all(self, prompts: Sequence[Any], params: Sequence[SamplingParams], adapter: str) -> list[Completion]:
        return await asyncio.gather(*[self._one(p, own, adapter) for p, own in zip(prompts, params, strict=True)])

    async def _one(self, prompt: str | Sequence[int], params: SamplingParams, adapter: str) -> Completion:
        ids = self.core.encode(prompt)
        found = Completion(prompt_token_ids=list(ids))
        async for output in self.engine.generate(ids, params, adapter=adapter):
            found.token_ids += output.token_ids
            found.text += output.text
            found.finish_reason = output.finish_reason
            if output.error is not None:
                raise output.error
        return found

    def with_ends(self, params: SamplingParams) -> SamplingParams:
        from dataclasses import replace

        return replace(params, stop_token_ids=tuple({*params.stop_token_ids, *self._ends})) if self._ends else params


class _View:
    """A dacheng.protocols.LanguageModel: the room's engine with the adapter that `adapter()` names."""

    def __init__(self, room: ModelRoom, adapter: Callable[[], str]) -> None:
        self._room, self._adapter = room, adapter

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        return self._room.generate(prompts, [self._room.with_ends(one) for one in each], self._adapter())

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        raise DachengError("the engine of a run does not score texts", remedy="use Engine.loglikelihood")

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        work = self._room.engine.embed([self._room.core.encode(text) for text in texts], adapter=self._adapter())
        return [vector.tolist() for vector in self._room.thread.call(work)]


def _talks(tokenizer: Tokenizer | None, path: Path) -> tuple[Tokenizer, ChatRenderer]:
    from dacheng.text import ChatRenderer

    if tokenizer is None:
        raise DachengError("this model has no tokenizer: it cannot be asked anything", field="--model", value=str(path),
                           remedy="copy the tokenizer's files beside the weights")  # fmt: skip
    try:
        return tokenizer, ChatRenderer(tokenizer)
    except DachengError as error:
        raise DachengError(f"this model cannot chat: {error.problem}", field="--model", value=str(path),
                           remedy="name one with a chat template, as smollm2 has") from error  # fmt: skip
