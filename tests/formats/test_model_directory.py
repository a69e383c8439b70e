"""A model as a directory: round trips to the bit, what is in the files, and every mismatch named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dacheng import __version__
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.formats.model_directory import load_model, load_tokenizer, save_model
from dacheng.formats.provenance import weights_hash
from dacheng.formats.safetensors_io import sha256_file
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal

LLAMA = DecoderTraits(vocab_size=96, width=32, layers=2, heads=4, kv_heads=2, tied_head=False, max_positions=64)
OWN = replace(
    LLAMA,
    activation="relu2",
    norm_weight=False,
    qk_norm=True,
    logit_soft_cap=15.0,
    window=8,
    window_pattern="SL",
    value_embeddings=True,
    residual_scalars=True,
    embedding_norm=True,
)
KINDS = {
    "llama": LLAMA,
    "llama tied": replace(LLAMA, tied_head=True),
    "llama biases": replace(LLAMA, attention_bias=True, mlp_bias=True),
    "own": OWN,
    "own tied": replace(OWN, tied_head=True),
}


def make(traits: DecoderTraits, seed: int = 0) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(traits)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


@torch.no_grad()
def logits_of(model: Decoder) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12)
    return model.head(model(ids, torch.arange(12).expand(2, 12), DenseCausal()))


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture
def saved(tmp_path) -> Path:
    return save_model(tmp_path / "model", make(LLAMA))


def change_weights(directory: Path, change) -> None:
    """Rewrites the weights through the reference implementation, and forgets their hash."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    (directory / "dacheng.json").unlink()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_every_bit(tmp_path, kind, dtype):
    model = make(KINDS[kind])
    if dtype is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    loaded = load_model(save_model(tmp_path / "m", model))
    state, again = model.state_dict(), loaded.model.state_dict()
    assert state.keys() == again.keys()
    for name in state:
        assert again[name].dtype == state[name].dtype
        assert torch.equal(again[name], state[name]), name
    assert loaded.model.traits.to_dict().items() >= {"layers": 2, "tied_head": KINDS[kind].tied_head}.items()
    assert torch.equal(logits_of(loaded.model.float()), logits_of(model.float()))
    assert not loaded.model.training
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert read(tmp_path / "m" / "config.json")["model_type"] == ("dacheng" if "own" in kind else "llama")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / name, make(OWN), provenance={"metrics": {"loss": 1.5}})
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["config.json", "dacheng.json", "generation_config.json", "model.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_dtype_casts_on_the_way_out_and_on_the_way_in(tmp_path):
    model = make(LLAMA)
    save_model(tmp_path / "m", model, dtype="bfloat16")
    assert read(tmp_path / "m" / "config.json")["dtype"] == "bfloat16"
    assert read(tmp_path / "m" / "dacheng.json")["weights"]["dtype"] == "bfloat16"
    as_stored, wide = load_model(tmp_path / "m").model, load_model(tmp_path / "m", dtype=torch.float32).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(as_stored.state_dict()[name], tensor.bfloat16())
        assert torch.equal(wide.state_dict()[name], tensor.bfloat16().float())
    assert as_stored.rotaries["main"].frequencies.dtype == torch.float32  # positions are not rounded with the weights
    for wrong in ("int8", "bf17", torch.int64):
        with pytest.raises(UsageError) as caught:
            load_model(tmp_path / "m", dtype=wrong)
        assert caught.value.field == "dtype"


def test_the_files_say_what_they_should(tmp_path):
    provenance = {
        "parent": "ab" * 32,
        "recipe": {"do": "train", "train": {"steps": 3}},
        "data": {"train": "cd" * 32},
        "metrics": {"bits_per_byte": 1.25, "diverged": float("nan"), "path": Path("runs/1")},
        "ledger": {"tokens": 10},
        "note": "本",
    }
    save_model(tmp_path / "m", make(LLAMA), generation={"temperature": 0.7}, provenance=provenance)
    loaded = load_model(tmp_path / "m")
    found = loaded.provenance
    assert found["schema"] == 1
    assert found["metrics"] == {"bits_per_byte": 1.25, "diverged": "nan", "path": "runs/1"}
    for name in ("parent", "recipe", "data", "ledger", "note"):
        assert found[name] == provenance[name]
    assert found["versions"]["dacheng"] == __version__
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["weights"] == {
        "sha256": sha256_file(tmp_path / "m" / "model.safetensors"),
        "bytes": (tmp_path / "m" / "model.safetensors").stat().st_size,
        "dtype": "float32",
    }
    assert found["weights"]["sha256"] == weights_hash(tmp_path / "m")
    assert loaded.generation == {"temperature": 0.7}
    config = read(tmp_path / "m" / "config.json")
    # transformers takes absent special ids for 1 and 2: without a tokenizer they are null.
    assert [config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [None] * 3


def test_provenance_that_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    for provenance, field in (
        ({"weights": {}}, "weights"),
        ({"metrics": {"a": [1, object()]}}, "metrics.a[1]"),
        ({"metrics": {1: 2}}, "metrics.1"),
    ):
        with pytest.raises(DachengError) as caught:
            save_model(tmp_path / "m", make(LLAMA), provenance=provenance)
        assert caught.value.field == field
    assert not list(tmp_path.iterdir())


def test_saving_over_a_model_replaces_it_and_keeps_what_is_not_part_of_it(saved):
    (saved / "log.jsonl").write_text("{}\n")
    (saved / "plots").mkdir()
    (saved / "plots" / "loss.svg").write_text("<svg/>")
    (saved / "model-00001-of-00002.safetensors").write_text("of an older save")
    (saved / "tokenizer.json").write_text("{}")
    with open(saved / "log.jsonl", "a") as log:  # someone is still writing it
        loaded = load_model_without_tokenizer(saved)
        save_model(saved, loaded)  # onto the files that the model's own weights are mapped from
        log.write("more\n")
    assert (saved / "log.jsonl").read_text() == "{}\nmore\n"
    assert (saved / "plots" / "loss.svg").read_text() == "<svg/>"
    assert not (saved / "model-00001-of-00002.safetensors").exists()
    assert not (saved / "tokenizer.json").exists()
    assert torch.equal(logits_of(load_model(saved).model), logits_of(loaded))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def load_model_without_tokenizer(directory: Path) -> Decoder:
    (directory / "tokenizer.json").rename(directory / "aside")
    model = load_model(directory).model
    (directory / "aside").rename(directory / "tokenizer.json")
    return model


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    before = weights_hash(saved)
    with monkeypatch.context() as patch:
        patch.setattr(
            "dacheng.formats.provenance.write", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        with pytest.raises(DachengError, match="No space") as caught:
            save_model(saved, make(OWN))
    assert caught.value.field == "directory"
    assert weights_hash(saved) == before
    assert load_model(saved).model.traits.activation == "swiglu"
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_missing_tensors_are_named(saved):
    change_weights(saved, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(DachengError, match=r"1 of 21 tensors are missing: model\.layers\.1\.mlp\.up_proj") as caught:
        load_model(saved)
    assert caught.value.field == "model.layers.1.mlp.up_proj.weight"
    assert "[96, 32]" in str(caught.value)  # the shape that was expected
    assert str(saved) in caught.value.problem
    assert caught.value.remedy


def test_extra_tensors_are_named(saved):
    change_weights(saved, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(3)}))
    with pytest.raises(DachengError, match="1 tensors have no place") as caught:
        load_model(saved)
    assert (caught.value.field, caught.value.value) == ("model.layers.2.mlp.up_proj.weight", [3])


def test_misshapen_tensors_are_named_with_both_shapes(saved):
    change_weights(saved, lambda t: t.update({"model.norm.weight": torch.zeros(32, 1)}))
    with pytest.raises(DachengError, match=r"shape \[32, 1\], the config asks for \[32\]") as caught:
        load_model(saved)
    assert caught.value.field == "model.norm.weight"


def test_a_config_of_another_size_is_a_shape_error_and_not_a_wrong_model(saved):
    config = read(saved / "config.json")
    (saved / "config.json").write_text(json.dumps(config | {"vocab_size": 95}))
    with pytest.raises(DachengError, match=r"shape \[96, 32\], the config asks for \[95, 32\]"):
        load_model(saved)


def test_weights_that_are_no_floats_are_named(saved):
    change_weights(saved, lambda t: t.update({"lm_head.weight": torch.zeros(96, 32, dtype=torch.int8)}))
    with pytest.raises(DachengError, match="is int8") as caught:
        load_model(saved)
    assert caught.value.field == "lm_head.weight"


def test_truncated_weights_are_damaged_even_without_a_hash(saved):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "dacheng.json").unlink()
    for size in (len(content) - 1, len(content) // 2, 100, 0):
        (saved / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(DamagedFile) as caught:
            load_model(saved)
        assert "model.safetensors" in caught.value.problem


def test_a_flipped_bit_of_a_value_is_seen_by_the_hash(saved):
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(DamagedFile, match="not those that were saved") as caught:
        load_model(saved)
    assert "dacheng.json" in caught.value.remedy
    assert load_model(saved, check_hash=False).model is not None


def test_a_tied_head_that_is_stored_too_is_left_aside_only_if_it_is_the_embedding(tmp_path):
    directory = save_model(tmp_path / "m", make(KINDS["llama tied"]))
    change_weights(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    loaded = load_model(directory)
    assert any("lm_head.weight was left aside" in note for note in loaded.notes)
    assert loaded.model.lm_head is None
    change_weights_again = load_file(directory / "model.safetensors")
    change_weights_again["lm_head.weight"] = change_weights_again["lm_head.weight"] + 1
    save_file(change_weights_again, directory / "model.safetensors")
    with pytest.raises(DachengError, match="ties the head") as caught:
        load_model(directory)
    assert "tie_word_embeddings" in caught.value.remedy


def test_tables_of_old_converters_are_left_aside_with_a_note(saved):
    change_weights(saved, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert any("inv_freq was left aside: it follows from the config" in note for note in load_model(saved).notes)


def test_special_ids_of_an_older_config_serve_generation(saved):
    (saved / "generation_config.json").unlink()
    config = read(saved / "config.json") | {"eos_token_id": [2, 3], "bos_token_id": 1}
    (saved / "config.json").write_text(json.dumps(config))
    assert load_model(saved).generation == {"eos_token_id": [2, 3], "bos_token_id": 1}


def test_directories_without_a_model_are_named(tmp_path, saved):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, problem in (("absent", "does not exist"), ("file", "is not a directory"), ("empty", "holds no model")):
        with pytest.raises(DachengError, match=problem):
            load_model(tmp_path / name)
        with pytest.raises(DachengError, match="has no tokenizer"):
            load_tokenizer(tmp_path / name)
    with pytest.raises(DachengError, match="has no tokenizer"):
        load_tokenizer(saved)
    (saved / "model.safetensors").unlink()
    (saved / "dacheng.json").unlink()
    with pytest.raises(DachengError, match="has no weights"):
        load_model(saved)
    (saved / "pytorch_model.bin").touch()
    with pytest.raises(DachengError, match="no safetensors weights") as caught:
        load_model(saved)
    assert "never loaded" in caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff{}", b"[" * 10**5, b'{"a":' + b"9" * 9999 + b"}"],
)
@pytest.mark.parametrize("file", ["config.json", "dacheng.json", "generation_config.json"])
def test_damaged_json_is_named(saved, file, content):
    (saved / file).write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        load_model(saved)
    assert file in caught.value.problem


def test_a_directory_of_the_future_is_refused(saved):
    record = read(saved / "dacheng.json")
    (saved / "dacheng.json").write_text(json.dumps(record | {"schema": 2}))
    with pytest.raises(DachengError, match="newer dacheng"):
        load_model(saved)
    (saved / "dacheng.json").write_text(json.dumps(record | {"schema": "1"}))
    with pytest.raises(DamagedFile, match="schema"):
        load_model(saved)


def test_a_model_that_was_wrapped_is_refused_by_name(tmp_path):
    model = make(LLAMA)
    model.blocks[0].attention.q.register_parameter("lora_a", torch.nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(DachengError, match="no place in the model") as caught:
        save_model(tmp_path / "m", model)
    assert caught.value.field == "blocks.0.attention.q.lora_a"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_loading_takes_the_memory_of_the_weights_and_not_the_compiler(tmp_path):
    """torch's compiler takes seconds to import, and meta tensors can pull it in: `generate` would wait for it."""
    directory = save_model(tmp_path / "m", make(replace(LLAMA, width=512, vocab_size=10_000, layers=2, mlp_width=2048)))
    size = (directory / "model.safetensors").stat().st_size
    assert size > 60e6
    program = (
        "import re, sys\n"
        "from dacheng.formats.model_directory import load_model\n"
        "import torch, safetensors\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "before = peak()\n"
        "model = load_model(sys.argv[1]).model\n"
        "for p in model.parameters(): p.sum()\n"  # every page is touched
        "print(peak() - before)\n"
        "print([name for name in ('torch._dynamo', 'sympy', 'transformers') if name in sys.modules])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    taken, imported = out.stdout.splitlines()
    assert int(taken) < size + 25e6
    assert imported == "[]"
