"""do: tokenizer. Learns a vocabulary from the training documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dacheng.errors import UsageError
from dacheng.records import Artifact
from dacheng.stages.base import Input, StageContext

if TYPE_CHECKING:
    from dacheng.data.documents import DocumentStore
    from dacheng.text import Tokenizer

VERSION = 1
KIND = "tokenizer"
INPUTS = {"documents": Input("documents")}
_MEASURED_BYTES = 4 << 20  # of held-out text, for the bytes that a token stands for


@dataclass(frozen=True, kw_only=True)
class Config:
    """path: take the tokenizer in this directory instead of learning one; the rest then says nothing and is refused.
    kind: bpe (byte-level), unigram or wordpiece. vocab_size: special tokens included. max_bytes: of text to learn
    from, the first documents in order (what is left unread is said); null for all. digits: the longest group of digits
    in a token. isolate_han: Chinese runs are cut from what stands beside them. split: instead of both, as a family
    does it that llama.cpp knows (deepseek-v3, gpt-2 …): models can then be exported to GGUF. min_frequency: pairs that
    are rarer are not joined."""

    path: Path | None = None
    kind: Literal["bpe", "unigram", "wordpiece"] = "bpe"
    vocab_size: int = 4096
    special_tokens: tuple[str, ...] = ()
    max_bytes: int | None = 200_000_000
    digits: Literal[1, 2, 3] = 2
    isolate_han: bool = True
    split: str | None = None
    min_frequency: int | None = None

    def __post_init__(self) -> None:
        if self.path is None:
            return
        for f in fields(self):
            if f.name != "path" and getattr(self, f.name) != f.default:
                remedy = "leave it out, or leave out path"
                value = getattr(self, f.name)
                raise UsageError("a tokenizer that is there is not learnt", field=f.name, value=value, remedy=remedy)


def externals(config: Config) -> dict[str, str] | None:
    """The tokenizer that is taken as it is."""
    if config.path is None:
        return None
    from dacheng.text import Tokenizer

    return {"tokenizer": Tokenizer.load(config.path).fingerprint}


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves tokenizer/ (tokenizer.json, tokenizer_config.json)."""
    from dacheng.data.documents import DocumentStore
    from dacheng.text import Tokenizer

    store = DocumentStore.open(inputs["documents"].path)
    learnt: dict[str, Any] = {}
    if config.path is not None:
        tokenizer = Tokenizer.load(config.path)
    else:
        tokenizer, learnt = _learn(config, store, context)
    tokenizer.save(out / "tokenizer")
    metrics = {"vocab_size": tokenizer.vocab_size, **learnt, **_measure(store, tokenizer)}
    return Artifact(KIND, out / "tokenizer", metrics=metrics)


def _learn(config: Config, store: DocumentStore, context: StageContext) -> tuple[Tokenizer, dict[str, Any]]:
    from dacheng.text import train_tokenizer

    total = store.bytes("train")
    limit = total if config.max_bytes is None else min(total, config.max_bytes)
    with context.reporter.task("reading for the vocabulary", limit, "B") as task:
        tokenizer = train_tokenizer(
            _texts(store, limit),
            kind=config.kind,
            vocab_size=config.vocab_size,
            special_tokens=config.special_tokens,
            digits=config.digits,
            isolate_han=config.isolate_han,
            split=config.split,
            min_frequency=config.min_frequency,
            progress=lambda stage, done, total: task.update(done) if stage == "read" else task.update(text="learning"),
        )
    if limit < total:
        context.reporter.note(f"learnt from the first {limit:,} of {total:,} bytes")
    return tokenizer, {"kind": config.kind, "learnt_from_bytes": limit, "all_bytes": total}


def _texts(store: DocumentStore, limit: int) -> Iterator[str]:
    seen = 0
    for text in store.texts("train"):
        if seen >= limit:
            return
        yield text
        seen += len(text.encode("utf-8"))


def _measure(store: DocumentStore, tokenizer: Tokenizer) -> dict[str, float]:
    """Bytes that a token stands for, in text that the vocabulary was not learnt from."""
    n_bytes = tokens = 0
    for text in store.texts("valid") if "valid" in store.splits else ():
        tokens += len(tokenizer.encode(text))
        n_bytes += len(text.encode("utf-8"))
        if n_bytes >= _MEASURED_BYTES:
            break
    return {"bytes_per_token": n_bytes / tokens} if tokens else {}
