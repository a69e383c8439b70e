"""BERT with a head for classes of texts: transformers' BertForSequenceClassification, and ours over the mean state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.huggingface.bert import NAMES, PREFIX, Bert, plain_names
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.names import NameTable
from dacheng.models.classifier import Classifier, ClassifierTraits

_MOST_LABELS = 2**20


class BertClassifier(Bert):
    """labels are id2label's. What the head reads is the pooler's output."""

    architecture = "BertForSequenceClassification"
    architectures: ClassVar[tuple[str, ...]] = ()
    pooling: ClassVar[str] = "pooler"
    names = NameTable(
        {f"encoder.{ours}": f"{PREFIX}{theirs}" for ours, theirs in NAMES.items()}
        | {f"classifier.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")}
    )

    def matches(self, config: Mapping[str, Any]) -> bool:
        return super().matches(config) and config.get("architectures") == [self.architecture]

    def to_traits(self, fields: Fields) -> ClassifierTraits:  # type: ignore[override]
        labels = _labels(fields)
        fields.only("problem_type", ("single_label_classification",), "asks for another loss than one class a text")
        dropout = fields.number("classifier_dropout", None, or_zero=True)
        if dropout is None:
            dropout = float(fields.get("hidden_dropout_prob", 0.1))
        encoder = replace(super().to_traits(fields), pooler=self.pooling == "pooler")
        return ClassifierTraits(encoder=encoder, labels=labels, pooling=self.pooling, dropout=dropout)

    def from_traits(self, traits: ClassifierTraits) -> dict[str, Any]:  # type: ignore[override]
        return super().from_traits(traits.encoder) | {
            "id2label": {str(i): label for i, label in enumerate(traits.labels)},
            "label2id": {label: i for i, label in enumerate(traits.labels)},
            "problem_type": "single_label_classification",
            "classifier_dropout": traits.dropout,
        }

    def build(self, traits: ClassifierTraits) -> Classifier:  # type: ignore[override]
        return Classifier(traits)

    def stored_tensors(self, tensors: Mapping[str, Tensor], traits: Any) -> dict[str, Tensor]:
        return plain_names(tensors)

    def redundant(self, name: str, tensors: Mapping[str, Tensor], traits: Any) -> str | None:
        if name.startswith("cls."):
            return "it belongs to the head of the pretraining"
        return "it follows from the config" if name.endswith(self.derived) else None


class MeanClassifier(BertClassifier):
    """The head reads the mean of the tokens' states. transformers has no such network, and its name says so: there it
    is refused, and not read as another one."""

    model_type = "dacheng_bert_mean"
    architecture = "BertForMeanClassification"
    pooling = "mean"


class FirstTokenClassifier(BertClassifier):
    model_type = "dacheng_bert_first_token"
    architecture = "BertForFirstTokenClassification"
    pooling = "cls"


def _labels(fields: Fields) -> tuple[str, ...]:
    """Of id2label, whose keys must be 0, 1, 2, …; without it two classes, as transformers has it."""
    found = fields.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    fields.get("label2id")  # the same the other way round
    fields.get("num_labels")
    named = isinstance(found, dict) and 2 <= len(found) <= _MOST_LABELS
    if not named or set(found) != {str(i) for i in range(len(found))}:
        raise fields.error("must name the classes 0, 1, 2, …, two at least", "id2label", found)
    labels = tuple(found[str(i)] for i in range(len(found)))
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise DachengError("each class has a name of its own", field="id2label", value=list(labels)[:8],
                           remedy="correct it in config.json")  # fmt: skip
    return labels
