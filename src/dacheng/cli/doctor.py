"""dacheng doctor: what this machine can do, and what is missing."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EXTRAS = {
    "data": (("pyarrow", "parquet"), ("zstandard", "compressed documents"), ("ftfy", "mending mojibake")),
    "report": (("matplotlib", "curves in reports"),),
    "logs": (("tensorboard", "TensorBoard logs"),),
    "serve": (("starlette", "the HTTP server"), ("uvicorn", "the HTTP server"), ("llguidance", "structured output")),
}


def doctor(*, refresh: bool = False, json: bool = False) -> int:
    """Shows processor, threads, measured speed, memory, disk, caches, and which optional libraries are there.

    Example: dacheng doctor

    Parameters
    ----------
    refresh
        Measure the speed again (under 3 s), though it is cached.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import print_json, use_threads

    use_threads()
    found = examine(refresh)
    if json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
    return 0


def examine(refresh: bool = False) -> dict[str, Any]:
    """Everything that is known of this machine, as plain data."""
    from dacheng import __version__
    from dacheng.life.history import history_path
    from dacheng.machine import available_bytes, cache_dir, measure
    from dacheng.sandbox import available

    machine = measure(refresh=refresh)
    extras = {
        extra: {name: find_spec(name) is not None for name, _ in libraries} for extra, libraries in EXTRAS.items()
    }
    return {
        "dacheng": __version__,
        "machine": machine.to_dict(),
        "fast_dtype": machine.fast_dtype,
        "memory_available_bytes": available_bytes(),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "extras": extras,
        "install": {
            extra: f"pip install 'dacheng[{extra}]'" for extra, there in extras.items() if not all(there.values())
        },
        "compiler": shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        "sandbox": available(),
        "cache": str(cache_dir()),
        "history": str(history_path()),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    from dacheng.cli.console import amount

    machine = found["machine"]
    speeds = ", ".join(f"{name} {speed:.1f}" for name, speed in machine["matmul_gflops"].items())
    gib = f"{machine['memory_bytes'] / 2**30:.1f} GiB, {found['memory_available_bytes'] / 2**30:.1f} available"
    rows = [
        ("dacheng", found["dacheng"]),
        ("processor", f"{machine['cpu_model']} ({', '.join(machine['capabilities']) or 'no vector units known'})"),
        ("threads", f"{machine['threads']} of torch on {machine['cores']} usable cores"),
        ("matmul peak", f"{speeds} GFLOPS (measured {machine['measured_at'][:10]}; --refresh measures again)"),
        ("fast dtype", found["fast_dtype"]),
        ("memory", gib),
        ("disk here", f"{amount(found['disk_free_bytes'], 'B')} free"),
        ("torch", machine["torch_version"]),
        ("compiler", found["compiler"] or "none: train.compile is not there; install g++"),
        ("sandbox", found["sandbox"] or "none: code is not run; Linux with Landlock, or install bubblewrap"),
        ("cache", found["cache"]),
        ("history", found["history"]),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    for extra, libraries in EXTRAS.items():
        missing = [f"{name} ({use})" for name, use in libraries if not found["extras"][extra][name]]
        state = f"missing {', '.join(missing)}: {found['install'][extra]}" if missing else "installed"
        lines.append(f"{'extra ' + extra:<12} {state}")
    return lines
