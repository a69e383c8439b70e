"""What runs inside: give everything up, say so, then run the program that came through a pipe.

The order matters. Limits and the user id first, while there are rights to set them; then Landlock; the system call
filter last, as it forbids what came before. Only when all of it holds is the program read into being, in this same
interpreter: what holds it is the kernel, not Python, so nothing inside Python can undo it.

Modules that take long to import (json, re, typing, traceback) are kept out: a start is most of a short program's time.
"""

from __future__ import annotations

import builtins
import math
import os
import resource
import sys

from dacheng.sandbox import landlock, privileges, seccomp

NAME = "<program>"
_THREADS = 64  # of a program that may start no process
_FILES = 64


def main(request_fd: int, ready_fd: int) -> None:
    """Reads the request (see run.py) from one descriptor, answers on the other: "R", or "E" and why not."""
    with os.fdopen(request_fd, "rb") as pipe:
        header, _, code = pipe.read().partition(b"\n")
    try:
        _lock_down(Request(header), ready_fd)
    except BaseException as error:
        os.write(ready_fd, f"E{type(error).__name__}: {error}".encode())
        os._exit(125)
    os.write(ready_fd, b"R")
    os.close(ready_fd)
    _run(code)


class Request:
    """What run.py asks for: numbers, then the paths that stay readable, with NUL bytes between."""

    def __init__(self, header: bytes) -> None:
        seconds, memory, processes, landlock, bits, parent, *readable = header.decode().split("\0")
        self.seconds, self.memory_bytes, self.processes = float(seconds), int(memory), int(processes)
        self.landlock, self.random_bits, self.parent = landlock == "1", int(bits), int(parent)
        self.readable = readable


def _lock_down(request: Request, ready_fd: int) -> None:
    os.closerange(3, ready_fd)
    os.closerange(ready_fd + 1, 1 << 16)
    _limit(request)
    if os.geteuid() == 0:
        user = privileges.unused_id(request.random_bits)
        privileges.drop_root(user, request.readable)
    privileges.die_with(request.parent)
    processes = _THREADS if request.processes == 1 else request.processes
    _set(resource.RLIMIT_NPROC, _running() + processes)
    seccomp.no_new_privileges()
    if request.landlock:
        landlock.restrict(request.readable, ["/dev/null"])
    seccomp.install(os.getpid(), request.processes)


def _limit(request: Request) -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + request.seconds) + 1
    _set(resource.RLIMIT_AS, pages * resource.getpagesize() + request.memory_bytes)
    _set(resource.RLIMIT_CPU, cpu, 1)  # SIGXCPU at the first, which says why; SIGKILL a second later
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, 0)
    _set(resource.RLIMIT_NOFILE, _FILES)
    _set(resource.RLIMIT_MEMLOCK, 0)


def _set(kind: int, value: int, grace: int = 0) -> None:
    """Soft, and hard with `grace` more; never above what is allowed already."""
    allowed = resource.getrlimit(kind)[1]
    soft, hard = (v if allowed == resource.RLIM_INFINITY else min(v, allowed) for v in (value, value + grace))
    resource.setrlimit(kind, (soft, hard))


def _running() -> int:
    """Threads of this user now, which RLIMIT_NPROC counts too; none for an id of one's own."""
    user, threads = os.geteuid(), 0
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == user:
                threads += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:  # it has ended meanwhile
            pass
    return threads


def _run(code: bytes) -> None:
    """The program as __main__. Leaves by SystemExit, with 1 after an exception; its traceback is the program's own."""
    import _sitebuiltins

    for name in ("exit", "quit"):  # what site would give
        setattr(builtins, name, _sitebuiltins.Quitter(name, ""))
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = [NAME]
    try:
        exec(compile(code, NAME, "exec"), module.__dict__)  # noqa: S102 - to run it is what all this is for
    except SystemExit:
        raise
    except BaseException as error:
        import linecache
        import traceback

        text = code.decode("utf-8", "replace")
        linecache.cache[NAME] = (len(text), None, text.splitlines(keepends=True), NAME)
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, frames)
        raise SystemExit(1) from None
