"""Running code: what it may do, the limits it meets, and refusing where nothing would hold it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dacheng.errors import DachengError, UsageError
from dacheng.protocols import Sandbox
from dacheng.sandbox import Limits, PythonSandbox, available, bubblewrap, landlock, require, run_many, run_python
from dacheng.sandbox.seccomp import program
from dacheng.sandbox.syscalls import NUMBERS

held = pytest.mark.skipif(available() is None, reason="no sandbox on this machine")
pytestmark = pytest.mark.process
QUICK = Limits(seconds=0.5)


def group_is_gone(group: int) -> bool:
    """Whether no live process is in this process group, after a moment for the kernel."""
    for _ in range(50):
        alive = 0
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
            except OSError:
                continue
            alive += bool(fields) and int(fields[2]) == group and fields[0] != "Z"
        if not alive:
            return True
        time.sleep(0.05)
    return False


@held
def test_a_program_reads_its_input_and_answers():
    result = run_python("import sys\nprint(input() * 2)\nprint('note', file=sys.stderr)", stdin="大成\n")
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("ok", 0, "大成大成\n", "note\n")
    assert result.ok and 0 < result.seconds < 5


@held
def test_the_standard_library_works():
    code = """
import array, asyncio, bisect, collections, concurrent.futures, csv, dataclasses, datetime, decimal, fractions
import functools, hashlib, heapq, io, itertools, json, math, operator, random, re, sqlite3, statistics, string
import threading, typing, zoneinfo
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, range(-9, 9))) == 81
asyncio.run(asyncio.sleep(0.01))
db = sqlite3.connect(':memory:'); assert db.execute('select 1 + 1').fetchone() == (2,)
assert datetime.datetime.now(zoneinfo.ZoneInfo('Asia/Shanghai')).utcoffset().total_seconds() == 28800
assert hashlib.sha256(b'').hexdigest().startswith('e3b0') and random.random() < 1
exit(0)
"""
    result = run_python(code)
    assert (result.status, result.stderr) == ("ok", "")


@held
@pytest.mark.parametrize(
    ("code", "status", "exit_code", "words"),
    [
        ("1 / 0", "error", 1, "ZeroDivisionError"),
        ("def f(:", "error", 1, "SyntaxError"),
        ("import sys; sys.exit(7)", "error", 7, ""),
        ("a\x00b", "error", 1, "null byte"),
        ("x = '\ud800'", "error", 1, "Error"),
        ("(" * 5000 + ")" * 5000, "error", 1, "nest"),
        ("def f(): return f()\nf()", "error", 1, "RecursionError"),
        ("import os; os.kill(os.getpid(), 9)", "killed", -9, ""),
        ("import os; os.abort()", "killed", -6, ""),
        ("import ctypes; ctypes.string_at(0)", "killed", -11, ""),
        ("import numpy", "error", 1, "ModuleNotFoundError"),
        ("import dacheng.errors", "error", 1, "Error"),
    ],
)
def test_how_it_ended(code, status, exit_code, words):
    result = run_python(code)
    assert (result.status, result.exit_code) == (status, exit_code), result
    assert words in result.stderr
    assert "child.py" not in result.stderr  # the traceback is the program's own


@held
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "9 ** 9 ** 9",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
        "import signal\nfor n in (1, 2, 10, 12, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "import os\nos.close(1)\nos.close(2)\nwhile True: pass",
        "import threading\nthreading.Thread(target=lambda: exec('while True: pass')).start()",
        "import atexit\natexit.register(lambda: exec('while True: pass'))",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    ],
)
def test_time_is_up(code):
    began = time.perf_counter()
    result = run_python(code, limits=QUICK)
    assert result.status == "timeout"
    assert result.seconds >= 0.5 and time.perf_counter() - began < 30


@held
@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(1 << 33)",
        "x = []\nwhile True: x.append(' ' * (1 << 20))",
        "x = 'a'\nwhile True: x += x",
        "x = [0] * 10 ** 10",
        "import mmap\nwhile True: x = mmap.mmap(-1, 1 << 26); y = [] if 'y' not in globals() else y; y.append(x)",
    ],
)
def test_memory_is_bounded(code):
    result = run_python(code, limits=Limits(seconds=10, memory_bytes=128 << 20))
    assert result.status == "memory" or "Cannot allocate memory" in result.stderr, result


@held
def test_memory_of_a_mebibyte_more_is_there():
    code = "x = bytearray(100 << 20)\nprint(len(x))"
    assert run_python(code, limits=Limits(memory_bytes=128 << 20)).ok
    assert run_python(code, limits=Limits(memory_bytes=64 << 20)).status == "memory"


@held
@pytest.mark.parametrize(
    ("code", "processes"),
    [
        ("import os\nprint(os.getpgrp(), flush=True)\nwhile True: os.fork()", 1),
        ("import os\nprint(os.getpgrp(), flush=True)\nwhile True:\n  try: os.fork()\n  except OSError: pass", 8),
        (
            "import os, threading, time\nprint(os.getpgrp(), flush=True)\n"
            "while True:\n  try: threading.Thread(target=time.sleep, args=(9,)).start()\n  except RuntimeError: pass",
            1,
        ),
        (
            "import os, time\nprint(os.getpgrp(), flush=True)\n"
            "if os.fork() == 0:\n  try: os.setsid()\n  except OSError: pass\n  if os.fork() == 0: time.sleep(60)",
            8,
        ),
    ],
)
def test_bombs_leave_nothing_behind(code, processes):
    result = run_python(
        code, limits=Limits(seconds=1, processes=processes), mechanism="landlock" if _locked() else None
    )
    assert result.status in ("ok", "error", "timeout")
    assert group_is_gone(int(result.stdout.split()[0]))


def _locked() -> bool:
    return "landlock" in (available() or "")


@held
def test_processes_where_they_are_allowed():
    code = """
