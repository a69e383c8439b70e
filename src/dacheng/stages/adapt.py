"""do: adapt. Trains a LoRA adapter of a model on conversations (JSON lines of messages)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dacheng.adapt.settings import AdaptTrainConfig
from dacheng.errors import UsageError
from dacheng.recipes import part_of
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named
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
    return named.hashes(
        named.weights("model", config.model), named.files("data", config.data), named.files("held_out", config.held_out)
    )


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves adapter/ (a PEFT directory) and training/ (log.jsonl, checkpoints); goes on from those of an interrupted
    run, to the same bytes. Raises what train_adapter raises."""
    from dacheng.adapt.training import train_adapter
    from dacheng.data.chats import read_chats
    from dacheng.train.progress import Progress

    unread = Drops()
    examples = list(read_chats(list(config.data), unread))
    held_out = list(read_chats(list(config.held_out), unread)) if config.held_out else []
    settings = part_of(AdaptTrainConfig, config)
    made = train_adapter(
        config.model, examples, out, settings, [Progress()], held_out=held_out, ledger=context.ledger
    )  # fmt: skip
    learning.tell_drops("conversations", context, unread, made.drops)
    context.reporter.note(f"loss of the assistant's words: {made.loss_before:.3f} before, {made.loss_after:.3f} after")
    return Artifact(KIND, made.path, metrics=made.figures())
