"""The reader of GGUF headers: what it takes, and every way in which a file may lie to it."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import torch
from gguf_files import ARRAY, STRING, U32, file_bytes, key, tensor_info, text, value_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.model import gguf_model
from dacheng.ops.quantize import quantize

F32, F16, Q8_0 = 0, 1, 8


def head(tensors=0, keys=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


@pytest.fixture
def read(tmp_path):
    def read(raw):
        path = tmp_path / "file.gguf"
        path.write_bytes(raw)
        return GGUFFile(path)

    return read


METADATA = {
    "general.architecture": "llama", "llama.block_count": 2, "a.truth": True, "a.float": 0.5, "a.text": "日本語 ✓",
    "a.texts": ["x", "", "ö"], "a.numbers": [1, 2, 3], "a.truths": [True, False], "a.nested": [[1, 2], [3]],
    "a.nothing": [],
}  # fmt: skip


def small_file(**options):
    matrix = torch.arange(128, dtype=torch.float32).reshape(2, 64) - 60
    return file_bytes(
        METADATA,
        {
            "plain": ((2, 3), F32, torch.arange(6, dtype=torch.float32).numpy().tobytes()),
            "half": ((3,), F16, torch.tensor([1, 2, 3], dtype=torch.float16).numpy().tobytes()),
            "packed": ((2, 64), Q8_0, quantize(matrix, "Q8_0").numpy().tobytes()),
        },
        **options,
    )


@pytest.mark.parametrize("version", [2, 3])
def test_keys_and_tensors_come_back(read, version):
    file = read(small_file(version=version))
    assert file.metadata == METADATA and (file.version, file.alignment) == (version, 32)
    assert file.tensor("plain").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.tensor("half").dtype == torch.float16 and file.tensor("half").tolist() == [1, 2, 3]
    assert file.qtensor("packed").shape == (2, 64) and file.entry("packed").format.name == "Q8_0"
    expected = torch.arange(128, dtype=torch.float32).reshape(2, 64) - 60
    assert torch.allclose(file.tensor("packed"), expected, atol=0.3)
    assert file.nbytes() == 24 + 6 + 2 * 68
    with pytest.raises(DachengError, match="no such tensor"):
        file.tensor("absent")


def test_tensors_are_views_of_the_file_that_leave_it_alone(tmp_path):
    path = tmp_path / "file.gguf"
    path.write_bytes(small_file())
    before = path.read_bytes()
    one, other = GGUFFile(path), GGUFFile(path)
    one.tensor("plain").fill_(7.0)
    assert one.tensor("plain").unique().tolist() == [7.0]
    assert other.tensor("plain")[0, 1] == 1.0 and path.read_bytes() == before


def test_another_alignment(read):
    raw = file_bytes(
        {"general.alignment": 64}, {"a": ((1,), F32, b"\0\0\x80\x3f"), "b": ((1,), F32, b"\0\0\0\x40")}, alignment=64
    )
    file = read(raw)
    assert file.alignment == 64 and file.tensor("b").item() == 2.0 and file.entry("b").begin % 64 == 0


def one_tensor(name="t", sizes=(4,), kind=F32, offset=0, data=b"\0" * 64, before=b"", keys=0, count=1):
    raw = head(count, keys) + before + tensor_info(name, sizes, kind, offset)
    return raw + b"\0" * (-len(raw) % 32) + data


def two_tensors(first, second, data=64):
    raw = head(2) + tensor_info(*first) + tensor_info(*second)
    return raw + b"\0" * (-len(raw) % 32) + b"\0" * data


BAD = {
    "no magic": (b"GGML" + small_file()[4:], "magic", "no GGUF file"),
    "empty": (b"", "bytes", "is empty"),
    "three bytes": (b"GGU", "magic", "no GGUF file"),
    "ends in the counts": (small_file()[:16], "counts", "ends inside its header"),
    "ends in a key": (small_file()[:60], None, None),
    "ends in the data": (small_file()[:-40], "packed", "ends inside this tensor"),
    "absurd key count": (head(0, 2**63) + b"\0" * 64, "key count", "too short for this count"),
    "absurd tensor count": (head(2**60, 0) + b"\0" * 64, "tensor count", "too short for this count"),
    "many empty keys": (head(0, 2**17) + b"\0" * 13 * 2**17, "key count", "at most 65536"),
    "absurd name": (head(1) + struct.pack("<Q", 2**62) + b"\0" * 64, None, "too short for this count"),
    "a key twice": (head(0, 2) + key("k", *value_of(1)) * 2, "k", "there twice"),
    "name not UTF-8": (head(0, 1) + key("k", STRING, text(b"\xff\xfe")), "k", "must be UTF-8"),
    "array not UTF-8": (
        head(0, 1) + key("k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"a\xff")), "k[0]", "must be UTF-8"
    ),
    "unknown value type": (head(0, 1) + key("k", 13, b"\0" * 8), "k", "no such type of value"),
    "unknown array type": (head(0, 1) + key("k", ARRAY, struct.pack("<IQ", 77, 1) + b"\0" * 9), "k", "no such type"),
    "truth of 2": (head(0, 1) + key("k", 7, b"\2"), "k", "0 or 1"),
    "absurd array": (
        head(0, 1) + key("k", ARRAY, struct.pack("<IQ", U32, 2**61)), "length of k", "too short for this count"
    ),
    "array of very many": (
        head(0, 1) + key("k", ARRAY, struct.pack("<IQ", 0, 2**22 + 1) + b"\0" * (2**22 + 1)), "k", "hold over"
    ),
    "text past the end": (head(0, 1) + key("k", STRING, struct.pack("<Q", 99)), "length of k", "too short"),
    "texts past the end": (
        head(0, 1) + key("k", ARRAY, struct.pack("<IQQ", STRING, 1, 2**63)), "k", "ends inside this array"
    ),
    "nested too deeply": (
        head(0, 1) + key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9 + struct.pack("<IQ", U32, 0)), "k",
        "nested too deeply",
    ),
    "alignment of 3": (head(0, 1) + key("general.alignment", *value_of(3)), "general.alignment", "power of two"),
    "alignment of 0": (head(0, 1) + key("general.alignment", *value_of(0)), "general.alignment", "power of two"),
    "alignment of 2^31": (head(0, 1) + key("general.alignment", *value_of(2**31)), "general.alignment", "power of two"),
    "alignment in words": (head(0, 1) + key("general.alignment", *value_of("x")), "general.alignment", "power of two"),
    "no dimensions": (one_tensor(sizes=()), "t", "1 to 4 dimensions"),
    "five dimensions": (one_tensor(sizes=(1,) * 5), "t", "1 to 4 dimensions"),
    "absurd dimensions": (
        head(1) + text("t") + struct.pack("<I", 2**32 - 1) + b"\0" * 64, "t", "1 to 4 dimensions"
    ),
    "size of 0": (one_tensor(sizes=(4, 0)), "t", "does not fit the file"),
    "absurd size": (one_tensor(sizes=(2**63, 2)), "t", "does not fit the file"),
    "sizes whose product overflows": (one_tensor(sizes=(2**32, 2**32)), "t", "does not fit the file"),
    "unknown numbers": (one_tensor(kind=999), "t", "no such type of numbers"),
    "half a block": (one_tensor(sizes=(33,), kind=Q8_0), "t", "blocks of 32"),
    "beyond the end": (one_tensor(offset=2**40), "t", "ends inside this tensor"),
    "just beyond the end": (one_tensor(sizes=(17,)), "t", "ends inside this tensor"),
    "overflowing offset": (one_tensor(offset=2**64 - 32), "t", "ends inside this tensor"),
    "odd offset": (one_tensor(offset=4), "t", "multiple of 32"),
    "a tensor twice": (two_tensors(("t", (4,), F32, 0), ("t", (4,), F32, 32)), "t", "two tensors"),
    "tensors on each other": (two_tensors(("a", (12,), F32, 0), ("b", (4,), F32, 32)), "b", "overlaps a"),
    "tensors in one place": (two_tensors(("a", (4,), F32, 0), ("b", (4,), F32, 0)), "b", "overlaps a"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_named(read, case):
    raw, field, match = BAD[case]
    with pytest.raises(DamagedFile, match=match) as caught:
        read(raw)
    assert field is None or caught.value.field == field
    assert "file.gguf" in caught.value.problem and caught.value.remedy


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (head(version=1), "this version of GGUF"),
        (head(version=4), "this version of GGUF"),
        (one_tensor(kind=16, sizes=(256,)), "IQ2_XXS is not supported"),
    ],
)
def test_a_sound_file_of_another_kind_is_not_called_damaged(read, raw, match):
    with pytest.raises(DachengError, match=match) as caught:
        read(raw)
    assert not isinstance(caught.value, DamagedFile)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DachengError, match="cannot open"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(DachengError, match="cannot open"):
        GGUFFile(tmp_path)


# --- fuzz -------------------------------------------------------------------------------------------------------------
def survives(path, raw):
    """Only our own errors, and no allocation out of proportion: returns the peak of Python's memory."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        file = GGUFFile(path)
        for name in file.tensors:
            assert file.tensor(name).numel() <= 16 * len(raw)
        gguf_model(path, packed=True)
    except DachengError as error:
        assert str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LIMIT = 2**20  # of the small file's reading, whatever has been done to it


