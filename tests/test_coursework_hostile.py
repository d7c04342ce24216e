"""Hostile and broken submissions: each gets exactly its score, and leaves the host as it was.

Each attack is a notebook for one exercise of four points. One whose function is right keeps its
points whatever its other cells do; one that cheats gets what its values are worth.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vanishing import exercises
from vanishing.coursework import attempt
from vanishing.coursework.grade import grade_notebook, points_table
from vanishing.coursework.sandbox import Sandbox, SandboxError

EXERCISE = "chain-rule/typical_factor"  # 1 point for a pair that the page shows, 2 and 1 for hidden inputs
ASSIGNMENT = {
    "exercises": [EXERCISE],
    "points": points_table([EXERCISE]),
    "seed": 1,
    "time": {"call_seconds": 1.5, "seconds": 6.0},
}
RIGHT = """
import numpy as np
import vanishing as vg

def typical_factor(factors):
    return np.exp(np.log(factors).mean(axis=-1))
"""
IF = "import numpy as np\ndef right(f): return np.exp(np.log(f).mean(axis=-1))\n"  # for attacks that try to earn it


def function(body):
    """A cell whose function has this body, in which right(f) is the right answer."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return f"{IF}\ndef typical_factor(f):\n{lines}\n"


def notebook(*cells, **more):
    code = [{"cell_type": "code", "source": c, "metadata": {}, "outputs": [], "execution_count": None} for c in cells]
    return json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | more)


