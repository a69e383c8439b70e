"""Programs that try to get out of a sandbox. Each prints ESCAPED where it did, and none does harm where it does.

{secret}: a file that anyone can read; {folder}: a folder that anyone can write; {port}: a TCP listener on 127.0.0.1;
{socket}: a datagram socket with a path; {parent}: the process that asked. Names that begin with "py_" are published
ways out of sandboxes inside Python (restricted builtins, AST filters, rexec, pysandbox): they win back what the
interpreter hid. Here nothing is hidden, so they succeed in that and must find that it is no use.
"""

from __future__ import annotations

_SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    got = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    print("answer", got, os.strerror(ctypes.get_errno()) if got < 0 else "")
    return got
"""
_READ = "print('ESCAPED' if 'top secret' in {0} else 'no')"

FILES = {
    "read": _READ.format("open({secret!r}).read()"),
    "read_os_open": "import os\n" + _READ.format("os.read(os.open({secret!r}, 0), 99).decode()"),
    "read_libc": "import ctypes\nlibc=ctypes.CDLL(None)\nb=ctypes.create_string_buffer(99)\n"
    "libc.read(libc.open({secret!r}.encode(), 0), b, 99)\n" + _READ.format("b.value.decode()"),
    "read_through_proc_root": _READ.format("open('/proc/self/root' + {secret!r}).read()"),
    "read_through_dots": _READ.format("open('/usr/lib/../..' + {secret!r}).read()"),
    "list": "import os\nprint('ESCAPED', os.listdir({folder!r}))",
    "glob_home": "import os\nprint('ESCAPED', os.listdir(os.path.expanduser('~root')))",
    "passwords": "print('ESCAPED', open('/etc/shadow').read()[:5])",
    "accounts": "print('ESCAPED', open('/etc/passwd').read()[:5])",
    "parent_environment": "print('ESCAPED', open('/proc/{parent}/environ').read()[:5])",
    "parent_memory": "print('ESCAPED', open('/proc/{parent}/mem', 'rb'))",
    "write": "open({folder!r} + '/new', 'w').write('x')\nprint('ESCAPED')",
    "append": "open({secret!r}, 'a').write('x')\nprint('ESCAPED')",
    "truncate": "import os\nos.truncate({folder!r} + '/there', 0)\nprint('ESCAPED')",
    "mkdir": "import os\nos.mkdir({folder!r} + '/d')\nprint('ESCAPED')",
    "rename": "import os\nos.rename({folder!r} + '/there', {folder!r} + '/gone')\nprint('ESCAPED')",
    "unlink": "import os\nos.unlink({folder!r} + '/there')\nprint('ESCAPED')",
    "symlink": "import os\nos.symlink({secret!r}, {folder!r} + '/link')\nprint('ESCAPED')",
    "hard_link": "import os\nos.link({secret!r}, {folder!r} + '/link')\nprint('ESCAPED')",
    "chmod": "import os\nos.chmod({folder!r} + '/there', 0o777)\nprint('ESCAPED')",
    "utime": "import os\nos.utime({folder!r} + '/there', (1, 1))\nprint('ESCAPED')",
    "chdir": "import os\nos.chdir({folder!r})\nprint('ESCAPED')",
    "fifo": "import os\nos.mkfifo({folder!r} + '/pipe')\nprint('ESCAPED')",
    "xattr": "import os\nos.setxattr({folder!r} + '/there', 'user.a', b'1')\nprint('ESCAPED')",
    "temporary": "import tempfile\ntempfile.TemporaryFile().write(b'x')\nprint('ESCAPED')",
    "shared_memory": "open('/dev/shm/dacheng-escape', 'w').write('x')\nprint('ESCAPED')",
    "memory_file": "import os\nprint('ESCAPED', os.memfd_create('x'))",
    "library_write": "import os\nopen(os.__file__, 'a')\nprint('ESCAPED')",
}

NETWORK = {
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).send(b'x')\nprint('ESCAPED')",
    "tcp_libc": _SYSCALL + "if call(41, 2, 1, 0) >= 0: print('ESCAPED')",
    "udp": "import socket\nsocket.socket(2, 2).sendto(b'x', ('127.0.0.1', 53))\nprint('ESCAPED')",
    "ipv6": "import socket\nsocket.socket(socket.AF_INET6, 1)\nprint('ESCAPED')",
    "unix": "import socket\ns=socket.socket(1, 2)\ns.connect({socket!r})\ns.send(b'x')\nprint('ESCAPED')",
    "unix_by_pair": "import socket\na,b=socket.socketpair(1, 2)\na.sendto(b'x', {socket!r})\nprint('ESCAPED')",
    "unix_by_stream_pair": "import socket\na,b=socket.socketpair()\na.sendto(b'x', {socket!r})\nprint('ESCAPED')",
    "unix_by_message": "import socket\na,b=socket.socketpair()\na.sendmsg([b'x'], [], 0, {socket!r})\nprint('ESCAPED')",
    "netlink": "import socket\nsocket.socket(16, 3, 0)\nprint('ESCAPED')",
    "crypto_socket": "import socket\nsocket.socket(38, 5, 0)\nprint('ESCAPED')",
    "fetch": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}/', timeout=2)\nprint('ESCAPED')",
    "io_uring": _SYSCALL + "if call(425, 4, ctypes.create_string_buffer(200)) >= 0: print('ESCAPED')",
}

PROCESSES = {
    "shell": "import os\nif os.system('echo ESCAPED') == 0: print('ESCAPED')",
    "subprocess": "import subprocess\nprint(subprocess.run(['echo', 'ESCAPED'], capture_output=True).stdout)",
    "exec": "import os\nos.execv('/bin/echo', ['echo', 'ESCAPED'])",
    "spawn": "import os\nprint('ESCAPED', os.posix_spawn('/bin/echo', ['echo'], {{}}))",
    "fork": "import os\nprint('ESCAPED', os.fork())",
    "vfork_libc": _SYSCALL + "if call(57) >= 0: print('ESCAPED')",
    "clone3": _SYSCALL + "if call(435, ctypes.create_string_buffer(88), 88) >= 0: print('ESCAPED')",
    "clone_namespace": _SYSCALL + "if call(56, 0x10000 | 0x10000000, 0, 0, 0, 0) >= 0: print('ESCAPED')",
    "signal_parent": "import os\nos.kill({parent}, 0)\nprint('ESCAPED')",
    "signal_all": "import os\nos.kill(-1, 0)\nprint('ESCAPED')",
    "signal_group": "import os\nos.killpg(os.getpgrp(), 0)\nprint('ESCAPED')",
    "signal_by_owner": "import fcntl,os\nr,w=os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {parent})\nprint('ESCAPED')",
    "limits_of_parent": "import resource\nprint('ESCAPED', resource.prlimit({parent}, resource.RLIMIT_NOFILE))",
    "own_limit_up": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('ESCAPED')",
    "affinity_of_parent": "import os\nos.sched_setaffinity({parent}, {{0}})\nprint('ESCAPED')",
    "new_session": "import os\nos.setsid()\nprint('ESCAPED')",
    "new_group": "import os\nos.setpgid(0, 0)\nprint('ESCAPED')",
}

KERNEL = {
    "trace_parent": _SYSCALL + "if call(101, 16, {parent}, 0, 0) >= 0: print('ESCAPED')",
    "read_parent": _SYSCALL + "if call(310, {parent}, 0, 0, 0, 0, 0) >= 0: print('ESCAPED')",
    "new_user_namespace": _SYSCALL + "if call(272, 0x10000000) >= 0: print('ESCAPED')",
    "new_mounts": _SYSCALL + "if call(272, 0x20000) >= 0: print('ESCAPED')",
    "mount": _SYSCALL + "if call(165, b'none', b'/mnt', b'tmpfs', 0, 0) >= 0: print('ESCAPED')",
    "chroot": "import os\nos.chroot('/usr')\nprint('ESCAPED')",
    "root_again": "import os\nos.setuid(0)\nprint('ESCAPED')",
    "root_again_saved": "import os\nos.setresuid(0, 0, 0)\nprint('ESCAPED')",
    "file_handle": _SYSCALL + "if call(303, -100, {secret!r}.encode(), ctypes.create_string_buffer(200), "
    "ctypes.create_string_buffer(8), 0) >= 0: print('ESCAPED')",
    "bpf": _SYSCALL + "if call(321, 0, ctypes.create_string_buffer(200), 200) >= 0: print('ESCAPED')",
    "keys": _SYSCALL + "if call(250, 0, -3, 0) >= 0: print('ESCAPED')",
    "performance_events": _SYSCALL
    + "if call(298, ctypes.create_string_buffer(200), 0, -1, -1, 0) >= 0: print('ESCAPED')",
    "page_faults": _SYSCALL + "if call(323, 1) >= 0: print('ESCAPED')",
    "filter_off": _SYSCALL + "if libc.prctl(22, 0, 0, 0, 0) == 0 or call(317, 1, 0, 0) >= 0: print('ESCAPED')",
    "privileges_back": _SYSCALL
    + "if libc.prctl(38, 0, 0, 0, 0) == 0 or libc.prctl(8, 1, 0, 0, 0) == 0: print('ESCAPED')",
    "randomness_off": _SYSCALL + "if call(135, 0x0040000) >= 0: print('ESCAPED')",
    "x32_table": _SYSCALL + "if call(0x40000000 + 39) >= 0: print('ESCAPED')",
    # mov eax, 20 (getpid of the 32-bit table); int 0x80; ret
    "i386_table": "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
    "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
    "if f() > 0: print('ESCAPED')",
}

_SHELL = "{0}('echo ESCAPED > {{folder}}/new; echo ESCAPED')"
PYTHON = {
    "py_subclasses": "for c in ().__class__.__base__.__subclasses__():\n"
    "    if c.__name__ == '_wrap_close':\n        " + _SHELL.format("c.__init__.__globals__['system']"),
    "py_builtins_by_generator": "g = (g.gi_frame.f_back.f_back for g in [1])\n"
    "def f():\n    try: raise KeyError\n    except KeyError as e: return e.__traceback__.tb_frame\n"
    "b = f().f_builtins\n" + _SHELL.format("b['__import__']('os').system"),
    "py_outer_frames": "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\n"
    "print(open({secret!r}).read() and 'ESCAPED', list(f.f_globals))",
    "py_reload": "import importlib, sys\nsys.modules.pop('os')\nos = importlib.import_module('os')\n"
    + _SHELL.format("os.system"),
    "py_format": "class C:\n    def __init__(self): pass\n"
    "s = '{{0.__init__.__globals__}}'.format(C())\n" + _SHELL.format("__import__('os').system"),
    "py_pickle": "import pickle, os\nclass R:\n"
    "    def __reduce__(self): return os.system, ('echo ESCAPED > {folder}/new',)\n"
    "if pickle.loads(pickle.dumps(R())) == 0: print('ESCAPED')",
    "py_fork_exec": "import _posixsubprocess, os\nr, w = os.pipe()\n"
    "print('ESCAPED', _posixsubprocess.fork_exec([b'/bin/echo'], [b'/bin/echo'], True, (), None, None, -1, -1, -1, -1,"
    " -1, -1, r, w, False, False, 0, None, None, None, -1, None, False))",
    "py_code_object": "def f(): pass\n"
    "f.__code__ = compile('__import__(\"os\").system(\"echo ESCAPED > {folder}/new\")', 'x', 'exec')\n"
    "f()\nopen('{folder}/new')\nprint('ESCAPED')",
    "py_bytecode_crash": "import types\nf = lambda: 0\n"
    "c = f.__code__.replace(co_code=bytes([100, 255, 83, 0]), co_consts=())\n"
    "types.FunctionType(c, {{}})()\nprint('ran on')",
    "py_memory_write": "import ctypes\nctypes.memset(id(True), 0, 8)\nprint(open({secret!r}).read() and 'ESCAPED')",
    "py_audit_hook_gone": "import sys\nsys.addaudithook(lambda *a: None)\nprint(open({secret!r}).read() and 'ESCAPED')",
    "py_breakpoint": "import os\nos.environ['PYTHONBREAKPOINT'] = 'os.system'\n"
    "breakpoint('echo ESCAPED > {folder}/new')\n"
    "open('{folder}/new')\nprint('ESCAPED')",
    "py_at_exit": "import atexit, os\natexit.register(lambda: print(open({secret!r}).read() and 'ESCAPED'))",
    "py_thread_after_end": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(.2), print(open({secret!r}).read() and 'ESCAPED'))).start()",
    "py_hidden_modules": "import sys\n[m for n, m in list(sys.modules.items()) if n.startswith('dacheng')]\n"
    "import dacheng.sandbox.seccomp as s\nprint(open({secret!r}).read() and 'ESCAPED')",
}
PYTHON["py_loader"] = (
    "[i] = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'BuiltinImporter']\n"
    + _SHELL.format("i.load_module('posix').system")
)

ALL = {**FILES, **NETWORK, **PROCESSES, **KERNEL, **PYTHON}
# numbers of x86_64 in them
X86 = {name for name, text in ALL.items() if _SYSCALL in text} | {"i386_table"}
