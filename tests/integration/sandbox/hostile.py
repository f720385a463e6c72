"""Programs that do not want to be judged fairly, by the rows of a list of known attacks."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from common.types import VerdictStatus

FUNCTION: dict[str, Any] = {
    "function": "f",
    "tests": [{"args": [x], "expected": 7 * x + 1} for x in (1, 2, 30)],
}
"""f(x) = 7 x + 1."""

PROGRAM: dict[str, Any] = {
    "tests": [{"input": f"{x}\n", "output": f"{7 * x + 1}\n"} for x in (1, 2, 30)]
}
"""The same from standard input to standard output."""

SOLVE = "print(7 * int(input()) + 1)\n"


@dataclass(frozen=True)
class Hostile:
    """One program, and what must come of it."""

    row: str
    program: str
    reason: str
    """Part of the judgement's reason."""
    task: dict[str, Any]
    value: float = 0.0
    status: VerdictStatus = VerdictStatus.GRADED


def _text(program: str) -> str:
    return textwrap.dedent(program).strip() + "\n"


def _call(row: str, program: str, reason: str, **more: Any) -> Hostile:
    return Hostile(row, _text(program), reason, FUNCTION | more)


def _run(row: str, program: str, reason: str, **more: Any) -> Hostile:
    return Hostile(row, _text(program), reason, PROGRAM | more)


def _limit(row: str, program: str, limit: str, **more: Any) -> Hostile:
    """Whichever limit is not meant is one that no machine is slow enough to reach."""
    lowered = {"cpu": {"cpu_s": 0.5}, "wall": {"wall_s": 0.3}}.get(limit, {})
    task = PROGRAM | {"limits": lowered} | more
    reason = f"limit ({limit})"
    return Hostile(row, _text(program), reason, task, status=VerdictStatus.LIMIT_EXCEEDED)


def _sees(row: str, program: str, *lines: str) -> Hostile:
    """A program that reports what it found; the task expects that it finds ``lines``."""
    task = {"tests": [{"input": "", "output": "\n".join(lines)}]}
    return Hostile(row, _text(program), "1 of 1 tests right", task, value=1.0)


_PROBE = """
    import ctypes, errno, os, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def name(number): return errno.errorcode.get(number, number)
    def call(*arguments):
        ctypes.set_errno(0)
        result = libc.syscall(*[ctypes.c_long(item) for item in arguments])
        print(name(ctypes.get_errno()) if result < 0 else "DONE")
    def attempt(work, *arguments):
        try:
            work(*arguments)
            print("DONE")
        except OSError as error:
            print(name(error.errno))
    def refused(work, *arguments):
        try:
            work(*arguments)
            print("DONE")
        except OSError as error:
            print(error.errno in (errno.EPERM, errno.EACCES, errno.EROFS, errno.EINVAL))
"""


def _probe(row: str, program: str, *lines: str) -> Hostile:
    return _sees(row, _text(_PROBE) + _text(program), *lines)


_NO_VALUE = "it ended without a value"

EXITS = [
    _call("1 sys.exit(0)", "import sys\ndef f(x): sys.exit(0)", _NO_VALUE),
    _call("2 os._exit(0)", "import os\ndef f(x): os._exit(0)", _NO_VALUE),
    _call("3 raise SystemExit", "def f(x): raise SystemExit", _NO_VALUE),
    _call("4 ctypes exit(0)", "import ctypes\ndef f(x): ctypes.CDLL(None).exit(0)", _NO_VALUE),
    _call("1 sys.exit(0) at import", "import sys\nsys.exit(0)", "runtime error (SystemExit: 0)"),
    _call("2 os._exit(0) at import", "import os\nos._exit(0)", _NO_VALUE),
    _run("1 sys.exit(0) as a program", "import sys\nsys.exit(0)", "0 of 3 tests right, 1 wrong"),
    _run("2 os._exit(0) as a program", "import os\nos._exit(0)", "0 of 3 tests right, 1 wrong"),
]