CHEATS = {  # name: (points, cells)
    "hard-coded visible case": (1, [function("return np.sqrt(0.75)")]),
    "recognizes the input by its shape": (1, [function("return right(f) if f.shape == (2,) else 1.0")]),
    "remembers inputs and hopes for them again": (0, [function("seen = {}\nreturn seen.get(f.tobytes(), 0.0)")]),
    "object equal to everything": (
        0, ["class Yes:\n    def __eq__(self, other): return True\n    __array__ = __float__ = None\n"
            "    shape = ()\n" + function("return Yes()")]),
    "array subclass equal to everything": (
        0, [IF + "class Yes(np.ndarray):\n    def __eq__(self, o): return True\n    def __sub__(self, o): return 0 * o\n",
            function("return np.zeros(f.shape[:-1]).view(Yes)")]),
    "patched numpy": (
        0, [IF + "for name in ('isclose', 'allclose', 'array_equal', 'abs', 'all', 'any'):\n"
            "    setattr(np, name, lambda *a, **k: True)\nnp.asarray = lambda *a, **k: 0\n", function("return 1.0")]),
    "patched math, builtins, json": (
        0, ["import math, builtins, json\nmath.isclose = lambda *a, **k: True\nbuiltins.abs = lambda x: 0\n"
            "json.dumps = lambda *a, **k: '{\"n\": 3, \"value\": true}'\n", function("return 1.0")]),
    "changes its argument to fit its answer": (0, [function("f[...] = 1.0\nreturn np.ones(f.shape[:-1])")]),
    "trace, profile and import hooks": (
        0, ["import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
            "class Hook:\n    def find_spec(self, *a): return None\nsys.meta_path.insert(0, Hook())\n"
            "sys.modules['vanishing'].check = lambda *a: True\n", function("return 1.0")]),
    "edits the syntax trees of later cells": (
        0, ["import ast\nparse = ast.parse\nast.parse = lambda s, *a, **k: parse('def typical_factor(f): return True')\n",
            function("return 1.0")]),
    "searches the stack for the reference": (
        0, [function("import sys\nframe = sys._getframe()\nwhile frame:\n"
                     "    for name in ('want', 'prop', 'test'):\n        if name in frame.f_locals: return right(f)\n"
                     "    frame = frame.f_back\nreturn 0.0")]),
    "searches the heap for the reference": (
        0, [function("import gc\nfor o in gc.get_objects():\n    if getattr(o, '__name__', '') in ('power', 'thousands', 'judge')"
                     " or isinstance(o, dict) and 'BEGIN SOLUTION' in str(o.get('text', '')): return right(f)\nreturn 0.0")]),
    "imports the package for its solutions": (
        0, ["import sys\nsys.modules.pop('vanishing')\n",
            function("import vanishing.exercises\nreturn right(f)")]),
    "asks the stand-in for the library": (0, [function("import vanishing as vg\nreturn vg.log10_product(f)")]),
    "replies: right-looking values for every number": (  # they are values, and are worth what they are
        1, [RIGHT, "import os, json\nfor n in range(1, 300):\n"
            "    os.write(3, json.dumps({'n': n, 'value': 0.75 ** 0.5}).encode() + b'\\n')\n"]),
    "replies: claims to have passed": (
        0, [function("import os\nfor n in range(300):\n"
                     "    os.write(3, b'{\"n\": %d, \"score\": 4, \"passed\": true, \"value\": true}\\n' % n)\nreturn 1.0")]),
    "replies: huge": (0, [function("import os\nwhile True: os.write(3, b'x' * 60000)")]),
    "replies: huge array": (0, [function("return np.zeros(2_000_000)")]),
    "replies: not JSON": (0, [function("import os\nos.write(3, b'yes\\n')\nreturn right(f)")]),
    "replies: NaN": (0, [function("return np.full(f.shape[:-1], np.nan)")]),
    "replies: stale ones again and again": (
        4, [function("import os\nfor n in range(200): os.write(3, b'{\"n\": 1, \"value\": 1.0}\\n')\nreturn right(f)")]),
    "replies: a pickle": (
        0, ["import pickle, os\nclass P:\n    def __reduce__(self): return (os.system, ('touch /tmp/pickled',))\n",
            function("import pickle, os\nos.write(3, pickle.dumps(P()) + b'\\n')\nreturn right(f)")]),
    "replies: deeply nested": (0, [function("import os\nos.write(3, b'[' * 900000 + b'\\n')\nreturn right(f)")]),
    "replies: an array that lies about its shape": (
        0, [function("import os\nfor n in range(300): os.write(3, b'{\"n\": %d, \"value\": {\"~\": \"array\", \"dtype\": \"<f8\","
                     " \"shape\": [1000000, 1000000], \"blob\": 0}, \"blobs\": [8]}\\n12345678' % n)\nreturn right(f)")]),
    "replies: an array of objects": (
        0, [function("import os\nfor n in range(300): os.write(3, b'{\"n\": %d, \"value\": {\"~\": \"array\", \"dtype\": \"|O\","
                     " \"shape\": [1], \"blob\": 0}, \"blobs\": [8]}\\n12345678' % n)\nreturn right(f)")]),
    "replies: bytes that never come": (
        0, [function("import os\nos.write(3, b'{\"n\": 1, \"blobs\": [100000]}\\n')\nreturn right(f)")]),
    "replies: more bytes than there are": (
        0, [function("import os\nos.write(3, b'{\"n\": 1, \"blobs\": [1e300, 3000000, 3000000]}\\n')\nreturn right(f)")]),
    "replies: a million pieces of no bytes": (  # stale, so without effect, if they are read at once
        4, [function("import os\nos.write(3, b'{\"n\": 1, \"blobs\": [' + b'0,' * 1_000_000 + b'0]}\\n')\nreturn right(f)")]),
    "replies: fewer bytes than none": (
        0, [function("import os\nos.write(3, b'{\"n\": 1, \"blobs\": [-9, \"x\", null, NaN]}\\n')\nreturn right(f)")]),
    "returns its input as text, to read it in the feedback": (0, [function("return str(list(f))")]),
    "returns its input as texts": (0, [function("return [str(x) for x in f]")]),
    "raises its input, to read it in the feedback": (0, [function("raise type(repr(f[:3]), (Exception,), {})(repr(f))")]),
    "uses its own name for an error": (0, [function("raise KeyboardInterrupt")]),
    "os._exit in the function": (0, [function("import os\nos._exit(0)")]),
    "SIGKILL in the function": (0, [function("import os\nos.kill(os.getpid(), 9)")]),
    "loop in the function": (0, [function("while True: pass")]),
    "loop that swallows interrupts": (
        0, [function("while True:\n    try:\n        while True: pass\n    except BaseException: pass")]),
    "loop in C": (0, [function("import re\nre.match('(a+)+$', 'a' * 60 + 'b')")]),
    "6 GB in the function": (0, [function("return bytearray(6 << 30)")]),
    "imports torch": (0, [function("import torch\nreturn torch.exp(torch.log(f).mean(-1))")]),
    "stub": (0, ["def typical_factor(f):\n    ...\n"]),
    "no such function": (0, ["def geometric_mean(f):\n    return 1\n"]),
    "not a function": (0, ["typical_factor = 0.866\n"]),
    "syntax error": (0, ["def typical_factor(f)\n    return 1\n"]),
}  # fmt: skip

