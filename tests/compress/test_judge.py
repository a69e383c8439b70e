"""The table that every compression ends with."""

from __future__ import annotations

import gzip
import json
import math
import subprocess

import pytest
import torch
from compress_toys import some_text, toy_directory

from dacheng.compress.choices import answer_choices, read_choices
from dacheng.compress.judge import Comparison, Measured, disk_bytes, judge
from dacheng.compress.measure import first_tokens, measure, read_text
from dacheng.errors import DachengError, UsageError
from dacheng.evaluate.intervals import Interval
from dacheng.evaluate.perplexity import evaluate_text
from dacheng.formats.model_directory import load_model, save_model
from dacheng.ledger import Ledger


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    toy_directory(folder / "before")
    loaded = load_model(folder / "before")
    with torch.no_grad():
        for block in loaded.model.blocks:
            block.mlp.down.weight.mul_(1.5)
    save_model(folder / "after", loaded.model, loaded.tokenizer, dtype="bfloat16")
    (folder / "text.txt").write_text(some_text())
    (folder / "task.jsonl").write_text(
        "".join(json.dumps({"prompt": f"line {i}:", "choices": [" the", " zzz"], "answer": i % 2}) + "\n"
                for i in range(10))
    )  # fmt: skip
    return folder


@pytest.mark.process
def test_two_directories_side_by_side(folder):
    ledger = Ledger(None)
    found = judge(folder / "before", folder / "after", text=folder / "text.txt", task=folder / "task.jsonl",
                  speed=False, ledger=ledger, tokens=600, window=60)  # fmt: skip
    loaded = load_model(folder / "before", dtype="float32")
    ids = loaded.tokenizer.encode((folder / "text.txt").read_text())[:600]
    assert found.before.perplexity.n == 10 and found.text_tokens == 600 - 10
    whole = evaluate_text(loaded.model, loaded.tokenizer, [loaded.tokenizer.decode(ids)], context_length=60)
    assert found.before.perplexity.estimate == pytest.approx(whole["perplexity"], rel=0.2)
    assert found.after.disk_bytes < 0.8 * found.before.disk_bytes == 0.8 * disk_bytes(folder / "before")
    ratio = found.perplexity_ratio
    assert ratio.estimate == pytest.approx(found.after.perplexity.estimate / found.before.perplexity.estimate)
    assert ratio.low <= ratio.estimate <= ratio.high
    assert 0 < found.before.model_bytes < found.before.resident_bytes
    assert found.before.task.n == 10 and found.task_name == "task"
    assert len([entry for entry in ledger.entries() if entry["stage"] == "judge"]) == 2
    table = found.table()
    assert [line.split("  ")[0] for line in table.splitlines()[1:]] == [
        "bytes on disk", "resident memory", "", "perplexity", "task", "executor",
    ]  # fmt: skip
    told = found.to_dict()
    assert told["sentence"] == found.sentence() and json.dumps(told)


@pytest.mark.process
def test_progress_is_told_and_no_process_is_left(folder, monkeypatch):
    begun, heard = [], []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: begun.append(popen(*a, **k)) or begun[-1])

    def tell(completed: float, *, total: float, text: str) -> None:
        heard.append((completed / total, text))
        if len(heard) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(folder / "before", folder / "after", text=folder / "text.txt", speed=False, tokens=600, window=60,
              progress=tell)  # fmt: skip
    assert [text for _, text in heard] == ["before: memory+perplexity"] + [
        f"before: perplexity {i} of 10" for i in (1, 2, 3)
    ]
    assert [share for share, _ in heard] == pytest.approx([0.0, 0.05, 0.1, 0.15])
    assert len(begun) == 1 and begun[0].returncode is not None  # waited for


