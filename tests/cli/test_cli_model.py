"""The verbs on a real, tiny model: the forms that the guide shows work as written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from dacheng.cli.main import main
from dacheng.formats.model_directory import load_model
from dacheng.text import Tokenizer

RECIPE = """
do: train
name: nano
data: {source: docs.jsonl, split: {valid_fraction: 0.2}}
tokenizer: {vocab_size: 280}
tokens: {context_length: 32}
train:
  steps: 3
  batch_rows: 4
  precision: fp32
  model: {width: 32, layers: 1, heads: 2}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A working directory in which `dacheng train nano.yaml` was run."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [json.dumps({"text": f"Document {i} greets you {i * i} times, 世界."}) for i in range(60)]
    (folder / "docs.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    (folder / "nano.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("Document 7 greets you.\nDocument 8 does not: 世界.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DACHENG_HOME", str(folder / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(["train", "nano.yaml", "train.steps=4"]) == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch) -> Path:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("DACHENG_HOME", str(trained / "home"))
    return trained


def answer(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_training_again_is_cached_and_an_override_trains_again(here, capsys):
    again = answer(capsys, "train", "nano.yaml", "train.steps=4")
    assert [(stage["name"], stage["status"]) for stage in again["stages"]] == [
        ("data", "cached"), ("tokenizer", "cached"), ("tokens", "cached"), ("train", "cached"),
    ]  # fmt: skip
    assert again["stages"][3]["artifact"]["metrics"]["steps"] == 4
    assert (
        answer(capsys, "train", "nano.yaml", "train.steps=2", "--out", "other")["stages"][3]["artifact"]["metrics"][
            "steps"
        ]
        == 2
    )


@pytest.mark.parametrize("name", ["nano", "runs/nano", "runs/nano/stages/train", "runs/nano/stages/train/model"])
def test_a_model_is_named_by_run_life_stage_or_directory(here, capsys, name):
    found = answer(
        capsys, "generate", "--model", name, "--prompt", "Document", "--max-tokens", "5", "--temperature", "0"
    )
    (completion,) = found["completions"]
    assert completion["completion_tokens"] <= 5 and completion["finish_reason"] in ("length", "stop")


def test_greedy_text_is_the_same_streamed_and_as_json(here, capsys):
    words = ("generate", "--model", "nano", "--prompt", "Document 3", "--max-tokens", "12", "--temperature", "0")
    whole = answer(capsys, *words)["completions"][0]["text"]
    assert main(list(words)) == 0
    assert capsys.readouterr().out == whole + "\n"


def test_guesses_and_a_deterministic_engine_leave_a_greedy_text_alone(here, capsys):
    words = ("generate", "--model", "nano", "--prompt", "Document 3", "--max-tokens", "12", "--temperature", "0")
    plain = answer(capsys, *words)["completions"][0]["text"]
    for more in (["--speculate", "3"], ["--speculate", "3", "--draft-model", "nano"], ["--deterministic"]):
        assert answer(capsys, *words, *more)["completions"][0]["text"] == plain
    assert answer(capsys, *words, "--kv-dtype", "int8")["completions"][0]["completion_tokens"] > 0
    assert main([*words, "--draft-model", "nano"]) == 2
    assert "--speculate" in capsys.readouterr().err
    assert main([*words, "--kv-dtype", "int3"]) == 2


def test_seeds_repeat_and_continuations_differ(here, capsys):
    words = ("generate", "--model", "nano", "--prompt", "Doc", "--max-tokens", "20", "--seed", "5", "--n", "3")
    one, two = (answer(capsys, *words)["completions"] for _ in range(2))
    assert [c["text"] for c in one] == [c["text"] for c in two]
    assert len({c["text"] for c in one}) > 1


def test_a_prompt_comes_from_a_file_or_standard_input(here, capsys, monkeypatch):
    (here / "prompt.txt").write_text("Document 9")
    words = ("generate", "--model", "nano", "--max-tokens", "3", "--temperature", "0")
    found = [answer(capsys, *words, "--prompt-file", "prompt.txt")]
    monkeypatch.setattr("sys.stdin", io.StringIO("Document 9"))
    found.append(answer(capsys, *words, "--prompt", "-"))
    assert [f["prompt"] for f in found] == ["Document 9"] * 2
    assert found[0]["completions"][0]["text"] == found[1]["completions"][0]["text"]


def test_perplexity_of_a_text(here, capsys):
    found = answer(capsys, "eval", "run", "--model", "nano", "--perplexity", "text.txt")
    assert found["bytes"] == len((here / "text.txt").read_bytes()) and found["documents"] == 1
    assert found["bits_per_byte"] == pytest.approx(found["nats"] / 0.6931471805599453 / found["bytes"])
    assert main(["eval", "run", "--model", "nano", "--perplexity", "text.txt"]) == 0
    assert f"bits per byte  {found['bits_per_byte']:.4f}" in capsys.readouterr().out
    (here / "latin.txt").write_bytes(b"caf\xe9")
    assert main(["eval", "run", "--model", "nano", "--perplexity", "latin.txt"]) == 2
    assert "not UTF-8: " in capsys.readouterr().err
    assert main(["eval", "run", "--model", "nano", "--perplexity", "absent.txt"]) == 2


def test_data_counts_what_it_drops_and_tokenizes_when_asked(here, capsys):
    found = answer(capsys, "data", "run", "--source", "docs.jsonl", "--out", "shards")
    (data,) = found["stages"]
    assert data["artifact"]["metrics"]["drops"]["dropped"] == {"bad_json": 1}
    words = (
        "data",
        "run",
        "--source",
        "docs.jsonl",
        "--out",
        "shards",
        "--tokenizer",
        "nano",
        "--context-length",
        "16",
    )
    found = answer(capsys, *words)
    assert [stage["status"] for stage in found["stages"]] == ["cached", "run", "run"]
    assert found["stages"][2]["artifact"]["metrics"]["context_length"] == 16
    (here / "docs2.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    assert answer(capsys, "data", "run", "--source", "docs2.jsonl", "--out", "two")["name"] == "docs2"
    (here / "docs2.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "four"}\n')
    changed = answer(capsys, "data", "run", "--source", "docs2.jsonl", "--out", "two")
    assert changed["stages"][0]["status"] == "run"  # the file is another one now
    assert main(["data", "run", "--source", "absent.jsonl", "--out", "three"]) in (1, 2)
    assert "no such file or folder" in capsys.readouterr().err


def test_a_tokenizer_is_trained_encoded_with_and_inspected(here, capsys):
    made = answer(capsys, "tokenizer", "train", "--source", "docs.jsonl", "--out", "tok", "--vocab-size", "270")
    assert made["stages"][1]["artifact"]["metrics"]["vocab_size"] == 270
    tokenizer = Tokenizer.load(here / "tok")
    text = "Document 世"
    found = answer(capsys, "tokenizer", "encode", text, "--tokenizer", "tok")
    assert found["ids"] == tokenizer.encode(text) and found["bytes"] == len(text.encode())
    assert main(["tokenizer", "encode", text, "--tokenizer", "tok"]) == 0
    assert "bytes a token" in capsys.readouterr().out
    seen = answer(capsys, "tokenizer", "inspect", "nano", "--file", "text.txt")
    assert seen["vocab_size"] == load_model(here / "runs/nano/stages/train/model").tokenizer.vocab_size
    assert seen["bytes_per_token"] > 1


def test_doctor_says_what_is_there_and_how_to_get_the_rest(here, capsys):
    found = answer(capsys, "doctor")
    assert found["machine"]["cores"] >= 1 and found["fast_dtype"] in ("float32", "bfloat16")
    assert found["machine"]["matmul_gflops"]["float32"] > 0
    assert set(found["extras"]) == {"data", "report", "logs", "serve"}
    for extra, libraries in found["extras"].items():
        assert all(libraries.values()) or found["install"][extra] == f"pip install 'dacheng[{extra}]'"
    assert found["disk_free_bytes"] > 0 and Path(found["cache"]).name
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(
        f"\n{word}" in text for word in ("processor", "threads", "matmul peak", "memory", "disk", "cache", "extra data")
    )


def test_a_directory_without_a_model_is_named(here, capsys):
    (here / "empty").mkdir(exist_ok=True)
    assert main(["generate", "--model", "empty", "--prompt", "x"]) == 2
    assert "there is no model in this directory" in capsys.readouterr().err
    assert main(["generate", "--model", "nan", "--prompt", "x"]) == 2
    assert "did you mean nano?" in capsys.readouterr().err
