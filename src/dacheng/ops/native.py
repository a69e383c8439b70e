"""The compiled kernels: built once by the system's compiler, kept in the cache, loaded through a plain C interface.

They are optional. Without a compiler, on a failed build or with DACHENG_NO_NATIVE=1, the plain torch code that stands
beside each kernel does its work. Tested on: x86-64 Linux with AVX2, and the portable code that other processors get.
Experimental: AVX-VNNI and AVX-512 VNNI (compiled, never run), ARM, macOS.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p
from pathlib import Path

from dacheng.machine import cache_dir, cpu_model

log = logging.getLogger(__name__)

KERNELS = Path(__file__).with_name("kernels")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-Wno-psabi")
_BUILD_S, _TEST_S = 300, 30
_lock = threading.Lock()
_tried: _Tried | None = None


class Linear(ctypes.Structure):
    """`struct Linear` of kernels/linear.h."""

    _fields_ = [("panels", c_void_p), ("bias", c_void_p), ("format", c_int64), ("out", c_int64), ("in_", c_int64)]


class _Tried:
    """How the attempt to load the kernels ended: a library, or why there is none."""

    def __init__(self, library: ctypes.CDLL | None, reason: str = "") -> None:
        self.library, self.reason = library, reason


def library() -> ctypes.CDLL | None:
    """The kernels, built if need be (seconds, the first time on a machine); None where there are none: `why_not()`."""
    return _attempt().library


def why_not() -> str:
    """Why `library()` is None; "" when it is not."""
    return _attempt().reason


def _attempt() -> _Tried:
    global _tried
    if _tried is None:
        with _lock:
            if _tried is None:
                _tried = _load()
                if _tried.library is None and not _is_off():
                    log.warning("no compiled kernels, so packed weights are slow: %s", _tried.reason)
    return _tried


def _is_off() -> bool:
    return os.environ.get("DACHENG_NO_NATIVE", "") not in ("", "0")


def _load() -> _Tried:
    if _is_off():
        return _Tried(None, "DACHENG_NO_NATIVE is set")
    compiler = _compiler()
    if compiler is None:
        return _Tried(None, "no C++ compiler was found: install g++, or name one in CXX")
    try:
        path = cache_dir() / f"kernels-{_key(compiler)}.so"
        if (kept := _opened(path)) is not None:
            return _Tried(kept)
        with tempfile.TemporaryDirectory(prefix="dacheng-kernels-") as folder:
            built = _build(compiler, Path(folder) / "kernels.so")
            return _Tried(_declared(ctypes.CDLL(str(_kept(built, path)))))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return _Tried(None, str(error))


def _opened(path: Path) -> ctypes.CDLL | None:
    """What an earlier process built; None where there is nothing, or nothing sound: it is built again."""
    try:
        return _declared(ctypes.CDLL(str(path))) if path.exists() else None
    except (OSError, AttributeError) as error:
        log.warning("the kernels kept in %s cannot be loaded (%s): compiling them again", path, error)
        return None


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(
        (found for name in ([named] if named else ["g++", "clang++", "c++"]) if (found := shutil.which(name))), None
    )


def _sources() -> list[Path]:
    return sorted(path for path in KERNELS.iterdir() if path.suffix in (".cpp", ".h"))


def _key(compiler: str) -> str:
    """Of the sources, the compiler and the processor's instruction sets: what the result depends on."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, timeout=_TEST_S, check=True
    ).stdout
    parts: Sequence[str] = (version, *FLAGS, platform.machine(), cpu_model(), _instruction_sets())
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _instruction_sets() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


def _build(compiler: str, out: Path) -> Path:
    """Compiles and tries the result in another process: an instruction that this machine lacks would end this one."""
    sources = [str(path) for path in _sources() if path.suffix == ".cpp"]
    log.info("compiling the kernels with %s", compiler)
    done = subprocess.run(
        [compiler, *FLAGS, *sources, "-o", str(out)], capture_output=True, text=True, timeout=_BUILD_S
    )
    if done.returncode != 0:
        raise OSError(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['without a word'])[0]}")
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).dacheng_self_test() != 1)"
    tried = subprocess.run([sys.executable, "-S", "-c", code, str(out)], capture_output=True, timeout=_TEST_S)
    if tried.returncode != 0:
        raise OSError(f"what {compiler} built does not run on this machine (exit status {tried.returncode})")
    return out


def _kept(built: Path, path: Path) -> Path:
    """Moved into the cache in one piece, whoever else does the same; where that cannot be, it is used from here."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        os.close(handle)
        shutil.copyfile(built, temporary)
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
        return path
    except OSError as error:
        log.warning("the compiled kernels were not cached at %s: %s", path, error)
        return built


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    found.dacheng_panel_bytes.restype = c_int64
    found.dacheng_panel_bytes.argtypes = [c_int64, c_int64, c_int64]
    found.dacheng_pack.argtypes = [c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64]
    found.dacheng_linear.argtypes = [POINTER(Linear), c_void_p, c_int64, c_void_p, c_int64]
    found.dacheng_decoder_step.argtypes = [c_void_p, c_void_p]
    return found
