"""do: sft. Supervised fine-tuning on conversations: an adapter or the weights themselves, by one switch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dacheng.adapt.settings import AdaptTrainConfig, ChatTrainConfig
from dacheng.errors import UsageError
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named
from dacheng.stages.base import Input, StageContext
from dacheng.stages.named import base_of

if TYPE_CHECKING:
    from dacheng.adapt.training import AdapterResult
    from dacheng.records import Record
    from dacheng.text import Tokenizer

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model", required=False)}
_FREE: dict[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True)
class Config:
    """model: a directory or a GGUF file; null for the one of `from:`. data, held_out: files of conversations, in
    one of the layouts of data.chat_layouts (auto: by each object's fields). method: lora trains an adapter and leaves
    it beside the merged model; full trains the weights. rank, alpha: of the adapter; null for 16 and twice the rank.
    lr: null for 1.5e-3 (lora) or 3e-5 (full). layers: only the top n blocks. learn, neftune, steps, epochs, seconds,
    row_tokens, batch_tokens: see adapt.settings.ChatTrainConfig. template: a chat template to learn and to store with
    the model in place of its own: Jinja, or one of text.chat.TEMPLATES (qwen and mistral have a place for tools).
    """

    model: str | None = None
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    layout: Literal["auto", "messages", "sharegpt", "alpaca", "seed_tasks", "prompt"] = "auto"
    method: Literal["lora", "full"] = "lora"
    rank: int | None = None
    alpha: float | None = None
    lr: float | None = None
    layers: int | None = None
    learn: Literal["all", "last"] = "all"
    neftune: float = 0.0
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    row_tokens: int = 512
    batch_tokens: int = 2048
    seed: int = 1
    template: str | None = None
    save_every: int = field(default=20, metadata=_FREE)
    threads: int | None = field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        if not self.data:
            remedy = "data: [chats.jsonl], conversations in one of the layouts of docs/guide/alignment/sft.md"
            raise UsageError("nothing to learn from", field="data", value=list(self.data), remedy=remedy)
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            if self.method == "full" and value is not None:
                raise UsageError("the weights themselves have none", field=name, value=value,
                                 remedy="leave it out, or method: lora")  # fmt: skip
        self.settings()  # its own checks

    def settings(self) -> ChatTrainConfig:
        """What the training takes."""
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("layers", "learn", "neftune", "steps", "epochs", "seconds", "row_tokens", "batch_tokens",
                         "seed", "save_every", "threads")
        } | ({} if self.lr is None else {"lr": self.lr})  # fmt: skip
        if self.method == "full":
            return ChatTrainConfig(**shared)
        rank = 16 if self.rank is None else self.rank
        return AdaptTrainConfig(rank=rank, alpha=2.0 * rank if self.alpha is None else self.alpha, **shared)


def externals(config: Config) -> dict[str, Any]:
    """The weights and the conversations. Raises DachengError for a file that is not there."""
    return named.hashes(
        named.weights("model", config.model), named.files("data", config.data), named.files("held_out", config.held_out)
    )


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (a model directory), for lora adapter/ (PEFT) beside it, and training/ (log.jsonl, checkpoints);
    goes on from those of an interrupted run, to the same bytes. Raises what train_adapter raises."""
    base = base_of(config.model, inputs)
    drops = Drops()
    examples, held_out = _read(config, config.data, drops), _read(config, config.held_out, drops)
    made = _train(config, base, examples, held_out, out, context)
    learning.tell_drops("conversations", context, drops, made.drops)
    context.reporter.note(f"loss of the assistant's words: {made.loss_before:.3f} before, {made.loss_after:.3f} after")
    return Artifact(KIND, out / "model", metrics=made.figures() | {"method": config.method})


def _read(config: Config, paths: tuple[str, ...], drops: Drops) -> list[Record]:
    from dacheng.data.chats import read_chats

    return list(read_chats(paths, drops, config.layout)) if paths else []


def _train(
    config: Config, base: Path, examples: list[Record], held_out: list[Record], out: Path, context: StageContext
) -> AdapterResult:
    from dacheng.adapt.full import train_full
    from dacheng.adapt.training import train_adapter
    from dacheng.formats.model_directory import load_tokenizer
    from dacheng.text import ChatRenderer
    from dacheng.train.progress import Progress

    tokenizer = load_tokenizer(base)
    renderer = ChatRenderer(tokenizer, config.template)
    if config.template is not None:
        tokenizer.config["chat_template"] = renderer.template
    provenance = learning.provenance(base, context, config.seed)
    settings = config.settings()
    if not isinstance(settings, AdaptTrainConfig):
        return train_full(
            base, examples, out, settings, [Progress()], renderer=renderer, held_out=held_out, ledger=context.ledger,
            provenance=provenance,
        )  # fmt: skip
    made = train_adapter(
        base, examples, out, settings, [Progress()], renderer=renderer, held_out=held_out, ledger=context.ledger
    )
    context.reporter.note(save_merged(base, made.path, out / "model", provenance, tokenizer))
    return made


def save_merged(
    base: Path, adapter: Path, out: Path, provenance: dict[str, Any], tokenizer: Tokenizer | None = None
) -> str:
    """The model with the adapter in its weights, as a directory; says by how much that changed logits. tokenizer: in
    place of the base's own."""
    from dacheng.adapt.attach import attach
    from dacheng.adapt.merge import merge_into
    from dacheng.formats.model_directory import load_model, save_model
    from dacheng.formats.peft import read_adapter

    loaded = load_model(base, dtype="float32")
    merged = merge_into(loaded.model, attach(loaded.model, read_adapter(adapter, loaded.model)))
    save_model(out, loaded.model, tokenizer or loaded.tokenizer, generation=loaded.generation, provenance=provenance)
    return f"merged: logits differ by up to {merged.error:.1e}, of {merged.scale:.1f}, from those beside the weights"