TIME = [
    _limit("5 endless loop", "while True: pass", "cpu"),
    _limit("6 endless sleep", "import time; time.sleep(1e9)", "wall"),
    _limit("6 waits for nobody", "import os; os.read(os.pipe()[0], 1)", "wall"),
    _run("6 reads an empty input", "input(); input()", "runtime error (exit code 1)"),
    _limit("7 holds the interpreter", "9**9**9", "cpu"),
    _limit(
        "8 fork bomb",
        """
        import os
        while True:
            try: os.fork()
            except OSError: pass
        """,
        "cpu",
    ),
    _sees(
        "8 forks end at 64",
        """
        import os, signal, errno
        count = 1
        try:
            while count < 500:
                if os.fork() == 0: signal.pause()
                count += 1
        except OSError as error:
            print(count <= 64, errno.errorcode[error.errno])
        """,
        "True EAGAIN",
    ),
    _sees(
        "9 thread bomb",
        """
        import threading, os
        wait, count = threading.Event(), 1
        try:
            while count < 500:
                threading.Thread(target=wait.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            print(count <= 64, flush=True)
            os._exit(0)
        """,
        "True",
    ),
    Hostile(
        "10 daemon",
        _text(
            """
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    while True:
                        time.sleep(0.05)
                        open("late", "a").write("x")
                os._exit(0)
            """
        )
        + SOLVE,
        "3 of 3 tests right",
        PROGRAM,
        value=1.0,
    ),
    _limit(
        "11 deaf to signals",
        """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))
        while True: pass
        """,
        "cpu",
    ),
]

_SMALL = {"memory_bytes": 128 << 20}
_BOMB = "import zlib\nbomb, parts = zlib.compress(bytes(1 << 25), 9), []\n"

MEMORY = [
    _limit("12 100 GB at once", "bytearray(100 << 30)", "memory"),
    _limit("12 a list that grows", "x = [0]\nwhile True: x += x", "memory", limits=_SMALL),
    _limit("12 a mapping", "import mmap\nx = mmap.mmap(-1, 100 << 30)\nx.write(b'1')", "memory"),
    Hostile(
        "12 in a call",
        "def f(x): return len(bytearray(100 << 30))",
        "limit (memory)",
        FUNCTION,
        status=VerdictStatus.LIMIT_EXCEEDED,
    ),
    _probe(
        "13 a large file",
        """
        out = open("large", "wb", buffering=0)
        def fill():
            while True: out.write(bytes(1 << 20))
        attempt(fill)
        print(out.tell() >> 20)
        """,
        "EFBIG",
        "16",
    ),
    _probe(
        "13 a million files",
        """
        def fill():
            for number in range(10 ** 6): os.close(os.open(str(number), os.O_CREAT))
        attempt(fill)
        print(3500 < len(os.listdir(".")) < 4097)
        """,
        "ENOSPC",
        "True",
    ),
    _probe(
        "13 many files fill the disk",
        """
        def fill():
            for number in range(100):
                with open(str(number), "wb", buffering=0) as out:
                    for _ in range(10): out.write(bytes(1 << 20))
        attempt(fill)
        """,
        "ENOSPC",
    ),
    _probe("13 a sparse file", 'attempt(open("s", "wb").truncate, 1 << 40)', "EFBIG"),
    _limit("14 endless output", "while True: print('x' * 10000)", "output"),
    _limit(
        "14 one endless line", "import sys\nwhile True: sys.stdout.write('x' * (1 << 20))", "output"
    ),
    _limit(
        "14 endless complaints", "import sys\nwhile True: sys.stderr.write('x' * 10000)", "output"
    ),
    _limit(
        "16 zip bomb",
        _BOMB + "while True: parts.append(zlib.decompress(bomb))",
        "memory",
        limits=_SMALL,
    ),
]

