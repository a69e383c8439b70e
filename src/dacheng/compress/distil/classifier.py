"""A classifier distilled into a smaller one: its layers picked, taught by the teacher's logits, words left out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dacheng.adapt.classifier import ClassifierResult, train_classifier
from dacheng.adapt.classifier_settings import ClassifierTrainConfig
from dacheng.compress.distil.student import pick_layers
from dacheng.compress.encoders import shrink_classifier
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.vocabulary import prune_vocabulary, words_to_keep
from dacheng.data.labelled import LabelledTexts
from dacheng.data.text_rows import token_rows
from dacheng.errors import UsageError
from dacheng.evaluate.classification import predict_rows
from dacheng.formats.classifiers import load_classifier, save_classifier
from dacheng.formats.provenance import weights_hash
from dacheng.formats.safetensors_io import read_tensors, write_tensors
from dacheng.models.classifier import Classifier
from dacheng.objectives.distil import DistilText
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.recipes import part_of
from dacheng.train.callbacks import Callback
from dacheng.train.outcome import MODEL, RESULT

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import Tokenizer

LOGITS = "teacher_logits.safetensors"


@dataclass(frozen=True, kw_only=True)
class DistilClassifierConfig(ClassifierTrainConfig):
    """Everything of ClassifierTrainConfig, and:

    layers: how many of the teacher's the student has, evenly spread, or which; null for half. weights: what is learnt
    from the teacher, and what of the labels. vocabulary: tokens that the student keeps in the end, those of the
    training texts among them; 0 for these alone, null for all. head_lr is null: the student's head is the teacher's,
    and not fresh.
    """

    layers: int | tuple[int, ...] | None = None
    weights: DistilWeights = field(default_factory=lambda: DistilWeights(soft=1.0, hard=0.5))
    vocabulary: int | None = None
    head_lr: float | None = None


def distil_classifier(
    teacher: Path | str,
    texts: LabelledTexts,
    out: Path | str,
    config: DistilClassifierConfig,
    callbacks: Sequence[Callback] = (),
    *,
    ledger: Ledger | None = None,
    validate: Any = None,
) -> ClassifierResult:
    """Trains a student of the classifier in the directory `teacher` and writes out/model; goes on from an interrupted
    run. Texts without a label (None) are taught by the teacher alone.

    Where logits are all that is compared the teacher reads each text once, and its answers are kept in out. Raises
    DachengError for a directory that holds no classifier or labels that it does not have, UsageError for layers that
    are not there.
    """
    out, loaded = Path(out), load_classifier(teacher)
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = loaded.model, loaded.tokenizer
    if loaded.is_packed:
        raise UsageError("a packed teacher has no weights to begin a student with", field="teacher", value=str(teacher),
                         remedy="name the model that it was made of")  # fmt: skip
    student = pick_layers(model, config.layers)
    student.traits = replace(student.traits, dropout=config.dropout)
    name = weights_hash(Path(teacher))
    deep = bool(config.weights.states or config.weights.attention)
    logits = None if deep else teacher_logits(model, tokenizer, texts, config.longest, out / LOGITS, name)
    objective = DistilText(model.eval().requires_grad_(False), config.weights, name, config.label_smoothing)
    settings = part_of(ClassifierTrainConfig, config)
    provenance = {"parent": name, "recipe": {"do": "distil", "layers": config.layers or len(student.encoder.blocks)}}
    result = train_classifier(
        student, tokenizer, texts, out, settings, callbacks, objective=objective, teacher_logits=logits,
        validate=validate, ledger=ledger, provenance=provenance,
    )  # fmt: skip
    if config.vocabulary is not None:
        smaller, words = cut_words(student, tokenizer, texts.texts, config.vocabulary or None)
        save_classifier(out / MODEL, smaller, words, provenance=provenance)
        result = replace(result, parameters=smaller.params()["total"])
        result.write(out / RESULT)
    return result


def cut_words(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], size: int | None = None
) -> tuple[Classifier, Tokenizer]:
    """Model and tokenizer without the words that `texts` do not need (see prune.vocabulary.words_to_keep): the
    logits of every text whose tokens stay are the same."""
    fewer, ids = prune_vocabulary(tokenizer, words_to_keep(tokenizer, texts, size))
    return shrink_classifier(model, Keep(vocabulary=ids)), fewer


def teacher_logits(
    teacher: Classifier, tokenizer: Tokenizer, texts: LabelledTexts, longest: int | None, path: Path, name: str
) -> Tensor:
    """(N, C) of every text, read from `path` where the same teacher has said it of the same texts before."""
    limit = min(longest or teacher.traits.encoder.longest_text, teacher.traits.encoder.max_positions)
    rows, _ = token_rows(tokenizer, texts.texts, limit)
    digest = hashlib.sha256(name.encode())
    for row in rows:
        digest.update(repr(row).encode())
    key = f"logits.{digest.hexdigest()[:32]}"
    if path.is_file():
        found = read_tensors(path)
        if key in found:
            return found[key].clone()
    logits = predict_rows(teacher.eval(), rows, tokenizer.pad_id)
    write_tensors(path, {key: logits})
    return logits.clone()
