"""Nothing gets out: each program of escape_programs.py, as root and as a normal user, with and without bubblewrap.

The same programs run without a sandbox do get out, so that a test can't pass because a program is broken.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from escape_programs import ALL, X86

from dacheng.sandbox import available

SOURCE = Path(__file__).resolve().parents[2] / "src"
RUNNER = Path(__file__).resolve().parent / "escape_run.py"
NOBODY = 65534
# programs that need more than a normal process has even outside, or that crash
NOT_OUTSIDE = {
    "passwords", "glob_home", "trace_parent", "new_user_namespace", "new_mounts", "mount", "chroot", "root_again",
    "root_again_saved", "bpf", "performance_events", "page_faults", "crypto_socket", "keys", "x32_table", "i386_table",
    "own_limit_up", "filter_off", "privileges_back", "file_handle", "xattr", "io_uring", "py_bytecode_crash",
    "clone3", "clone_namespace", "vfork_libc", "new_session", "signal_all", "py_memory_write", "library_write",
    "affinity_of_parent", "unix_by_stream_pair", "unix_by_message", "exec", "fork", "memory_file", "ipv6",
    "parent_memory", "parent_environment", "signal_parent", "limits_of_parent", "fetch",
}  # fmt: skip

pytestmark = [pytest.mark.process, pytest.mark.skipif(available() is None, reason="no sandbox on this machine")]


class Place:
    """What a program would reach for: a file, a folder, a listener and a socket of this machine."""

    def __init__(self, folder: Path) -> None:
        self.secret, self.folder = folder / "secret.txt", folder / "open"
        self.folder.mkdir()
        self.secret.write_text("top secret")
        (self.folder / "there").write_text("as it was")
        self.secret.chmod(0o666)
        self.folder.chmod(0o777)
        (self.folder / "there").chmod(0o666)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.tcp.settimeout(0.05)
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = str(folder / "s")
        self.datagrams.bind(self.path)
        self.datagrams.setblocking(False)
        os.chmod(self.path, 0o777)
        self.before = self.state()

    def state(self) -> list:
        there = (self.folder / "there").stat()
        return [
            sorted(path.name for path in self.folder.iterdir()),
            self.secret.read_text(),
            (self.folder / "there").read_text(),
            (stat.S_IMODE(there.st_mode), there.st_mtime_ns, there.st_nlink, self.secret.stat().st_nlink),
            os.path.exists("/dev/shm/dacheng-escape"),
        ]

    def reached(self) -> list[str]:
        found = []
        try:
            self.tcp.accept()
            found.append("tcp")
        except TimeoutError:
            pass
        try:
            found.append(f"datagram {self.datagrams.recv(9)!r}")
        except BlockingIOError:
            pass
        return found

    def filled(self, program: str, parent: str = "PARENT") -> str:
        return program.format(
            secret=str(self.secret),
            folder=str(self.folder),
            socket=self.path,
            port=self.tcp.getsockname()[1],
            parent=parent,
        )


@pytest.fixture
def place():
    import tempfile  # not tmp_path: every folder above must be open to a normal user

    folder = Path(tempfile.mkdtemp(prefix="dacheng-escape-"))
    folder.chmod(0o755)
    place = Place(folder)
    yield place
    place.tcp.close()
    place.datagrams.close()
    shutil.rmtree(folder)


def programs(place: Place) -> dict[str, str]:
    return {name: place.filled(text) for name, text in ALL.items() if platform.machine() == "x86_64" or name not in X86}


def _normal_python() -> str:
    """A Python that a normal user can start; it need have no packages."""
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        probe = [candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(probe, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True).returncode == 0:
                return candidate
        except OSError:
            continue
    pytest.skip("no Python 3.11 or later that a normal user can start")


@pytest.mark.parametrize("mechanism", ["landlock", "bubblewrap"])
@pytest.mark.parametrize("user", ["this", "normal"])
def test_nothing_gets_out(place, user, mechanism):
    if mechanism not in (available() or ""):
        pytest.skip(f"no {mechanism} here")
    other = {}
    python = sys.executable
    if user == "normal":
        if os.geteuid() != 0:
            pytest.skip("this user is a normal one already")
        python, other = _normal_python(), {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    listing = place.secret.parent / "programs.json"
    listing.write_text(json.dumps(programs(place)))
    listing.chmod(0o644)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, str(RUNNER), mechanism, str(listing)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=300, **other)
    if user == "normal" and done.returncode and "PermissionError" in done.stderr + done.stdout:
        pytest.skip("a normal user can't read this checkout")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    found, uid, _ = results.pop("available")
    if found is None or mechanism not in found:
        pytest.skip(f"no {mechanism} for this user")
    assert uid == (os.geteuid() if user == "this" else NOBODY)
    assert len(results) == len(programs(place))
    assert {name: result for name, result in results.items() if "ESCAPED" in result[1]} == {}
    assert {name for name, result in results.items() if result[0] in ("refused", "timeout")} == set()
    assert place.state() == place.before
    assert place.reached() == []


def test_the_programs_do_get_out_where_nothing_holds_them(place):
    """Of those that a plain process of this user can do: every one."""
    held = []
    for name, program in programs(place).items():
        if name in NOT_OUTSIDE:
            continue
        program = program.replace("PARENT", str(os.getpid()))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        if "ESCAPED" not in done.stdout:
            held.append((name, done.stdout, done.stderr[-200:]))
        for path in place.folder.iterdir():  # as it was, for the next
            path.unlink() if not path.is_dir() else path.rmdir()
        (place.folder / "there").write_text("as it was")
        if os.path.exists("/dev/shm/dacheng-escape"):
            os.unlink("/dev/shm/dacheng-escape")
    assert held == []
    assert place.reached() != []
