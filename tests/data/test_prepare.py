"""From a source to documents to packed tokens: nothing lost on the way, the same every time, every count adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacheng import recipes
from dacheng.data.corpus import TokenizedCorpus
from dacheng.data.documents import DocumentStore, DocumentWriter
from dacheng.data.prepare import PrepareConfig, prepare, tokenize
from dacheng.data.split import SplitConfig
from dacheng.errors import DachengError, DamagedFile
from dacheng.records import Drops, Record


def corpus_file(folder: Path, count: int = 200) -> Path:
    path = folder / "corpus.jsonl"
    rows = [{"text": f"document {i} 大成 " + "word " * (i % 37), "id": i} for i in range(count)]
    rows += [rows[3], rows[5], {"text": "  "}, {"body": "?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    return path


def config(path: Path, **options) -> PrepareConfig:
    values = {"source": str(path), "split": {"valid_fraction": 0.1}} | options
    return recipes.load(PrepareConfig, values)


def test_every_record_is_kept_or_dropped_once(tmp_path):
    drops, calls = Drops(), []
    store = prepare(
        config(corpus_file(tmp_path)), tmp_path / "docs", drops, lambda done, total: calls.append((done, total))
    )
    assert drops.kept + sum(drops.dropped.values()) == 205
    assert drops.dropped == {"duplicate": 2, "empty": 1, "missing_field:text": 1, "bad_json": 1}
    assert store.documents("train") + store.documents("valid") == drops.kept == 200
    assert store.bytes("train") + store.bytes("valid") == drops.kept_bytes
    assert store.manifest["drops"] == drops.to_dict()
    assert store.manifest["source_bytes"] == (tmp_path / "corpus.jsonl").stat().st_size
    done = [d for d, _ in calls]
    assert done == sorted(done) and calls[-1] == (store.manifest["source_bytes"],) * 2
    texts = {text for split in store.splits for text in store.texts(split)}
    assert texts == {f"document {i} 大成 " + "word " * (i % 37) for i in range(200)}
    assert 8 <= store.documents("valid") <= 35
    record = next(store.records("train"))
    assert record.meta["path"] == "corpus.jsonl" and record.id == f"corpus.jsonl:{record.meta['line']}"


def test_the_same_input_makes_the_same_documents_whatever_the_compression(tmp_path, monkeypatch):
    path = corpus_file(tmp_path)
    one = prepare(config(path), tmp_path / "one")
    monkeypatch.setitem(sys.modules, "zstandard", None)  # as if it were not installed
    two = prepare(config(path), tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert [f["file"] for f in one.manifest["splits"]["train"]] == ["train-00000.jsonl.zst"]
    assert [f["file"] for f in two.manifest["splits"]["train"]] == ["train-00000.jsonl"]
    assert list(two.texts("valid"))
    other = prepare(config(path, split={"valid_fraction": 0.1, "salt": "x"}), tmp_path / "three")
    assert other.fingerprint != one.fingerprint


def test_documents_in_several_files_and_records_of_every_kind(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    records = [
        Record(id="1", text="text\n\x00大", label=3, meta={"a": [1]}),
        Record(id="2", messages=chat, meta={"n": "\ud800"}),
    ]
    with DocumentWriter(tmp_path, "train", file_bytes=60) as writer:
        for record in records:
            writer.write(record)
        files = writer.close()
    assert [f["documents"] for f in files] == [1, 1]
    store = DocumentStore(tmp_path, {"splits": {"train": files}})
    assert list(store.records("train")) == records and list(store.texts("train")) == ["text\n\x00大"]
    with pytest.raises(DachengError, match="no such split"):
        store.documents("test")
    with pytest.raises(DachengError, match="as JSON"), DocumentWriter(tmp_path, "x") as writer:
        writer.write(Record(id="3", image=b"png"))


def test_changed_documents_are_recognised(tmp_path):
    store = prepare(config(corpus_file(tmp_path)), tmp_path / "docs")
    path = tmp_path / "docs" / "train-00000.jsonl.zst"
    original = path.read_bytes()
    for data in (original[: len(original) // 2], original[:200] + b"\xff" + original[201:], b""):
        path.write_bytes(data)
        with pytest.raises(DamagedFile):
            list(store.records("train"))
    path.unlink()
    with pytest.raises(DamagedFile, match="missing"):
        DocumentStore.open(tmp_path / "docs")


def test_a_small_corpus_holds_out_its_lowest_key(tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.txt").write_text(f"document {i}", encoding="utf-8")
    options = {"split": {"valid_fraction": 1e-6}, "file_bytes": 60}
    store = prepare(config(tmp_path / "in", **options), tmp_path / "docs")
    assert (store.documents("train"), store.documents("valid")) == (3, 1)
    assert "lowest key" in store.manifest["held_out"]
    assert not (tmp_path / "docs" / "whole").exists()
    held = next(store.texts("valid"))
    larger = prepare(config(tmp_path / "in", split={"valid_fraction": 0.6}), tmp_path / "larger")
    assert held in set(larger.texts("valid"))  # what a larger fraction takes too
    (tmp_path / "in" / "0.txt").rename(tmp_path / "in" / "z.txt")
    again = prepare(config(tmp_path / "in", **options), tmp_path / "again")
    assert next(again.texts("valid")) == held


def test_what_cannot_be_prepared(tmp_path):
    (tmp_path / "one.txt").write_text("one document", encoding="utf-8")
    with pytest.raises(DachengError, match="there is one document") as caught:
        prepare(config(tmp_path / "one.txt"), tmp_path / "docs")
    assert "paragraph" in (caught.value.remedy or "")
    drops = Drops()
    with pytest.raises(DachengError, match="no document is left"):
        prepare(config(tmp_path / "one.txt", cleaning={"min_chars": 99}), tmp_path / "docs", drops)
    assert drops.dropped == {"too_short": 1}
    assert not (tmp_path / "docs").exists()
    store = prepare(config(tmp_path / "one.txt", split={"valid_fraction": 0}), tmp_path / "docs")
    assert store.splits == ["train"] and store.documents("train") == 1


# --- tokens -----------------------------------------------------------------------------------------------------------
def test_tokens_are_the_documents_in_order_each_begun_and_ended(tmp_path, tokenizer):
    store = prepare(config(corpus_file(tmp_path)), tmp_path / "docs")
    drops, calls = Drops(), []
    corpus = tokenize(
        tmp_path / "docs", tokenizer, tmp_path / "tokens", 64, shard_tokens=4000, batch_bytes=500, drops=drops,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    for split in ("train", "valid"):
        shards, entry = corpus.shards(split), corpus.entry(split)
        decoded = []
        for shard in shards:
            for i in range(len(shard)):
                ids = shard.document(i)
                assert ids[0] == ids[-1] == tokenizer.eos_id and (ids[1:-1] != tokenizer.eos_id).all()
                decoded.append(tokenizer.decode(ids[1:-1]))
        assert decoded == list(store.texts(split))
        assert entry["documents"] == store.documents(split) and entry["bytes"] == store.bytes(split)
        assert entry["tokens"] == shards.tokens == entry["bytes"] + 2 * entry["documents"]  # a byte a token
        assert corpus.packing(split, shards).tokens == shards.tokens
    assert len(corpus.shards("train")) > 1 and all(len(s.tokens) <= 4000 for s in corpus.shards("train"))
    assert drops.kept == 200 and not drops.dropped
    total = store.bytes("train") + store.bytes("valid")
    assert calls[-1] == (total, total) and len(calls) > 5
    source = corpus.source("train", batch_rows=4, micro_batches=2, seed=3)
    assert [tuple(b.tokens.shape) for b in source.next(0)] == [(2, 64), (2, 64)]
    batches = list(corpus.batches("valid", batch_rows=3))
    assert sum(len(batch.tokens) for batch in batches) == corpus.packing("valid").rows
    assert sum(batch.tokens_in_loss for batch in batches) == corpus.entry("valid")["packing"]["targets"]
    assert corpus.manifest["documents"] == store.fingerprint and corpus.context_length == 64


def test_batches_and_shards_do_not_change_the_tokens(tmp_path, tokenizer):
    prepare(config(corpus_file(tmp_path)), tmp_path / "docs")
    made = [
        tokenize(tmp_path / "docs", tokenizer, tmp_path / f"tokens{size}", 64, batch_bytes=size) for size in (1, 10**6)
    ]
    assert made[0].shards("train").fingerprint == made[1].shards("train").fingerprint
    assert made[0].source("train", 4).fingerprint == made[1].source("train", 4).fingerprint
    other = tokenize(tmp_path / "docs", tokenizer, tmp_path / "cat", 64, packing="concatenated")
    assert other.source("train", 4).fingerprint != made[0].source("train", 4).fingerprint
    assert other.packing("train").fill_rate > 0.99


def test_records_without_text_and_unknown_tokens_are_counted(tmp_path, tokenizer):
    rows = [{"messages": [{"role": "user", "content": "hi"}]}, {"text": "known"}, {"text": "unk?own"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"path": str(path), "messages_field": "messages"}
    prepare(config(path, source=source, split={"valid_fraction": 0}), tmp_path / "docs")
    tokenizer.unk_id = ord("?") + 2
    drops = Drops()
    corpus = tokenize(tmp_path / "docs", tokenizer, tmp_path / "tokens", 8, drops=drops)
    assert drops.dropped == {"no_text": 1} and drops.kept == 2
    assert corpus.entry("train")["unknown_tokens"] == 1


def test_a_failing_tokenizer_leaves_nothing(tmp_path, tokenizer):
    prepare(config(corpus_file(tmp_path)), tmp_path / "docs")
    tokenizer.vocab_size = 100  # a lie: ids go to 257, which fit two bytes and no embedding
    with pytest.raises(DachengError, match="outside its vocabulary"):
        tokenize(tmp_path / "docs", tokenizer, tmp_path / "tokens", 64)

    def broken(texts):
        raise ValueError("no")

    tokenizer.encode_batch = broken
    with pytest.raises(ValueError, match="no"):
        tokenize(tmp_path / "docs", tokenizer, tmp_path / "tokens", 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "docs"]


def test_preparing_needs_no_torch():
    code = "import sys, dacheng.data.prepare as p; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_corpus_that_was_tampered_with(tmp_path, tokenizer):
    prepare(config(corpus_file(tmp_path)), tmp_path / "docs")
    tokenize(tmp_path / "docs", tokenizer, tmp_path / "tokens", 64)
    corpus = TokenizedCorpus.open(tmp_path / "tokens")
    corpus.verify()
    data = tmp_path / "tokens" / "train-00000.bin"
    flipped = bytearray(data.read_bytes())
    flipped[100] ^= 1
    data.write_bytes(flipped)
    corpus.shards("train")  # no size has changed: only reading everything can tell
    with pytest.raises(DamagedFile, match="not the one"):
        corpus.verify()
    manifest = tmp_path / "tokens" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["splits"]["train"]["shards"][0]["tokens"] += 1
    manifest.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DamagedFile, match="its manifest says"):
        TokenizedCorpus.open(tmp_path / "tokens").shards("train")
    with pytest.raises(DachengError, match="no such split"):
        TokenizedCorpus.open(tmp_path / "tokens").source("test", 4)
    with pytest.raises(DachengError, match="not a tokens directory"):
        TokenizedCorpus.open(tmp_path)
    with pytest.raises(DachengError, match="expected documents"):
        DocumentStore.open(tmp_path / "tokens")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), min_size=2, max_size=20))
def test_any_text_comes_through_to_the_last_byte(tmp_path_factory, tokenizer, texts):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    options = {"cleaning": {"profile": "none"}, "dedup": {"level": "none"}, "split": {"valid_fraction": 0}}
    prepare(config(path, **options), folder / "docs")
    shards = tokenize(folder / "docs", tokenizer, folder / "tokens", 16).shards("train")
    assert [tokenizer.decode(shards[0].document(i)[1:-1]) for i in range(len(texts))] == texts


def test_python_stdlib_end_to_end(tmp_path, tokenizer):
    """A real corpus: everything is accounted for, and packing leaves almost nothing empty."""
    drops = Drops()
    options = PrepareConfig(split=SplitConfig(valid_fraction=0.05))
    store = prepare(options, tmp_path / "docs", drops)
    assert drops.kept_bytes + sum(drops.dropped_bytes.values()) == store.manifest["source_bytes"]
    assert 0.01 < store.bytes("valid") / store.bytes("train") < 0.2
    corpus = tokenize(store, tokenizer, tmp_path / "tokens", 1024)
    statistics = corpus.entry("train")["packing"]
    assert statistics["fill_rate"] > 0.999
    assert statistics["padding"] == statistics["rows"] * 1024 - statistics["tokens"]
    assert corpus.shards("train")[0].tokens.dtype == np.uint16