import os
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, b'from the child')
    os._exit(0)
os.wait()
print(os.read(reader, 99).decode())
"""
    assert run_python(code, limits=Limits(processes=4)).stdout == "from the child\n"
    counting = (
        "import os, time\nn = 0\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(9)\n    n += 1\n"
        "except OSError: print(n)"
    )
    result = run_python(counting, limits=Limits(seconds=3, processes=4))
    assert result.ok and 1 <= int(result.stdout) <= 4
    assert result.seconds < 2  # the sleeping children are not waited for


@held
def test_a_program_ends_with_the_process_that_asked():
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(100)"
    asking = f"from dacheng.sandbox import Limits, run_python\nrun_python({code!r}, limits=Limits(seconds=100))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    with subprocess.Popen([sys.executable, "-c", asking], env=environment) as parent:
        child = _child_of(parent.pid)
        parent.kill()
    assert group_is_gone(child)


def _child_of(pid: int) -> int:
    """The process that `pid` started, once it is no more our own user's or has been there for a moment."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(600):
        if children := path.read_text().split():
            time.sleep(0.5)  # it is locked down by then, or dies in the attempt: gone either way
            return int(children[0])
        time.sleep(0.1)
    raise AssertionError("no program was started")


@held
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_bounded(stream):
    code = f"import sys\nwhile True: sys.{stream}.write('x' * 4096)"
    result = run_python(code, limits=Limits(output_bytes=10_000))
    assert result.status == "killed"
    assert len(getattr(result, stream).partition("\n")[0]) == 10_000
    assert "more than 10000 bytes" in result.stderr


@held
def test_output_of_just_the_limit_is_no_more_than_it():
    result = run_python("print('x' * 9999)", limits=Limits(output_bytes=10_000))
    assert (result.status, len(result.stdout)) == ("ok", 10_000)


@held
def test_input_that_is_never_read_and_input_that_is_large():
    assert run_python("print(1)", stdin="x" * (4 << 20)).stdout == "1\n"
    assert run_python("import sys\nprint(len(sys.stdin.read()))", stdin="x" * (4 << 20)).stdout == f"{4 << 20}\n"