CRASHES = [
    _run("17 recursion", "def g(): g()\ng()", "runtime error (exit code 1)"),
    _run(
        "17 stack overflow",
        "import sys\nsys.setrecursionlimit(10 ** 9)\nx, y = [], []\n"
        "for _ in range(10 ** 5): x, y = [x], [y]\nx == y",
        "runtime error (signal 11)",
    ),
    _run("17 null pointer", "import ctypes\nctypes.string_at(0)", "runtime error (signal 11)"),
    _run("17 abort", "import os\nos.abort()", "runtime error (signal 6)"),
    _call("17 null pointer in a call", "import ctypes\ndef f(x): ctypes.string_at(0)", "signal 11"),
    _run("15 bytes that are no text", "import os; os.write(1, b'\\xff\\x00\\x1b[2J')", "1 wrong"),
    _run("15 right-to-left text", "print('\\u202e8')", "1 wrong"),
    _call(
        "15 escapes in an error",
        "def f(x): raise ValueError('\\x1b[2J\\u202e\\n')",
        "runtime error (ValueError: \\x1b[2J\\u202e\\n)",
    ),
]

_OUTSIDE_FILES = [
    *("/etc/shadow", "/etc/passwd", "/root/.ssh", "/home", "/run", "/var", "/sys"),
    *(
        "/root/.cache/huggingface/token",
        "/proc/1/environ",
        "/proc/self/mountinfo",
        "/proc/1/cmdline",
    ),
]

VIEW = [
    _probe(
        "18 19 files outside",
        f"for path in {_OUTSIDE_FILES}: attempt(os.stat, path)",
        *["ENOENT"] * len(_OUTSIDE_FILES),
    ),
    _sees(
        "20 environment",
        "import os\nfor pair in sorted(os.environ.items()): print(*pair)",
        "HOME /box",
        "LANG C.UTF-8",
        "PATH /usr/bin:/bin",
        "PYTHONHASHSEED 0",
    ),
    _probe(
        "21 network",
        """
        for kind in ((2, 1), (2, 2), (2, 3), (10, 1), (1, 1), (1, 2), (16, 3), (17, 3), (40, 1)):
            attempt(socket.socket, *kind)
        attempt(socket.create_connection, ("169.254.169.254", 80), 1)
        attempt(socket.create_connection, ("127.0.0.1", 80), 1)
        call(425, 8, 0)
        call(53, 2, 1, 0, 0)
        socket.socketpair()[0].close()
        """,
        *["EPERM"] * 13,
    ),
    _probe(
        "22 other processes",
        """
        call(101, 16, 1, 0, 0)
        call(101, 0, 0, 0, 0)
        call(310, 1, 0, 0, 0, 0, 0)
        call(311, 1, 0, 0, 0, 0, 0)
        try: os.kill(os.getppid(), 9)
        except PermissionError: pass
        attempt(os.kill, -1, 9)
        attempt(os.kill, 100000, 9)
        print(os.getppid())
        """,
        *["EPERM"] * 4,
        "ESRCH",
        "ESRCH",
        "1",
    ),
    _probe(
        "23 system calls",
        """
        for number, *arguments in (
            (272, 0x10000000), (272, 0x20000), (56, 0x10000000 | 17), (56, 0x20000 | 17),
            (308, 0, 0), (165, 0, 0, 0, 0, 0), (166, 0, 0), (155, 0, 0), (161, 0), (321, 0, 0, 0),
            (298, 0, 0, 0, 0, 0), (250, 0, 0, 0), (248, 0, 0, 0, 0, 0), (323, 0), (304, 0, 0, 0),
            (428, 0, 0, 0), (429, 0, 0, 0, 0, 0), (430, 0, 0), (442, 0, 0, 0, 0, 0), (438, 0, 0, 0),
            (312, 0, 0, 0, 0, 0), (175, 0, 0, 0), (246, 0, 0, 0, 0), (135, 0xffffffff), (319, 0, 0),
        ):
            call(number, *arguments)
        call(435, 0, 0)
        """,
        *["EPERM"] * 25,
        "ENOSYS",
    ),
    _probe(
        "24 privileges",
        """
        print(libc.prctl(39, 0, 0, 0, 0), bool(os.statvfs("/usr/bin").f_flag & os.ST_NOSUID))
        refused(os.setuid, 0)
        refused(os.setgid, 0)
        refused(os.setgroups, [0])
        refused(os.chown, "tmp", 0, 0)
        refused(os.mknod, "disk", 0o60666, 0x800)
        os.close(os.open("own", os.O_CREAT)); os.chmod("own", 0o4755)
        print(os.getresuid() == (os.getuid(),) * 3, os.getuid() != 0)
        """,
        "1 True",
        *["True"] * 5,
        "True True",
    ),
    _sees(
        "25 descriptors",
        """
        import os
        found = []
        for number in range(3, 1024):
            try: os.fstat(number); found.append(number)
            except OSError: pass
        print(found)
        """,
        "[]",
    ),
    _probe(
        "27 modules from the working directory",
        """
        for file in ("json.py", "sitecustomize.py", "usercustomize.py", "conftest.py", "x.pth"):
            open(file, "w").write("raise SystemExit('planted')")
        import json, subprocess, base64
        print("/box" in sys.path, "" in sys.path, json.loads("1"), "/box" in json.__file__)
        """,
        "False False 1 False",
    ),
    _probe(
        "32 the input belongs to the harness",
        """
        refused(os.write, 0, b"9")
        refused(os.ftruncate, 0, 9)
        refused(os.truncate, "/usr/lib/os-release", 0)
        refused(open, "/usr/lib/planted", "w")
        refused(os.mkdir, "/planted")
        """,
        *["True"] * 5,
    ),
]

