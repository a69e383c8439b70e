"""do: prune. Makes a model sparser or really smaller, heals it, and says what that did to bytes, quality and speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dacheng.errors import UsageError
from dacheng.records import Artifact
from dacheng.stages import named
from dacheng.stages.base import Input, StageContext
from dacheng.stages.compressing import Opened, check_judge_text, finish, open_model, text_batches
from dacheng.stages.named import base_of

if TYPE_CHECKING:
    from dacheng.compress.prune.keep import Keep

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model", required=False)}
ZEROS = ("magnitude", "wanda", "sparsegpt")
PARTS = ("layers", "heads", "neurons", "width", "vocabulary")


@dataclass(frozen=True, kw_only=True)
class Config:
    """model: a directory or a GGUF file; null for the one of `from:`. method: zeros by magnitude, wanda or sparsegpt;
    layers, heads, neurons, width or vocabulary to cut out; low_rank for thin factors. sparsity: of zeros, a share or
    2:4. count: layers that go; heads, neurons or channels that stay. ratio: share of a matrix's numbers that low_rank
    keeps. measure: of heads and neurons, what makes one important. text: calibrates and heals (UTF-8 or .gz), and says
    which tokens a vocabulary needs. rows, length: stretches of it that calibrate. heal_steps, heal_how, heal_lr: of the
    training afterwards; 0 for none. heal_by: the text's next tokens, or the unpruned model's distributions over them.
    sparse: leave zeros out on disk, which dacheng reads; false stores whole matrices, which transformers reads too.
    dtype: of what is stored. judge_text: for perplexity before and after; judge: false for no table. speed: measure
    that too.
    """

    model: str | None = None
    method: Literal[
        "magnitude", "wanda", "sparsegpt", "layers", "heads", "neurons", "width", "vocabulary", "low_rank"
    ] = "wanda"  # fmt: skip
    sparsity: str | float = 0.5
    count: int | None = None
    ratio: float = 0.8
    measure: Literal["activation", "gradient", "magnitude"] = "activation"
    text: Path | None = None
    rows: int = 32
    length: int = 512
    heal_steps: int = 0
    heal_how: Literal["lora", "full"] = "lora"
    heal_by: Literal["text", "teacher"] = "text"
    heal_lr: float | None = None
    sparse: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    seed: int = 1
    judge: bool = True
    judge_text: Path | None = None
    speed: bool = False

    def __post_init__(self) -> None:
        from dacheng.compress.prune.sparsity import Sparsity

        Sparsity.parse(self.sparsity)
        if self.method in PARTS and self.method != "vocabulary" and self.count is None:
            told = "how many layers go" if self.method == "layers" else f"how many {self.method} stay"
            raise UsageError(f"nothing says {told}", field="count", value=None, remedy="count: 5")
        if self.count is not None and self.method not in PARTS[:-1]:
            raise UsageError(f"{self.method} has nothing to count", field="count", value=self.count,
                             remedy="count: null")  # fmt: skip
        if self.heal_steps and self.method == "low_rank":
            raise UsageError("factors are not healed", field="heal_steps", value=self.heal_steps, remedy="0")
        if self.heal_by == "teacher" and self.method == "vocabulary":
            raise UsageError("the unpruned model speaks of tokens that are gone", field="heal_by", value="teacher",
                             remedy="heal_by: text")  # fmt: skip
        by_weights = self.measure == "magnitude" and self.method in ("heads", "neurons")
        needs = self.method != "magnitude" and not by_weights
        if self.text is None and (needs or self.heal_steps):
            raise UsageError(f"{self.method} looks at what the model does with a text", field="text", value=None,
                             remedy="text: file.txt, of the kind that the model is for")  # fmt: skip


def externals(config: Config) -> dict[str, Any]:
    """The weights and the text. Raises DachengError for a file that is not there."""
    check_judge_text(config)
    text = [] if config.text is None else [config.text]
    return named.hashes(named.weights("model", config.model), named.files("text", text))


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (a model directory) and prune.json (what went, notes, the comparison). A stopped calibration of
    wanda and sparsegpt goes on, and so does a stopped healing. Raises what the methods raise."""
    from dacheng.compress.prune.storage import sparse_weights

    base = base_of(config.model, inputs)
    opened = open_model(base, context.reporter)
    report: dict[str, Any] = {"method": config.method}
    packed: dict[str, Any] = {}
    if config.method in ZEROS:
        report |= _zeros(config, opened, out, context)
    elif config.method == "low_rank":
        packed, told = _low_rank(config, opened, context)
        report |= told
    else:
        report |= _cut(config, opened, context)
    if config.heal_steps:
        report["healing"] = _healed(config, opened, base, out, context)
    if config.method in ZEROS and config.sparse:
        packed = sparse_weights(opened.cast(config.dtype).model)
        if packed:
            context.reporter.note(
                "zeros are left out on disk, which only dacheng reads (else sparse: false); in memory and in speed"
                " nothing changes"
            )
    return finish(base, opened, out, context, report, packed, config, "prune")


