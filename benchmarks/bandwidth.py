"""How fast this machine reads memory: what a decoder of one text is bound by, since it reads every weight for a token.

    python benchmarks/bandwidth.py [--megabytes 100] [--threads 1 2]

Sums of 64-bit words, each thread its own part, over and over; the best pass counts (McCalpin's STREAM counts so too).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = r"""
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>
// Bytes a second, the best of `passes` over `words`.
extern "C" double read_speed(const uint64_t* words, int64_t count, int64_t threads, int64_t passes, uint64_t* total) {
  double best = 0;
  for (int64_t pass = 0; pass < passes; pass++) {
    std::vector<uint64_t> sums(threads * 8);  // a cache line each
    auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> running;
    for (int64_t t = 0; t < threads; t++)
      running.emplace_back([&, t] {
        uint64_t sum = 0;
        for (int64_t i = count * t / threads; i < count * (t + 1) / threads; i++) sum += words[i];
        sums[8 * t] = sum;
      });
    for (auto& thread : running) thread.join();
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    for (int64_t t = 0; t < threads; t++) *total += sums[8 * t];
    if (count * 8 / seconds > best) best = count * 8 / seconds;
  }
  return best;
}
"""


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler: install g++")
    folder = Path(tempfile.mkdtemp(prefix="dacheng-bandwidth-"))
    try:
        source, library = folder / "read.cpp", folder / "read.so"
        source.write_text(SOURCE)
        flags = ["-std=c++17", "-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(folder)
    loaded.read_speed.restype = ctypes.c_double
    loaded.read_speed.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return loaded


def read_speed(megabytes: float, threads: int, passes: int = 20) -> float:
    """Bytes a second of reading so much memory again and again: more than the caches hold, or it is their speed."""
    size = max(8, int(megabytes * 1e6)) // 8 * 8
    memory = bytearray(b"\1") * size  # written, so that every page is there
    view = (ctypes.c_char * size).from_buffer(memory)
    total = ctypes.c_uint64()
    found: float = _library().read_speed(ctypes.addressof(view), size // 8, threads, passes, ctypes.byref(total))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[100.0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    for threads in args.threads:
        for megabytes in args.megabytes:
            print(f"{threads} threads, {megabytes:.0f} MB: {read_speed(megabytes, threads) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
