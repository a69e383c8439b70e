"""The servers of benchmarks/serve.py: `dacheng serve`, and llama.cpp's own server.

llama.cpp's is either its program llama-server, or the same code as the Python package xllamacpp wraps it: then this
file is run as a script under the interpreter that has it, and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S = 180.0


@contextmanager
def server(command: Sequence[str], threads: int) -> Iterator[str]:
    """Runs a server until the block ends; yields its URL, once /health answers. Raises RuntimeError if it does not."""
    source = str(Path(__file__).resolve().parent.parent / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    port = _free_port()
    words = [word.replace("{port}", str(port)) for word in command]
    process: subprocess.Popen[str] = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    said: list[str] = []  # and nobody waits for a full pipe
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    reader.start()
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, said)
        yield url
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[str], said: list[str]) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass  # not listening yet, or still loading (503)
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start:\n{''.join(said)[-3000:]}")


def ours(gguf: Path, *, batch: int, context: int, flags: Sequence[str] = ()) -> list[str]:
    return [
        sys.executable, "-m", "dacheng.cli", "serve", "--model", str(gguf), "--name", "bench", "--port", "{port}",
        "--max-batch", str(batch), "--max-context", str(context), "--max-waiting", "10000", *flags,
    ]  # fmt: skip


def peer(
    gguf: Path, *, batch: int, context: int, threads: int, python: str | None, program: str | None, shared: bool
) -> list[str]:
    """batch: slots, each with as much context as one of our requests. shared: in one cache, in which what one slot has
    computed is found by the others, and every token looks at the cells of all of them."""
    if program is not None:
        return [
            program, "-m", str(gguf), "--host", "127.0.0.1", "--port", "{port}", "-np", str(batch),
            "-c", str(batch * context), "-t", str(threads), "-tb", str(threads), "-ngl", "0",
            "--kv-unified" if shared else "--no-kv-unified",
        ]  # fmt: skip
    assert python is not None
    return [
        python, str(Path(__file__).resolve()), "--gguf", str(gguf), "--port", "{port}", "--batch", str(batch),
        "--context", str(context), "--threads", str(threads), *(["--shared"] if shared else []),
    ]  # fmt: skip


def version_of_peer(python: str | None, program: str | None) -> str:
    if program is not None:
        found = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        match = re.search(r"version: .*", found.stdout + found.stderr)
        return f"llama-server {match[0] if match else '?'}"
    code = "import importlib.metadata as m; print(m.version('xllamacpp'))"
    assert python is not None
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return f"llama.cpp's server in xllamacpp {found.stdout.strip()}"


def main() -> None:
    """llama.cpp's server by xllamacpp, with the defaults of llama-server beside what is set here."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", required=True)
    for name in ("port", "batch", "context", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--shared", action="store_true")
    args = parser.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = args.gguf, ["127.0.0.1"], args.port
    params.n_parallel, params.n_ctx, params.kv_unified = args.batch, args.batch * args.context, args.shared
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.n_gpu_layers = 0
    serving = xllamacpp.Server(params)
    print(serving.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
