"""Programs that try to escape a sandbox, to hang it, or to pass tests without solving them.

Each is the source of a program whose `f` should add 1. An attempt that must fail raises
`RuntimeError("ESCAPED …")` where it succeeds, so that the reason of the verdict shows it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import indent

SECRET = "the-secret-of-the-tests"
WRONG = "def f(x):\n    return 0\n"


@dataclass(frozen=True)
class Hostile:
    """A hostile program.

    Attributes:
        name: Its name.
        source: Its code.
        isolated: True if only namespaces stop it, not limits and the filter of system calls.
    """

    name: str
    source: str
    isolated: bool = False

    def __str__(self) -> str:
        return self.name


def must_fail(attempt: str, shown: str = "''") -> str:
    """A program that says so if the attempt succeeds; then its `f` is wrong."""
    return (
        f"escaped = False\ntry:\n{indent(attempt, '    ')}\n    escaped = True\n"
        f"except BaseException:\n    pass\n"
        f"if escaped:\n    raise RuntimeError('ESCAPED ' + str({shown}))\n{WRONG}"
    )


LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def calls(number: str) -> str:
    """A system call by its name in the C library, that must not succeed."""
    return LIBC + f"if {number} < 0:\n    raise OSError(ctypes.get_errno())"


PROCESSES = {
    "fork": "import os\nos.fork()",
    "fork bomb": "import os\nfor _ in range(10**6):\n    os.fork()",
    "forkpty": "import os\nos.forkpty()",
    "system": "import os\nif os.system('true'):\n    raise OSError",
    "popen": "import os\nos.popen('true').read()",
    "posix_spawn": "import os, sys\nos.posix_spawn('/bin/true', ['true'], {})",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "spawned": "import multiprocessing\nmultiprocessing.get_context('spawn').Process().start()",
    "pool": "import multiprocessing.pool\nmultiprocessing.pool.ThreadPool(4)",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "thread bomb": "import threading, time\nfor _ in range(10**5):\n"
    "    threading.Thread(target=time.sleep, args=(99,)).start()",
    "executor": "import concurrent.futures\n"
    "concurrent.futures.ThreadPoolExecutor().submit(print).result()",
    "fork of the C library": calls("libc.fork()"),
    "vfork of the C library": calls("libc.vfork()"),
    "clone": calls("libc.syscall(56, 17, 0, 0, 0, 0)"),
    "clone3": calls("libc.syscall(435, ctypes.create_string_buffer(64), 64)"),
    "pty": "import pty\npty.spawn('/bin/sh')",
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0))",
}
SIGNALS = {
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill the first": "import os\nos.kill(1, 9)",
    "kill all": "import os\nos.kill(-1, 9)",
    "kill the group": "import os\nos.killpg(0, 15)",
    "kill the parent's group": "import os\nos.killpg(os.getpgid(os.getppid()), 9)",
    "stop the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "kill of the C library": calls("libc.kill(1, 9)"),
    "queue a signal": calls("libc.sigqueue(1, 9, 0)"),
    "signal by descriptor": "import os, signal\n"
    "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "trace the parent": calls("libc.ptrace(16, 1, 0, 0)"),
    "read the parent's memory": calls("libc.process_vm_readv(1, 0, 0, 0, 0, 0)"),
}
NETWORK = {
    f"socket {family} {kind}": f"import socket\nsocket.socket(socket.{family}, socket.{kind})"
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK")
    for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW")
} | {
    "socketpair": "import socket\nsocket.socketpair()",
    "connect": "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)",
    "http": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1/', timeout=1)",
    "server": "import http.server\nhttp.server.HTTPServer(('', 0), None)",
    "name": "import socket\nsocket.getaddrinfo('example.org', 80)[0][0]",
}
KERNEL = {
    "unshare": calls("libc.unshare(0x10000000)"),
    "user namespace": calls("libc.unshare(0x10000000 | 0x20000)"),
    "setns": calls("libc.setns(0, 0)"),
    "mount": calls("libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)"),
    "remount": calls("libc.mount(b'none', b'/', None, 32 | 4096, None)"),
    "umount": calls("libc.umount2(b'/tmp', 2)"),
    "chroot": "import os\nos.chroot('/tmp')",
    "pivot": calls("libc.syscall(155, b'/', b'/tmp')"),
    "keyring": calls("libc.syscall(250, 0, -3, 0)"),
    "bpf": calls("libc.syscall(321, 0, 0, 0)"),
    "io_uring": calls("libc.syscall(425, 8, ctypes.create_string_buffer(256))"),
    "userfaultfd": calls("libc.syscall(323, 0)"),
    "perf": calls("libc.syscall(298, 0, 0, 0, 0, 0)"),
    "handles": calls("libc.syscall(304, 0, 0, 0)"),
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "more processes": "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))",
    "more time": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
}
ISOLATED_KERNEL = {
    "become root": "import os\nos.setuid(0)\nos.setgid(0)\nopen('/tmp/x', 'w')",
    "hostname": "import socket\nsocket.sethostname('escaped')",
    "devices": "import os\nos.mknod('/tmp/disk', 0o60666, os.makedev(8, 0))",
}
PLACES = ("/", "/usr", "/usr/lib", "/etc", "/dev", "/root", "/var/tmp", "/proc", "/sys", "/run")
FILES = (
    {f"write below {place}": f"open({place!r} + '/escaped', 'w')" for place in PLACES}
    | {f"folder below {place}": f"import os\nos.mkdir({place!r} + '/escaped')" for place in PLACES}
    | {
        "the program of the interpreter": "import sys\nopen(sys.executable, 'r+')",
        "the standard library": "import os\nopen(os.__file__, 'a')",
        "delete the library": "import os\nos.remove(os.__file__)",
        "rename the library": "import os\nos.rename(os.__file__, os.__file__ + '.old')",
        "mode of the library": "import os\nos.chmod(os.__file__, 0o777)",
        "touch the library": "import os\nos.utime(os.__file__)",
        "the kernel's settings": "open('/proc/sys/kernel/core_pattern', 'w')",
        "raw memory": "open('/dev/mem', 'rb')",
        "a disk": "open('/dev/sda', 'rb')",
        "a terminal": "open('/dev/tty', 'w')",
        "a big file": "open('/tmp/big', 'wb').write(bytes(1 << 26))",
        "a big sparse file": "open('/tmp/big', 'wb').truncate(1 << 40)",
        "many files": "for place in range(10**6):\n"
        "    open(f'/tmp/{place}', 'wb').write(bytes(1 << 16))",
        "shared memory": "import multiprocessing.shared_memory as shared\n"
        "shared.SharedMemory(create=True, size=64)",
    }
)
HOME = {
    "passwords": ("text = open('/etc/passwd').read()", "text"),
    "shadow": ("text = open('/etc/shadow').read()", "text"),
    "home": (
        "import os, sys\n"
        "own = lambda name: sys.executable.startswith(os.path.join(HOME, name) + os.sep)\n"
        "name = [name for name in os.listdir(HOME) if not own(name)][0]",
        "name",
    ),
    "the user's home": ("import os\nnames = os.listdir('/home')", "names"),
    "the secret": ("text = open(CANARY).read()", "text"),
    "the folder of the secret": ("import os\nnames = os.listdir(os.path.dirname(CANARY))", "names"),
    # An environment of Python that lies there is shown, because it is what runs the program.
    "the repository": (
        "import os\nnames = sorted(set(os.listdir(CWD)) - {PYTHON})\nnames[0]",
        "names",
    ),
    "our package": ("import trainenv", "trainenv"),
    "environment of the parent": ("text = open('/proc/1/environ').read()", "text"),
    "memory of the parent": ("text = open('/proc/1/mem', 'rb')", "text"),
    "descriptors of the parent": ("import os\nnames = os.listdir('/proc/1/fd')", "names"),
    "root of the parent": ("import os\nnames = os.listdir('/proc/1/root')", "names"),
    "root of itself": (
        "import os\nnames = os.listdir(os.path.join('/proc/self', 'root', 'home'))",
        "names",
    ),
    "processes": ("import os\nnames = os.listdir('/proc')", "names"),
    "keys of the user": ("import glob\ntext = glob.glob('/*/.ssh/*')[0]", "text"),
    "variables": ("import os\ntext = os.environ['TRAINENV_SECRET']", "text"),
    "a symbolic link": (
        "import os\nos.symlink(CANARY, '/tmp/link')\ntext = open('/tmp/link').read()",
        "text",
    ),
    "a link to the root": (
        "import os\nos.symlink('/', '/tmp/root')\ntext = open('/tmp/root' + CANARY).read()",
        "text",
    ),
    "a link to itself": ("import os\nos.symlink('/tmp/l', '/tmp/l')\nopen('/tmp/l')", "1"),
    "a hard link": ("import os\nos.link(CANARY, '/tmp/hard')", "1"),
    "dots": ("text = open('/tmp/../../..' + CANARY).read()", "text"),
    "a descriptor of the root": (
        "import os\nroot = os.open('/', 0)\nos.fchdir(root)\nos.chdir('..')\n"
        "text = open(CANARY[1:]).read()",
        "text",
    ),
}
HANGS = {
    "endless loop": "while True:\n    pass",
    "endless loop that catches": "while True:\n    try:\n        while True:\n            pass\n"
    "    except BaseException:\n        pass",
    "sleep": "import time\ntime.sleep(10**6)",
    "pause": "import signal\nsignal.pause()",
    "ignored signals": "import signal, time\nfor one in range(1, 64):\n    try:\n"
    "        signal.signal(one, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\n"
    "time.sleep(10**6)",
    "wait for input": "import os\nwhile os.read(3, 1):\n    pass\nwhile True:\n    pass",
    "wait for a pipe": "import os\nreads, writes = os.pipe()\nos.read(reads, 1)",
    "named pipe": "import os\nos.mkfifo('/tmp/fifo')\nopen('/tmp/fifo')",
    "a regular expression": "import re\nre.match('(a*)*b', 'a' * 40)",
    "a lock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "a big power": "print(len(str(7 ** 10 ** 9)))",
    "endless printing": "while True:\n    print('x' * 1000)",
    "endless writing": "import os\nwhile True:\n    for place in range(3, 32):\n        try:\n"
    "            os.write(place, b'x' * 4096)\n        except OSError:\n            pass",
    "endless answer": "import os\nwhile True:\n    try:\n        os.write(4, b'x' * 65536)\n"
    "    except OSError:\n        pass",
    "late loop": "import atexit\n\ndef loop():\n    while True:\n        pass\n\natexit.register(loop)",
    "loop at the end of an object": "class A:\n    def __del__(self):\n        while True:\n"
    "            pass\n\nA()",
    "session of its own": "import os\ntry:\n    os.setsid()\nexcept OSError:\n    pass\n"
    "while True:\n    pass",
}
MEMORY = {
    "bytes": "data = bytearray(1 << 40)",
    "a list": "data = [0] * (1 << 36)",
    "a growing list": "data = []\nwhile True:\n    data.append(bytes(1 << 20))",
    "a growing string": "data = 'x'\nwhile True:\n    data += data",
    "a nested list": "data = []\nfor _ in range(10**8):\n    data = [data]",
    "a dictionary": "data = {n: bytes(1000) for n in range(10**8)}",
    "a mapping": "import mmap\ndata = mmap.mmap(-1, 1 << 40)",
    "an iterator": "import itertools\ndata = list(itertools.count())",
    "a product": "import itertools\ndata = list(itertools.product(range(10**6), repeat=3))",
    "a file in memory": "import os\nplace = os.memfd_create('x')\nwhile True:\n"
    "    os.write(place, bytes(1 << 20))",
    "recursion": "def g():\n    return g()\ng()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\n\ndef g(n):\n    return g(n + 1)\ng(0)",
    "deep source": "compile('(' * 10**5, 'x', 'eval')",
    "a format": "data = '{:>1000000000000}'.format(1)",
    "compressed": "import zlib\ndata = zlib.decompressobj().decompress(zlib.compress(bytes(1 << 28)) * 8)",
    "descriptors": "import os\nwhile True:\n    os.pipe()",
}
CRASHES = {
    "address 0": "import ctypes\nctypes.string_at(0)",
    "a wrong write": "import ctypes\nctypes.memset(id(None), 0, 4096)",
    "abort": "import os\nos.abort()",
    "a fault": "import faulthandler\nfaulthandler._sigsegv()",
    "bad bytecode": "def g():\n    pass\ng.__code__ = g.__code__.replace(co_code=b'\\xff' * 8)\ng()",
    "bad data": "import marshal\nmarshal.loads(b'\\xe3' + b'\\xff' * 40)",
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "exec": "import os, sys\nos.execv(sys.executable, ['python', '-c', ''])",
    "exec of nothing": "import os\nos.execv('/bin/true', ['true'])",
}
VERDICT = '{"passed": true, "reason": ""}'
ANSWERS = ("['names', ['f']]", "['value', True]", "['value', ['int', '0x4']]")
FOOLS = {
    "print success": f"print('{VERDICT}', flush=True)\n{WRONG}",
    "write success everywhere": f"import os\nfor place in range(64):\n    try:\n"
    f"        os.write(place, b'{VERDICT}\\n')\n    except OSError:\n        pass\n{WRONG}",
    "success, then exit": f"import os\nfor place in range(64):\n    try:\n"
    f"        os.write(place, b'{VERDICT}\\n')\n    except OSError:\n        pass\nos._exit(0)",
    "close everything": f"import os\nos.closerange(0, 64)\n{WRONG}",
    "point descriptors elsewhere": "import os\nplace = os.open('/dev/zero', 0)\n"
    f"for other in range(32):\n    os.dup2(place, other)\n{WRONG}",
    "always equal": "class Yes:\n    def __eq__(self, other):\n        return True\n"
    "    __ne__ = __hash__ = None\n\ndef f(x):\n    return Yes()\n",
    "an equal number": "class Yes(int):\n    def __eq__(self, other):\n        return True\n"
    "    __hash__ = int.__hash__\n\ndef f(x):\n    return Yes(0)\n",
    "an equal string": "class Yes(str):\n    def __eq__(self, other):\n        return True\n"
    "    __hash__ = str.__hash__\n\ndef f(x):\n    return Yes('')\n",
    "an equal list": "class Yes(list):\n    def __eq__(self, other):\n        return True\n"
    "\ndef f(x):\n    return Yes()\n",
    "an equal float": "class Yes(float):\n    def __eq__(self, other):\n        return True\n"
    "    __hash__ = float.__hash__\n\ndef f(x):\n    return Yes('nan')\n",
    "no assertion": f"import builtins\nbuiltins.AssertionError = ValueError\n{WRONG}",
    "other built-ins": "import builtins\nbuiltins.all = builtins.any = lambda *a: True\n"
    f"builtins.abs = lambda x: 0\nbuiltins.isinstance = lambda *a: True\n{WRONG}",
    "other JSON": "import json\njson.dumps = lambda value: '" + VERDICT + f"'\n{WRONG}",
    "another main module": "import sys, __main__\n__main__.encode = lambda *a: True\n"
    f"__main__.send = lambda *a: None\n{WRONG}",
    "the caller's variables": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    frame.f_globals.update(passed=True, names={'f': print})\n    frame = frame.f_back\n"
    + WRONG,
    "raise no error": "def f(x):\n    raise SystemExit(0)\n",
    "stop the tests": "def f(x):\n    raise StopIteration\n",
    "interrupt the tests": "def f(x):\n    raise KeyboardInterrupt\n",
    "a name of an error": "class GeneratorExit(BaseException):\n    pass\n\ndef f(x):\n"
    "    raise GeneratorExit\n",
    "return a function": "def f(x):\n    return lambda: 4\n",
    "return a generator": "def f(x):\n    yield 4\n",
    "a deep answer": "def f(x):\n    data = []\n    for _ in range(10**5):\n        data = [data]\n"
    "    return data\n",
    "a long answer": "def f(x):\n    return 'x' * 10**7\n",
    "an answer without end": "def f(x):\n    import os\n    while True:\n        for place in range(3, 9):\n"
    "            try:\n                os.write(place, b'[' * 65536)\n            except OSError:\n"
    "                pass\n",
    "read the question again": "import os\n\ndef f(x):\n    return os.read(3, 100)\n",
    "look for what is expected": "import gc\n\ndef f(x):\n"
    "    return [o for o in gc.get_objects() if 'assert candidate' in repr(o)[:10**4]]\n",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n" + WRONG,
    "no f": "g = 1\n",
    "not a program": "def f(x:\n",
    "null bytes": "def f(x):\n    return 0\n\0",
    "surrogates": "def f(x):\n    return '\\udc80'\n",
    "f is a class": "class f:\n    def __new__(cls, x):\n        return cls\n",
} | {
    f"forged answer {number}": "import json, os\nfor place in range(3, 16):\n    try:\n"
    f"        os.write(place, (json.dumps({answer}) + '\\n').encode() * 2)\n"
    f"    except OSError:\n        pass\n{WRONG}"
    for number, answer in enumerate(ANSWERS)
}


def programs(canary: str, home: str, folder: str) -> Iterator[Hostile]:
    """Every hostile program.

    Args:
        canary: File that no program may read.
        home: Home folder of the user.
        folder: Folder that the tests run in.
    """
    python = os.path.relpath(sys.prefix, folder).split(os.sep)[0]
    known = f"CANARY, HOME, CWD, PYTHON = {canary!r}, {home!r}, {folder!r}, {python!r}\n"
    for group, isolated in (
        (PROCESSES, False),
        (SIGNALS, False),
        (NETWORK, False),
        (KERNEL, False),
        (ISOLATED_KERNEL, True),
        (FILES, True),
    ):
        for name, attempt in group.items():
            yield Hostile(name, must_fail(attempt), isolated)
    for name, (attempt, shown) in HOME.items():
        yield Hostile(f"read {name}", known + must_fail(attempt, shown), True)
    for group in (HANGS, MEMORY, CRASHES):
        for name, attempt in group.items():
            isolated = name == "named pipe"  # it would stay in the /tmp of the machine
            yield Hostile(name, f"{attempt}\n{WRONG}", isolated)
    for name, source in FOOLS.items():
        yield Hostile(name, source)
