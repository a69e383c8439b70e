"""do: tokenize. Documents -> token shards (Megatron .bin/.idx) and a best-fit packing index for each split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dacheng.records import Artifact, Drops
from dacheng.stages.base import Input, StageContext

VERSION = 1
KIND = "tokens"
INPUTS = {"documents": Input("documents"), "tokenizer": Input("tokenizer")}


@dataclass(frozen=True, kw_only=True)
class Config:
    """context_length: tokens of a row. packing: best-fit keeps documents whole where they fit, concatenated cuts them
    anywhere. shard_tokens: a new file begins after so many. batch_bytes: text encoded at once."""

    context_length: int = 512
    packing: Literal["best-fit", "concatenated"] = "best-fit"
    shard_tokens: int = 1 << 29
    batch_bytes: int = 1 << 20


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves tokens/. Records without text are counted as dropped."""
    from dacheng.data.prepare import tokenize
    from dacheng.text import Tokenizer

    drops = Drops()
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    with context.reporter.task("tokenizing", unit="B") as task:
        corpus = tokenize(
            inputs["documents"].path,
            tokenizer,
            out / "tokens",
            config.context_length,
            packing=config.packing,
            shard_tokens=config.shard_tokens,
            batch_bytes=config.batch_bytes,
            drops=drops,
            progress=lambda done, total: task.update(done, total=total),
        )
    metrics: dict[str, object] = {"context_length": corpus.context_length, "vocab_size": tokenizer.vocab_size}
    tokens = 0
    for split in corpus.splits:
        entry = corpus.entry(split)
        figures = {key: entry[key] for key in ("documents", "tokens", "bytes", "bytes_per_token", "unknown_tokens")}
        metrics[split] = {**figures, **{key: entry["packing"][key] for key in ("rows", "fill_rate", "documents_cut")}}
        tokens += entry["tokens"]
    context.entry.add(tokens=tokens, drops=drops)
    return Artifact(KIND, out / "tokens", metrics=metrics)
