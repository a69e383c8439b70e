"""do: adapt. Trains a LoRA adapter of a model on conversations (JSON lines of messages)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dacheng.adapt.settings import AdaptTrainConfig
from dacheng.errors import DachengError, UsageError
from dacheng.records import Artifact, Drops
from dacheng.stages.base import Input, StageContext

VERSION = 1
KIND = "adapter"
INPUTS: dict[str, Input] = {}


@dataclass(frozen=True, kw_only=True)
class Config(AdaptTrainConfig):
    """Everything of AdaptTrainConfig (rank, lr, layers, seconds…), and:

    model: a model directory or a GGUF file. data: JSON lines of {"messages": […]}, one file or several; only what the
    assistant says is learnt. held_out: such lines that are not trained on, for the losses before and after.
    """

    model: Path = Path("models/smollm2")
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.data:
            remedy = 'data: [chats.jsonl], lines of {"messages": [...]}'
            raise UsageError("nothing to learn from", field="data", value=list(self.data), remedy=remedy)
        super().__post_init__()


def externals(config: Config) -> dict[str, Any]:
    """The weights and the conversations. Raises DachengError for a file that is not there."""
    from dacheng.formats.safetensors_io import sha256_file

    model = Path(config.model)
    weights = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    files = [*weights, *map(Path, (*config.data, *config.held_out))]
    for path in files or [model]:
        if not path.is_file():
            known = "dacheng import smollm2 --out models/smollm2" if path == model else "check the path"
            raise DachengError(f"{path} does not exist", field="model" if path == model else "data", value=str(path),
                               remedy=known)  # fmt: skip
    if not weights:
        raise DachengError(f"{model} has no weights", field="model", value=str(model), remedy="name a model directory")
    return {"files": [sha256_file(path) for path in files]}


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves adapter/ (a PEFT directory) and training/ (log.jsonl, checkpoints); goes on from those of an interrupted
    run, to the same bytes. Raises what train_adapter raises."""
    from dacheng.adapt.training import train_adapter
    from dacheng.data.chats import read_chats
    from dacheng.train.progress import Progress

    unread = Drops()
    examples = list(read_chats(list(config.data), unread))
    held_out = list(read_chats(list(config.held_out), unread)) if config.held_out else []
    settings = AdaptTrainConfig(**{f.name: getattr(config, f.name) for f in fields(AdaptTrainConfig)})
    made = train_adapter(
        config.model, examples, out, settings, [Progress()], held_out=held_out, ledger=context.ledger
    )  # fmt: skip
    context.entry.add(drops=made.drops)
    for reason, count in made.drops["dropped"].items():
        context.reporter.note(f"{count} conversations were left aside: {reason}")
    context.reporter.note(f"loss of the assistant's words: {made.loss_before:.3f} before, {made.loss_after:.3f} after")
    metrics = {key: value for key, value in made.to_dict().items() if key != "path"}
    return Artifact(KIND, made.path, metrics=metrics)