def _zeros(config: Config, opened: Opened, out: Path, context: StageContext) -> dict[str, Any]:
    from dacheng.compress.prune.weights import prune_weights

    batches = [] if config.method == "magnitude" else text_batches(opened, config.text, config)
    with context.reporter.task(f"pruning by {config.method}", opened.model.traits.layers, "") as task:
        found = prune_weights(
            opened.model, batches, config.method, config.sparsity,  # type: ignore[arg-type]
            folder=None if config.method == "magnitude" else out / "state",
            progress=lambda done, _: task.update(done),
        )  # fmt: skip
    return found.to_dict()


def _low_rank(config: Config, opened: Opened, context: StageContext) -> tuple[dict[str, Any], dict[str, Any]]:
    from dacheng.compress.low_rank import factorise

    with context.reporter.task("factorising", opened.model.traits.layers) as task:
        found = factorise(opened.model, text_batches(opened, config.text, config), config.ratio,
                          progress=lambda done, _: task.update(done))  # fmt: skip
    dtype = opened.cast(config.dtype).model.embed.weight.dtype
    told = {"kept": found.kept, "errors": found.errors, "notes": found.notes}
    return {name: weight.to(dtype=dtype) for name, weight in found.weights.items()}, told


def _cut(config: Config, opened: Opened, context: StageContext) -> dict[str, Any]:
    from dacheng.compress.prune.shrink import shrink

    keep, told = _chosen(config, opened, context)
    before = opened.model.params()["total"]
    opened.model = shrink(opened.model, keep)
    after = opened.model.params()["total"]
    context.reporter.note(f"{before:,} parameters before, {after:,} after ({after / before:.0%})")
    return told | {"parameters": [before, after]}


def _chosen(config: Config, opened: Opened, context: StageContext) -> tuple[Keep, dict[str, Any]]:
    from dacheng.compress.prune import choose, importance
    from dacheng.compress.prune.keep import Keep

    if config.method == "vocabulary":
        return _vocabulary(config, opened)
    batches = [] if config.text is None else text_batches(opened, config.text, config, targets=True)
    model, count = opened.model, config.count or 0
    with context.reporter.task(f"measuring {config.method}"):
        if config.method == "layers":
            scores = importance.block_influence(model, batches)
            keep = choose.keep_layers(scores, count)
            gone = sorted(set(range(model.traits.layers)) - set(keep.layers or ()))
            return keep, {"influence": scores.tolist(), "dropped": gone}
        if config.method == "heads":
            return choose.keep_heads(
                importance.head_importance(model, batches, config.measure), model.traits, count
            ), {"kept": count}  # fmt: skip
        if config.method == "neurons":
            return choose.keep_neurons(importance.neuron_importance(model, batches, config.measure), count), {
                "kept": count
            }
        kept = choose.keep_width(importance.channel_importance(model, batches), count)
    assert isinstance(kept, Keep)
    return kept, {"kept": count}


def _vocabulary(config: Config, opened: Opened) -> tuple[Keep, dict[str, Any]]:
    from dacheng.compress.measure import read_text
    from dacheng.compress.prune.keep import Keep
    from dacheng.compress.prune.vocabulary import prune_vocabulary, renumbered_settings, token_counts, tokens_of_chats

    assert config.text is not None
    before = opened.tokenizer
    counts = token_counts(before, [read_text(config.text)])  # whole: line breaks are tokens, too
    opened.tokenizer, ids = prune_vocabulary(before, [*counts.nonzero()[0].tolist(), *tokens_of_chats(before)])
    opened.generation = renumbered_settings(opened.generation, ids)
    return Keep(vocabulary=ids), {"tokens": [before.vocab_size, len(ids)]}


def _healed(config: Config, opened: Opened, base: Path, out: Path, context: StageContext) -> dict[str, Any]:
    from dacheng.compress.measure import read_text
    from dacheng.compress.prune.healing import HealConfig, heal
    from dacheng.formats.model_directory import load_model
    from dacheng.objectives.distil import DistilWeights
    from dacheng.objectives.distil_tokens import DistilTokens
    from dacheng.train.progress import Progress

    assert config.text is not None
    settings = HealConfig(steps=config.heal_steps, how=config.heal_how, lr=config.heal_lr, seed=config.seed,
                          context_length=min(256, opened.model.traits.longest_text))  # fmt: skip
    documents = [opened.tokenizer.encode(read_text(config.text))]
    teacher = load_model(base, dtype="float32").model if config.heal_by == "teacher" else None
    objective = None if teacher is None else DistilTokens(teacher, DistilWeights(soft=1.0, hard=0.0, temperature=1.0))
    found = heal(
        opened.model, documents, out / "healing", settings, objective=objective, callbacks=[Progress()],
        ledger=context.ledger,
    )  # fmt: skip
    for note in found.notes:
        context.reporter.note(note)
    context.reporter.note(
        f"healing: {found.loss_before:.3f} nats a token of its own text before, {found.loss_after:.3f} after"
    )
    return found.to_dict()
