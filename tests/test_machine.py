import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dacheng import machine
from dacheng.errors import UsageError
from dacheng.machine import Machine


def made(**gflops: float) -> Machine:
    return Machine(
        cpu_model="made up",
        capabilities=["avx2"],
        cores=2,
        threads=2,
        memory_bytes=1 << 30,
        matmul_gflops=gflops,
        measured_at="2025-01-01T00:00:00+00:00",
        torch_version="2.9.0",
    )


def test_importing_machine_and_ledger_imports_neither_torch_nor_numpy():
    code = "import sys, dacheng.machine, dacheng.ledger; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_measurement_is_cached_and_refreshed(monkeypatch, tmp_path):
    import torch

    monkeypatch.setenv("DACHENG_CACHE", str(tmp_path))  # other tests measure with other threads
    monkeypatch.setattr(machine, "BUDGET_S", 0.2)
    first = machine.measure()
    assert first.matmul_gflops["float32"] > 0.1
    assert first.matmul_gflops["bfloat16"] > 0
    assert first.threads == torch.get_num_threads()
    assert 1 <= first.cores <= os.cpu_count()
    assert 1 << 28 < machine.available_bytes() <= first.memory_bytes
    (path,) = machine.cache_dir().glob("machine-*.json")
    stored = json.loads(path.read_text())
    stored["matmul_gflops"]["float32"] = 123.0
    path.write_text(json.dumps(stored))
    assert machine.measure().peak_gflops("float32") == 123.0
    assert machine.measure(cache=False).peak_gflops("float32") != 123.0
    stored["matmul_gflops"]["float32"] = 1e6
    path.write_text(json.dumps(stored))
    assert machine.measure(refresh=True).peak_gflops("float32") == 1e6  # noise only ever slows: the better one stands
    stored["matmul_gflops"]["float32"] = 1e-6
    path.write_text(json.dumps(stored))
    assert machine.measure(refresh=True).peak_gflops("float32") > 0.1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"cpu_model": "x"}', b"\xff\xfe"])
def test_damaged_cache_is_measured_anew(content, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("DACHENG_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_matmul_speeds", lambda device: ({"float32": 7.0, "bfloat16": 1.0}, {}))
    machine.measure()
    (path,) = tmp_path.glob("machine-*.json")
    path.write_bytes(content)
    assert machine.measure().peak_gflops("float32") == 7.0
    assert "measuring again" in caplog.text
    assert json.loads(path.read_text())["matmul_gflops"]["float32"] == 7.0


def test_unwritable_cache_is_logged_and_done_without(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DACHENG_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(machine, "_matmul_speeds", lambda device: ({"float32": 7.0, "bfloat16": 1.0}, {}))
    assert machine.measure().peak_gflops("float32") == 7.0
    assert "not cached" in caplog.text


def test_another_number_of_threads_is_another_measurement(monkeypatch):
    import torch

    speeds = iter([1.0, 2.0])
    monkeypatch.setattr(machine, "_matmul_speeds", lambda device: ({"float32": next(speeds), "bfloat16": 1.0}, {}))
    monkeypatch.setattr(machine, "cpu_model", lambda: "for this test")
    threads = torch.get_num_threads()
    try:
        machine.set_threads(1)
        assert machine.measure().peak_gflops() == 1.0
        torch.set_num_threads(2)
        assert machine.measure().peak_gflops() == 2.0
        machine.set_threads(1)
        assert machine.measure().peak_gflops() == 1.0
    finally:
        torch.set_num_threads(threads)


def test_emulated_bfloat16_is_recognised_by_the_probe_alone(monkeypatch):
    shapes = []

    def speed(shape, dtype, device, seconds):
        shapes.append((shape, str(dtype)))
        return 1.0 if "bfloat16" in str(dtype) else 50.0

    monkeypatch.setattr(machine, "_speed", speed)
    gflops, _ = machine._matmul_speeds("cpu")
    assert gflops == {"float32": 50.0, "bfloat16": 1.0}
    assert [shape for shape, dtype in shapes if "bfloat16" in dtype] == [machine.PROBE]


@pytest.mark.parametrize("gflops", [0.05, 1.0, 50.0, 5000.0])
def test_measurement_takes_less_than_three_seconds_on_any_machine(gflops, monkeypatch):
    clock = [100.0]

    def speed(shape, dtype, device, seconds):
        product = machine._flop(shape) / (gflops * 1e9)
        clock[0] += product + max(product, -(-seconds // product) * product)  # the warm-up, then while time is left
        return gflops

    monkeypatch.setattr(machine, "_speed", speed)
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    machine._matmul_speeds("cpu")
    assert clock[0] - 100.0 < 3.0


def test_fast_dtype_needs_a_clear_advantage():
    assert made(float32=100.0, bfloat16=129.0).fast_dtype == "float32"
    assert made(float32=100.0, bfloat16=131.0).fast_dtype == "bfloat16"
    assert made(float32=100.0).fast_dtype == "float32"


def test_peak_by_name_or_torch_dtype():
    import torch

    assert made(float32=100.0, bfloat16=50.0).peak_gflops(torch.bfloat16) == 50.0
    with pytest.raises(UsageError, match="float16"):
        made(float32=100.0).peak_gflops("float16")


def test_threads_below_one_are_refused():
    with pytest.raises(UsageError):
        machine.set_threads(0)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DACHENG_CACHE", str(tmp_path / "own"))
    assert machine.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("DACHENG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_dir() == tmp_path / "dacheng"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert machine.cache_dir() == tmp_path / "home" / ".cache" / "dacheng"
