"""safetensors files: round trips, determinism, and every kind of damage."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.safetensors_header import read_header
from dacheng.formats.safetensors_io import DTYPES, read_tensors, sha256_file, write_tensors


def raw(items: dict | bytes, data: bytes = b"", pad: int = 0) -> bytes:
    text = items if isinstance(items, bytes) else json.dumps(items).encode()
    text += b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


EVERY_KIND = {
    "f32": torch.arange(6.0).reshape(2, 3),
    "bf16": torch.arange(5.0).bfloat16(),
    "f16": torch.ones(3).half(),
    "f64": torch.tensor(1.5, dtype=torch.float64),  # no dimensions
    "bool": torch.tensor([True, False]),
    "i64": torch.tensor([[-(2**62)]]),
    "u8": torch.tensor([255], dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(10)[::3],
    "名字": torch.tensor([1, 2], dtype=torch.int32),
}


def test_round_trip_keeps_every_bit_and_agrees_with_the_reference(tmp_path):
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, EVERY_KIND, {"b": "2", "a": "1"})
    for found in (read_tensors(path), load_file(path)):
        assert found.keys() == EVERY_KIND.keys()
        for name, tensor in EVERY_KIND.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert torch.equal(found[name], tensor)
    assert digest == sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_header(path).metadata == {"a": "1", "b": "2"}


def test_every_dtype_of_the_table_is_stored_and_read(tmp_path):
    tensors = {name: torch.zeros(3, 2).to(dtype) for name, dtype in DTYPES.items()}
    write_tensors(tmp_path / "x", tensors)
    found = read_tensors(tmp_path / "x")
    assert {name: tensor.dtype for name, tensor in found.items()} == DTYPES


def test_reads_what_the_reference_writes(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in EVERY_KIND.items()}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    found = read_tensors(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_bytes_depend_on_names_and_values_only(tmp_path):
    backwards = dict(reversed(EVERY_KIND.items()))
    one = write_tensors(tmp_path / "1", EVERY_KIND, {"a": "1", "b": "2"})
    two = write_tensors(tmp_path / "2", backwards, {"b": "2", "a": "1"})
    assert one == two


def test_the_first_tensor_is_aligned_and_all_fall_on_their_own_size(tmp_path):
    write_tensors(tmp_path / "x", EVERY_KIND)
    length = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0
    for item in read_header(tmp_path / "x").tensors.values():
        assert item.begin % DTYPES[item.dtype].itemsize == 0


def test_a_cast_touches_floating_tensors_only(tmp_path):
    write_tensors(tmp_path / "x", {"w": torch.tensor([1.00390625]), "n": torch.tensor([7])}, dtype=torch.bfloat16)
    found = read_tensors(tmp_path / "x")
    assert found["w"].dtype == torch.bfloat16
    assert found["w"].item() == 1.0  # halfway, rounded to even
    assert found["n"].dtype == torch.int64


def test_a_cast_that_overflows_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x"
    before = write_tensors(path, {"w": torch.ones(1)})
    with pytest.raises(DachengError, match="do not fit") as caught:
        write_tensors(path, {"w": torch.tensor([1e6])}, dtype=torch.float16)
    assert (caught.value.field, caught.value.value) == ("w", 1e6)
    assert sha256_file(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_cast_keeps_infinities_nans_and_empty_tensors(tmp_path):
    odd = {"odd": torch.tensor([float("inf"), float("-inf"), float("nan"), 2.0]), "empty": torch.zeros(0)}
    write_tensors(tmp_path / "x", odd, dtype=torch.float16)
    found = read_tensors(tmp_path / "x")
    assert torch.equal(found["odd"].isnan(), odd["odd"].isnan())
    assert found["odd"].tolist()[:2] == [float("inf"), float("-inf")]
    assert found["empty"].dtype == torch.float16


def test_writing_to_a_read_tensor_leaves_the_file_alone(tmp_path):
    digest = write_tensors(tmp_path / "x", {"w": torch.zeros(4)})
    read_tensors(tmp_path / "x")["w"].fill_(9)
    assert sha256_file(tmp_path / "x") == digest
    assert torch.equal(read_tensors(tmp_path / "x")["w"], torch.zeros(4))


def test_replacing_a_file_does_not_disturb_who_reads_the_old_one(tmp_path):
    write_tensors(tmp_path / "x", {"w": torch.zeros(4)})
    old = read_tensors(tmp_path / "x")["w"]
    write_tensors(tmp_path / "x", {"w": torch.ones(4)})
    assert torch.equal(old, torch.zeros(4))


def test_a_tensor_at_an_odd_address_is_copied_to_an_even_one(tmp_path):
    for pad in range(8):
        (tmp_path / "x").write_bytes(raw({"w": entry()}, torch.tensor([1.0, 2.0]).numpy().tobytes(), pad))
        tensor = read_tensors(tmp_path / "x")["w"]
        assert tensor.tolist() == [1.0, 2.0]
        assert tensor.data_ptr() % 4 == 0


def test_names_pick_tensors(tmp_path):
    write_tensors(tmp_path / "x", EVERY_KIND)
    assert list(read_tensors(tmp_path / "x", ["u8", "f16"])) == ["u8", "f16"]
    with pytest.raises(DachengError, match="no such tensor") as caught:
        read_tensors(tmp_path / "x", ["absent"])
    assert caught.value.field == "absent"


def test_tied_tensors_are_refused_and_parts_of_one_are_not(tmp_path):
    fused = torch.arange(12.0).reshape(6, 2)
    write_tensors(tmp_path / "x", {"q": fused[:2], "k": fused[2:4], "v": fused[4:]})
    assert read_tensors(tmp_path / "x")["k"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    with pytest.raises(DachengError, match="embed and head are one tensor"):
        write_tensors(tmp_path / "x", {"embed": fused, "head": fused.detach()})


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.zeros(2, device="meta"), "plain values"),
        (torch.eye(2).to_sparse(), "plain values"),
        (torch.zeros(2, dtype=torch.complex128), "no such dtype"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, tensor, what):
    with pytest.raises(DachengError, match=what) as caught:
        write_tensors(tmp_path / "x", {"odd": tensor})
    assert caught.value.field == "odd"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 100}))
    with pytest.raises(DachengError, match="the disk has 100"):
        write_tensors(tmp_path / "x", {"w": torch.zeros(100)})


DAMAGE = {  # kind: (bytes, what the error says, the field it names)
    "empty file": (b"", "ends inside its header", "header length"),
    "seven bytes": (b"\0" * 7, "ends inside its header", "header length"),
    "header longer than the file": ((2**40).to_bytes(8, "little") + b"{}", "ends inside its header", "header length"),
    "not JSON": (raw(b"{nonsense"), "not valid JSON", "header"),
    "a pickle": (raw(b"\x80\x04."), "no safetensors file", "header"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not valid JSON", "header"),
    "NaN": (raw(b'{"w": NaN}'), "not valid JSON", "header"),
    "a name twice": (raw(b'{"w": {}, "w": {}}'), "there twice", "header"),
    "nested absurdly": (raw(b'{"w":' + b"[" * 100_000), "not valid JSON", "header"),
    "absurd digits": (raw(b'{"w":' + b"9" * 10_000 + b"}"), "not valid JSON", "header"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "metadata", "__metadata__"),
    "a list for a tensor": (raw({"w": [1]}), "described by", "w"),
    "a missing key": (raw({"w": {"dtype": "F32", "shape": [0]}}), "described by", "w"),
    "an extra key": (raw({"w": entry(shape=(0,), end=0) | {"extra": 1}}), "described by", "w"),
    "unknown dtype": (raw({"w": entry(dtype="F31")}, b"\0" * 8), "dtype", "w"),
    "dtype of another type": (raw({"w": entry(dtype=[])}, b"\0" * 8), "dtype", "w"),
    "negative size": (raw({"w": entry(shape=(-2,))}, b"\0" * 8), "non-negative", "w"),
    "negative sizes that multiply": (raw({"w": entry(shape=(-1, -2))}, b"\0" * 8), "non-negative", "w"),
    "a fractional size": (raw({"w": entry(shape=(2.0,))}, b"\0" * 8), "non-negative", "w"),
    "a boolean size": (raw({"w": entry(shape=(True, 2))}, b"\0" * 8), "non-negative", "w"),
    "too many dimensions": (raw({"w": entry(shape=(1,) * 65 + (2,))}, b"\0" * 8), "at most 64", "w"),
    "a product over 64 bits": (raw({"w": entry(shape=(2**62, 2**62, 0), end=0)}), "larger than any memory", "w"),
    "shape against offsets": (raw({"w": entry(shape=(3,))}, b"\0" * 8), "takes 12 bytes", "w"),
    "end before begin": (raw({"w": entry(begin=8, end=0)}, b"\0" * 8), "begin <= end", "w"),
    "three offsets": (
        raw({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, b"\0" * 8),
        "begin <= end",
        "w",
    ),
    "past the end": (raw({"w": entry()}, b"\0" * 7), "ends inside this tensor", "w"),
    "a hole before": (raw({"w": entry(begin=4, end=12)}, b"\0" * 12), "4 bytes unused after the header", "w"),
    "a hole between": (raw({"a": entry(), "w": entry(begin=12, end=20)}, b"\0" * 20), "4 bytes unused after 'a'", "w"),
    "overlapping": (raw({"a": entry(), "w": entry(begin=4, end=12)}, b"\0" * 12), "overlaps 'a'", "w"),
    "the same bytes twice": (raw({"a": entry(), "w": entry()}, b"\0" * 8), "overlaps 'a'", "w"),
    "bytes after the last": (raw({"w": entry()}, b"\0" * 9), "1 bytes follow", "data"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_recognised(tmp_path, kind):
    content, problem, field = DAMAGE[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        read_tensors(path)
    error = caught.value
    assert problem in error.problem
    assert str(path) in error.problem
    assert error.field == field
    assert error.remedy


def test_a_header_over_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(DamagedFile, match="over 100000000 bytes"):
        read_tensors(path)


def test_no_file_and_a_directory_are_named(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DachengError, match="cannot open") as caught:
            read_tensors(path)
        assert not isinstance(caught.value, DamagedFile)


SMALL = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([3], dtype=torch.int16), "c": torch.zeros(0)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x"
    write_tensors(path, SMALL, {"format": "pt"})
    return path.read_bytes()


def survives(path, content: bytes) -> None:
    """Either DamagedFile, or a file whose values are the stored ones (a changed name or note cannot be seen here)."""
    path.write_bytes(content)
    try:
        found = read_tensors(path)
    except DamagedFile as error:
        assert str(path) in error.problem
        assert error.remedy
        return
    assert sum(t.numel() * t.element_size() for t in found.values()) == 26
    for tensor in found.values():
        tensor.clone()  # the values can be touched


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bits_in_the_header(whole, tmp_path_factory, data):
    header = 8 + int.from_bytes(whole[:8], "little")
    content = bytearray(whole)
    for bit in data.draw(st.lists(st.integers(0, header * 8 - 1), min_size=1, max_size=4)):
        content[bit // 8] ^= 1 << bit % 8
    survives(tmp_path_factory.getbasetemp() / "flipped", bytes(content))


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, 400), tail=st.binary(max_size=3))
@example(cut=1, tail=b"")
def test_truncation_is_always_seen(whole, tmp_path_factory, cut, tail):
    content = whole[: max(0, len(whole) - cut)] + tail
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(content)
    if len(content) == len(whole):
        survives(path, content)
    else:
        with pytest.raises(DamagedFile):
            read_tensors(path)


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=300))
def test_noise_is_never_read(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(content)
    if content != raw(b"{}"):
        with pytest.raises(DamagedFile):
            read_tensors(path)


@settings(max_examples=120, deadline=None)
@given(
    items=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__", ""]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "F8_E4M3", "C64", "F4"]),
                "shape": st.lists(st.integers(-1, 3) | st.integers(2**62, 2**64), max_size=3),
                "data_offsets": st.lists(st.integers(0, 16), min_size=1, max_size=3),
            }
        )
        | st.none()
        | st.integers(),
        max_size=3,
    ),
    size=st.integers(0, 16),
)
def test_any_well_formed_header_is_right_or_refused(tmp_path_factory, items, size):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(raw(items, b"\0" * size))
    try:
        found = read_tensors(path)
    except DamagedFile:
        return
    assert sum(t.numel() * t.element_size() for t in found.values()) == size
