"""Running a Python program that nobody trusts: a process of its own, limits, and what came of it."""

from __future__ import annotations

import functools
import os
import random
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from dacheng.errors import DachengError, UsageError
from dacheng.sandbox import bubblewrap, landlock, seccomp
from dacheng.sandbox.limits import MAX_CODE_BYTES, Limits, SandboxResult, Status

if sys.platform == "linux":  # so that it is compiled once, and not by every program's interpreter
    import dacheng.sandbox.child  # noqa: F401

Mechanism = Literal["bubblewrap", "landlock"]
_START_SECONDS = 300.0  # for the interpreter to be up and locked down, on a very busy machine
_READ = 1 << 16
_MOST_GRANTED, _LEAST_GRANTED = 20, 0.02  # times the limit, seconds: for waiting on a core that others have
_BOOT = "import sys; sys.path.append(sys.argv[1]); from dacheng.sandbox.child import main; sys.path.pop(); main({}, {})"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program gives the same answer
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def available() -> str | None:
    """What holds a program on this machine: "bubblewrap+landlock+seccomp", "bubblewrap+seccomp", "landlock+seccomp",
    or None: nothing would, and run_python refuses."""
    parts = ["bubblewrap"] if seccomp.supported() is None and bubblewrap.works() else []
    parts += ["landlock"] if landlock.version() else []
    return "+".join([*parts, "seccomp"]) if parts and seccomp.supported() is None else None


def require() -> None:
    """Raises DachengError where code can't be held, saying what is missing."""
    if available() is None:
        raise DachengError(
            f"no sandbox on this machine: {_missing()}",
            field="sandbox",
            remedy="run on Linux 5.13 or later with Landlock (lsm=landlock,…), or install bubblewrap",
        )


def run_python(
    code: str, *, stdin: str = "", limits: Limits | None = None, mechanism: Mechanism | None = None
) -> SandboxResult:
    """Runs a program with the standard library and nothing else: no network, no files but Python's own (to read),
    no other processes, within `limits`. It is run as root and as any user; root's rights are given up first.

    mechanism: None takes bubblewrap where it works, else Landlock alone. Status "refused" where nothing holds a program
    here, or it is over 4 MiB. Raises UsageError for a mechanism that this machine has not.
    """
    limits = limits or Limits()
    data, text_in = code.encode("utf-8", "surrogatepass"), stdin.encode("utf-8", "surrogatepass")
    found = available()
    if found is None:
        return SandboxResult("refused", None, "", f"no sandbox on this machine: {_missing()}", 0.0)
    if len(data) > MAX_CODE_BYTES:
        return SandboxResult("refused", None, "", f"a program of {len(data)} bytes, over {MAX_CODE_BYTES}", 0.0)
    if mechanism is not None and mechanism not in found:
        raise UsageError("not on this machine", field="mechanism", value=mechanism, remedy=f"there is {found}")
    wrapped = mechanism == "bubblewrap" or (mechanism is None and "bubblewrap" in found)
    return _Run(limits, wrapped, "landlock" in found)(data, text_in)


def run_many(codes: Sequence[str], *, limits: Limits | None = None, workers: int | None = None) -> list[SandboxResult]:
    """run_python for each, `workers` at a time (None: one a core that this process may use), in order."""
    workers = workers or (1 if available() is None else len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max(1, min(workers, len(codes)))) as pool:
        return list(pool.map(lambda code: run_python(code, limits=limits), codes))


class PythonSandbox:
    """run_python as a `protocols.Sandbox`. Raises DachengError where nothing holds a program on this machine."""

    def __init__(self, limits: Limits | None = None) -> None:
        require()
        self.limits = limits or Limits()

    def run(self, code: str, *, timeout_s: float, memory_bytes: int) -> SandboxResult:
        limits = Limits(
            seconds=timeout_s,
            memory_bytes=memory_bytes,
            processes=self.limits.processes,
            output_bytes=self.limits.output_bytes,
        )
        return run_python(code, limits=limits)


