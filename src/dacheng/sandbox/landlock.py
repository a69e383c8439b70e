"""Landlock (landlock(7)): which files a process can still reach, given up for good by the process itself, no rights
needed. Whatever is not granted here is denied: reading, listing, writing, making, renaming, removing, running."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # one number on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_TCP = 0b11  # bind, connect: ABI 4
_SCOPES = 0b11  # abstract sockets and signals stay inside: ABI 6
_O_PATH = 0o10000000


def version() -> int:
    """The kernel's Landlock ABI, 0 where it has none (or it is switched off)."""
    if sys.platform != "linux":
        return 0
    found = ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(found, 0)


def restrict(readable: list[str], writable: list[str] = (), abi: int | None = None) -> None:  # type: ignore[assignment]
    """Leaves this process the reading of `readable` (folders with all beneath, or files) and the writing of the files
    `writable`, and nothing else. Paths that are not there are passed over. no_new_privileges() comes first.

    abi: leave out what later kernels can do (tests). Raises OSError where a path can't be granted or the kernel
    refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    abi = version() if abi is None else abi
    attributes = struct.pack("QQQ", _handled_files(abi), _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _checked(libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)), "create_ruleset")
    try:
        for path, rights in [(p, _READ_FILE | _READ_DIR) for p in readable] + [(p, _WRITE_FILE) for p in writable]:
            _allow(libc, ruleset, path, rights)
        _checked(libc.syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "restrict_self")
    finally:
        os.close(ruleset)


def _handled_files(abi: int) -> int:
    """Every right over files that this ABI knows: what is handled and not granted is denied. 13 rights in ABI 1, then
    REFER (2), TRUNCATE (3), IOCTL_DEV (5)."""
    return (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, _O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ~_READ_DIR
        rule = struct.pack("=Qi", rights, descriptor)  # packed: 12 bytes
        _checked(
            libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)),
            f"add_rule({path})",
        )
    finally:
        os.close(descriptor)


def _checked(value: int, what: str) -> int:
    if value < 0:
        raise OSError(ctypes.get_errno(), f"landlock_{what}: {os.strerror(ctypes.get_errno())}")
    return value