_LIE = "{}\ndef f(x): return {}"


def _lies(row: str, setup: str, value: str, reason: str) -> Hostile:
    return _call(row, _LIE.format(_text(setup).strip(), value), reason)


_SUBCLASS = "class Any{0}({0}):\n    def __eq__(self, other): return True\n    __hash__ = None"

VALUES = [
    _lies("28 always equal", "class E:\n    def __eq__(self, o): return True", "E()", "type E"),
    *(
        _lies(f"28 {kind} subclass", _SUBCLASS.format(kind), f"Any{kind}()", f"type Any{kind}")
        for kind in ("int", "str", "list", "float", "dict", "tuple")
    ),
    _lies("28 spoofed class", "class E:\n    __class__ = int", "E()", "type E"),
    _lies("28 bool for int", "", "True", "3 wrong"),
    _lies("28 text for int", "", "str(7 * x + 1)", "3 wrong"),
    _lies(
        "28 named after int",
        "int_ = type('int', (), {'__eq__': lambda s, o: True})",
        "int_()",
        "type int",
    ),
    _lies("35 generator", "", "(x for x in [8])", "type generator"),
    _lies("35 infinite iterator", "import itertools", "itertools.count()", "type count"),
    _lies("35 NaN", "", "float('nan')", "3 wrong"),
    _lies("35 a million digits", "", "1 << 3321928", "Exceeds the limit"),
    _lies(
        "35 a million digits, unlocked",
        "import sys\nsys.set_int_max_str_digits(0)",
        "10 ** 10 ** 4",
        "Exceeds the limit",
    ),
    _lies("35 cyclic list", "cycle = []; cycle.append(cycle)", "cycle", "nested more than 100"),
    _lies("35 cyclic dictionary", "cycle = {}; cycle[1] = cycle", "cycle", "nested more than 100"),
    _lies("35 lone surrogates", "", "'\\ud800'", "3 wrong"),
    _lies("35 a huge value", "", "[0] * 500000", "a value of 1500011 bytes"),
    _call(
        "29 patched builtins",
        """
        import builtins, json, unittest
        from actors.verification.sandbox import frames
        builtins.len = builtins.isinstance = lambda *a: True
        json.dumps = lambda *a, **k: '{"value": 1}'
        frames.to_primitive = lambda *a: 8
        unittest.TestCase.assertEqual = lambda *a: None
        def f(x): return None
        """,
        "3 wrong",
    ),
    _call(
        "30 search for the expected values",
        """
        import gc, inspect, sys
        def f(x):
            frame, seen = sys._getframe(), []
            while frame:
                seen += list(frame.f_locals.values()) + list(frame.f_globals.values())
                frame = frame.f_back
            seen += gc.get_objects() + [str(item.frame.f_locals) for item in inspect.stack()]
            for item in seen:
                if isinstance(item, str) and item.startswith("hidden-") and item != "hidden-":
                    return item
                if isinstance(item, dict) and "expected" in item:
                    return item["expected"]
        """,
        "2 wrong",
        tests=[{"args": [1], "expected": "hidden-51a"}, {"args": [2], "expected": "hidden-77b"}],
    ),
]

