"""Live against transformers and TRL, where they are installed beside dacheng: `pytest -m peer tests/formats`."""

from __future__ import annotations

import importlib.util
import json

import classifier_toys as toys
import pytest
import torch

from dacheng.formats.classifiers import load_classifier, save_classifier
from dacheng.formats.safetensors_io import read_tensors
from dacheng.objectives.distil_losses import generalized_jsd

pytestmark = pytest.mark.peer
transformers = pytest.importorskip("transformers")


def script(goldens, name):
    spec = importlib.util.spec_from_file_location(name, goldens / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_transformers_loads_what_we_write(tmp_path, seed):
    words = toys.tokenizer(tmp_path / "t")
    model, generator = toys.classifier(words.vocab_size, "pooler").eval(), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.3, generator=generator)
    save_classifier(tmp_path / "m", model, words)
    auto = transformers.AutoModelForSequenceClassification
    peer, report = auto.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert type(peer).__name__ == "BertForSequenceClassification"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert tuple(peer.config.id2label[i] for i in range(3)) == model.labels
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")(
        ["the cats run.", "dog", "my zebra"], padding=True, return_tensors="pt"
    )
    found = peer.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert (model(batch.input_ids, batch.attention_mask.sum(1)) - found).abs().max() < 1e-4


def test_transformers_refuses_a_head_that_it_does_not_have(tmp_path):
    words = toys.tokenizer(tmp_path / "t")
    save_classifier(tmp_path / "m", toys.classifier(words.vocab_size, "mean"), words)
    with pytest.raises((ValueError, KeyError)):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")


def test_the_golden_classifier_is_made_again(goldens, tmp_path):
    script(goldens, "make_classifier_parity").make(tmp_path / "bert")
    ours, theirs = (
        read_tensors(path / "expected.safetensors") for path in (tmp_path / "bert", goldens / "classifiers/bert")
    )
    assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-5
    assert load_classifier(tmp_path / "bert").model.labels == ("animals", "sport", "oos")


def test_trls_divergence_is_ours_on_other_numbers(goldens):
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    generator = torch.Generator().manual_seed(5)
    student, teacher = (3 * torch.randn(3, 4, 11, generator=generator) for _ in range(2))
    for beta in (0.0, 0.25, 1.0):
        expected = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=1.3, reduction="sum")
        assert float(generalized_jsd(student, teacher, beta, 1.3).sum()) == pytest.approx(float(expected), rel=1e-5)
    found = json.loads((goldens / "distillation.json").read_text())
    again = script(goldens, "make_distillation").jsd(torch.Generator().manual_seed(0))
    assert [row["loss"] for row in again["rows"]] == pytest.approx([row["loss"] for row in found["jsd"]["rows"]])
