import multiprocessing
import os
import signal
import socket
import time

import pytest
from train_toys import Recorder, make

from dacheng.errors import Locked
from dacheng.train.lock import OutputLock


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    with OutputLock(tmp_path), pytest.raises(Locked) as caught, OutputLock(tmp_path):
        pass
    assert str(os.getpid()) in caught.value.problem and socket.gethostname() in caught.value.problem
    with OutputLock(tmp_path):
        pass  # free again


def test_two_trainers_do_not_write_one_output(tmp_path):
    second = []

    def start_another(_trainer):
        with pytest.raises(Locked) as caught:
            make(tmp_path).fit()
        second.append(caught.value)

    result = make(tmp_path, [Recorder(at={3: start_another})]).fit()
    assert result.steps == 12 and len(second) == 1
    assert "another output directory" in second[0].remedy


def _hold(out, ready):
    with OutputLock(out):
        ready.set()
        time.sleep(60)


@pytest.mark.process
def test_a_killed_holder_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(Locked, match=f"process {holder.pid}"), OutputLock(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    with OutputLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
