"""PDF by pypdf (extra `rag`), in a process of its own with a time limit. Lines are numbered by their page."""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from dacheng.data.streams import note
from dacheng.rag.blocks import Block
from dacheng.rag.readers.pdf_worker import read_frame, write_frame
from dacheng.rag.readers.plain import read_lines
from dacheng.records import Drops

MAX_SECONDS = 120.0
"""For one document: a file can be made so that reading it never ends."""


def read_pdf(data: bytes, name: str, drops: Drops) -> Iterator[Block]:
    """The blocks of a document; nothing, and a drop, where it is encrypted, broken, takes too long, or pypdf is not
    installed. A page ends no paragraph: a sentence may run on over it.

    A file that is only pictures of pages has no text and comes to nothing too.
    """
    if find_spec("pypdf") is None:
        drops.drop("needs_pypdf", len(data), name)  # pip install 'dacheng[rag]'
        return
    found = _worker.ask(data, MAX_SECONDS)
    if found["status"] != "ok":
        drops.drop(f"{found['status']}_pdf", len(data), name)
        return
    for page in found["broken_pages"]:
        note(drops, "broken_page", f"{name}:{page}")
    if found["left_out"]:
        note(drops, "pages_left_out", name, found["left_out"])
    yield from read_lines([(page, line) for page, line in found["lines"]])


class _Worker:
    """`python -m dacheng.rag.readers.pdf_worker`, started when first asked and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, data: bytes, seconds: float) -> dict[str, Any]:
        """What came of one PDF. "status" is "slow" where it took longer than `seconds`, "broken" where the process
        died of it."""
        with self._lock:
            process = self._started()
            late = threading.Event()

            def give_up() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, give_up)
            timer.start()
            answer = None
            try:
                assert process.stdin is not None and process.stdout is not None
                with contextlib.suppress(OSError):  # a pipe that breaks: it died
                    write_frame(process.stdin, data)
                    answer = read_frame(process.stdout)
            finally:
                timer.cancel()
                if answer is None:  # killed, dead, or interrupted half way: its pipes are of no use any more
                    self.stop()
            return json.loads(answer) if answer else {"status": "slow" if late.is_set() else "broken"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dacheng.rag.readers.pdf_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return self._process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()


_worker = _Worker()
atexit.register(_worker.stop)
