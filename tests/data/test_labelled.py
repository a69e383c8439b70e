"""Texts with labels: what files are read and refused, and an order of batches that follows from the step."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from dacheng.data.labelled import LabelledSource, LabelledTexts, read_labelled
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.records import Drops

ROWS = [["is it raining", "weather"], ["play a song", "music"], ["  ", "music"], ["hm", None]]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_tables_and_splits_hold_the_same_texts(tmp_path):
    (tmp_path / "splits.json.gz").write_bytes(gzip.compress(json.dumps({"train": ROWS, "test": ROWS[:1]}).encode()))
    lines = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in ROWS))
    table = write(tmp_path / "a.tsv", "text\tlabel\nis it raining\tweather\nplay a song\tmusic\n \tmusic\nhm\t\n")
    commas = write(tmp_path / "a.csv", 'q,y\nis it raining,weather\n"play a song",music\n,music\nhm,\n')
    for source, names in (
        (f"{tmp_path}/splits.json.gz#train", {}), (lines, {}), (table, {}),
        (commas, {"text_field": "q", "label_field": "y"}),
    ):  # fmt: skip
        drops = Drops()
        found = read_labelled([source], drops, **names)
        assert found == LabelledTexts(("is it raining", "play a song"), ("weather", "music")), source
        assert drops.kept == 2 and sum(drops.dropped.values()) == 2
    assert len(read_labelled([f"{tmp_path}/splits.json.gz#test", lines], Drops())) == 3
    assert found.names == ("music", "weather") and found.numbers(found.names).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "source", "told"),
    [
        ("a.json", '{"train": [["x"]]}', "a.json#train", "no split of pairs"),
        ("a.json", '{"train": [["x", "y"]]}', "a.json#dev", "it has train"),
        ("a.json", "[1, 2]", "a.json#train", "no split of pairs"),
        ("a.json", '{"train": [', "a.json#train", "not valid JSON"),
        ("a.csv", "a,b\n1,2\n", "a.csv", "no column"),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl", "missing_field:label"),
        ("a.json", "", "b.json#train", "cannot read"),
        ("a.csv", "x" * 200_000 + ",label\n1,2\n", "a.csv", "field larger than"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, content, source, told):
    write(tmp_path / name, content)
    with pytest.raises(DachengError, match=told):
        read_labelled([tmp_path / source if "#" not in source else f"{tmp_path}/{source}"], Drops())


def test_tables_as_other_programs_write_them(tmp_path):
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbftext,label\r\nplay a song,music\r\n")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\nplay a song,music\n"))
    for name in ("excel.csv", "a.csv.gz"):
        assert read_labelled([tmp_path / name], Drops()) == LabelledTexts(("play a song",), ("music",)), name
    (tmp_path / "latin.csv").write_bytes("text,label\nwhere is the café,places\nhi, you,greeting\n".encode("latin-1"))
    drops = Drops()
    assert read_labelled([tmp_path / "latin.csv"], drops).labels == ("places",)
    assert drops.altered["bad_bytes_replaced"] == 1  # said, not silent
    assert drops.dropped["more_fields_than_columns"] == 1  # or " you" would be a label


def test_a_damaged_archive_and_an_unknown_label(tmp_path):
    packed = gzip.compress(json.dumps({"train": ROWS * 50}).encode())
    flipped = bytes(byte ^ 0x55 * (i == 12) for i, byte in enumerate(packed))
    for damaged in (packed[:-12], flipped, packed[:4]):
        (tmp_path / "a.json.gz").write_bytes(damaged)
        with pytest.raises(DamagedFile, match="cut off or damaged"):
            read_labelled([f"{tmp_path}/a.json.gz#train"], Drops())
    with pytest.raises(DachengError, match="the model does not have") as error:
        LabelledTexts(("a",), ("b",)).numbers(("c",))
    assert error.value.field == "label"
    assert LabelledTexts(("a",), (None,)).numbers(("c",)).tolist() == [-100]


def source(count: int = 103, batch: int = 8, **changes) -> LabelledSource:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (count,), generator=generator)
    rows = [[i + 1] * int(n) for i, n in enumerate(lengths)]
    return LabelledSource(rows, torch.arange(count), batch, pad_id=0, **changes)


def seen(made: LabelledSource, steps: range) -> list[int]:
    return [int(label) for step in steps for batch in made.next(step) for label in batch.labels]


def test_each_epoch_holds_every_text_once_and_little_padding():
    made = source()
    found = seen(made, range(13 * 8))  # 8 epochs of 103 texts in batches of 8, and a bit
    for epoch in range(8):
        assert sorted(found[103 * epoch : 103 * (epoch + 1)]) == list(range(103))
    assert found[:103] != found[103:206]
    plain = torch.cat([torch.stack([b.lengths.sum(), torch.tensor(b.tokens.numel())])[None]
                       for step in range(52) for b in made.next(step)])  # fmt: skip
    assert float(plain[:, 0].sum() / plain[:, 1].sum()) > 0.85  # drawn at random it would be about 0.55
    batch = made.next(3)[0]
    assert bool((batch.tokens.gt(0).sum(1) == batch.lengths).all())


def test_the_batches_of_a_step_follow_from_the_step_alone_and_are_shared_out_evenly():
    later, other = source(), source(seed=1)
    again = source()
    again.load_state_dict(json.loads(json.dumps(later.state_dict())))
    assert seen(later, range(20, 25)) == seen(again, range(20, 25)) != seen(other, range(20, 25))
    with pytest.raises(DachengError, match="other data"):
        other.load_state_dict(later.state_dict())
    parts = [source(micro_batches=2, rank=rank, world=2) for rank in range(2)]
    found = [seen(part, range(5)) for part in parts]
    assert sorted(found[0] + found[1]) == sorted(seen(later, range(5)))
    with pytest.raises(UsageError, match="as many labels"):
        LabelledSource([[1]], torch.tensor([0, 1]), 1, pad_id=0)


def test_a_teachers_logits_go_with_their_texts():
    teacher = torch.arange(103.0)[:, None].expand(103, 4).clone()
    made = source(teacher=teacher)
    for batch in made.next(2):
        assert torch.equal(batch.teacher[:, 0].long(), batch.labels) and batch.to("cpu").teacher is not None
    assert made.fingerprint != source().fingerprint