def _missing() -> str:
    return seccomp.supported() or "neither Landlock nor bubblewrap works"


@functools.cache
def _interpreter() -> tuple[str, str, tuple[str, ...]]:
    """The Python to run (the one below a virtual environment), where dacheng can be imported from, and what must be
    readable: the standard library and the C libraries, no site-packages of ours."""
    python = os.path.realpath(sys.executable)
    library = sysconfig.get_config_var("LIBDIR") or ""
    shared = [str(path) for path in Path(library).glob("libpython*.so*")] if library else []
    readable = [
        sysconfig.get_path("stdlib"),
        os.path.join(sys.base_prefix, "lib", f"python{sys.version_info.major}{sys.version_info.minor}.zip"),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime"),
        *("/dev/null", "/dev/urandom", "/dev/zero"),
        *shared,
    ]
    return python, str(Path(__file__).resolve().parents[2]), tuple(readable)


class _Run:
    """One run. Three pipes carry the program's streams, a fourth the request in, a fifth the word that it is held."""

    def __init__(self, limits: Limits, wrapped: bool, locked: bool) -> None:
        self.limits, self.wrapped, self.locked = limits, wrapped, locked
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.overflow = self.late = False

    def __call__(self, code: bytes, stdin: bytes) -> SandboxResult:
        request_out, request_in = os.pipe()
        ready_out, ready_in = os.pipe()
        try:
            process = self._start(request_out, ready_in)
        except BaseException:
            os.close(request_in)
            os.close(ready_out)
            raise
        finally:
            os.close(request_out)
            os.close(ready_in)
        try:
            refusal = self._hand_over(request_in, ready_out, code)
            began = time.perf_counter()
            if refusal is None:
                self._follow(process, stdin, began + self.limits.seconds)
            seconds = time.perf_counter() - began
        finally:
            _end(process)
        if refusal is not None:
            stderr = bytes(self.output["stderr"]) or refusal.encode()
            return SandboxResult("refused", None, "", stderr.decode("utf-8", "replace"), 0.0)
        return self._result(process.returncode, seconds)

    def _start(self, request: int, ready: int) -> subprocess.Popen:
        python, home, readable = _interpreter()
        flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
        command = [python, *flags, "-c", _BOOT.format(request, ready), home]
        if self.wrapped:
            seen = [*readable, python, os.path.join(home, "dacheng"), "/usr/share/zoneinfo"]
            environment = [word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)]
            command = [*bubblewrap.wrap(seen), *environment, *command]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, **pipes, env=_ENVIRONMENT, cwd="/", pass_fds=(request, ready), start_new_session=True
        )  # type: ignore[call-overload]

    def _hand_over(self, request_in: int, ready_out: int, code: bytes) -> str | None:
        """Sends the request and waits for "R". Why it was not run, or None."""
        limits, bits = self.limits, random.SystemRandom().getrandbits(40)
        numbers = (float(limits.seconds), int(limits.memory_bytes), int(limits.processes), int(self.locked), bits)
        header = "\0".join(map(str, (*numbers, 0 if self.wrapped else os.getpid(), *_interpreter()[2])))
        with os.fdopen(ready_out, "rb") as ready:
            try:
                with os.fdopen(request_in, "wb") as request:
                    request.write(header.encode() + b"\n" + code)
            except BrokenPipeError:
                return "the sandbox ended before it had read the program"
            with selectors.DefaultSelector() as selector:
                selector.register(ready, selectors.EVENT_READ)
                if not selector.select(_START_SECONDS):
                    return f"the sandbox did not start within {_START_SECONDS:.0f} s"
            answer = os.read(ready.fileno(), _READ).decode("utf-8", "replace")
        return None if answer == "R" else answer[1:] or "the sandbox did not start"

    def _follow(self, process: subprocess.Popen, stdin: bytes, deadline: float) -> None:
        """Feeds and reads the streams until the program has ended, has said too much, or the time is up. Others that
        it started and that live on (they may hold the streams open) are not waited for."""
        with selectors.DefaultSelector() as selector, os.fdopen(os.pidfd_open(process.pid)) as ending:
            selector.register(ending, selectors.EVENT_READ, "ending")
            for name in ("stdout", "stderr"):
                selector.register(getattr(process, name), selectors.EVENT_READ, name)
            os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
            selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")  # type: ignore[arg-type]
            ended, left, granted, before_start = False, memoryview(stdin), 0.0, waited(process.pid)
            while not self.overflow:
                ready = selector.select(0 if ended else max(0.0, deadline + granted - time.perf_counter()))
                if ended and not any(key.data in self.output for key, _ in ready):
                    break
                for key, _ in ready:
                    if key.data == "ending":
                        ended = True
                        selector.unregister(ending)
                    elif key.data == "stdin":
                        left = _feed(selector, process, left)
                    elif not self._take(key):
                        selector.unregister(key.fileobj)
                if not ended and time.perf_counter() >= deadline + granted:
                    waits = waited(process.pid) - before_start
                    before, granted = granted, min(max(waits, granted), _MOST_GRANTED * self.limits.seconds)
                    if granted - before < _LEAST_GRANTED:
                        self.late = True
                        return

    def _take(self, key: selectors.SelectorKey) -> bool:
        """Reads what is there; False at the end of the stream."""
        data = os.read(key.fd, _READ)
        held = self.output[key.data]
        room = self.limits.output_bytes - len(held)
        held += data[:room]
        self.overflow |= len(data) > room
        return bool(data)

    def _result(self, code: int, seconds: float) -> SandboxResult:
        stdout, stderr = (bytes(part).decode("utf-8", "replace") for part in self.output.values())
        code = 128 - code if self.wrapped and code > 128 else code  # bwrap says 128 + n for signal n
        status: Status = "ok" if code == 0 else "error"
        if self.overflow:
            status, stderr = "killed", f"{stderr}\n[more than {self.limits.output_bytes} bytes of output]"
        elif self.late or code == -signal.SIGXCPU:
            status = "timeout"
        elif code < 0:
            status = "killed"
        elif code == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            status = "memory"
        return SandboxResult(status, code, stdout, stderr, seconds)


