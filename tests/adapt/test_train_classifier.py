"""train_classifier: it learns, leaves a directory that answers, and a resume ends at the same bytes."""

from __future__ import annotations

import classifier_toys as toys
import pytest
import torch

from dacheng.adapt.classifier import open_classifier, train_classifier
from dacheng.adapt.classifier_settings import ClassifierTrainConfig
from dacheng.data.labelled import LabelledTexts
from dacheng.errors import DachengError, UsageError
from dacheng.evaluate.classification import predict, report
from dacheng.formats.classifiers import load_classifier
from dacheng.train.callbacks import Callback


class Crash(Exception):
    pass


class CrashAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, report):
        if report.step == self.step:
            raise Crash


def train(base, out, callbacks=(), **changes):
    config = toys.settings(**({"epochs": None, "steps": 60} | changes))
    model, words, _ = open_classifier(base, toys.texts().names, config)
    return train_classifier(model, words, toys.texts(), out, config, callbacks)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_it_learns_what_words_decide(tmp_path, pooling):
    made = train(toys.directory(tmp_path / "base"), tmp_path / "out", pooling=pooling, steps=90)
    loaded, test = load_classifier(made.path), toys.texts(60, seed=9)
    found = report(predict(loaded.model, loaded.tokenizer, test.texts).argmax(-1), test.numbers(loaded.model.labels),
                   loaded.model.labels)  # fmt: skip
    assert found.accuracy.estimate > 0.95 and found.macro_f1 > 0.95
    assert made.labels == 3 and made.texts == 96 and made.parameters == loaded.model.params()["total"]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    base = toys.directory(tmp_path / "base")
    whole = train(base, tmp_path / "whole", steps=12)
    with pytest.raises(Crash):
        train(base, tmp_path / "parts", [CrashAt(7)], steps=12, save_every=5)
    parts = train(base, tmp_path / "parts", steps=12, save_every=5)
    assert parts.resumed_from == 5
    assert (whole.path / "model.safetensors").read_bytes() == (parts.path / "model.safetensors").read_bytes()


def test_micro_batches_change_nothing_and_a_frozen_table_stays(tmp_path):
    base = toys.directory(tmp_path / "base")
    one = train(base, tmp_path / "one", steps=5, dropout=0.0)
    four = train(base, tmp_path / "four", steps=5, dropout=0.0, micro_batches=4)
    a, b = (load_classifier(made.path).model for made in (one, four))
    assert all((p - q).abs().max() < 2e-4 for p, q in zip(a.parameters(), b.parameters()))
    frozen = load_classifier(train(base, tmp_path / "frozen", steps=5, freeze_embedding=True).path).model
    fresh, _, _ = open_classifier(base, toys.texts().names, toys.settings())
    assert torch.equal(frozen.encoder.embed.weight, fresh.encoder.embed.weight)
    assert not torch.equal(frozen.classifier.weight, fresh.classifier.weight)


def test_a_classifier_is_trained_further_only_on_its_own_labels(tmp_path):
    made = train(toys.directory(tmp_path / "base"), tmp_path / "one", steps=3)
    assert train(made.path, tmp_path / "two", steps=3).steps == 3
    with pytest.raises(DachengError, match="other labels"):
        open_classifier(made.path, ("x", "y"), toys.settings())


def test_texts_without_labels_teach_nothing(tmp_path):
    model, words, _ = open_classifier(toys.directory(tmp_path / "base"), ("a", "b"), toys.settings())
    with pytest.raises(UsageError, match="no text has a label"):
        train_classifier(model, words, LabelledTexts(("cat",), (None,)), tmp_path / "out", toys.settings())


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"epochs": None}, "epochs"), ({"pooling": "max"}, "pooling"), ({"batch_rows": 0}, "batch_rows"),
     ({"epochs": 0.0}, "epochs"), ({"class_weights": "some"}, "class_weights"), ({"lr": -1.0}, "lr")],
)  # fmt: skip
def test_settings_that_make_no_run_are_refused_by_name(changes, field):
    with pytest.raises(UsageError) as error:
        ClassifierTrainConfig(**changes)
    assert error.value.field == field
