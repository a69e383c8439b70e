"""A model as the server knows it: engine, tokenizer, chat template, and what its template teaches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dacheng.errors import DachengError
from dacheng.protocols import SamplingParams
from dacheng.serve.api_error import APIError
from dacheng.serve.reasoning import CLOSE as THOUGHT_CLOSE
from dacheng.serve.reasoning import OPEN as THOUGHT_OPEN
from dacheng.serve.tool_calls import MARKERS, detect_format

if TYPE_CHECKING:
    from torch import Tensor

    from dacheng.engine.engine import StepOutput
    from dacheng.serve.grounded import Grounding
    from dacheng.text import ChatRenderer, Tokenizer

DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # that generation_config.json may set


class ServingEngine(Protocol):
    """What the server asks of an engine: dacheng.engine.async_engine.AsyncEngine."""

    @property
    def healthy(self) -> bool: ...

    def start(self) -> Any: ...

    async def stop(self, drain: bool = True, timeout_s: float = 30) -> None: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        deadline_s: float | None = None,
        salt: str = "",
        adapter: str = "",
    ) -> AsyncIterator[StepOutput]: ...

    async def embed(self, token_ids: list[list[int]], *, adapter: str = "") -> list[Tensor]: ...

    def stats(self) -> dict[str, float]: ...


@dataclass(slots=True)
class ServedModel:
    """names: the first is the model's own, the others are aliases. renderer: None where there is no chat template
    (`no_chat` says why). tool_format: see tool_calls. end_ids: tokens that end a text beside the tokenizer's EOS.
    defaults: sampling parameters of requests that do not set them. marker_ids: special tokens that are shown in a chat
    because they mark calls and thoughts. adapter: of the engine, which every request goes through; then root is the
    name of its directory, parent that of its base. grounding: what answers chats in place of the model alone."""

    names: tuple[str, ...]
    engine: ServingEngine
    tokenizer: Tokenizer
    max_context: int
    vocab_size: int
    renderer: ChatRenderer | None = None
    no_chat: str = ""
    tool_format: str | None = None
    reasons: bool = False
    end_ids: tuple[int, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    marker_ids: frozenset[int] = frozenset()
    adapter: str = ""
    grounding: Grounding | None = None
    root: str = ""
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def is_own(self) -> bool:
        """Whether it has its engine for itself, or is the first of those that share one."""
        return not self.adapter and self.grounding is None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        engine: ServingEngine,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        vocab_size: int,
        generation: Mapping[str, Any] | None = None,
        template: str | None = None,
        tool_format: str | None = None,
    ) -> ServedModel:
        """generation: what generation_config.json says. template: in place of the tokenizer's own."""
        renderer, reason = _renderer(tokenizer, template)
        source = None if renderer is None else renderer.template
        generation = generation or {}
        markers = (*MARKERS, THOUGHT_OPEN, THOUGHT_CLOSE)
        return cls(
            names=tuple(names),
            engine=engine,
            tokenizer=tokenizer,
            max_context=max_context,
            vocab_size=vocab_size,
            renderer=renderer,
            no_chat=reason,
            tool_format=tool_format or detect_format(source),
            reasons=source is not None and THOUGHT_OPEN in source,
            end_ids=end_ids(generation, vocab_size),
            defaults={name: generation[name] for name in DEFAULTS if _is_number(generation.get(name))},
            marker_ids=frozenset(i for name, i in tokenizer.special_tokens.items() if name in markers),
        )

    def sampling_params(self, **given: Any) -> SamplingParams:
        """The defaults, and over them what the request gives (None: nothing given)."""
        known = {entry.name for entry in fields(SamplingParams)}
        chosen = self.defaults | {name: value for name, value in given.items() if value is not None}
        for name in chosen.keys() - known:
            raise APIError(400, "this engine does not implement it", param=name, code="unsupported_parameter")
        if not chosen.get("ignore_eos"):
            chosen["stop_token_ids"] = tuple({*chosen.get("stop_token_ids", ()), *self.end_ids})
        return SamplingParams(**chosen)


@dataclass(slots=True)
class Models:
    """The models of one server, by name."""

    served: list[ServedModel]
    adapters_dir: Path | None = None  # clients may load adapters that lie below it

    def find(self, name: str) -> ServedModel:
        """Raises APIError 404 naming the models that there are."""
        for model in self.served:
            if name in model.names:
                return model
        there = ", ".join(self.names)
        raise APIError(404, f"there is no model of this name; there is {there}", param="model", code="model_not_found")

    @property
    def names(self) -> list[str]:
        return [name for model in self.served for name in model.names]


def _renderer(tokenizer: Tokenizer, template: str | None) -> tuple[ChatRenderer | None, str]:
    from dacheng.text import ChatRenderer

    try:
        return ChatRenderer(tokenizer, template), ""
    except DachengError as error:
        return None, error.problem


def end_ids(generation: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Every token that ends a text, as generation_config.json lists them (some families end turns with another)."""
    found = generation.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return tuple(token_id for token_id in ids if isinstance(token_id, int) and 0 <= token_id < vocab_size)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
