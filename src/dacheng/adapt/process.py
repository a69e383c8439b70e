"""A training in a process of its own, that can be paused, killed and started again while its parent goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dacheng.adapt.tail import STEP_LOG, LogTail
from dacheng.adapt.worker_config import ERROR, WorkerConfig
from dacheng.errors import DachengError
from dacheng.formats.json_files import read_json

LOG = "worker.log"
_POLL_S = 0.05


class TrainerProcess:
    """`python -m dacheng.adapt.worker CONFIG`, see worker_config. It reads its settings from the file alone and ends
    when this process does: it holds the other end of a pipe, and a paused one is woken to see that.

    What it says goes to out/training/worker.log.
    """

    def __init__(self, config_path: Path | str) -> None:
        """Raises DachengError for a configuration that cannot be."""
        self.config_path = Path(config_path)
        self.config = WorkerConfig.read(self.config_path)
        self.folder = Path(self.config.out) / "training"
        self.starts = 0
        self.paused = False
        self.paused_s = 0.0
        self._paused_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    # --- its life -----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts it, or starts it again: it goes on from its newest checkpoint. Raises DachengError when it runs."""
        if self.alive:
            raise DachengError("the training runs already", field="pid", value=self.pid, remedy="kill() it first")
        self._release()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ERROR).unlink(missing_ok=True)
        self._log = open(self.folder / LOG, "ab")  # noqa: SIM115 (until the process has ended)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dacheng.adapt.worker", str(self.config_path), "--with-parent"],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, env=environment,
        )  # fmt: skip
        self.starts += 1
        self.paused = False

    def pause(self) -> None:
        """SIGSTOP: its memory stays, its threads do nothing."""
        if self.alive and not self.paused:
            self._signal(signal.SIGSTOP)
            self.paused, self._paused_at = True, time.monotonic()

    def resume(self) -> None:
        """SIGCONT."""
        if self.alive and self.paused:
            self._signal(signal.SIGCONT)
            self._count_pause()

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._count_pause()
        self._release()

    def restart(self) -> None:
        """Kills it where it still runs, and starts it again."""
        self.kill()
        self.start()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises TimeoutError when it has not ended by then."""
        if self._process is None:
            raise DachengError("the training was never started", field="start", remedy="start() it")
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"the training still runs after {timeout} s") from error
        self._release()
        return code

    def close(self) -> None:
        self.kill()

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what can be seen of it ---------------------------------------------------------------------------------------
    @property
    def alive(self) -> bool:
        """Paused counts as alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; -9 when it was killed."""
        return None if self._process is None else self._process.poll()

    def failure(self) -> DachengError | None:
        """Why it ended badly, in its own words; None while it runs, and when it was killed or finished."""
        if self.alive or self.returncode in (None, 0, -signal.SIGKILL):
            return None
        try:
            found = read_json(self.folder / ERROR)
            return DachengError(found["problem"], field=found["field"], value=found["value"], remedy=found["remedy"])
        except (DachengError, KeyError):
            tail = (self.folder / LOG).read_bytes()[-2000:].decode("utf-8", "replace").strip()
            return DachengError(f"the training ended with status {self.returncode}", field=str(self.folder / LOG),
                                value=tail.rpartition("\n")[2] or None, remedy="read the log")  # fmt: skip

    def raise_failure(self) -> None:
        """Raises what `failure` says, if anything."""
        failure = self.failure()
        if failure is not None:
            raise failure

    def result(self) -> dict[str, Any]:
        """AdapterResult as plain data. Raises DachengError when it has not finished."""
        self.raise_failure()
        return read_json(self.folder / "result.json")

    def steps(self, *, follow: bool = True, poll_s: float = _POLL_S) -> Iterator[dict[str, Any]]:
        """The lines of the step log from its beginning, as they are written (see step_log.StepLog); with `follow` until
        the process has ended, however it ends. To go on after a restart, go on with the same LogTail: see `tail`."""
        tail = self.tail()
        while True:
            alive = self.alive
            yield from tail.new_lines()
            if not (follow and alive):
                return
            time.sleep(poll_s)

    def tail(self) -> LogTail:
        """A LogTail of the step log: `new_lines()` gives what has come since, over restarts as well."""
        return LogTail(self.folder / STEP_LOG)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _count_pause(self) -> None:
        if self.paused:
            self.paused, self.paused_s = False, self.paused_s + time.monotonic() - self._paused_at

    def _release(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._log is not None:
            self._log.close()
            self._log = None
