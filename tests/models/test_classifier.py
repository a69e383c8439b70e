"""The classifier beside transformers' BertForSequenceClassification (goldens/make_classifier_parity.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dacheng.errors import UsageError
from dacheng.formats.classifiers import load_classifier
from dacheng.formats.safetensors_io import read_tensors
from dacheng.models.classifier import Classifier, ClassifierTraits
from dacheng.models.encoder import Encoder, EncoderTraits
from dacheng.objectives.base import StepContext
from dacheng.objectives.classify import TERM, Classify, balanced_weights, classify

GOLDEN = Path(__file__).resolve().parent.parent / "goldens" / "classifiers" / "bert"
TRAITS = EncoderTraits(vocab_size=30, width=16, layers=2, heads=2, mlp_width=24, max_positions=16)


def made(pooling: str = "mean", **changes) -> Classifier:
    encoder = Encoder(replace(TRAITS, **changes)).init_weights(torch.Generator().manual_seed(1))
    return Classifier.around(encoder, ("a", "b", "c"), pooling=pooling, generator=torch.Generator().manual_seed(2))


@pytest.mark.oracle
def test_logits_loss_and_gradients_equal_those_of_transformers():
    from dacheng.data.labelled import TextBatch

    expected, loaded = read_tensors(GOLDEN / "expected.safetensors"), load_classifier(GOLDEN)
    model = loaded.model
    assert model.labels == ("animals", "sport", "oos") and model.traits.dropout == 0.1
    batch = TextBatch(expected["ids"], expected["lengths"], expected["labels"])
    terms, metrics = Classify()(model, batch, StepContext())
    loss = terms[TERM].sum / Classify().counts(batch)[TERM]
    loss.backward()
    logits = model(batch.tokens, batch.lengths)
    assert (logits - expected["logits"]).abs().max() < 1e-5
    assert float(loss.detach()) == pytest.approx(float(expected["loss"]), rel=1e-5)
    ours = {
        "classifier.weight": model.classifier.weight,
        "bert.pooler.dense.weight": model.encoder.pooler.weight,
        "bert.encoder.layer.0.attention.self.query.weight": model.encoder.blocks[0].attention.q.weight,
    }
    for name, parameter in ours.items():
        assert (parameter.grad - expected[f"grad.{name}"]).abs().max() < 1e-5
    assert metrics["accuracy"][1] == 4


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
@torch.no_grad()
def test_a_text_has_the_same_logits_alone_and_in_a_padded_batch(pooling):
    model = made(pooling, initializer_range=0.3).eval()
    texts = [torch.randint(30, (n,), generator=torch.Generator().manual_seed(n)) for n in (1, 5, 16)]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=29)
    together = model(tokens, torch.tensor([len(t) for t in texts]))
    for text, row in zip(texts, together):
        torch.testing.assert_close(model(text[None], torch.tensor([len(text)]))[0], row, atol=2e-6, rtol=1e-5)
    assert together.std() > 1e-3


def test_a_head_reads_a_pooler_only_where_it_should_and_a_fresh_one_comes_where_there_is_none():
    model = made("pooler")
    assert model.encoder.pooler is not None and model.traits.encoder.pooler
    assert made("mean").encoder.pooler is None
    kept = Encoder(replace(TRAITS, pooler=True)).init_weights(torch.Generator().manual_seed(3))
    weight = kept.pooler.weight
    assert Classifier.around(kept, ("a", "b")).encoder.pooler.weight is weight
    again = Classifier.around(Encoder(TRAITS).init_weights(), ("a", "b"), generator=torch.Generator().manual_seed(0))
    twice = Classifier.around(Encoder(TRAITS).init_weights(), ("a", "b"), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.classifier.weight, twice.classifier.weight)


def test_dropout_only_while_training_and_gradients_reach_every_weight():
    model = made("mean")
    tokens, lengths = torch.arange(12).view(2, 6), torch.tensor([6, 4])
    assert not torch.equal(model.train()(tokens, lengths), model(tokens, lengths))
    assert torch.equal(model.eval()(tokens, lengths), model(tokens, lengths))
    model(tokens, lengths).square().sum().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()}
    assert {name for name in still if not name.endswith("attention.k.bias")} == set()


def test_counts_of_parameters_and_flops():
    model = made("mean")
    counts = model.params()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["embedding"] == (30 + 16 + 2) * 16
    assert model.flops(4, training=False) == 2 * 2 * (4 * 16**2 + 2 * 16 * 24) + 4 * 2 * 16 * 4
    assert model.flops(4) == 3 * model.flops(4, training=False)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"labels": ("a",)}, "labels"), ({"labels": ("a", "a")}, "labels"), ({"pooling": "max"}, "pooling"),
     ({"dropout": 1.0}, "dropout"), ({"pooling": "pooler"}, "pooling")],
)  # fmt: skip
def test_traits_that_cannot_be_built_are_refused_by_name(changes, field):
    with pytest.raises(UsageError) as error:
        Classifier(ClassifierTraits(**({"encoder": TRAITS, "labels": ("a", "b"), "pooling": "mean"} | changes)))
    assert error.value.field == field


def test_classify_ignores_unknown_labels_and_weighs_classes_as_torch_does():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, generator=generator), torch.tensor([0, 0, 0, 1, -100, 2])
    weights = balanced_weights(labels, 4)
    assert weights == pytest.approx((5 / 12, 5 / 4, 5 / 4, 1.0))
    objective = Classify(0.1, weights[:3])
    batch = type("Batch", (), {"labels": labels})
    mean = objective.of_logits(logits, batch)[0][TERM].sum / objective.counts(batch)[TERM]
    expected = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights[:3]), label_smoothing=0.1)
    torch.testing.assert_close(mean, expected)
    assert float(classify(logits, torch.full((6,), -100))) == 0.0
    with pytest.raises(UsageError, match="smoothing"):
        Classify(1.0)
