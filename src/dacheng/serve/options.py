"""How an engine is to be made: what the command line says, and what a router tells its processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError
from dacheng.serve.limits import Limits

KV_DTYPES = ("float32", "bfloat16", "int8")
WEIGHTS_MEMORY = ("fast", "small")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """max_batch: requests that run together. max_waiting: that may wait for it. max_context: tokens of one request; the
    model's own by default. packed: weights of a .gguf file stay in its blocks where they can. weights_memory: "small"
    keeps only those, "fast" also what makes prompts quicker. template: in place of the model's own. kv_dtype: of keys
    and values; the weights' by default. deterministic: the same text whatever else is in the batch. speculate: tokens
    that are guessed in a step; draft_model: who guesses them, else they are looked up in the text. adapters: (name,
    directory) of each LoRA adapter. prefix_cache: texts that begin alike share what is computed of the beginning.
    max_tokens_per_step: prompts longer than that are computed in chunks, between which running answers go on."""

    max_batch: int = 16
    max_context: int | None = None
    max_waiting: int = 64
    packed: bool = True
    template: str | None = None
    kv_dtype: str | None = None
    deterministic: bool = False
    draft_model: Path | None = None
    speculate: int = 0
    weights_memory: str = "fast"
    adapters: tuple[tuple[str, Path], ...] = ()
    prefix_cache: bool = True
    max_tokens_per_step: int = 512

    def __post_init__(self) -> None:
        """Raises UsageError for what no engine takes."""
        for name, least in (("max_batch", 1), ("max_waiting", 1), ("speculate", 0), ("max_tokens_per_step", 1)):
            if getattr(self, name) < least:
                raise UsageError("too few", field=_flag(name), value=getattr(self, name), remedy=f"at least {least}")
        for name, known in (("kv_dtype", (None, *KV_DTYPES)), ("weights_memory", WEIGHTS_MEMORY)):
            if getattr(self, name) not in known:
                one_of = "one of " + ", ".join(str(value) for value in known if value)
                raise UsageError("there is no such choice", field=_flag(name), value=getattr(self, name), remedy=one_of)
        if self.draft_model is not None and not self.speculate:
            raise UsageError("a draft model guesses nothing", field="--draft-model", value=str(self.draft_model),
                             remedy="say how many tokens it guesses in a step: --speculate 4")  # fmt: skip
        names = [name for name, _ in self.adapters]
        for name in names:
            if names.count(name) > 1:
                raise UsageError("two adapters have one name", field="--adapter", value=name, remedy="name each apart")

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        draft = None if self.draft_model is None else str(self.draft_model)
        return asdict(self) | {"draft_model": draft, "adapters": [[name, str(path)] for name, path in self.adapters]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EngineOptions:
        known = {name.name: values[name.name] for name in fields(cls)}
        draft = known["draft_model"]
        known["draft_model"] = None if draft is None else Path(draft)
        known["adapters"] = tuple((name, Path(path)) for name, path in known["adapters"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class ModelPath:
    """A model to serve: a directory or a .gguf file, and its names, the first its own."""

    path: Path
    names: tuple[str, ...]


def named(text: str, flag: str) -> tuple[str | None, str]:
    """(name, the rest) of "NAME=REST"; no name where there is none, or where the whole is a path that exists.

    Raises UsageError for half of it.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or Path(text).exists():
        return None, text
    if not name or not rest:
        raise UsageError("half of NAME=PATH is missing", field=flag, value=text, remedy=f"{flag} small=models/small")
    return name, rest


def check_names(models: list[ModelPath], options: EngineOptions) -> None:
    """Raises UsageError when two models have one name, or when an option that belongs to one model meets several."""
    names = [name for model in models for name in model.names] + [name for name, _ in options.adapters]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("two models have one name", field="--model", value=name,
                             remedy=f"name them apart: --model {name}=DIR --model other=DIR")  # fmt: skip
    if len(models) > 1:
        for field in ("template", "draft_model", "adapters"):
            if getattr(options, field):
                raise UsageError(f"it belongs to one model, and {len(models)} are served", field=_flag(field),
                                 remedy="serve that model in a server of its own")  # fmt: skip


def _flag(name: str) -> str:
    known = {"template": "--chat-template", "adapters": "--adapter"}
    return known.get(name, "--" + name.replace("_", "-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """What an engine process of a router is told: which models, how, and what it may take. memory: bytes, all models
    together. threads: of one operator. adapters_dir: clients may load adapters that lie below it."""

    models: tuple[ModelPath, ...]
    options: EngineOptions
    limits: Limits
    drain_s: float
    threads: int
    memory: int
    adapters_dir: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "models": [[str(model.path), *model.names] for model in self.models],
            "options": self.options.to_json(),
            "limits": asdict(self.limits),
            "drain_s": self.drain_s,
            "threads": self.threads,
            "memory": self.memory,
            "adapters_dir": None if self.adapters_dir is None else str(self.adapters_dir),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WorkerPlan:
        return cls(
            models=tuple(ModelPath(Path(path), tuple(names)) for path, *names in values["models"]),
            options=EngineOptions.from_json(values["options"]),
            limits=Limits(**values["limits"]),
            drain_s=values["drain_s"],
            threads=values["threads"],
            memory=values["memory"],
            adapters_dir=None if values["adapters_dir"] is None else Path(values["adapters_dir"]),
        )
