"""A training as a child: killed in the middle it ends at the same bytes; paused it stands still; it dies with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import adapt_toys as toys
import pytest

from dacheng.adapt import AdaptTrainConfig, TrainerProcess, WorkerConfig, compare_repeats
from dacheng.adapt.tail import read_log
from dacheng.errors import DachengError, UsageError

pytestmark = pytest.mark.process
STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    toys.directory(path)
    return path


def wait_for(seen, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)
    return found


def steps_in(out: Path) -> list[int]:
    return [line["step"] for line in read_log(out / "training/log.jsonl") if "step" in line]


def adapter_bytes(out: Path) -> bytes:
    return (out / "adapter/adapter_model.safetensors").read_bytes()


def test_kill_and_restart_change_nothing(folder, tmp_path):
    whole = TrainerProcess(toys.worker_config(folder, tmp_path / "a", steps=STEPS, save_every=10))
    with whole:
        whole.start()
        lines = list(whole.steps())
        assert whole.wait(60) == 0 and whole.failure() is None
    assert [line["step"] for line in lines if "step" in line] == list(range(1, STEPS + 1))
    assert whole.result()["steps"] == STEPS

    with TrainerProcess(toys.worker_config(folder, tmp_path / "b", steps=STEPS, save_every=10)) as cut:
        cut.start()
        wait_for(lambda: len(steps_in(tmp_path / "b")) >= 14)
        cut.kill()
        assert cut.returncode == -signal.SIGKILL and cut.failure() is None and not cut.alive
        assert not (tmp_path / "b/adapter").exists()
        cut.restart()
        assert cut.wait(60) == 0
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    assert cut.result()["resumed_from"] % 10 == 0 and cut.starts == 2
    repeats = compare_repeats(tmp_path / "b/training/log.jsonl")
    assert repeats.compared >= 4 and repeats.bit_identical


def test_paused_it_stands_still_and_goes_on(folder, tmp_path):
    with TrainerProcess(toys.worker_config(folder, tmp_path, steps=5000, save_every=1000)) as process:
        process.start()
        tail = process.tail()
        wait_for(lambda: any("step" in line for line in tail.new_lines()))
        process.pause()
        time.sleep(0.1)
        before = steps_in(tmp_path)
        time.sleep(0.3)
        assert steps_in(tmp_path) == before and process.alive and process.paused
        process.resume()
        wait_for(lambda: len(steps_in(tmp_path)) > len(before))
        assert process.paused_s >= 0.4 and not process.paused
        with pytest.raises(DachengError, match="runs already"):
            process.start()
        process.pause()  # a paused one can be killed too
        process.kill()
        assert not process.alive


PARENT = """
import sys, time
from dacheng.adapt.process import TrainerProcess
process = TrainerProcess(sys.argv[1])
process.start()
while not any("step" in line for line in process.tail().new_lines()):
    time.sleep(0.01)
if sys.argv[2] == "pause":
    process.pause()
print(process.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", ["run", "pause"])
def test_it_does_not_outlive_its_parent(folder, tmp_path, how):
    config = toys.worker_config(folder, tmp_path, steps=100_000, save_every=100_000)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(config), how], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
        parent.wait()
        wait_for(lambda: gone(pid), 20)
    finally:
        parent.kill()
        parent.wait()


def test_its_own_words_when_it_fails(folder, tmp_path):
    config = WorkerConfig(base=str(folder / "nowhere"), examples=str(folder / "examples.jsonl"), out=str(tmp_path),
                          train=AdaptTrainConfig(steps=1))  # fmt: skip
    with TrainerProcess(config.write(tmp_path / "worker.json")) as process:
        process.start()
        assert process.wait(60) == 1
        failure = process.failure()
        assert failure is not None and "does not exist" in failure.problem
        with pytest.raises(DachengError, match="does not exist"):
            process.result()


def test_a_configuration_is_checked_before_anything_starts(folder, tmp_path):
    path = toys.worker_config(folder, tmp_path)
    assert WorkerConfig.read(path).train.rank == 4
    path.write_text(path.read_text().replace('"rank"', '"rnak"'))
    with pytest.raises(UsageError) as caught:
        TrainerProcess(path)
    assert caught.value.field == "train.rnak"


def test_a_signal_to_stop_saves_first(folder, tmp_path):
    with TrainerProcess(toys.worker_config(folder, tmp_path, steps=100_000, save_every=100_000)) as process:
        process.start()
        wait_for(lambda: len(steps_in(tmp_path)) >= 3)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 130
        assert "all is saved" in str(process.failure())
        assert list((tmp_path / "training/checkpoints").iterdir())
