"""The machine at hand: what it is, and how fast it multiplies matrices, measured once and cached.

Imports neither torch nor numpy until something is measured, so that `dacheng --help` stays quick.
Tested on: x86-64 Linux, CPU. Experimental: macOS, and `device="cuda"` or `"mps"` (same code, never run there).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError

log = logging.getLogger(__name__)

BUDGET_S = 2.4  # of the whole measurement; the callers are promised less than 3 s beside torch's import
FAST_BFLOAT16 = 1.3  # bf16 compute pays for its extra casts from about this ratio on
# (rows, inner, columns): cubes, and the tall-skinny shape of an mlp: batch tokens x width x 4 width
SHAPES = ((256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024))
PROBE = (96, 96, 96)  # 1.8 MFLOP: 60 ms even at the 30 MFLOPS of the slowest emulation
_SCHEMA = 1
# as /proc/cpuinfo spells them: x86-64, then ARM
_X86 = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16")
_X86_MATRIX = ("avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
_ARM = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine as one process sees it.

    cores: that this process may use (affinity and cgroup quota applied). threads: of torch when it was measured.
    memory_bytes: main memory, or the cgroup's limit where that is lower (of the accelerator when device is not "cpu").
    matmul_gflops: best measured 1e9 FLOP/s by dtype, a multiply-add counted as two. measured_at: ISO 8601, UTC.
    """

    cpu_model: str
    capabilities: list[str]
    cores: int
    threads: int
    memory_bytes: int
    matmul_gflops: dict[str, float]
    measured_at: str
    torch_version: str
    device: str = "cpu"
    matmul_shape: dict[str, list[int]] = field(default_factory=dict)  # the (rows, inner, columns) that was best

    @property
    def fast_dtype(self) -> str:
        """ "bfloat16" where it was measured at least 1.3 times as fast as float32, else "float32"."""
        bfloat16 = self.matmul_gflops.get("bfloat16", 0.0)
        return "bfloat16" if bfloat16 >= FAST_BFLOAT16 * self.matmul_gflops["float32"] else "float32"

    def peak_gflops(self, dtype: object = "float32") -> float:
        """Measured matmul peak for "float32", "bfloat16" or the torch dtype of that name. UsageError for another."""
        name = str(dtype).removeprefix("torch.")
        if name not in self.matmul_gflops:
            raise UsageError(
                "no measured speed for this dtype",
                field="dtype",
                value=name,
                remedy="one of " + ", ".join(self.matmul_gflops),
            )
        return self.matmul_gflops[name]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def cache_dir() -> Path:
    """$DACHENG_CACHE, else $XDG_CACHE_HOME/dacheng, else ~/.cache/dacheng. Not created here."""
    own = os.environ.get("DACHENG_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dacheng"


def set_threads(n: int | None = None) -> int:
    """Sets torch's threads for one operator (None: one per usable core) and returns the number. Call it once, early.

    Raises UsageError below 1. More threads than cores is allowed, and logged: it slows every matmul down.
    """
    import torch

    wanted = usable_cores() if n is None else n
    if wanted < 1:
        raise UsageError("threads must be at least 1", field="threads", value=n, remedy="leave it out for one per core")
    if wanted > usable_cores():
        log.warning("%d threads on %d usable cores", wanted, usable_cores())
    torch.set_num_threads(wanted)
    return wanted


def measure(cache: bool = True, refresh: bool = False, device: str = "cpu") -> Machine:
    """This machine, from the cache or measured now (under 3 s).

    cache: read and write the file under cache_dir(), keyed by CPU model, torch version, threads, cores and device.
    refresh: measure even when cached; the better of both stands, since other processes only ever slow a product down.
    A cache that cannot be read or written is logged and does without.
    """
    import torch

    model = cpu_model()
    key = {
        "schema": _SCHEMA,
        "cpu_model": model,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "device": device,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / f"machine-{digest}.json"
    found = _read(path) if cache else None
    if found is not None and not refresh:
        return found
    gflops, shapes = _matmul_speeds(device)
    if found is not None:
        for name, earlier in found.matmul_gflops.items():
            if earlier > gflops.get(name, 0.0):
                gflops[name], shapes[name] = earlier, found.matmul_shape[name]
    machine = Machine(
        cpu_model=model if device == "cpu" else f"{model} + {device}",
        capabilities=capabilities(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=total_bytes() if device == "cpu" else _device_bytes(device),
        matmul_gflops=gflops,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        torch_version=torch.__version__,
        device=device,
        matmul_shape=shapes,
    )
    if cache:
        _write(path, machine)
    return machine


def _read(path: Path) -> Machine | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if set(values) != {f.name for f in fields(Machine)} or "float32" not in values["matmul_gflops"]:
            raise ValueError("fields differ")
        return Machine(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("the cached measurement %s is unusable (%s): measuring again", path, error)
        return None


def _write(path: Path, machine: Machine) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(machine.to_dict(), file, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("the measurement was not cached at %s: %s", path, error)


def _matmul_speeds(device: str) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Best GFLOPS over SHAPES by dtype, and the shape that gave it.

    bfloat16 is first tried on PROBE: where it is emulated (no AVX-512 BF16, AMX or SME) it is about fifty times slower
    than float32, and one large product would take minutes. Then the probe's own speed stands as the measurement.
    """
    import torch

    start = time.perf_counter()
    gflops, best_shape = {}, {}
    with torch.no_grad():
        for dtype, until in ((torch.float32, 0.6 * BUDGET_S), (torch.bfloat16, BUDGET_S)):
            name = str(dtype).removeprefix("torch.")
            best, shape = _speed(PROBE, dtype, device, 0.02), PROBE
            worth_more = dtype == torch.float32 or best > 0.5 * _speed(PROBE, torch.float32, device, 0.02)
            for index, candidate in enumerate(SHAPES if worth_more else ()):
                left = until - (time.perf_counter() - start)
                # The first is always tried: on a busy machine so short a probe can say anything.
                if index and 2 * _flop(candidate) / (best * 1e9) > left:
                    continue  # one warm-up and one timed product would not fit
                speed = _speed(candidate, dtype, device, max(0.0, 0.8 * left / (len(SHAPES) - index)))
                if speed > best:
                    best, shape = speed, candidate
            gflops[name], best_shape[name] = round(best, 3), list(shape)
    return gflops, best_shape


def _flop(shape: tuple[int, int, int]) -> float:
    return 2.0 * shape[0] * shape[1] * shape[2]


def _speed(shape: tuple[int, int, int], dtype: Any, device: str, seconds: float) -> float:
    """GFLOPS of the fastest product in `seconds` (at least one, after a warm-up): noise can only slow one down."""
    import torch

    rows, inner, columns = shape
    a = torch.full((rows, inner), 0.5, dtype=dtype, device=device)
    b = torch.full((inner, columns), 0.25, dtype=dtype, device=device)
    end = time.perf_counter() + seconds
    torch.mm(a, b)  # the first call chooses kernels and allocates
    fastest = float("inf")
    while True:
        _synchronize(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        now = time.perf_counter()
        fastest = min(fastest, now - began)
        if now >= end:
            return _flop(shape) / max(fastest, 1e-9) / 1e9


def _synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def _device_bytes(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.startswith("mps"):
        return int(torch.mps.recommended_max_memory())
    raise UsageError("unknown device", field="device", value=device, remedy="cpu, cuda or mps")


def cpu_model() -> str:
    """The CPU's name as its maker gives it, or the architecture where none is given."""
    name = _proc_cpuinfo().get("model name", "")
    if not name and platform.system() == "Darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return " ".join((name or platform.processor() or platform.machine()).split())


def capabilities() -> list[str]:
    """Instruction sets that matter to matrix products, e.g. ["avx2", "fma"]; empty where they cannot be read."""
    info = _proc_cpuinfo()
    have = set((info.get("flags") or info.get("Features") or "").split())
    if not have and platform.system() == "Darwin" and platform.machine() == "arm64":
        have = {"asimd"}
    return [name for name in (*_X86, *_X86_MATRIX, *_ARM) if name in have]


def usable_cores() -> int:
    """Cores this process may run on: its affinity, and the cgroup's quota (rounded up) where that is lower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        words = _text(quota_file).split() + (_text(period_file).split() if period_file else [])
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[0]) and int(words[1]):
            cores = min(cores, max(1, -(-int(words[0]) // int(words[1]))))
    return cores


def total_bytes() -> int:
    """Main memory in bytes, or the cgroup's limit where that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        total = int(_output(["sysctl", "-n", "hw.memsize"]) or 0)
    limits = (_text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min([total] + [int(limit) for limit in limits if limit.isdigit()])


def available_bytes(device: str = "cpu") -> int:
    """Memory that can be taken now without swapping: the kernel's estimate within the cgroup's limit, or the total. For
    an accelerator ("cuda", "cuda:1"), what is free of its own."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device.startswith("mps"):
        import torch

        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    available = total_bytes()
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = min(available, int(line.split()[1]) * 1024)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _text(limit_file), _text(used_file)
        if limit.isdigit() and used.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available


def _proc_cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; {} elsewhere than on Linux."""
    first = _text("/proc/cpuinfo").split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
