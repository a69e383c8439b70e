"""Readers: what comes out, what is counted, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from dacheng.data.sources import SourceSpec, fingerprint_source, open_source
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.records import Drops, Record

zstandard = pytest.importorskip("zstandard")


def write_lines(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(spec, **kwargs) -> tuple[list[Record], Drops]:
    drops = Drops(**kwargs)
    return list(open_source(spec, drops)), drops


# --- JSON lines -------------------------------------------------------------------------------------------------------
def test_jsonl_counts_every_bad_line_with_its_place(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            b'{"text": "one", "url": "u"}',
            b"",
            b"{not json",
            b'["a list"]',
            b'{"body": "no text"}',
            b'{"text": 7}',
            b'{"text": null}',
            b'{"text": "caf\xe9 au lait, and a good deal more"}',
            b'{"text": "half \\ud83d pair"}',
            b'{"text": "' + b"x" * 200 + b'"}',
            b"[" * 100_000,
            b'{"text": "last"}',
        ],
    )
    records, drops = read({"path": str(path), "max_document_bytes": 150})
    assert [r.text for r in records] == ["one", "caf\ufffd au lait, and a good deal more", "half \ufffd pair", "last"]
    assert [r.id for r in records] == ["a.jsonl:1", "a.jsonl:8", "a.jsonl:9", "a.jsonl:12"]
    assert drops.dropped == {
        "blank_line": 1,
        "bad_json": 1,
        "not_an_object": 1,
        "missing_field:text": 2,
        "field_not_text:text": 1,
        "line_too_long": 2,
    }
    assert drops.altered == {
        "bad_bytes_replaced": 1, "lone_surrogates_replaced": 1, "field_ignored:url": 1,
    }  # fmt: skip
    assert drops.examples["bad_json"] == "a.jsonl:3"
    assert drops.examples["bad_bytes_replaced"] == "a.jsonl:8"
    assert len(records) + sum(drops.dropped.values()) == 12
    assert drops.dropped_bytes["line_too_long"] == 213 + 100_001  # to the last byte, though never held


def test_deeply_nested_json_is_a_bad_line_not_a_crash(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [b"[" * 100_000, b'{"text": "fine"}'])
    records, drops = read(path)
    assert [r.text for r in records] == ["fine"] and drops.dropped == {"bad_json": 1}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_compressed_or_not_the_records_are_the_same(tmp_path, suffix):
    data = b"".join(json.dumps({"text": f"document {i} 大成"}).encode() + b"\r\n" for i in range(500))
    path = tmp_path / f"a{suffix}"
    if suffix.endswith(".gz"):
        data = gzip.compress(data)
    elif suffix.endswith(".zst"):  # two frames, one after the other
        half = data.index(b"document 250") - 10
        compress = zstandard.ZstdCompressor().compress
        data = compress(data[:half]) + compress(data[half:])
    path.write_bytes(data)
    reader = open_source(path, Drops())
    assert reader.total_bytes == len(data)
    assert [r.text for r in reader] == [f"document {i} 大成" for i in range(500)]
    assert reader.done_bytes == len(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.1])
def test_a_truncated_compressed_file_is_damaged(tmp_path, suffix, keep):
    lines = b"".join(json.dumps({"text": os.urandom(50).hex()}).encode() + b"\n" for i in range(500))
    data = gzip.compress(lines) if suffix == ".gz" else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DamagedFile, match="cut off or damaged") as caught:
        read(path)
    assert caught.value.value == str(path)


def test_fields_can_be_named_and_kept(tmp_path):
    row = {"q": "what", "key": 7, "y": "spam", "lang": "en", "other": 1}
    path = write_lines(tmp_path / "a.jsonl", [json.dumps(row).encode(), b'{"q": "no label"}'])
    spec = SourceSpec(path=str(path), text_field="q", id_field="key", label_field="y", keep_fields=("lang",))
    records, drops = read(spec)
    assert records == [Record(id="7", text="what", label="spam", meta={"path": "a.jsonl", "line": 1, "lang": "en"})]
    assert drops.altered == {"field_ignored:other": 1} and drops.dropped == {"missing_field:y": 1}


def test_messages(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    lines = [json.dumps({"messages": chat}).encode(), b'{"messages": "hi"}', b'{"messages": [{"content": "who?"}]}']
    records, drops = read({"path": write_lines(tmp_path / "a.jsonl", lines), "messages_field": "messages"})
    assert [r.messages for r in records] == [chat] and records[0].text is None
    assert drops.dropped == {"not_messages:messages": 2}


def test_a_json_array_and_json_lines_under_one_suffix(tmp_path):
    (tmp_path / "array.json").write_text('[{"text": "a"}, 3, {"text": "b"}]', encoding="utf-8")
    (tmp_path / "lines.json").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    (tmp_path / "broken.json").write_text('[{"text": "a"},', encoding="utf-8")
    records, drops = read(tmp_path / "array.json")
    assert [r.text for r in records] == ["a", "b"] and drops.examples["not_an_object"] == "array.json:2"
    assert [r.text for r in read(tmp_path / "lines.json")[0]] == ["a", "b"]
    with pytest.raises(DamagedFile, match="not valid JSON"):
        read(tmp_path / "broken.json")
    with pytest.raises(DachengError, match="too large"):
        read({"path": str(tmp_path / "array.json"), "max_document_bytes": 8})


# --- text -------------------------------------------------------------------------------------------------------------
def test_text_as_file_lines_or_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\n \r\nthree\r\n".encode())
    records, drops = read(path)
    assert [r.text for r in records] == ["one\r\ntwo\r\n\r\n \r\nthree\r\n"]
    assert drops.altered == {"byte_order_mark_removed": 1}
    records, drops = read({"path": str(path), "unit": "line"})
    assert [(r.id, r.text) for r in records] == [("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:5", "three")]
    assert drops.dropped == {"blank_line": 2}
    records, drops = read({"path": str(path), "unit": "paragraph"})
    assert [(r.id, r.text) for r in records] == [("a.txt:1", "one\ntwo"), ("a.txt:5", "three")]


def test_too_long_paragraphs_and_lines_are_dropped_and_the_rest_is_read(tmp_path):
    path = write_lines(tmp_path / "a.txt", [b"short", b"", b"x" * 30, b"y" * 30, b"", b"after"])
    records, drops = read({"path": str(path), "unit": "paragraph", "max_document_bytes": 40})
    assert [r.text for r in records] == ["short", "after"]
    assert drops.dropped == {"paragraph_too_long": 1} and drops.dropped_bytes["paragraph_too_long"] == 62
    assert drops.examples["paragraph_too_long"] == "a.txt:3"
    records, drops = read({"path": str(path), "unit": "line", "max_document_bytes": 29})
    assert [r.text for r in records] == ["short", "after"] and drops.dropped["line_too_long"] == 2


@pytest.mark.parametrize("policy", ["replace", "drop", "error"])
def test_bytes_that_are_not_utf8(tmp_path, policy):
    path = write_lines(tmp_path / "a.txt", [b"fine and long enough", b"na\xefve and long enough", b"\xff\xfe\xfd"])
    spec = {"path": str(path), "unit": "line", "bad_bytes": policy}
    if policy == "error":
        with pytest.raises(DachengError, match=r"a\.txt:2: not utf-8"):
            read(spec)
        return
    records, drops = read(spec)
    if policy == "replace":
        assert [r.text for r in records] == ["fine and long enough", "na\ufffdve and long enough"]
        assert drops.altered == {"bad_bytes_replaced": 1} and drops.dropped == {"not_text": 1}
    else:
        assert [r.text for r in records] == ["fine and long enough"] and drops.dropped == {"not_utf-8": 2}


def test_another_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("大成若缺".encode("gb18030"))
    assert read({"path": str(path), "encoding": "gb18030"})[0][0].text == "大成若缺"
    for bad in ("utf-16", "klingon"):
        with pytest.raises(UsageError, match="encoding"):
            read({"path": str(path), "encoding": bad})


# --- folders ----------------------------------------------------------------------------------------------------------
def make_folder(root: Path) -> Path:
    files = {
        "b.py": b"print('b')\n", "a.md": b"# A\n", "sub/c.txt": b"c\n", "sub/empty.txt": b"", ".env": b"secret",
        ".git/config": b"x", "__pycache__/b.pyc": b"\0", "image.png": b"\x89PNG\r\n\0\0", "paper.pdf": b"%PDF-1.7 text",
        "rows.jsonl.gz": b"not read", "big.txt": b"z" * 2000, "latin.txt": b"caf\xe9 cr\xe8me, served in the garden",
        "fake.txt.gz": b"not gzip",
    }  # fmt: skip
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "link.py").symlink_to(root / "b.py")
    (root / "loop").symlink_to(root)
    return root


def test_a_folder_is_walked_in_order_and_everything_else_is_counted(tmp_path):
    records, drops = read({"path": str(make_folder(tmp_path)), "max_document_bytes": 1000})
    assert [r.id for r in records] == ["a.md", "b.py", "latin.txt", "sub/c.txt"]
    assert drops.dropped == {
        "hidden": 1, "hidden_folder": 1, "cache_folder": 1, "binary": 2, "file_of_records": 1, "oversized": 1,
        "link": 2, "empty_file": 1, "damaged": 1,
    }  # fmt: skip
    assert drops.examples["oversized"] == "big.txt" and drops.altered == {"bad_bytes_replaced": 1}
    records, drops = read({"path": str(tmp_path), "suffixes": [".py", ".md"]})
    assert [r.id for r in records] == ["a.md", "b.py"] and drops.dropped["suffix_not_selected"] == 8


def test_a_folder_of_records_is_read_as_records(tmp_path):
    for name, text in (("b.jsonl", "second"), ("a.jsonl", "first")):
        (tmp_path / name).write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x", encoding="utf-8")
    assert [r.text for r in read(tmp_path)[0]] == ["first", "second"]


def test_a_file_name_that_is_not_utf8_can_be_written_again(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/bad\xff.txt")).write_text("text", encoding="utf-8")
    except OSError:
        pytest.skip("the file system refuses such names")
    assert read(tmp_path)[0][0].id.encode("utf-8") == "bad\ufffd.txt".encode()


def test_python_stdlib_is_the_library_and_nothing_else():
    reader = open_source("python-stdlib", Drops())
    names = [name for _, files in reader.parts for _, name, _ in files]
    assert {"os.py", "json/decoder.py", "asyncio/base_events.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    assert len(names) > 300 and 6e6 < reader.total_bytes < 50e6
    assert names == [name for _, files in open_source("python-stdlib", Drops()).parts for _, name, _ in files]
    first = next(reader)
    assert first.id == names[0] and first.text == Path(reader.parts[0][1][0][0]).read_text(encoding="utf-8")
    reader.close()


# --- parquet ----------------------------------------------------------------------------------------------------------
def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    bad = pa.array([b"good text", b"na\xefve in a long enough row", None, b"last"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"text": bad, "label": pa.array(["a", "b", "a", "b"]).dictionary_encode(), "extra": [1, 2, 3, 4]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    records, drops = read({"path": str(path), "label_field": "label"})
    assert [(r.text, r.label) for r in records] == [
        ("good text", "a"), ("na\ufffdve in a long enough row", "b"), ("last", "b"),
    ]  # fmt: skip
    assert drops.dropped == {"missing_field:text": 1} and drops.examples["missing_field:text"] == "a.parquet:3"
    assert drops.altered == {"field_ignored:extra": 4, "bad_bytes_replaced": 1}
    with pytest.raises(DachengError, match="no such column") as caught:
        read({"path": str(path), "text_field": "body"})
    assert "text, label, extra" in (caught.value.remedy or "")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DamagedFile, match="parquet"):
        read(path)


# --- specification ----------------------------------------------------------------------------------------------------
def test_what_is_wrong_with_a_specification_is_said_at_once(tmp_path):
    with pytest.raises(DachengError, match="no such file"):
        open_source(tmp_path / "absent.txt")
    with pytest.raises(UsageError, match=r"did you mean source\.text_field"):
        open_source({"path": str(tmp_path), "txt_field": "a"})
    with pytest.raises(UsageError, match="no path"):
        open_source({"kind": "jsonl"})
    with pytest.raises(UsageError, match="no source"):
        open_source([])
    with pytest.raises(UsageError, match="no path: it is"):
        open_source({"kind": "python-stdlib", "path": "x"})


def test_an_empty_corpus_is_an_error_that_says_why(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\0\0")
    with pytest.raises(DachengError, match="empty") as caught:
        read(tmp_path / "a.txt")
    assert "binary: 1" in (caught.value.remedy or "")
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).touch()
        with pytest.raises(DachengError, match="empty"):
            read(tmp_path / name)


def test_several_sources_one_after_another(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    reader = open_source([str(tmp_path / "b.txt"), {"path": str(tmp_path / "a.txt")}], Drops())
    assert [r.text for r in reader] == ["b", "a"] and reader.total_bytes == reader.done_bytes == 2


def test_without_drops_a_warning_says_what_was_lost(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one"}', b"oops"])
    with pytest.warns(UserWarning, match="bad_json"):
        assert len(list(open_source(path))) == 1


def test_the_fingerprint_follows_content_and_options_not_the_place(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same", encoding="utf-8")
    one = fingerprint_source(tmp_path / "x")
    assert one == fingerprint_source(tmp_path / "y")
    assert one != fingerprint_source({"path": str(tmp_path / "x"), "unit": "line"})
    (tmp_path / "y" / "a.txt").write_text("other", encoding="utf-8")
    assert one != fingerprint_source(tmp_path / "y")
