"""do: eval. Bits per byte on the held-out documents, beside n-gram floors on the same split; and does it parse?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.records import Artifact
from dacheng.stages.base import Input, StageContext

if TYPE_CHECKING:
    from dacheng.data.documents import DocumentStore
    from dacheng.evaluate.ngram import ByteNGram
    from dacheng.formats.model_directory import LoadedModel

VERSION = 1
KIND = "evaluation"
INPUTS = {"model": Input("model"), "documents": Input("documents")}


@dataclass(frozen=True, kw_only=True)
class Config:
    """context_length: of a window, null for all the model's positions, up to 2048. stride: new tokens of each further
    window, null for half of them. byte_orders, token_orders: of the n-gram floors; empty for none. parse_prompts: how
    many function headers from held-out Python files the model completes, to be parsed; 0 for none. parse_tokens,
    temperature: of these completions. The sampler of the largest byte order writes as many bytes for each."""

    context_length: int | None = None
    stride: int | None = None
    batch: int = 8
    byte_orders: tuple[int, ...] = (5, 7)
    token_orders: tuple[int, ...] = (3,)
    parse_prompts: int = 0
    parse_tokens: int = 64
    temperature: float = 0.8
    seed: int = 0


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves evaluation.json. Raises DachengError when the model has no tokenizer or there is no valid split."""
    from dacheng.data.documents import DocumentStore
    from dacheng.errors import DachengError
    from dacheng.formats.json_files import write_json
    from dacheng.formats.model_directory import load_model

    store, loaded = DocumentStore.open(inputs["documents"].path), load_model(inputs["model"].path)
    if "valid" not in store.splits or not store.documents("valid"):
        remedy = "raise split.valid_fraction in the data stage"
        raise DachengError("there are no held-out documents", field="documents", value=store.splits, remedy=remedy)
    if loaded.tokenizer is None:
        raise DachengError("the model has no tokenizer", field="model", value=str(inputs["model"].path))
    metrics = _bits_per_byte(config, store, loaded, context)
    floors, sampler = _floors(config, store, loaded, context)
    metrics["floors"] = floors
    if floors:
        best = min(floors.values())
        metrics |= {"best_floor": best, "below_best_floor": 1 - metrics["bits_per_byte"] / best}
    if config.parse_prompts:
        metrics["parse"] = _parse(config, store, loaded, sampler, context)
    write_json(out / "evaluation.json", metrics)
    return Artifact(KIND, out / "evaluation.json", metrics=metrics)


def _bits_per_byte(config: Config, store: DocumentStore, loaded: LoadedModel, context: StageContext) -> dict[str, Any]:
    from dacheng.evaluate.perplexity import LONGEST_WINDOW, evaluate_text

    with context.reporter.task("scoring held-out documents", unit="tok") as task:
        found = evaluate_text(
            loaded.model,
            loaded.tokenizer,
            store.texts("valid"),
            context_length=config.context_length or min(loaded.model.traits.longest_text, LONGEST_WINDOW),
            stride=config.stride,
            batch=config.batch,
            progress=task.update,
        )
    context.entry.add(tokens=found["tokens"])
    return found


def _floors(
    config: Config, store: DocumentStore, loaded: LoadedModel, context: StageContext
) -> tuple[dict[str, float], ByteNGram | None]:
    """Bits per byte of each n-gram model on the valid split, and the byte model of the largest order."""
    from dacheng.evaluate.ngram import ByteNGram, TokenNGram

    floors: dict[str, float] = {}
    largest = None
    for order in sorted(config.byte_orders):
        name = f"byte {order}-gram"
        with context.reporter.task(name):
            largest = ByteNGram(order).fit(text.encode("utf-8") for text in store.texts("train"))
            floors[name] = largest.bits_per_byte(text.encode("utf-8") for text in store.texts("valid"))
        context.reporter.note(f"  {name}: {floors[name]:.4f} bits per byte")
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    for order in sorted(config.token_orders):
        name = f"token {order}-gram"
        with context.reporter.task(name):
            model = TokenNGram(order, tokenizer.byte_lengths()).fit(map(tokenizer.encode, store.texts("train")))
            floors[name] = model.bits_per_byte(map(tokenizer.encode, store.texts("valid")))
        context.reporter.note(f"  {name}: {floors[name]:.4f} bits per byte")
    return floors, largest


def _parse(
    config: Config, store: DocumentStore, loaded: LoadedModel, sampler: ByteNGram | None, context: StageContext
) -> dict[str, Any]:
    """How often prompt and completion are Python: of the model, and of the n-gram sampler with as many bytes."""
    from dacheng.engine.engine import Engine
    from dacheng.evaluate.code import make_prompts, parse_share
    from dacheng.protocols import SamplingParams

    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    room = loaded.model.traits.longest_text - config.parse_tokens

    def fits(prompt: str) -> bool:
        return len(tokenizer.encode(prompt)) <= room

    prompts = make_prompts(store.texts("valid"), config.parse_prompts, config.seed, fits)
    params = [
        SamplingParams(max_tokens=config.parse_tokens, temperature=config.temperature, seed=config.seed + i)
        for i in range(len(prompts))
    ]
    engine = Engine(loaded.model, loaded.tokenizer)
    texts: list[str] = []
    with context.reporter.task("completing functions", len(prompts)) as task:
        for start in range(0, len(prompts), 16):
            done = engine.generate(prompts[start : start + 16], params[start : start + 16])
            texts += [completion.text for completion in done]
            task.update(len(texts))
    found = {"the model": parse_share(prompts, texts)}
    if sampler is not None:
        drawn = [
            sampler.sample(prompt.encode("utf-8"), len(text.encode("utf-8")), config.seed + i, config.temperature)
            for i, (prompt, text) in enumerate(zip(prompts, texts))
        ]
        name = f"byte {max(config.byte_orders)}-gram"
        found[name] = parse_share(prompts, [data.decode("utf-8", "replace") for data in drawn])
    return found
