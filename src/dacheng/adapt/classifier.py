"""Training a classifier of texts: an encoder and a fresh head, by the one Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dacheng.adapt.classifier_settings import ClassifierTrainConfig
from dacheng.data.labelled import LabelledSource, LabelledTexts, labelled_rows
from dacheng.errors import DachengError, UsageError
from dacheng.formats.classifiers import is_classifier, load_classifier, save_classifier
from dacheng.formats.encoders import load_encoder
from dacheng.models.classifier import Classifier
from dacheng.objectives.base import Objective
from dacheng.objectives.classify import Classify, balanced_weights
from dacheng.records import Drops
from dacheng.train.callbacks import Callback, Evaluate
from dacheng.train.outcome import MODEL, RESULT, TRAINING, Outcome
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ClassifierResult(Outcome):
    """path: the classifier's directory. metrics: what the last evaluation found, and the last step's loss and
    accuracy."""

    loss: float | None
    metrics: dict[str, float]
    texts: int
    labels: int
    parameters: int

    def figures(self) -> dict[str, Any]:
        """Without the metrics: an artifact's are those of what was held out."""
        return {name: value for name, value in super().figures().items() if name != "metrics"}


def open_classifier(
    base: Path | str, labels: tuple[str, ...], config: ClassifierTrainConfig
) -> tuple[Classifier, Tokenizer, list[str]]:
    """The classifier to train, of an encoder's directory (with a fresh head that follows from the seed), or of a
    classifier's, which must have these labels; with the notes of its reading."""
    if is_classifier(base):
        known = load_classifier(base)
        if set(known.model.labels) != set(labels):
            raise DachengError("this classifier has other labels than the data", field="labels",
                               value=sorted(set(known.model.labels) ^ set(labels))[:8],
                               remedy="begin with the encoder that it was made of")  # fmt: skip
        return known.model, known.tokenizer, known.notes
    loaded = load_encoder(base)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "init"))
    model = Classifier.around(
        loaded.model, labels, pooling=config.pooling, dropout=config.dropout, generator=generator
    )  # fmt: skip
    return model, loaded.tokenizer, loaded.notes


def train_classifier(
    model: Classifier,
    tokenizer: Tokenizer,
    texts: LabelledTexts,
    out: Path | str,
    config: ClassifierTrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    objective: Objective | None = None,
    teacher_logits: Tensor | None = None,
    validate: Callable[[Any], dict[str, float]] | None = None,
    ledger: Ledger | None = None,
    provenance: dict[str, Any] | None = None,
) -> ClassifierResult:
    """Trains `model` on `texts` and writes out/model, out/result.json, out/training/train.jsonl and checkpoints; goes
    on from those of a run that was killed, to the same bytes.

    objective: another than the labels' cross-entropy, such as objectives.distil.DistilText; teacher_logits (N, C) go
    into its batches. validate: of the model in evaluation mode. Raises DachengError for labels that the model does not
    have, UsageError for texts without labels that nothing else teaches, and what Trainer.fit raises.
    """
    out, drops = Path(out), Drops()
    longest = min(config.longest or model.traits.encoder.longest_text, model.traits.encoder.max_positions)
    rows, labels = labelled_rows(tokenizer, texts, model.labels, longest, drops)
    if objective is None:
        if bool((labels < 0).all()):
            raise UsageError(
                "no text has a label", field="data", value=len(rows), remedy="label some, or name a teacher"
            )
        weights = balanced_weights(labels, len(model.labels)) if config.class_weights == "balanced" else None
        objective = Classify(config.label_smoothing, weights)
    source = LabelledSource(
        rows, labels, config.batch_rows, pad_id=tokenizer.pad_id, micro_batches=config.micro_batches,
        seed=derive_seed(config.seed, "data"), teacher=teacher_logits,
    )  # fmt: skip
    settings = config.trainer(source.steps_per_epoch)
    for table in (model.encoder.embed, model.encoder.position_embedding, model.encoder.type_embedding):
        table.requires_grad_(not config.freeze_embedding)
    own: list[Callback] = []
    if validate is not None:
        own.append(Evaluate(validate, config.eval_every))
    trainer = Trainer(model, [Phase(objective)], source, [*own, *callbacks], settings, out / TRAINING, ledger=ledger)
    done = trainer.fit()
    model.eval().requires_grad_(True)
    path = save_classifier(out / MODEL, model, tokenizer, provenance=provenance)
    result = ClassifierResult(
        **Outcome.told(path, done, drops), loss=done.loss, metrics=dict(done.metrics), texts=len(rows),
        labels=len(model.labels), parameters=model.params()["total"],
    )  # fmt: skip
    result.write(out / RESULT)
    return result