@given(data=st.data())
@FUZZ
def test_flipped_bits_and_bytes(tmp_path, data):
    raw = bytearray(SEED_FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255)) if data.draw(st.booleans()) else raw[place] ^ (1 << place % 8)
    assert survives(tmp_path / "fuzz.gguf", bytes(raw)) < LIMIT


@given(cut=st.integers(0, 10**6))
@FUZZ
def test_every_truncation(tmp_path, cut):
    assert survives(tmp_path / "fuzz.gguf", SEED_FILE[: cut % len(SEED_FILE)]) < LIMIT


@given(place=st.integers(4, 10**6), value=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]))
@FUZZ
def test_absurd_counts_anywhere(tmp_path, place, value):
    raw = bytearray(SEED_FILE)
    place %= len(raw) - 8
    raw[place : place + 8] = struct.pack("<Q", value)
    assert survives(tmp_path / "fuzz.gguf", bytes(raw)) < LIMIT


@given(raw=st.binary(max_size=512))
@FUZZ
def test_any_bytes_behind_the_magic(tmp_path, raw):
    assert survives(tmp_path / "fuzz.gguf", b"GGUF\3\0\0\0" + raw) < LIMIT


def _seed_file():
    """A whole small model, so that damage reaches the translation too."""
    width, generator = 32, torch.Generator().manual_seed(0)

    def matrix(rows, columns, kind="Q8_0"):
        raw = quantize(torch.randn(rows, columns, generator=generator), kind)
        return (rows, columns), {"Q8_0": 8, "Q4_1": 3}[kind], raw.numpy().tobytes()

    def vector():
        return (width,), F32, torch.ones(width).numpy().tobytes()

    tensors = {"token_embd.weight": matrix(8, width), "output_norm.weight": vector()}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = matrix(width, width, "Q4_1")
    tensors |= {f"blk.0.{name}_norm.weight": vector() for name in ("attn", "ffn")}
    tensors["rope_freqs.weight"] = ((4,), F32, torch.ones(4).numpy().tobytes())
    keys = {"block_count": 1, "context_length": 64, "embedding_length": width, "feed_forward_length": width,
            "attention.head_count": 4, "attention.head_count_kv": 4, "rope.freq_base": 10000.0,
            "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    metadata = {"general.architecture": "llama"} | {f"llama.{name}": value for name, value in keys.items()}
    return file_bytes(metadata | {"tokenizer.ggml.tokens": list("abcdefgh")}, tensors)


SEED_FILE = _seed_file()


def test_the_undamaged_seed_is_read(tmp_path):
    (tmp_path / "seed.gguf").write_bytes(SEED_FILE)
    model = gguf_model(tmp_path / "seed.gguf", packed=True)
    assert len(model.tensors) == 11 and model.config["tie_word_embeddings"]
    assert survives(tmp_path / "again.gguf", SEED_FILE) < LIMIT
