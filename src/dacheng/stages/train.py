"""do: train. Pretrains a decoder on packed tokens: size and length from a plan, or as the configuration says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng import recipes
from dacheng.errors import UsageError
from dacheng.models.traits import DecoderTraits
from dacheng.records import Artifact
from dacheng.stages.base import Input, StageContext
from dacheng.train.budget import Budget
from dacheng.train.config import TrainConfig

if TYPE_CHECKING:
    from dacheng.data.corpus import TokenizedCorpus
    from dacheng.models.decoder import Decoder
    from dacheng.text import Tokenizer
    from dacheng.train.callbacks import Callback
    from dacheng.train.report import TrainResult

VERSION = 1
KIND = "model"
INPUTS = {"tokens": Input("tokens"), "tokenizer": Input("tokenizer"), "plan": Input("plan", required=False)}
_FREE: dict[str, Any] = {"free": True}  # moves no weight: a change does not train again
_ROWS_AT_ONCE = 8  # in evaluation


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Everything of TrainConfig (steps, budget, optimizer, schedule…), and:

    model: traits of the decoder (width, layers, heads, activation…), on top of the plan's where there is one;
    vocabulary and positions follow from the tokens. batch_rows: rows of a step, in micro_batches parts; null for the
    plan's, or 32. z_loss: weight of logsumexp² (PaLM, section 5). chunk: tokens whose logits are held at once.
    eval_every: steps between validations on eval_rows rows. sample_every: steps between samples of sample_prompt; null
    for none. tensorboard: also write its logs.
    Neither steps nor a budget: as long as the plan says, and no longer than its minutes at the speed measured here.
    """

    model: dict[str, Any] = field(default_factory=dict)
    batch_rows: int | None = None
    micro_batches: int | None = None
    z_loss: float = 0.0
    chunk: int = field(default=512, metadata=_FREE)
    eval_every: int = field(default=100, metadata=_FREE)
    eval_rows: int = field(default=64, metadata=_FREE)
    sample_every: int | None = field(default=None, metadata=_FREE)
    sample_prompt: str = field(default="def main(", metadata=_FREE)
    tensorboard: bool = field(default=False, metadata=_FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_positions"):
            if name in self.model:
                remedy = "set it in the tokenizer or tokenize stage"
                raise UsageError(
                    "this follows from the tokens", field=f"model.{name}", value=self.model[name], remedy=remedy
                )
        recipes.build(DecoderTraits, {"vocab_size": 1, **self.model}, "model")  # names and types, before anything runs


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (a model directory), train.jsonl and checkpoints; goes on from those of an interrupted run.

    Raises UsageError for traits that cannot be built, DachengError when the memory does not suffice (naming what fits),
    and what Trainer.fit raises.
    """
    from dacheng.data.corpus import TokenizedCorpus
    from dacheng.formats.json_files import read_json
    from dacheng.objectives.next_token import NextToken
    from dacheng.text import Tokenizer
    from dacheng.train.phases import Phase
    from dacheng.train.progress import Progress
    from dacheng.train.rng import derive_seed
    from dacheng.train.trainer import Trainer

    corpus, tokenizer = TokenizedCorpus.open(inputs["tokens"].path), Tokenizer.load(inputs["tokenizer"].path)
    plan = read_json(inputs["plan"].path) if "plan" in inputs else {}
    traits = model_traits(config, plan, tokenizer.vocab_size, corpus.context_length)
    settled = trainer_config(config, plan)
    rows, parts = _batch(config, plan)
    machine = context.machine()
    _check_memory(config, traits, rows // parts, corpus.context_length, machine.fast_dtype)
    model = initial_model(traits, config.seed)
    context.reporter.note(describe(model, rows, corpus.context_length))
    trainer = Trainer(
        model,
        [Phase(NextToken(config.chunk, config.z_loss, routed=traits.moe is not None))],
        corpus.source("train", rows, parts, seed=derive_seed(config.seed, "data")),
        [*_callbacks(config, corpus, tokenizer, routed=traits.moe is not None), Progress()],
        settled,
        out,
        ledger=context.ledger,
        machine=machine,
    )
    result = trainer.fit()
    metrics = _metrics(result, model, machine.peak_gflops(str(trainer.precision.dtype)))
    _save(out / "model", model, tokenizer, config, metrics, context, corpus)
    return Artifact(KIND, out / "model", metrics=metrics)


def model_traits(config: Config, plan: dict[str, Any], vocab_size: int, context_length: int) -> DecoderTraits:
    """The plan's traits, those of the configuration over them. UsageError for a model that cannot be built."""
    values = dict(plan.get("traits", {})) | config.model | {"vocab_size": vocab_size}
    values["max_positions"] = max(context_length, plan.get("traits", {}).get("max_positions", 0))
    return recipes.build(DecoderTraits, values, "model").validate()


def trainer_config(config: Config, plan: dict[str, Any]) -> TrainConfig:
    """The trainer's part of the configuration, with the plan's length where it says none itself."""
    own = recipes.part_of(TrainConfig, config)
    if not plan or own.steps is not None or own.budget != Budget():
        return own
    rows, _ = _batch(config, plan)  # the plan's tokens, in steps of the batch that is trained with
    steps = max(1, plan["tokens"] // (rows * plan["context_length"]))
    return replace(own, steps=steps, budget=Budget(minutes=plan["budget"]["minutes"]))


def initial_model(traits: DecoderTraits, seed: int) -> Decoder:
    """The model before training: its weights follow from the seed alone."""
    import torch

    from dacheng.models.decoder import Decoder
    from dacheng.train.rng import derive_seed

    return Decoder(traits).init_weights(torch.Generator().manual_seed(derive_seed(seed, "init")))


def describe(model: Decoder, rows: int, context_length: int) -> str:
    """Shape and batch in a line."""
    t, counts = model.traits, model.params()
    shape = f"{t.layers} layers x width {t.width}, {t.heads} heads, vocabulary {t.vocab_size}"
    return f"{shape}: {counts['total']:,} parameters; {rows} rows x {context_length} tokens a step"


def _batch(config: Config, plan: dict[str, Any]) -> tuple[int, int]:
    """Rows of a step and the parts they are computed in."""
    parts = config.micro_batches or (plan.get("micro_batches", 1) if config.batch_rows is None else 1)
    rows = config.batch_rows or plan.get("batch_rows", 32) * plan.get("micro_batches", 1)
    return rows, parts


def _check_memory(config: Config, traits: DecoderTraits, rows: int, context_length: int, fast_dtype: str) -> None:
    if not config.device.startswith("cpu"):
        return
    from dacheng.machine import available_bytes
    from dacheng.plan.memory import check_memory

    dtype = (
        "bfloat16"
        if config.precision == "bf16" or (config.precision, fast_dtype) == ("auto", "bfloat16")
        else "float32"
    )
    check_memory(
        traits,
        available_bytes(),
        batch_rows=max(rows, 1),
        context_length=context_length,
        optimizer=config.optimizer.kind,
        dtype=dtype,
        checkpoint_activations=config.checkpoint_activations,
        chunk=config.chunk,
    )


def _callbacks(config: Config, corpus: TokenizedCorpus, tokenizer: Tokenizer, routed: bool) -> list[Callback]:
    """Validation, samples and logs, as the configuration asks for them; routed: the model has experts."""
    import numpy as np

    from dacheng.evaluate.perplexity import evaluate_source
    from dacheng.train.callbacks import Evaluate
    from dacheng.train.logs import Sample, TensorBoard

    found: list[Callback] = []
    if routed:
        from dacheng.train.experts import ExpertLoad

        found.append(ExpertLoad())
    if "valid" in corpus.splits and corpus.entry("valid")["packing"]["rows"]:
        source, lengths = corpus.source("valid", 1), tokenizer.byte_lengths()
        chosen = np.arange(min(config.eval_rows, source.packing.rows))
        batches = [source.rows(chosen[i : i + _ROWS_AT_ONCE]) for i in range(0, len(chosen), _ROWS_AT_ONCE)]
        shown = ("bits_per_byte", "perplexity")

        def validate(model: Any) -> dict[str, float]:
            figures = evaluate_source(model, batches, lengths)
            return {name: figures[name] for name in shown}

        found.append(Evaluate(validate, config.eval_every))
    if config.sample_every is not None:
        found.append(Sample(lambda model: _sample(model, tokenizer, config.sample_prompt), config.sample_every))
    if config.tensorboard:
        found.append(TensorBoard())
    return found


def _sample(model: Any, tokenizer: Tokenizer, prompt: str) -> str:
    from dacheng.engine.engine import Engine
    from dacheng.protocols import SamplingParams

    params = SamplingParams(max_tokens=48, temperature=0.8, top_p=0.95, seed=0)
    return prompt + Engine(model, tokenizer, max_batch=1).generate([prompt], params)[0].text


def _metrics(result: TrainResult, model: Decoder, peak_gflops: float) -> dict[str, Any]:
    speed = result.flops / result.seconds if result.seconds else 0.0
    valid = {name.replace("/", "_"): value for name, value in result.metrics.items()}
    return {
        "parameters": model.params()["total"],
        "steps": result.steps,
        "tokens": result.tokens,
        "flops": result.flops,
        "seconds": result.seconds,
        "tokens_per_s": result.tokens_per_s,
        "mfu": speed / (peak_gflops * 1e9),
        "loss": result.loss,
        **valid,
        "stopped": result.stopped,
        "skipped_steps": result.skipped_steps,
        "resumed_from": result.resumed_from,
        "budget": result.budget,
        "warnings": result.warnings,
    }


def _save(
    path: Path, model: Decoder, tokenizer: Tokenizer, config: Config, metrics: dict[str, Any], context: StageContext,
    corpus: TokenizedCorpus,
) -> None:  # fmt: skip
    from dacheng.formats.model_directory import save_model

    provenance = {
        "recipe": context.recipe(config.seed),
        "data": {"documents": corpus.manifest["documents"], "tokenizer": tokenizer.fingerprint},
        "metrics": metrics,
        "ledger": context.ledger.totals(),
    }
    save_model(path, model, tokenizer, provenance=provenance)