def waited(pid: int) -> float:
    """Seconds that a process, or the longest waiting of its descendants, was ready to run and had no core
    (proc_pid_schedstat(5)); 0 where the kernel doesn't say. A busy machine makes no right program wrong by this."""
    longest, pids = 0.0, [pid]
    while pids:
        folder = f"/proc/{pids.pop()}"
        try:
            with open(f"{folder}/schedstat") as file:
                longest = max(longest, int(file.read().split()[1]) / 1e9)
            with open(f"{folder}/task/{os.path.basename(folder)}/children") as file:
                pids += map(int, file.read().split())
        except (OSError, ValueError, IndexError):  # it has ended, or the kernel was built without
            continue
    return longest


def _feed(selector: selectors.BaseSelector, process: subprocess.Popen, left: memoryview) -> memoryview:
    """Writes what the pipe takes; closes it at the end, or when the program reads no more."""
    stream = process.stdin
    assert stream is not None
    try:
        left = left[os.write(stream.fileno(), left[:_READ]) :] if left else left
    except BrokenPipeError:
        left = left[:0]
    if not left:
        selector.unregister(stream)
        stream.close()
    return left


def _end(process: subprocess.Popen) -> None:
    """Ends the program and all that it started (its process group, which the filter lets nothing leave). The group's
    number is its own until the wait: a process that has ended and was not waited for keeps it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait(_START_SECONDS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None and not stream.closed:
            try:
                stream.close()
            except BrokenPipeError:
                pass