def test_as_many_tokens_as_were_asked_for_and_the_same_part_of_a_text(folder):
    class Words:
        """A token for each `width` characters."""

        def __init__(self, width: int) -> None:
            self.width = width

        def encode(self, text: str) -> list[int]:
            return [0] * (len(text) // self.width)

        def byte_lengths(self) -> list[int]:
            return [self.width]

    text = "x" * 10_000
    assert first_tokens(Words(30), text, 100) == ([0] * 100, 3000)  # 30 characters a token: more than was read at first
    assert first_tokens(Words(30), text, 1000) == ([0] * 333, 9990)  # all that there is
    assert first_tokens(Words(7), text, 100, text_bytes=3000) == ([0] * 429, 3003)  # the first to reach it
    assert first_tokens(Words(30), text, 5, text_bytes=3000) == ([0] * 100, 3000)
    assert first_tokens(Words(30), "", 5) == ([], 0.0)

    class Marked(Words):
        """A token without bytes after each word."""

        def encode(self, text: str) -> list[int]:
            return [0, 1] * (len(text) // self.width)

        def byte_lengths(self) -> list[int]:
            return [self.width, 0]

    for tokens in (99, 100):  # the same part again, whichever of the two it ended with
        ids, covered = first_tokens(Marked(30), text, tokens)
        assert len(ids) == tokens and first_tokens(Marked(30), text, tokens, covered) == (ids, covered)
    loaded = load_model(folder / "before")
    text = (folder / "text.txt").read_text()
    ids, covered = first_tokens(loaded.tokenizer, text, 90)
    assert text.encode().startswith(loaded.tokenizer.decode(ids).encode())
    assert covered == len(loaded.tokenizer.decode(ids).encode())
    assert first_tokens(loaded.tokenizer, text, 7, covered) == (ids, covered)


def test_speed_and_memory_of_one_process(folder):
    found = measure(folder / "before", ["memory", "speed"])
    assert found["prefill"] > 0 and found["decode"] > 0 and found["executor"] == "eager"


@pytest.mark.process
def test_the_error_of_a_measurement_comes_back_whole(folder, monkeypatch):
    with pytest.raises(UsageError, match="no such model"):
        disk_bytes(folder / "nowhere")
    (folder / "short.txt").write_text("too short")
    with pytest.raises(DachengError, match="too short") as refusal:
        judge(folder / "before", folder / "after", text=folder / "short.txt", speed=False)
    assert refusal.value.field == "text" and refusal.value.remedy
    monkeypatch.setattr(subprocess, "Popen", None)  # what can't be read is refused before anything is measured
    for field, after, given in (
        ("model", "nowhere", {"text": folder / "text.txt"}), ("text", "after", {"text": folder / "nowhere.txt"}),
        ("task", "after", {"text": None, "task": folder / "nowhere.jsonl"}),
    ):  # fmt: skip
        with pytest.raises(UsageError) as refusal:
            judge(folder / "before", folder / after, speed=False, **given)
        assert refusal.value.field == field


def test_texts_are_read_packed_or_not(folder, tmp_path):
    with gzip.open(tmp_path / "t.txt.gz", "wb") as file:
        file.write("grün".encode())
    assert read_text(tmp_path / "t.txt.gz") == "grün"
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    (tmp_path / "cut.txt.gz").write_bytes((tmp_path / "t.txt.gz").read_bytes()[:12])
    for name in ("latin.txt", "cut.txt.gz", "absent.txt"):
        with pytest.raises(UsageError) as refusal:
            read_text(tmp_path / name)
        assert refusal.value.field == "text"


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"prompt": "a", "choices": ["b"], "answer": 0}', '{"prompt": "a", "choices": ["b", "c"], "answer": 2}',
     '{"prompt": "a", "choices": ["b", "c"], "answer": true}',
     '{"prompt": "", "choices": ["b", "c"], "answer": 0}', ""],
)  # fmt: skip
def test_what_is_no_question(line, tmp_path):
    (tmp_path / "task.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError):
        read_choices(tmp_path / "task.jsonl")


def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dacheng.compress.choices._LONGEST_LINE", 64)
    long = '{"prompt": "' + "a" * 99 + '", "choices": ["b", "c"], "answer": 1}'
    (tmp_path / "task.jsonl").write_text(long)
    with pytest.raises(UsageError, match="line 1 is no JSON object"):
        read_choices(tmp_path / "task.jsonl")


def test_the_likelier_answer_per_byte_is_chosen(folder):
    loaded = load_model(folder / "before", dtype="float32")
    questions = read_choices(folder / "task.jsonl")
    hits = answer_choices(loaded.model, loaded.tokenizer, questions)
    assert sum(hits) == 5 and len(set(hits[::2])) == 1  # always the same of the two, which is right every other time


def measured(disk: int, ppl: float, decode: float) -> Measured:
    return Measured("m", disk, perplexity=Interval(ppl, ppl - 1, ppl + 1, 0.95, 32), decode=decode)


@pytest.mark.parametrize(
    ("after", "ratio", "begins"),
    [
        (measured(50, 20.1, 30.0), (1.005, 1.001, 1.01), "Worth it: 2 times smaller on disk and decode 3 times as"),
        (measured(100, 20.0, 10.0), (1.0, 0.99, 1.01), "Not worth it: it is neither smaller nor faster"),
        (measured(50, 40.0, 10.0), (2.0, 1.9, 2.1), "Only where bytes or time count more than quality"),
        (measured(100, 30.0, 5.0), (1.5, 1.4, 1.6), "Not worth it: decode is 2 times slower; perplexity +50.0 %"),
    ],
)
def test_the_sentence_follows_the_figures(after, ratio, begins):
    found = Comparison(measured(100, 20.0, 10.0), after, Interval(*ratio, 0.95, 32))
    assert found.sentence().startswith(begins)


def test_intervals_are_not_compared_across_tokenizers():
    found = Comparison(
        Measured("a", 10, bits_per_byte=Interval(1.0, 0.9, 1.1, 0.95, 9)),
        Measured("b", 5, bits_per_byte=Interval(1.2, 1.1, 1.3, 0.95, 9)),
    )
    assert "bits per byte" in found.table() and "bits per byte +20.0 %" in found.sentence()
    assert not math.isnan(found.after.bits_per_byte.estimate)
