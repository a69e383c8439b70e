"""A classifier distilled into a smaller one: terms by definition, the teacher read once, resumed to the same bytes."""

from __future__ import annotations

import classifier_toys as toys
import pytest
import torch

from dacheng.adapt.classifier import open_classifier, train_classifier
from dacheng.compress.distil import classifier as distilling
from dacheng.compress.distil.classifier import DistilClassifierConfig, distil_classifier
from dacheng.compress.distil.student import pick_layers, projected
from dacheng.data.labelled import LabelledTexts, TextBatch
from dacheng.errors import DachengError, UsageError
from dacheng.evaluate.classification import predict, report
from dacheng.formats.classifiers import load_classifier, save_classifier
from dacheng.objectives.base import StepContext
from dacheng.objectives.classify import TERM as HARD
from dacheng.objectives.distil import ATTENTION, SOFT, STATES, DistilText
from dacheng.objectives.distil_losses import soft_targets
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.train.callbacks import Callback


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    config = toys.settings(epochs=None, steps=90)
    model, words, _ = open_classifier(toys.directory(folder / "base", layers=4), toys.texts().names, config)
    return train_classifier(model, words, toys.texts(), folder, config).path


def settings(**changes) -> DistilClassifierConfig:
    common = {
        "batch_rows": 16,
        "lr": 3e-3,
        "head_lr": None,
        "pooling": "mean",
        "epochs": None,
        "steps": 40,
        "layers": 2,
    }
    return DistilClassifierConfig(**(common | changes))


def accuracy(path) -> float:
    loaded, test = load_classifier(path), toys.texts(60, seed=9)
    names = loaded.model.labels
    found = predict(loaded.model, loaded.tokenizer, test.texts).argmax(-1)
    return report(found, test.numbers(names), names).accuracy.estimate


def test_a_student_learns_from_texts_without_labels_and_its_teacher_reads_them_once(teacher, tmp_path, monkeypatch):
    texts = toys.texts()
    unlabelled = LabelledTexts(texts.texts, (None,) * len(texts))
    config = settings(weights=DistilWeights(soft=1.0, hard=0.0), vocabulary=0)
    made = distil_classifier(teacher, unlabelled, tmp_path / "out", config)
    assert accuracy(made.path) > 0.95
    student = load_classifier(made.path)
    assert len(student.model.encoder.blocks) == 2 and made.parameters == student.model.params()["total"]
    assert student.tokenizer.vocab_size < load_classifier(teacher).tokenizer.vocab_size
    calls: list[int] = []
    real = distilling.predict_rows
    monkeypatch.setattr(distilling, "predict_rows", lambda *a: calls.append(1) or real(*a))
    distil_classifier(teacher, unlabelled, tmp_path / "out", config)
    assert not calls  # its logits were kept


class Crash(Exception):
    pass


class CrashAt(Callback):
    def on_step_end(self, trainer, report):
        if report.step == 7:
            raise Crash


def test_a_killed_run_goes_on_to_the_same_bytes(teacher, tmp_path):
    config = settings(steps=12, save_every=5)
    whole = distil_classifier(teacher, toys.texts(), tmp_path / "whole", config)
    with pytest.raises(Crash):
        distil_classifier(teacher, toys.texts(), tmp_path / "parts", config, [CrashAt()])
    parts = distil_classifier(teacher, toys.texts(), tmp_path / "parts", config)
    assert parts.resumed_from == 5
    assert (whole.path / "model.safetensors").read_bytes() == (parts.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "kinds",
    [
        {"states": 1.0, "state_kind": "cosine"},
        {"states": 1.0, "state_kind": "squared", "attention": 1.0, "attention_kind": "scores"},
        {"soft": 0.0, "attention": 1.0, "attention_kind": "relations"},
        {"attention": 1.0, "attention_kind": "relations2", "relation_heads": 4},
    ],
    ids=["distilbert", "tinybert", "minilm", "minilm2"],
)
def test_states_and_attention_are_learnt_too(teacher, tmp_path, kinds):
    weights = DistilWeights(**({"soft": 1.0, "hard": 0.5} | kinds))
    made = distil_classifier(teacher, toys.texts(), tmp_path / "out", settings(weights=weights, steps=30))
    log = (tmp_path / "out/training/train.jsonl").read_text().splitlines()
    assert len(log) >= 30 and accuracy(made.path) > 0.8


def batch(teacher=None) -> TextBatch:
    tokens = torch.randint(5, 40, (4, 7), generator=torch.Generator().manual_seed(3))
    return TextBatch(tokens, torch.tensor([7, 3, 5, 1]), torch.tensor([0, -100, 2, 1]), teacher)