@held
def test_descriptors_are_few_and_none_is_inherited(tmp_path):
    with open(tmp_path / "open.txt", "w") as file:
        os.set_inheritable(file.fileno(), True)
        code = (
            "import os\nfound = []\nfor n in range(3, 200):\n  try: os.fstat(n); found.append(n)\n"
            "  except OSError: pass\nprint(found)"
        )
        assert run_python(code).stdout == "[]\n"
    bomb = "import os\nfds = []\nwhile True: fds += os.pipe()"
    assert "Too many open files" in run_python(bomb).stderr


@held
def test_the_environment_is_not_ours_and_answers_repeat(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert "SECRET_TOKEN" not in run_python("import os\nprint(dict(os.environ))").stdout
    code = "print(list({'a', 'b', 'c', 'd', 'e'}), hash('x'))"
    assert run_python(code).stdout == run_python(code).stdout


@held
def test_root_is_given_up():
    code = "import os\nprint(os.getresuid(), os.getresgid(), os.getgroups())"
    result = run_python(code, mechanism="landlock" if _locked() else None)
    users, groups = re.findall(r"\((\d+), (\d+), (\d+)\)", result.stdout)
    if os.geteuid() == 0:
        assert "0" not in users and "0" not in groups
        assert users != re.findall(r"\((\d+), (\d+), (\d+)\)", run_python(code).stdout)[0]  # another one each time
    else:
        assert {int(user) for user in users} == {os.geteuid()}


@held
def test_many_keep_their_order():
    results = run_many([f"print({n} ** 2)" for n in range(6)], workers=3)
    assert [result.stdout for result in results] == [f"{n * n}\n" for n in range(6)]
    assert run_many([]) == []


@held
def test_it_is_a_sandbox_of_the_protocols():
    sandbox = PythonSandbox()
    assert isinstance(sandbox, Sandbox)
    assert sandbox.run("while True: pass", timeout_s=0.3, memory_bytes=1 << 28).status == "timeout"


def test_refusing_where_nothing_holds(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)
    monkeypatch.setattr(bubblewrap, "works", lambda: False)
    assert available() is None
    result = run_python("open('/tmp/never-run', 'w')")
    assert (result.status, result.exit_code) == ("refused", None)
    assert "neither Landlock nor bubblewrap" in result.stderr
    for refusing in (require, PythonSandbox):
        with pytest.raises(DachengError, match="remedy"):
            refusing()


def test_other_systems_refuse():
    code = (
        "import sys, os, concurrent.futures, ctypes, selectors, subprocess, sysconfig\n"
        "sys.platform, sys.modules['resource'] = 'win32', None\ndel os.sched_getaffinity\n"
        "from dacheng.sandbox import available, run_many\n"
        "print(available(), *[(r.status, r.stderr) for r in run_many(['1', '2'])])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    told = ("refused", "no sandbox on this machine: win32 has no seccomp")
    assert done.stdout == f"None {told} {told}\n"


@held
def test_processor_time_ends_with_a_signal_that_says_so():
    """Threads may use it up before the clock does: that is a timeout, too."""
    limits = run_python("import resource\nprint(*resource.getrlimit(resource.RLIMIT_CPU))", limits=Limits(seconds=3))
    soft, hard = map(int, limits.stdout.split())
    assert 4 <= soft < hard
    result = run_python("import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)")  # what the kernel sends
    assert (result.status, result.exit_code) == ("timeout", -24)


@held
def test_refusing_a_mechanism_that_is_not_there_and_a_program_too_long(monkeypatch):
    monkeypatch.setattr(bubblewrap, "works", lambda: False)
    with pytest.raises(UsageError, match="there is"):
        run_python("1", mechanism="bubblewrap")
    assert run_python("#" * (5 << 20)).status == "refused"


@pytest.mark.skipif(not landlock.version(), reason="no Landlock here")
def test_what_can_not_be_locked_down_is_not_run(monkeypatch, tmp_path):
    """A machine that says it has Landlock and then does not let it be used."""
    from dacheng.sandbox import run

    python, home, _ = run._interpreter()
    monkeypatch.setattr(run, "_interpreter", lambda: (python, home, ("/proc/self/ns/mnt",)))
    result = run_python("print('ran')", mechanism="landlock")
    assert (result.status, result.stdout) == ("refused", "")


@pytest.mark.parametrize("field", ["seconds", "memory_bytes", "processes", "output_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "5", None])
def test_limits_are_checked(field, value):
    with pytest.raises(UsageError, match=f"limits.{field}"):
        Limits(**{field: value})


HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_numbers_are_the_kernels(machine):
    header = next((path for path in HEADERS[machine] if path.is_file()), None)
    if header is None:
        pytest.skip("no kernel headers here")
    text = header.read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text)}
    if machine == "aarch64":  # the 64-bit forms have the names of the 32-bit ones there
        known |= {"newfstatat": known["fstatat"], "fadvise64": known["fadvise64"]}
    column = ["x86_64", "aarch64"].index(machine)
    ours = {name: pair[column] for name, pair in NUMBERS.items() if pair[column] is not None}
    # headers older than a call don't know it
    assert {name: number for name, number in ours.items() if known.get(name, number) != number} == {}
    assert sum(name in known for name in ours) > 0.9 * len(ours)


def _verdict(code, machine_arch: int, number: int, arguments: list[int]) -> int:
    """What the filter says: the few BPF instructions that it uses, interpreted."""
    data = {0: number, 4: machine_arch}
    for index, argument in enumerate(arguments):
        data[16 + 8 * index], data[20 + 8 * index] = argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF
    accumulator, at = 0, 0
    while True:
        kind, yes, no, k = code[at]
        at += 1
        if kind == 0x20:
            accumulator = data.get(k, 0)
        elif kind == 0x54:
            accumulator &= k
        elif kind == 0x06:
            return k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[kind]
            at += yes if holds else no


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_the_filter_on_either_machine(machine, arch):
    column = ["x86_64", "aarch64"].index(machine)
    allow, kill, eperm, enosys, eagain = 0x7FFF0000, 0x80000000, 0x50001, 0x50000 | 38, 0x50000 | 11

    def says(name: str, *arguments: int, processes: int = 1) -> int:
        return _verdict(program(machine, 77, processes), arch, NUMBERS[name][column], list(arguments))

    assert _verdict(program(machine, 77, 1), 0x40000003, 1, []) == kill  # i386
    assert says("read") == says("openat") == says("futex") == allow
    assert says("kill", 77, 9) == says("tgkill", 77, 77, 6) == allow
    assert says("kill", 78, 9) == says("kill", 0, 9) == says("kill", 2**64 - 1, 9) == says("tkill", 77) == eperm
    assert says("clone", 0x3D0F00) == allow and says("clone", 17) == eagain  # a thread, a fork
    assert says("clone", 17, processes=2) == allow
    for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000, 0x8000, 0x2000):
        assert says("clone", 0x10000 | flag) == says("clone", 17 | flag, processes=2) == eperm
    assert says("clone3") == enosys
    assert says("fcntl", 3, 3) == allow and says("fcntl", 3, 8) == eperm
    assert says("ioctl", 0, 0x5401) == allow and says("ioctl", 0, 0x5412) == eperm  # TCGETS, TIOCSTI
    assert says("socketpair", 1, 1 | 0x80000) == allow and says("socketpair", 1, 2) == says("socketpair", 2, 1) == eperm
    assert says("sendto", 3, 0, 0, 0, 0) == allow and says("sendto", 3, 0, 0, 0, 1 << 40) == eperm
    assert says("prlimit64", 0) == allow and says("prlimit64", 5) == eperm
    assert says("prctl", 15) == allow and says("prctl", 8) == says("prctl", 22) == eperm
    for number in range(1100):  # and nothing else at all
        if number not in {pair[column] for pair in NUMBERS.values()}:
            assert _verdict(program(machine, 77, 1), arch, number, []) == (eperm if number < 0x40000000 else kill)
    assert len(program(machine, 77, 1)) < 4096  # BPF_MAXINSNS
