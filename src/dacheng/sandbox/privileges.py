"""Giving up root: a user id that nobody has, no groups, no capabilities.

The id is one's own for each run, so that RLIMIT_NPROC, which counts per user, counts this program alone, and so that
two programs can't touch one another.
"""

from __future__ import annotations

import ctypes
import os
import struct

_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_SET_PDEATHSIG = 24, 8, 1
_VERSION_3 = 0x20080522
_DAC_READ_SEARCH = 2
_LAST_CAPABILITY = 63  # more than any kernel has; dropping one that is not there fails and is no matter


def unused_id(random_bits: int) -> int:
    """A user id that belongs to nobody, by `random_bits`: of a thousand million where this user namespace has them,
    else the highest that it has. OSError where it has root alone."""
    with open("/proc/self/uid_map") as file:
        spans = [(int(first), int(count)) for first, _, count in (line.split() for line in file)]
    if any(first <= 1_000_000_000 and first + count >= 2_000_000_000 for first, count in spans):
        return 1_000_000_000 + random_bits % 1_000_000_000
    highest = max(first + count - 1 for first, count in spans)
    if highest < 1:
        raise OSError("this user namespace has no user but root")
    return highest


def drop_root(user: int, needed: list[str]) -> None:
    """Becomes `user` without groups and capabilities. One capability is kept where a path of `needed` can't be read
    otherwise (a Python under /root): CAP_DAC_READ_SEARCH, reading past the files' rights, which Landlock then bounds
    to the paths that it grants. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _set_capabilities(libc, 0 if all(map(_readable, needed)) else 1 << _DAC_READ_SEARCH)
    if os.getresuid() != (user, user, user) or os.getresgid() != (user, user, user) or os.getgroups():
        raise OSError("root could not be given up")


def die_with(parent: int) -> None:
    """This process ends when its parent does. After the user id has changed, which would undo it. Raises OSError where
    the parent is gone by now; parent 0: not checked (a process namespace hides it)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if parent and os.getppid() != parent:
        raise OSError("the process that asked is gone")


def _readable(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return False
    except FileNotFoundError:  # never there, or behind a folder that hides it: then PermissionError
        pass
    return True


def _set_capabilities(libc: ctypes.CDLL, mask: int) -> None:
    header = struct.pack("Ii", _VERSION_3, 0)
    data = struct.pack("6I", mask, mask, 0, 0, 0, 0)  # effective, permitted, inheritable; low then high
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
