"""bubblewrap (bwrap(1)), where it is installed and works: a file system of the interpreter's files alone, no network
device, processes of its own. It goes around what child.py does, not in its place."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

_PROBE_SECONDS = 20


@functools.cache
def works() -> bool:
    """Whether bwrap is on the path and may make its namespaces here. Tried once."""
    if shutil.which("bwrap") is None:
        return False
    command = [*wrap([]), "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def wrap(readable: list[str]) -> list[str]:
    """The words before the command to run. As root it keeps real root without a user namespace, for child.py to give
    up: the limit on processes does not hold for a process that is the machine's root under another name."""
    words = [shutil.which("bwrap") or "bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    words += ["--die-with-parent", "--clearenv"]
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_DAC_READ_SEARCH"):
        words += ["--cap-add", capability] if os.geteuid() == 0 else []
    if readable:
        for path in sorted(readable):  # a folder before what is in it
            words += ["--dev-bind-try" if path.startswith("/dev/") else "--ro-bind-try", path, path]
        words += ["--proc", "/proc", "--remount-ro", "/", "--chdir", "/"]
    return words
