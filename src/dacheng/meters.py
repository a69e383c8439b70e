"""What this process has used so far: CPU seconds, peak memory, and the CPU packages' energy where it is readable."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
import time
from pathlib import Path

RAPL_ROOT = Path("/sys/class/powercap")
RAPL_SAMPLE_S = 60.0  # a package's counter wraps after some 260 kJ: nine minutes at 500 W


def cpu_seconds() -> float:
    """User and system seconds of this process (all threads) and of its children that were waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_bytes() -> int:
    """Largest resident size of this process so far, in bytes.

    From VmHWM on Linux: getrusage's ru_maxrss survives fork and exec there, so that a small child of a large process
    would report its parent's size. From getrusage elsewhere.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _maxrss(resource.RUSAGE_SELF)


def return_free_memory() -> None:
    """Gives what malloc has free back to the system, where the C library can (glibc's malloc_trim): between large
    tensors of changing sizes its heap keeps holes that are never needed again. A few milliseconds; does nothing
    elsewhere."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_bytes_children() -> int:
    """Largest resident size of any one child that was waited for, in bytes; 0 without children."""
    return _maxrss(resource.RUSAGE_CHILDREN)


def _maxrss(who: int) -> int:
    value = resource.getrusage(who).ru_maxrss
    return int(value if sys.platform == "darwin" else value * 1024)  # kibibytes on Linux, bytes on macOS


def rapl_counters(root: Path = RAPL_ROOT) -> dict[str, tuple[int, int]]:
    """Energy counters of the CPU packages: {folder: (microjoules, value at which it wraps)}; {} where not readable.

    Linux's powercap tree (Running Average Power Limit). Packages only: the sub-domains (core, dram) are parts of them.
    Readable by root alone on most systems since CVE-2020-8694.
    """
    counters = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            name, now, wrap = (
                (folder / file).read_text(encoding="ascii").strip()
                for file in ("name", "energy_uj", "max_energy_range_uj")
            )
            if name.startswith("package"):
                counters[str(folder)] = (int(now), int(wrap))
        except (OSError, ValueError):
            continue
    return counters


class EnergyMeter:
    """Joules of the CPU packages since it was made, other processes' included; None where no counter is readable.

    A thread reads the counters once a minute, since they wrap; there is none without counters. Call `stop` at the end.
    """

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        self._root = root
        self._last = rapl_counters(root)
        self._microjoules = 0
        self._readable = bool(self._last)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        if self._readable:
            threading.Thread(target=self._sample, name="energy-meter", daemon=True).start()

    def joules(self) -> float | None:
        """Energy so far; None from the moment a counter cannot be read: a part of it would pass for the whole."""
        if self._readable:
            with self._lock:
                now = rapl_counters(self._root)
                if now.keys() != self._last.keys():
                    self._readable = False
                else:
                    for name, (value, wrap) in now.items():
                        before = self._last[name][0]
                        self._microjoules += value - before if value >= before else value + wrap - before
                    self._last = now
        return self._microjoules / 1e6 if self._readable else None

    def stop(self) -> None:
        self._stop.set()

    def _sample(self) -> None:
        while not self._stop.wait(RAPL_SAMPLE_S):
            self.joules()
