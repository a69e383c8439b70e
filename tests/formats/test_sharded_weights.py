"""Weights in several files, and the index that names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.provenance import weights_hash
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits


@pytest.fixture
def saved(tmp_path) -> Path:
    traits = DecoderTraits(vocab_size=96, width=32, layers=2, heads=4, kv_heads=2, tied_head=False, max_positions=64)
    return save_model(tmp_path / "model", Decoder(traits).init_weights(torch.Generator().manual_seed(0)))


def shard(directory: Path) -> dict:
    """Splits the weights in two files with an index, as transformers does."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, directory / file)
    (directory / "model.safetensors").unlink()
    (directory / "dacheng.json").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, members in parts.items() for n in members}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_read_as_one(saved):
    before = load_model(saved).model.state_dict()
    shard(saved)
    after = load_model(saved).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(weights_hash(saved)) == 64


@pytest.mark.parametrize(
    "file",
    [
        "../elsewhere.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "x.bin",
        "a\\b.safetensors",
        7,
        None,
        "",
    ],
)
def test_an_index_cannot_reach_out_of_its_directory(saved, file):
    index = shard(saved)
    index["weight_map"]["model.norm.weight"] = file
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedFile) as caught:
        load_model(saved)
    assert caught.value.field == "model.norm.weight"


def test_an_index_that_disagrees_with_its_files_is_damaged(saved):
    index = shard(saved)
    path = saved / "model.safetensors.index.json"
    for change, problem in (
        (lambda m: m.pop("model.norm.weight"), "only in the file"),
        (lambda m: m.update({"ghost": "model-00001-of-00002.safetensors"}), "only in the index"),
        (lambda m: m.update({"model.norm.weight": "model-00001-of-00002.safetensors"}), "disagree"),
        (lambda m: m.clear(), "names no weights"),
    ):
        changed = json.loads(json.dumps(index))
        change(changed["weight_map"])
        path.write_text(json.dumps(changed))
        with pytest.raises(DamagedFile, match=problem):
            load_model(saved)
    path.write_text(json.dumps(index))
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DachengError, match="cannot open"):
        load_model(saved)


def test_two_sets_of_weights_are_refused(saved):
    content = (saved / "model.safetensors").read_bytes()
    shard(saved)
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(DachengError, match="two sets of weights"):
        load_model(saved)
