"""Classifiers as directories: ours and transformers', and what is refused."""

from __future__ import annotations

import json
import shutil

import classifier_toys as toys
import pytest
import torch

from dacheng.errors import DachengError
from dacheng.evaluate.classification import predict
from dacheng.formats.classifiers import is_classifier, load_classifier, save_classifier
from dacheng.formats.encoders import load_encoder
from dacheng.formats.safetensors_io import read_tensors

TEXTS = ["the cat runs", "my goal?", "zebra tax"]


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_what_is_saved_is_read_back_to_the_bit(tmp_path, pooling):
    words = toys.tokenizer(tmp_path / "t")
    model = toys.classifier(words.vocab_size, pooling).eval()
    save_classifier(tmp_path / "m", model, words)
    assert is_classifier(tmp_path / "m") and not is_classifier(tmp_path / "t")
    again = load_classifier(tmp_path / "m")
    assert again.model.traits == model.traits and again.tokenizer.fingerprint == words.fingerprint
    assert torch.equal(predict(again.model, again.tokenizer, TEXTS), predict(model, words, TEXTS))
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert (config["model_type"] == "bert") == (pooling == "pooler")  # what transformers lacks it must not misread


def test_a_network_of_transformers_is_saved_as_it_came(goldens, tmp_path):
    golden = goldens / "classifiers" / "bert"
    loaded = load_classifier(golden)
    save_classifier(tmp_path / "m", loaded.model, loaded.tokenizer)
    ours, theirs = read_tensors(tmp_path / "m/model.safetensors"), read_tensors(golden / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config, written = (json.loads((path / "config.json").read_text()) for path in (golden, tmp_path / "m"))
    assert written["id2label"] == config["id2label"] and written["architectures"] == config["architectures"]
    assert load_encoder(golden).model.traits.layers == 2  # its encoder alone, the head left aside with a note


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"architectures": ["BertForMultipleChoice"]}, "architectures"),
    ],
)
def test_a_config_that_says_something_else_is_refused_by_name(goldens, tmp_path, changes, field):
    shutil.copytree(goldens / "classifiers" / "bert", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | changes))
    with pytest.raises(DachengError) as error:
        load_classifier(tmp_path / "m")
    assert error.value.field == field


def test_a_directory_without_a_classifier_or_a_tokenizer(tmp_path):
    with pytest.raises(DachengError, match="holds no classifier"):
        load_classifier(toys.directory(tmp_path / "e"))
    words = toys.tokenizer(tmp_path / "t")
    save_classifier(tmp_path / "m", toys.classifier(words.vocab_size), words)
    (tmp_path / "m/tokenizer.json").unlink()
    with pytest.raises(DachengError, match="no tokenizer"):
        load_classifier(tmp_path / "m")
