"""do: sample. What the model writes for some prompts: before training, after it, and what an n-gram sampler writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.records import Artifact
from dacheng.stages.base import Input, StageContext

if TYPE_CHECKING:
    from dacheng.formats.model_directory import LoadedModel

VERSION = 1
KIND = "samples"
INPUTS = {"model": Input("model"), "documents": Input("documents", required=False)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """before: also what the same model wrote when its weights were random. ngram_order: of the byte n-gram sampler
    beside it, learnt from the training documents; 0 for none."""

    prompts: tuple[str, ...] = ("def main(", "class ", "import os\n", "    for i in range(")
    max_tokens: int = 96
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    before: bool = True
    ngram_order: int = 0


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves samples.json: a list of {prompt, before, after, ngram, temperature}."""
    import json

    from dacheng.formats.atomic import replacing_file
    from dacheng.formats.model_directory import load_model
    from dacheng.stages.train import initial_model

    loaded = load_model(inputs["model"].path)
    rows: list[dict[str, Any]] = [{"prompt": p, "temperature": config.temperature} for p in config.prompts]
    for row, text in zip(rows, _write(config, loaded.model, loaded)):
        row["after"] = text
        context.reporter.note(f"  {row['prompt']!r} -> {text[:60]!r}")
    if config.before:
        seed = (loaded.provenance.get("recipe") or {}).get("seed", 0)
        for row, text in zip(rows, _write(config, initial_model(loaded.model.traits, seed), loaded)):
            row["before"] = text
    if config.ngram_order and "documents" in inputs:
        for row, text in zip(rows, _ngram(config, inputs["documents"].path, rows)):
            row["ngram"] = text
    path = out / "samples.json"
    with replacing_file(path) as file:
        file.write(json.dumps(rows, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace"))
    return Artifact(KIND, path, metrics={"samples": len(rows)})


def _write(config: Config, model: Any, loaded: LoadedModel) -> list[str]:
    from dacheng.engine.engine import Engine
    from dacheng.protocols import SamplingParams

    params = [
        SamplingParams(
            max_tokens=config.max_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed + i
        )
        for i in range(len(config.prompts))
    ]
    return [done.text for done in Engine(model, loaded.tokenizer).generate(list(config.prompts), params)]


def _ngram(config: Config, documents: Path, rows: list[dict[str, Any]]) -> list[str]:
    """As many bytes as the model wrote."""
    from dacheng.data.documents import DocumentStore
    from dacheng.evaluate.ngram import ByteNGram

    store = DocumentStore.open(documents)
    model = ByteNGram(config.ngram_order).fit(text.encode("utf-8") for text in store.texts("train"))
    written = []
    for i, row in enumerate(rows):
        n_bytes = len(row["after"].encode("utf-8"))
        drawn = model.sample(row["prompt"].encode("utf-8"), n_bytes, config.seed + i, config.temperature)
        written.append(drawn.decode("utf-8", "replace"))
    return written
