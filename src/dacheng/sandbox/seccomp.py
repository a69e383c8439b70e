"""A seccomp filter (seccomp(2), kernel's Documentation/userspace-api/seccomp_filter.rst): which system calls a process
can still make, decided in the kernel by a small BPF program that nothing can take off again.

Everything that is not listed in syscalls.py answers EPERM, so a program sees an ordinary error. A call of another
architecture's table (32-bit, x32) ends the process: its numbers mean other calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from dacheng.sandbox.syscalls import AUDIT_ARCH, numbers

_LOAD, _JEQ, _JSET, _JGE, _RET = 0x20, 0x15, 0x45, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, JMP|JGE|K, RET|K
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x10000
# CLONE_PTRACE, CLONE_PARENT and every CLONE_NEW*
_CLONE_NEVER = 0x2000 | 0x8000 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
# F_SETOWN and F_SETSIG would send signals to others; F_SETPIPE_SZ would take kernel memory
_FCNTL = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    1030,
    1032,
)  # DUPFD GETFD SETFD GETFL SETFL GETLK SETLK SETLKW DUPFD_CLOEXEC GETPIPE_SZ
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_PRCTL = (15, 16, 3)  # SET_NAME GET_NAME GET_DUMPABLE
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def supported() -> str | None:
    """Why there can be no filter here, None where there can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no seccomp"
    if os.uname().machine not in AUDIT_ARCH:
        return f"no system call table for {os.uname().machine}"
    # a null program: EFAULT says that the mode is there (EINVAL that the kernel was built without)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return None if ctypes.get_errno() == errno.EFAULT else "the kernel has no seccomp filters"


def program(machine: str, pid: int, processes: int) -> list[Instruction]:
    """The filter for a process `pid` that may start others only where processes > 1."""
    table = numbers(machine)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, _KILL)]
    special = _conditions(pid, processes)
    for name, number in table.items():
        block = special.get(name, [(_RET, 0, 0, _ALLOW)])
        code += [(_JEQ, 0, len(block), number), *block]
    return [*code, _deny(errno.EPERM)]


def _conditions(pid: int, processes: int) -> dict[str, list[Instruction]]:
    """Name -> what is checked of the arguments. Each block ends in a verdict on every path."""
    own = [*_low(0), (_JEQ, 0, 1, pid), (_RET, 0, 0, _ALLOW), _deny(errno.EPERM)]
    never = [*_low(0), (_JSET, 0, 1, _CLONE_NEVER), _deny(errno.EPERM)]
    threads = [(_JSET, 0, 1, _CLONE_THREAD), (_RET, 0, 0, _ALLOW), _deny(errno.EAGAIN)]
    fork = [(_RET, 0, 0, _ALLOW)] if processes > 1 else [_deny(errno.EAGAIN)]
    pair = [
        *_low(0), (_JEQ, 1, 0, _AF_UNIX), _deny(errno.EPERM),
        # a datagram socket could be sent from to any socket of the machine that has a path, /dev/log for one
        *_low(1), (0x54, 0, 0, _SOCK_TYPE_MASK), (_JEQ, 1, 0, _SOCK_STREAM), _deny(errno.EPERM), (_RET, 0, 0, _ALLOW),
    ]  # fmt: skip
    nowhere = [*_low(4), (_JEQ, 1, 0, 0), _deny(errno.EPERM), *_high(4), (_JEQ, 1, 0, 0), _deny(errno.EPERM)]
    return {
        "kill": own, "tgkill": own, "prlimit64": _one_of(0, (0,)),
        "tkill": [_deny(errno.EPERM)],  # by thread id alone: it could be another process's
        "clone": [*never, *(fork if processes > 1 else threads)],
        "clone3": [_deny(errno.ENOSYS)],  # its flags are in memory, out of a filter's sight: libc falls back to clone
        "fork": fork, "vfork": fork,
        "fcntl": _one_of(1, _FCNTL), "ioctl": _one_of(1, _IOCTL), "prctl": _one_of(0, _PRCTL),
        "socketpair": pair, "sendto": [*nowhere, (_RET, 0, 0, _ALLOW)],
    }  # fmt: skip


def _one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [step for value in values for step in ((_JEQ, 0, 1, value), (_RET, 0, 0, _ALLOW))]
    return [*_low(argument), *tests, _deny(errno.EPERM)]


def _low(argument: int) -> list[Instruction]:
    """Loads the low 32 bits (both machines are little-endian); the kernel takes these calls' arguments as int."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]


def _high(argument: int) -> list[Instruction]:
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4)]


def _deny(number: int) -> Instruction:
    return (_RET, 0, 0, _ERRNO | number)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def no_new_privileges() -> None:
    """From here on no program that is started gains rights; seccomp and Landlock ask for it. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


def install(pid: int, processes: int) -> None:
    """Puts the filter on this process for good (it has one thread by now). Raises OSError."""
    packed = b"".join(struct.pack("HBBI", *step) for step in program(os.uname().machine, pid, processes))
    filled = _Program(len(packed) // 8, packed)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filled), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
