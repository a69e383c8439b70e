import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dacheng.errors import DachengError, DamagedFile
from dacheng.train import checkpoint, manifest
from dacheng.train.checkpoint import CheckpointStore

ENVIRONMENT = {"torch": "x", "threads": 1}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(5, 3, generator=generator), "b": torch.arange(4), "c": torch.tensor(2.5)}


def save(store: CheckpointStore, step: int, model=None) -> Path:
    return store.save(step, model or tensors(step), {"o/exp_avg": tensors(-step)["a"]}, {"step": step}, ENVIRONMENT)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, keep_last=3)


def hidden(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.folder.iterdir() if path.name.startswith(".")]


def test_what_was_saved_is_read_back(store):
    path = save(store, 200)
    assert path == store.folder / "step-00000200"
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    found, warnings = store.latest()
    assert (found.step, found.state["step"], found.environment, warnings) == (200, 200, ENVIRONMENT, [])
    for name, value in tensors(200).items():
        assert torch.equal(found.model_tensors()[name], value) and found.model_tensors()[name].dtype == value.dtype
    assert torch.equal(found.optimizer_tensors()["o/exp_avg"], tensors(-200)["a"])
    assert hidden(store) == []


def test_an_empty_output_has_none(store):
    assert store.latest() == (None, []) and store.steps() == []


def test_tied_tensors_are_stored_once_and_views_apart(store):
    whole = torch.randn(4, 4)
    model = {"embed": whole, "head": whole, "part": whole[:2], "turned": whole.T}
    path = save(store, 1, model)
    assert (path / "model.safetensors").stat().st_size < 16 * 4 + 8 * 4 + 16 * 4 + 1000
    read = store.latest()[0].model_tensors()
    assert all(torch.equal(read[name], value) for name, value in model.items())
    assert read["embed"].data_ptr() == read["head"].data_ptr()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
HARM = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "first byte flipped": lambda path: flip(path, 0),
    "middle byte flipped": lambda path: flip(path, path.stat().st_size // 2),
    "last byte flipped": lambda path: flip(path, -1),
    "missing": lambda path: path.unlink(),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_recognised_named_and_the_one_before_used(store, file, harm):
    save(store, 100)
    HARM[harm](save(store, 200) / file)
    found, warnings = store.latest()
    assert found.step == 100
    assert len(warnings) == 1 and f"step-00000200/{file}" in warnings[0]
    with pytest.raises(DamagedFile):
        store.load(200)


def test_every_byte_of_a_manifest_counts(store):
    """Every single bit flip that leaves valid JSON must still be seen: the manifest hashes itself."""
    path = save(store, 7) / "manifest.json"
    original = path.read_bytes()
    for at in range(0, len(original), 7):
        flip(path, at)
        changed = path.read_bytes()
        try:
            same = json.loads(changed) == json.loads(original)
        except ValueError:
            same = False
        if not same:
            with pytest.raises(DamagedFile, match=r"manifest.json|model|optimizer|state"):
                store.load(7)
        path.write_bytes(original)
    assert store.load(7).step == 7


def test_two_damaged_ones_are_both_named(store):
    for step in (1, 2, 3):
        save(store, step)
    HARM["truncated"](store.path(3) / "model.safetensors")
    HARM["missing"](store.path(2) / "manifest.json")
    found, warnings = store.latest()
    assert found.step == 1 and len(warnings) == 2
    assert "step-00000003" in warnings[0] and "step-00000002" in warnings[1]


def test_nothing_intact_is_an_error_and_not_a_fresh_start(store):
    HARM["truncated"](save(store, 5) / "model.safetensors")
    with pytest.raises(DamagedFile, match="no checkpoint is intact") as caught:
        store.latest()
    assert "remove that folder" in caught.value.remedy


def test_retention(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_every=30)
    for step in range(10, 101, 10):
        save(store, step)
    assert store.steps() == [30, 60, 90, 100]
    assert hidden(store) == []


def test_a_damaged_newer_one_is_set_aside_and_never_crowds_out_the_good(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_every=None)
    save(store, 10)
    save(CheckpointStore(tmp_path, keep_last=5), 20)
    HARM["truncated"](store.path(20) / "model.safetensors")
    assert store.latest()[0].step == 10
    assert [path.name for path in store.set_aside_after(10)] == ["step-00000020.damaged"]
    save(store, 15)
    assert store.steps() == [15]
    assert (store.folder / "step-00000020.damaged" / "manifest.json").exists()


def test_saving_a_step_again_replaces_it(store):
    save(store, 10)
    save(store, 10, {"a": torch.zeros(2)})
    assert torch.equal(store.latest()[0].model_tensors()["a"], torch.zeros(2))
    assert hidden(store) == []


def test_too_little_space_is_noticed_before_writing(store, monkeypatch):
    save(store, 10)
    usage = shutil.disk_usage(store.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DachengError, match=r"needs .* MB, and 0.0 MB are free") as caught:
        save(store, 20)
    assert caught.value.value == 1000 and "make room" in caught.value.remedy
    assert store.steps() == [10] and hidden(store) == []


@pytest.mark.parametrize("after", ["model", "optimizer", "state", "manifest"])
def test_a_disk_that_fills_up_while_writing_leaves_the_one_before(store, monkeypatch, after):
    save(store, 10)
    left = {"model": 0, "optimizer": 1, "state": 0, "manifest": 0}[after]

    def full(real):
        def write(*arguments, **options):
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= 1
            return real(*arguments, **options)

        return write

    place, name = {
        "model": (checkpoint, "write_tensors"),
        "optimizer": (checkpoint, "write_tensors"),
        "state": (checkpoint, "write_json"),
        "manifest": (manifest, "write_json"),
    }[after]
    monkeypatch.setattr(place, name, full(getattr(place, name)))
    with pytest.raises(DachengError, match=r"step 20 could not be written.*No space left"):
        save(store, 20)
    monkeypatch.undo()
    assert store.steps() == [10] and hidden(store) == []
    assert store.latest()[0].step == 10
    save(store, 20)
    assert store.latest()[0].step == 20


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=False)


@pytest.mark.process
def test_a_real_full_disk(small_disk, monkeypatch):
    store = CheckpointStore(small_disk)
    # The check before writing is switched off, so that the disk really fills up inside a file.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))
    small, large = {"w": torch.ones(4000)}, {"w": torch.ones(60000)}
    save(store, 1, small)
    with pytest.raises(DachengError, match="No space left"):
        save(store, 2, large)
    assert store.latest()[0].step == 1 and hidden(store) == []
    monkeypatch.undo()
    with pytest.raises(DachengError, match="MB are free"):
        CheckpointStore(small_disk).save(3, {"w": torch.ones(500000)}, {}, {}, ENVIRONMENT)
    assert store.latest()[0].step == 1


def test_what_a_killed_writer_left_is_cleaned(store):
    save(store, 10)
    for name in (".step-00000020.saving-99-aa", ".step-00000010.removed"):
        (store.folder / name).mkdir()
        (store.folder / name / "model.safetensors").write_bytes(b"half")
    assert store.latest()[0].step == 10
    store.clean()
    assert hidden(store) == [] and store.steps() == [10]