def both():
    a, b = toys.classifier(90, layers=4).eval(), toys.classifier(90, layers=2, width=24).eval()
    return a, b


def test_terms_are_zero_for_the_teacher_itself_and_counted_by_texts_and_tokens():
    model, _ = both()
    weights = DistilWeights(soft=1, hard=1, states=1, state_kind="squared", attention=1, attention_kind="relations")
    objective = DistilText(model, weights)
    terms, metrics = objective(model, batch(), StepContext())
    assert objective.counts(batch()) == {SOFT: 4.0, HARD: 3.0, STATES: 16.0, ATTENTION: 16.0}
    assert terms.keys() == objective.counts(batch()).keys()
    found = {name: float(term.sum.detach()) for name, term in terms.items()}
    assert all(abs(found[name]) < 1e-5 for name in (SOFT, STATES, ATTENTION)) and found[HARD] > 0
    assert metrics["agreement"] == (4, 4.0)


def test_stored_logits_are_the_teachers_and_padding_counts_nothing():
    teacher, student = both()
    plain = batch()
    with torch.no_grad():
        logits = teacher(plain.tokens, plain.lengths)
    objective = DistilText(teacher, DistilWeights(soft=1.0, hard=0.0, temperature=3.0))
    live = objective(student, plain, StepContext())[0][SOFT].sum
    stored = DistilText(None, objective.weights)(student, batch(logits), StepContext())[0][SOFT].sum
    torch.testing.assert_close(live, stored)
    expected = soft_targets(student(plain.tokens, plain.lengths), logits, 3.0).sum()
    torch.testing.assert_close(live, expected)
    deep = DistilText(teacher, DistilWeights(soft=0, attention=1, attention_kind="relations"))
    first = deep(student, plain, StepContext())[0][ATTENTION].sum
    wider = TextBatch(torch.nn.functional.pad(plain.tokens, (0, 3)), plain.lengths, plain.labels)
    torch.testing.assert_close(deep(student, wider, StepContext())[0][ATTENTION].sum, first, atol=1e-5, rtol=1e-5)


def test_a_narrower_student_is_projected_and_the_projection_is_not_kept():
    teacher, student = both()
    squared = DistilWeights(soft=0, states=1, state_kind="squared")
    with pytest.raises(UsageError, match="states of width 24"):
        DistilText(teacher, squared)(student, batch(), StepContext())
    with projected(student.encoder, 32):
        terms, _ = DistilText(teacher, squared)(student, batch(), StepContext())
        terms[STATES].sum.backward()
        assert student.encoder.projection.weight.grad.abs().sum() > 0
    assert not any("projection" in name for name in student.state_dict())


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"soft": 0}, "soft"), ({"temperature": 0}, "temperature"), ({"hard": -1}, "hard"),
     ({"states": 1, "state_kind": "same"}, "state_kind"), ({"states": 1, "layers": ((3, 9),)}, "layers")],
)  # fmt: skip
def test_weights_that_mean_nothing_are_refused_by_name(changes, field):
    teacher, student = both()
    with pytest.raises(UsageError) as error:
        DistilText(teacher, DistilWeights(**changes))(student, batch(), StepContext())
    assert error.value.field == field


def test_heads_that_differ_and_a_teacher_that_is_not_there():
    teacher, student = toys.classifier(90, heads=4).eval(), toys.classifier(90).eval()
    with pytest.raises(UsageError, match="relations2"):
        DistilText(teacher, DistilWeights(soft=0, attention=1))(student, batch(), StepContext())
    with pytest.raises(UsageError, match="neither a teacher"):
        DistilText(None)(student, batch(), StepContext())


def test_other_labels_and_no_classifier_are_refused(teacher, tmp_path):
    with pytest.raises(DachengError, match="does not have"):
        distil_classifier(teacher, LabelledTexts(("cat",), ("new",)), tmp_path / "a", settings())
    with pytest.raises(DachengError, match="holds no classifier"):
        distil_classifier(toys.directory(tmp_path / "e"), toys.texts(), tmp_path / "b", settings())
    loaded = load_classifier(teacher)
    from dacheng.compress.encoders import pack_classifier

    save_classifier(tmp_path / "p", pack_classifier(loaded.model), loaded.tokenizer)
    with pytest.raises(UsageError, match="packed teacher"):
        distil_classifier(tmp_path / "p", toys.texts(), tmp_path / "c", settings())
    assert pick_layers(load_classifier(teacher).model, 1).traits.encoder.layers == 1
