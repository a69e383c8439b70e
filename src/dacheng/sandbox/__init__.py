"""Code that nobody trusts, in a process of its own, within limits of time, memory, files and network."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own: importing it takes longer than a program's whole start

if TYPE_CHECKING:
    from dacheng.sandbox.limits import Limits, SandboxResult
    from dacheng.sandbox.run import PythonSandbox, available, require, run_many, run_python

__all__ = ["Limits", "PythonSandbox", "SandboxResult", "available", "require", "run_many", "run_python"]

_HOMES = {
    "limits": ("Limits", "SandboxResult"),
    "run": ("PythonSandbox", "available", "require", "run_many", "run_python"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:  # such as a module that is about to be imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dacheng.lazy import exports  # the process inside needs none of them

    return exports(__name__, _HOMES)(name)