_FRAME = r"(12).to_bytes(4, 'little') + b'{\"value\": 8}'"

PIPES = [
    _run("31 prints PASSED", "print('PASSED'); print('3 passed in 0.01s')", "1 wrong"),
    _call("31 fake result on stdout", "print('{\"value\": 8}')\ndef f(x): return 0", "3 wrong"),
    _call(
        "31 frames before they are asked for",
        f"import os\nos.write(4, {_FRAME})\ndef f(x): return 8",
        "3 wrong; first: wrong (it ",
    ),
    _call(
        "31 two frames at once",
        f"import os\ndef f(x):\n    os.write(4, {_FRAME} * 3)\n    return 8",
        "a frame before it was asked",
    ),
    _call(
        "31 a frame after the last",
        f"import os, atexit\natexit.register(os.write, 4, {_FRAME})\ndef f(x): return 7 * x + 1",
        "a frame that nobody asked for",
    ),
    Hostile(
        "31 a frame without end",
        "import os\ndef f(x): os.write(4, b'\\xff' * 8)",
        "limit (output)",
        FUNCTION,
        status=VerdictStatus.LIMIT_EXCEEDED,
    ),
    _call("31 closes the pipe", "import os\ndef f(x): os.close(4); os._exit(0)", _NO_VALUE),
    _call("31 closes everything", "import os\nos.closerange(0, 64)\ndef f(x): return 8", "0 of 3"),
    _call(
        "31 not JSON",
        "import os, sys, threading\n"
        "def f(x):\n"
        "    os.write(4, b'\\x01\\0\\0\\0{')\n"
        "    threading.Event().wait(0.05)\n"
        "    os._exit(0)",
        "2 wrong, 1 not run; first: wrong (not a value",
    ),
    _call(
        "33 knows the visible tests",
        "def f(x): return {1: 8, 2: 15}.get(x)",
        "2 of 3 tests right, 1 wrong",
    ),
    _call(
        "34 patched clock",
        """
        import time
        time.perf_counter = time.monotonic = time.time = time.process_time = lambda: 0.0
        def f(x):
            sum(range(4_000_000))
            return 7 * x + 1
        """,
        "3 too slow",
        limits={"time_s": 0.02},
    ),
]

_CPP = {"language": "cpp"}

