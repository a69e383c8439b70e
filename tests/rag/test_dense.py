"""Encoders of texts, which one is found, and the vectors of a store."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from dacheng.errors import DachengError
from dacheng.formats.encoders import load_encoder
from dacheng.formats.packages import package_file
from dacheng.rag import dense
from dacheng.rag.dense import Encoder, LocalEncoder, encode_store, find_encoder, passage_text
from dacheng.rag.store import PassageStore

BERT = Path(__file__).resolve().parent.parent / "goldens" / "encoders" / "bert"


@pytest.fixture(scope="module")
def encoder() -> LocalEncoder:
    return LocalEncoder.open(BERT, "tiny")


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for i, word in enumerate(("cat", "dog", "house")):
        (folder / f"{word}.md").write_text(
            f"# The {word}\n\nA big red {word} eats {i}.\n\n## More\n\nThe {word} runs.\n"
        )
    with PassageStore.open(tmp_path / "s.db", create=True) as found:
        found.sync(folder)
        yield found


def test_rows_have_length_1_and_do_not_depend_on_their_company(encoder, monkeypatch):
    assert isinstance(encoder, Encoder) and encoder.width == 32
    texts = ["the cat", "", "a big red house. " * 3, "中国", "dog", "the cat"]
    rows = encoder.encode(texts)
    assert rows.shape == (6, 32) and rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(6))
    assert torch.equal(rows[0], rows[5])
    monkeypatch.setattr(dense, "BATCH_TOKENS", 8)
    torch.testing.assert_close(encoder.encode(texts), rows, atol=2e-6, rtol=0)
    for text, row in zip(texts, rows):
        torch.testing.assert_close(encoder.encode([text])[0], row, atol=2e-6, rtol=0)
    assert encoder.encode([]).shape == (0, 32)


def test_what_is_too_long_is_cut_and_counted():
    encoder = LocalEncoder(load_encoder(BERT), "tiny", longest=8)
    assert encoder.longest == 8
    rows = encoder.encode(["the cat dog house run eat", "the cat dog house run eat big red", "the " * 100_000])
    assert encoder.drops.altered == {"cut at 8 tokens": 2}
    assert torch.equal(rows[0], rows[1])  # [SEP] stays at the end
    assert LocalEncoder(load_encoder(BERT), "tiny", longest=99).longest == 40  # no more than it has positions


def test_a_store_is_encoded_once_and_then_only_what_is_new(store, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "_SLICE", 2)
    seen: list[int] = []
    report = encode_store(store, encoder, lambda now: seen.append(now.encoded))
    assert report.encoded == report.total == len(store) and seen[-1] == len(store) and len(seen) > 1
    ids, rows = store.vectors(encoder.name)
    for number, row in zip(ids.tolist(), rows):
        torch.testing.assert_close(row.float(), encoder.encode([passage_text(store.get(number))])[0], atol=1e-3, rtol=0)
    assert encode_store(store, encoder).total == 0
    (tmp_path / "docs/dog.md").write_text("# Another\n\nA house runs.\n")
    (tmp_path / "docs/cat.md").unlink()
    store.sync(tmp_path / "docs")
    assert encode_store(store, encoder).encoded == 1
    assert store.vectors(encoder.name)[0].tolist() == sorted(passage.id for passage in store.all())


def test_an_interrupted_encoding_is_gone_on_with(store, encoder, monkeypatch):
    monkeypatch.setattr(dense, "_SLICE", 2)

    def stop(now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_store(store, encoder, stop)
    assert encode_store(store, encoder).encoded == len(store) - 2
    assert store.without_vectors(encoder.name) == []


def test_the_encoder_that_a_variable_names_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(dense.VARIABLE, str(BERT))
    found = find_encoder()
    assert found is not None and found.name.startswith("bert:") and found.width == 32
    copy = shutil.copytree(BERT, tmp_path / "bert")
    assert LocalEncoder.open(copy).name == found.name  # the name is that of the weights, not of the place
    monkeypatch.setenv(dense.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(DachengError, match=dense.VARIABLE):
        find_encoder()


def test_without_the_package_there_is_none(monkeypatch):
    monkeypatch.delenv(dense.VARIABLE, raising=False)
    monkeypatch.setattr(dense, "MODULE", "no_such_package_of_weights")
    assert find_encoder() is None


@pytest.mark.skipif(package_file(dense.MODULE, "model/config.json") is None, reason="MiniLM is not installed")
def test_minilm_is_found_without_importing_its_package(monkeypatch):
    monkeypatch.delenv(dense.VARIABLE, raising=False)
    found = find_encoder()
    assert found is not None and found.width == 384 and found.longest == 256
    assert dense.MODULE not in sys.modules
    one, same, other = found.encode(
        ["How do I delete a directory tree?", "Recursively remove a folder.", "The cat sat on the mat."]
    )
    assert one @ same > 0.5 > one @ other + 0.2


def test_vectors_of_beginnings_have_a_name_of_their_own(tmp_path):
    from dacheng.rag.dense import complete_encoder

    encoder = find_encoder()
    if encoder is None:
        pytest.skip("no encoder is installed")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Foxes\n\n" + "The quick fox hunts at night in the old forest. " * 20)
    with PassageStore.open(tmp_path / "a.db", create=True) as store:
        store.sync(tmp_path / "docs")
        short = encoder.of_beginnings(8)
        assert short.name == f"{encoder.name}@8" and short.longest == 8 < encoder.longest
        assert complete_encoder(store, encoder) is None
        of_64 = encoder.of_beginnings(64)
        encode_store(store, of_64)
        found = complete_encoder(store, encoder)
        assert found is not None and found.name == of_64.name
        encode_store(store, encoder)
        assert complete_encoder(store, encoder) is encoder
    same = "Foxes\nThe quick"
    assert torch.allclose(short.encode([same + " fox " * 50]), short.encode([same + " fox " * 90]))