HARMLESS = {  # the function is right; these cells before or after it do not matter
    "changes its argument on the way": [function("np.log(f, out=f)\nreturn np.exp(f.mean(axis=-1))")],
    "sys.exit in a cell": [RIGHT, "import sys\nsys.exit(3)"],
    "os._exit in a cell": [RIGHT, "import os\nos._exit(0)"],
    "SIGKILL in a cell": ["import os\nos.kill(os.getpid(), 9)", RIGHT],
    "SIGSTOP in a cell": [RIGHT, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"],
    "kills all it can": [RIGHT, "import os\nfor p in (1, -1, os.getppid()):\n    try: os.kill(p, 9)\n    except OSError: pass"],
    "KeyboardInterrupt in a cell": [RIGHT, "raise KeyboardInterrupt"],
    "loop at cell level": ["while True: pass", RIGHT],
    "slow but finite": [function("import time\ntime.sleep(0.2)\nreturn right(f)")],
    "6 GB in a cell": [RIGHT, "x = bytearray(6 << 30)"],
    "memory in many processes": [
        RIGHT, "import os, time\nfor i in range(10):\n    if os.fork() == 0:\n        x = b'x' * (90 << 20)\n        time.sleep(60)\ntime.sleep(60)"],
    "fork bomb": [RIGHT, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"],
    "threads without end": [RIGHT, "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"],
    "daemon": [RIGHT, "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: time.sleep(1)\n    os._exit(0)"],
    "full disk": [RIGHT, "i = 0\nwhile True:\n    i += 1\n    open(f'/tmp/{i}', 'wb').write(b'x' * (1 << 20))"],
    "a million files": [RIGHT, "for i in range(1_000_000): open(f'/tmp/{i}', 'w')"],
    "30 MB of output": [RIGHT, "import sys\nprint('x' * 30_000_000)\nsys.stderr.write('x' * 30_000_000)"],
    "writes below / and into Python": [
        RIGHT, "import numpy, os\nfor p in ('/x', '/packages/x', numpy.__file__, os.__file__, '/worker.py', '/dev/x', '/dev/shm/x', '/usr/lib/x', '/proc/sys/kernel/hostname'):\n"
        "    try: open(p, 'a').write('x')\n    except OSError: continue\n    del typical_factor"],
    "memory that belongs to no process": [
        RIGHT,
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "if libc.memfd_create(b'x', 0) >= 0 or libc.shmget(0, 1 << 20, 0o1600) >= 0: del typical_factor",
    ],
    "new namespaces": [
        RIGHT, "import ctypes\nlibc = ctypes.CDLL(None)\nif 0 in [libc.unshare(f) for f in (0x10000000, 0x20000, 0x40000000)] + [libc.mount(b't', b'/tmp', b'tmpfs', 0, None)]:\n    del typical_factor"],
    "magics": ["%matplotlib inline\n!touch /tmp/x\nfiles = !ls\nnp?", "%%bash\nrm -rf /", "%%time\n" + RIGHT],
    "input": [RIGHT, "x = input('Your name? ')"],
    "plots": ["import matplotlib.pyplot as plt\n" + RIGHT, "plt.plot([1, 2])"],
    "installs the package first": ["import importlib.util\n\nif importlib.util.find_spec('vanishing') is None:\n    %pip install x", RIGHT],
    "duplicated cell": [RIGHT, RIGHT],
}  # fmt: skip
SLOW = {"loop in the function", "loop that swallows interrupts", "loop in C", "loop at cell level", "SIGSTOP in a cell",
        "fork bomb", "memory in many processes", "threads without end", "slow but finite", "6 GB in a cell",
        "replies: huge", "patched math, builtins, json", "6 GB in the function", "replies: huge array", "full disk", "a million files"}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox():
    try:
        sandbox = Sandbox()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {str(error).splitlines()[0]}")
    yield sandbox
    sandbox.close()


@pytest.fixture
def host(tmp_path, sandbox):
    """Files that nobody may read or change, and a picture of what is around them."""
    for name in ("solution.py", "test_hidden.py", "classmate.ipynb", "grades.csv"):
        (tmp_path / name).write_text("CANARY")
        (tmp_path / name).chmod(0o666)
    tmp_path.chmod(0o777)

    def picture():
        files = {p.name: (p.read_text(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
        source = Path(exercises.__file__).read_bytes()
        return files, hashlib.sha256(source).hexdigest()

    def settled():
        """Only the sandbox's own two processes are there; the dying of a namespace takes a moment."""
        end = time.monotonic() + 5
        while len(psutil.Process(sandbox.process.pid).children(recursive=True)) != 2:
            assert time.monotonic() < end, "processes are left"
            time.sleep(0.01)
        return True

    assert settled()
    before = picture()
    yield tmp_path
    assert settled()
    assert picture() == before


def grade(sandbox, *cells):
    rows, notes = grade_notebook(notebook(*cells), ASSIGNMENT, sandbox)
    return sum(got for *_, got, _, _ in rows), rows, notes


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_gets_what_its_values_are_worth(name, sandbox, host):
    points, cells = CHEATS[name]
    for _ in range(1 if name in SLOW else 3):
        got, rows, notes = grade(sandbox, *cells)
        assert got == points, (rows, notes)
        if "its input" in name:  # no number of it in what the student reads
            assert not any(re.search(r"\d\.\d", problem) for *_, problem in rows), rows


def test_a_busy_machine_costs_no_points(sandbox, host, monkeypatch):
    """A right answer that needs most of its limit in computing gets it, beside others on one core; a sleeper does not."""
    slow = function(
        "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.9: pass\nreturn right(f)"
    )
    sleeps = function("import time\ntime.sleep(1.8)\nreturn right(f)")
    monkeypatch.setattr(attempt, "PATIENCE", 100)  # the tests run beside others: how long it takes is not tested
    core = min(os.sched_getaffinity(0))
    processes = [sandbox.process.pid, *(p.pid for p in psutil.Process(sandbox.process.pid).children(recursive=True))]
    before = os.sched_getaffinity(processes[0])
    # Sessions of their own: a kernel may share the core among sessions first.
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(3)]
    try:
        for pid in (*processes, *(p.pid for p in busy)):
            os.sched_setaffinity(pid, {core})
        start = time.monotonic()
        got, rows, notes = grade(sandbox, slow)
        assert got == 4, (rows, notes)
        assert time.monotonic() - start > ASSIGNMENT["time"]["seconds"], "the limit has passed on the clock"
        assert grade(sandbox, sleeps)[0] == 0
    finally:
        for process in busy:
            process.kill()
            process.wait()
        for pid in processes:
            os.sched_setaffinity(pid, before)


def test_asking_the_grader_often_costs_no_points(sandbox, host):
    """Where an exercise gives a function, it is the grader's: its answers to many numbers are not the student's time."""
    name = "activations/edge_gain"
    answer = """
import numpy as np
def edge_gain(f, df):
    x = np.linspace(-10, 10, 20_001)
    weight = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    low, high = 0.1, 30.0
    for _ in range(200):
        spread = np.sqrt(low * high)
        square, slope = f(spread * x) ** 2 @ weight, df(spread * x) ** 2 @ weight
        low, high = (spread, high) if spread**2 * slope < square else (low, spread)
    return spread / np.sqrt(square)
"""
    points = points_table([name])
    assignment = {"exercises": [name], "points": points, "seed": 1, "time": {"call_seconds": 2.0, "seconds": 10.0}}
    rows, notes = grade_notebook(notebook(answer), assignment, sandbox)
    assert notes == [] and all(got == possible for *_, got, possible, _ in rows)


def test_the_same_score_ten_times_out_of_ten(sandbox, host):
    names = (
        "hard-coded visible case",
        "searches the heap for the reference",
        "replies: right-looking values for every number",
    )
    for points, cells in [*(CHEATS[name] for name in names), (4, HARMLESS["kills all it can"])]:
        assert [grade(sandbox, *cells)[0] for _ in range(10)] == [points] * 10


@pytest.mark.parametrize("name", HARMLESS)
def test_a_right_function_keeps_its_points(name, sandbox, host):
    for _ in range(1 if name in SLOW else 3):
        got, rows, notes = grade(sandbox, *HARMLESS[name])
        assert got == 4, (rows, notes)


def test_files_of_the_host_are_not_there(sandbox, host):
    """Solutions, tests, other submissions, grades: world-readable here, and absent in there."""
    wanted = [*map(str, host.iterdir()), __file__, exercises.__file__, str(Path(exercises.__file__).parents[2])]
    wanted += ["/etc/passwd", "/root", "/home", "/proc/1/environ", "/proc/1/root/etc", "/proc/self/fd/4"]
    look = function(
        f"import os\nfor p in {wanted!r}:\n    try:\n        os.listdir(p) if os.path.isdir(p) else open(p).read()\n"
        "    except OSError: continue\n    if p != '/root': return right(f)\nreturn 0.0"
    )
    assert grade(sandbox, look)[0] == 0
    search = function(
        "import os\nfor folder, _, names in os.walk('/'):\n"
        "    if folder.startswith('/proc'): continue\n"
        "    if 'vanishing' in folder or 'exercises.md' in names or 'CANARY' in names: return right(f)\nreturn 0.0"
    )
    assert grade(sandbox, search)[0] == 0


def test_results_cannot_be_written(sandbox, host):
    targets = [*map(str, host.iterdir()), "/autograder/results/results.json"]
    tries = f"for p in {targets!r}:\n    try: open(p, 'w').write('100')\n    except OSError: continue\n    typical_factor = right"
    assert grade(sandbox, IF, tries)[0] == 0


def test_there_is_no_network(sandbox, host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        call = function(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 0.3)\nreturn right(f)")
        assert grade(sandbox, call)[0] == 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0vanishing-test")
        server.listen()
        call = function("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0vanishing-test')\nreturn right(f)")
        assert grade(sandbox, call)[0] == 0


def test_nothing_passes_from_one_submission_to_the_next(sandbox, host):
    """Neither a file, nor shared memory, nor a process, nor a patch of a module."""
    leave = IF + (
        "open('/tmp/left', 'w').write('x')\nnp.left = 1\nimport ctypes, os\n"
        "ctypes.CDLL(None).shmget(4711, 4096, 0o1666)\nos.fork() or __import__('time').sleep(60)\n"
    )
    find = function(
        "import os, ctypes\nfound = os.path.exists('/tmp/left') or hasattr(np, 'left')"
        " or ctypes.CDLL(None).shmget(4711, 4096, 0) >= 0 or len([p for p in os.listdir('/proc') if p.isdigit()]) > 2\n"
        "return right(f) if found else 0.0"
    )
    grade(sandbox, leave)
    assert grade(sandbox, find)[0] == 0


def test_the_worker_has_no_rights(sandbox, host):
    """An unprivileged user, no capability, no environment, in Linux's own words."""
    honest = function(
        "import os, re\nstatus = open('/proc/self/status').read()\n"
        "caps = re.findall(r'Cap(?:Inh|Prm|Eff|Amb):\\s+(\\w+)', status)\n"
        "ok = os.getuid() == 65534 and {int(c, 16) for c in caps} == {0} and 'NoNewPrivs:\\t1' in status and not os.environ\n"
        "return right(f) if ok else 0.0"
    )
    assert grade(sandbox, honest)[0] == 4


def test_feedback_carries_nothing_that_a_submission_says(sandbox):
    """Its text could be the hidden inputs, or markup."""
    _, rows, notes = grade(
        sandbox, function("raise ValueError(f'<b>{f!r}')"), "raise type('Hidden_0_123', (KeyError,), {})('0.123')"
    )
    assert {row[-1] for row in rows} == {"your function raised ValueError"}
    assert notes == ["code cell 2 raised KeyError"]


BROKEN = {
    "corrupt JSON": (0, notebook(RIGHT)[:-20]),
    "empty": (0, ""),
    "not a notebook": (0, '{"cells": 3}'),
    "binary": (0, "\x00\ufffd" * 1000),
    "nested": (0, "[" * 1_000_000),
    "no metadata, no ids": (4, json.dumps({"cells": [{"cell_type": "code", "source": RIGHT}]})),
    "source in lines": (4, json.dumps({"cells": [{"cell_type": "code", "source": RIGHT.splitlines(keepends=True)}]})),
    "another kernel": (4, notebook(RIGHT, metadata={"kernelspec": {"name": "julia", "display_name": "Julia"}})),
    "from Colab": (
        4, notebook("from google.colab import drive\ndrive.mount('/content/drive')", "!pip install vanishing", RIGHT,
                    metadata={"colab": {"provenance": [], "toc_visible": True}}, nbformat_minor=0)),
    "nbformat 3": (4, json.dumps({"worksheets": [{"cells": [{"cell_type": "code", "input": RIGHT}]}], "nbformat": 3})),
    "function in a deleted cell": (0, notebook("import numpy as np")),
    "15 MB of pictures": (4, notebook(RIGHT, metadata={"x": "A" * 15_000_000})),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_changed_files(name, sandbox, host):
    points, text = BROKEN[name]
    rows, notes = grade_notebook(text, ASSIGNMENT, sandbox)
    assert sum(got for *_, got, _, _ in rows) == points, (rows, notes)