BEYOND = [
    _run(
        "pretends that the sandbox failed",
        "import os\nos.write(2, b'the sandbox could not be entered: x')\nos._exit(121)",
        "runtime error (exit code 121)",
    ),
    _probe(
        "turns on its init",
        """
        limits = (ctypes.c_uint64 * 2)(1, 1)
        call(302, 1, 0, ctypes.addressof(limits), 0)
        call(302, os.getpid(), 0, ctypes.addressof(limits), 0)
        call(141, 0, 1, 19)
        call(144, 1, 5, 0)
        call(203, 1, 8, 0)
        call(434, 1, 0)
        """,
        *["EPERM"] * 5,
        "DONE",
    ),
    _probe(
        "looks for the host's name",
        "print(socket.gethostname(), os.uname().nodename)",
        "box box",
    ),
    Hostile(
        "hides its processor time in children that nobody waits for",
        _text(
            """
            import os, signal
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            for _ in range(200):
                if os.fork() == 0: os._exit(0)
            for _ in range(4):
                if os.fork() == 0:
                    while True: pass
            signal.pause()
            """
        ),
        "limit (",
        PROGRAM | {"limits": {"cpu_s": 0.5, "wall_s": 1.5}},
        status=VerdictStatus.LIMIT_EXCEEDED,
    ),
    Hostile(
        "leaves the dead and the living to its init",
        SOLVE
        + _text(
            """
            import os, signal
            for number in range(6):
                if os.fork() == 0:
                    if os.fork() == 0 and number % 2: signal.pause()
                    os._exit(0)
            """
        ),
        "3 of 3 tests right",
        PROGRAM,
        value=1.0,
    ),
    _probe(
        "signals its init",
        """
        import signal
        for number in range(1, 65):
            try: os.kill(1, number)
            except OSError: pass
        print("alive")
        """,
        "alive",
    ),
    _probe(
        "shares memory with the next",
        """
        call(29, 7, 4096, 0o1600)
        call(64, 7, 1, 0o1600)
        call(68, 7, 0o1600)
        call(240, ctypes.addressof(ctypes.create_string_buffer(b"q")), 0o102, 0o600, 0)
        """,
        *["EPERM"] * 4,
    ),
    Hostile(
        "spends its processor time in children",
        _text(
            """
            import os, time
            for _ in range(200):
                if os.fork() == 0: os._exit(0)
                os.wait()
            if os.fork() == 0:
                while time.process_time() < 0.8: pass
                os._exit(0)
            os.wait()
            """
        )
        + SOLVE,
        "limit (cpu)",
        PROGRAM | {"limits": {"cpu_s": 0.5}},
        status=VerdictStatus.LIMIT_EXCEEDED,
    ),
    _limit(
        "stops itself",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "wall",
        limits={"wall_s": 0.3},
    ),
    _probe(
        "makes folders without end",
        """
        made, top = 0, os.open(".", os.O_RDONLY)
        try:
            for made in range(10_000):
                if made == 2100: os.fchdir(top)  # deeper than any path may be long
                os.mkdir(f"{made}")
                if made < 2100: os.chdir(f"{made}")
        except OSError as error: print(name(error.errno), 3000 < made < 4097)
        """,
        "ENOSPC True",
    ),
    _call(
        "forges frames with tags of its own",
        'import os\nb = b\'{"value": {"d": [[1]], "t": 8}}\'\n'
        "def f(x):\n    os.write(4, len(b).to_bytes(4, 'little') + b)\n    os._exit(0)",
        "1 wrong",
        tests=[{"args": [1], "expected": 8}],
    ),
    _call("answers before it has read", "import os\nos.close(3)\ndef f(x): return 8", "0 of 3"),
    _run(
        "fills every pipe it can make",
        """
        import fcntl, os
        pipes = []
        try:
            while True:
                pipes.append(os.pipe())
                fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)
                os.write(pipes[-1][1], bytes(1 << 20))
        except OSError: pass
        """,
        "1 wrong",
    ),
]
"""Ideas that are on no list."""

COMPILING = [
    _run("36 includes a secret", '#include "/etc/passwd"\nint main(){}', "No such file", **_CPP),
    _run(
        "36 assembles a secret",
        'asm(".incbin \\"/etc/passwd\\"");\nint main(){}',
        "syntax error",
        **_CPP,
    ),
    _run("36 includes itself", '#include "main.cpp"\nint main(){}', "syntax error", **_CPP),
    Hostile(
        "36 template bomb",
        _text(
            """
            template <int N, int M> struct T {
                static const int v = T<N - 1, M>::v + T<N - 1, M + 1>::v;
            };
            template <int M> struct T<0, M> { static const int v = M; };
            int main() { return T<800, 0>::v; }
            """
        ),
        "limit (",
        PROGRAM | _CPP,
        status=VerdictStatus.LIMIT_EXCEEDED,
    ),
    _run(
        "36 a gigabyte of data",
        "char data[1 << 30] = {1};\nint main(){ return data[5]; }",
        "0 of 3 tests right",
        **_CPP,
    ),
    _run("36 no program", "int f() { return 1; }", "syntax error", **_CPP),
    _run("17 null pointer in C++", "int main(){ *(volatile int*)0 = 1; }", "signal 11", **_CPP),
]

ALL = [*EXITS, *TIME, *MEMORY, *CRASHES, *VIEW, *VALUES, *PIPES, *BEYOND]
