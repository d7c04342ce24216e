"""Runs a student's notebook, inside the sandbox.

The grader starts this file as a program and imports it for `encode` and `decode`; it imports
nothing of the package, which the sandbox does not contain. Once NumPy is loaded it forks for
each submission: one process in new namespaces of its own (user, process, mount, network, ...)
that watches, and under it one that drops every right it has and runs the code. The watcher is
process 1 of its namespace, so when it ends, everything that the submission started ends too.

Requests and replies are lines of JSON. Whatever a reply says is only ever a value, which the
grader compares: there is no word for "right".
"""

import ast
import base64
import ctypes
import gc
import importlib.machinery
import json
import os
import re
import resource
import select
import signal
import socket
import sys
import traceback
import types

import numpy as np

MIB = 1 << 20
NAMESPACES = 0x10000000 | 0x20000000 | 0x00020000 | 0x08000000 | 0x40000000 | 0x04000000 | 0x02000000
#            user         process      mount        IPC          network      host name    cgroup
MS_SAFE = 2 | 4 | 8  # no set-user-ID programs, no devices, no execution
NOBODY = 65534

# ---------------------------------------------------------------- values as JSON, both ways


def encode(value, functions):
    """A value as JSON. Functions do not travel: they are kept in the list `functions`, and their index goes.

    Raises:
        TypeError: neither a number, text, array, function, nor a list, tuple or dict of these.
    """
    if value is None or value is Ellipsis:  # `...` is a stub that returns what it is
        return None
    if isinstance(value, (bool, int, float, str)) and type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [encode(item, functions) for item in value]
    if isinstance(value, tuple):
        return {"~": "tuple", "v": [encode(item, functions) for item in value]}
    if isinstance(value, dict):
        return {"~": "dict", "v": [[encode(k, functions), encode(v, functions)] for k, v in value.items()]}
    if isinstance(value, complex):
        value = np.complex128(value)
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"array of {array.dtype}")
        if array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):  # long doubles differ between machines
            array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        data = base64.b64encode(array.tobytes()).decode()
        return {"~": kind, "dtype": array.dtype.str, "shape": np.shape(value), "data": data}
    if isinstance(value, np.random.Generator):
        return {"~": "rng", "v": value.bit_generator.state}
    if callable(value):
        functions.append(value)
        return {"~": "function", "v": len(functions) - 1}
    raise TypeError(type(value).__name__)


def decode(tree, function, generators=False):
    """The value that `encode` made JSON of. Nothing is executed, and what does not fit raises an error.

    Args:
        tree: parsed JSON.
        function: called with an index, gives what stands for that function on this side.
        generators: accept random generators (the grader does not).
    """
    if isinstance(tree, list):
        return [decode(item, function, generators) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind, v = tree["~"], tree.get("v")
    if kind == "tuple":
        return tuple(decode(item, function, generators) for item in v)
    if kind == "dict":
        return {decode(k, function, generators): decode(x, function, generators) for k, x in v}
    if kind == "function":
        return function(int(v))
    if kind == "rng" and generators:
        rng = np.random.Generator(getattr(np.random, v["bit_generator"])())
        rng.bit_generator.state = v
        return rng
    if kind in ("array", "scalar"):
        if not re.fullmatch(r"[<|](b1|[iu][1248]|f[248]|c8|c16)", tree["dtype"]):
            raise ValueError(f"dtype: got {tree['dtype']!r}, expected numbers")
        array = np.frombuffer(base64.b64decode(tree["data"]), dtype=tree["dtype"]).copy()
        array = array.reshape([int(n) for n in tree["shape"]])
        return array if kind == "array" else array.reshape(())[()]
    raise ValueError(f"got a {kind!r}, expected a value")


# ---------------------------------------------------------------- the notebook


def code_cells(text):
    """The sources of a notebook's code cells, whatever made it (Jupyter, Colab, VS Code, nbformat 3)."""
    notebook = json.loads(text)
    cells = notebook["cells"] if "cells" in notebook else [c for s in notebook["worksheets"] for c in s["cells"]]
    sources = (c.get("source", c.get("input", "")) for c in cells if c.get("cell_type") == "code")
    return ["".join(s) if isinstance(s, list) else s for s in sources]


def without_magics(source):
    """A cell with the lines that only IPython understands replaced by `pass`."""
    first, _, rest = source.lstrip().partition("\n")
    if first.startswith("%%"):
        source = rest if re.match(r"%%(time|timeit|capture|prun)\b", first) else ""
    return re.sub(r"^([ \t]*)([%!?].*|[\w, ]+=[ \t]*[%!].*|[\w.]+\?{1,2})$", r"\1pass", source, flags=re.M)


def run_cell(source, namespace):
    """Run a cell. An import that fails, of a plotting library for instance, does not stop it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        tree = ast.parse(without_magics(source))
    for node in tree.body:
        try:
            exec(compile(ast.Module([node], []), "<cell>", "exec"), namespace)
        except ImportError:
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                raise


class StandIn(types.ModuleType):
    """What a notebook finds under the library's name: checks do nothing here, the rest is not there."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__, self.__spec__ = [], importlib.machinery.ModuleSpec(name, None)  # so that it is found

    @staticmethod
    def check(*_, **__):
        """Nothing: the grader checks."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"vanishing.{name} is not there while a notebook is graded: write it with NumPy")


def serve(channel):
    """Answer the grader's requests until it closes the channel."""
    stream = channel.makefile("rb")
    sys.modules["vanishing"] = StandIn("vanishing")
    namespace = {"__name__": "__main__", "display": lambda *_, **__: None}
    cells, given = [], []  # `given`: the functions that the grader knows by number

    def answer(n, reply):
        channel.sendall(json.dumps({"n": n, **reply}).encode() + b"\n")

    def theirs(n):
        """A stand-in for each function of the grader's: it asks, and waits for the value."""

        def stub(index):
            def function(*args, **kwargs):
                sent = [encode(args, given), encode(kwargs, given)]
                answer(n, {"callback": index, "args": sent})
                reply = json.loads(stream.readline())
                if "error" in reply:
                    raise ValueError(reply["error"])
                return decode(reply["value"], stub, generators=True)

            return function

        return stub

    for line in stream:
        request = json.loads(line)
        n = request["n"]
        try:
            if "notebook" in request:
                cells = code_cells(request["notebook"])
                answer(n, {"value": len(cells)})
            elif "cell" in request:
                run_cell(cells[request["cell"]], namespace)
                answer(n, {"value": None})
            else:
                which = request["call"]
                function = given[which] if isinstance(which, int) else namespace.get(which)
                if not callable(function):
                    answer(n, {"missing": True})
                    continue
                args, kwargs = (decode(tree, theirs(n), generators=True) for tree in request["args"])
                result = function(*args, **kwargs)
                try:
                    answer(n, {"value": encode(result, given)})
                except (TypeError, ValueError, RecursionError) as error:
                    answer(n, {"unsendable": str(error)[:100]})
        except BaseException as error:  # sys.exit() in a cell, too, ends the cell only
            answer(n, {"error": [t.__name__ for t in type(error).__mro__]})


# ---------------------------------------------------------------- the walls


def system(result):
    """Raise what a call of the C library reports."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def enter_namespaces(libc):
    """New namespaces for this process's children, with this user as their only one."""
    uid, gid = os.getuid(), os.getgid()
    system(libc.unshare(NAMESPACES))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def furnish(libc, limits):
    """As process 1 of the new namespaces: an empty /tmp and /proc, and no namespaces below these."""
    options = f"size={limits['disk']},nr_inodes=200,mode=1777".encode()
    system(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", MS_SAFE, options))
    system(libc.mount(b"proc", b"/proc", b"proc", MS_SAFE, None))
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def drop_everything(libc, limits):
    """No capability, no output, and limits that only a privileged process could raise."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir("/tmp")
    os.environ.clear()
    for name, value in (
        ("AS", limits["address_space"]), ("CPU", limits["cpu_seconds"]), ("NPROC", limits["processes"]),
        ("FSIZE", limits["disk"]), ("NOFILE", 64), ("CORE", 0), ("MSGQUEUE", 0), ("MEMLOCK", 0), ("SIGPENDING", 64),
    ):  # fmt: skip
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    system(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    system(libc.capset(header, none))


def memory_of_all():
    """Bytes that the processes of this namespace hold."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", file.read()))
        except OSError:
            pass  # it has ended
    return total * 1024


def watch(child, channel, limits):
    """Return when the child has ended, the grader has hung up, or the memory is used up."""
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(channel, select.POLLRDHUP)
    while not poll.poll(50):
        if limits["alone"] and memory_of_all() > limits["memory"]:
            return


def submission(channel, libc, limits, nested):
    """One submission: walls, the watcher, the code. Never returns."""
    if nested:
        enter_namespaces(libc)
        if os.fork():
            os._exit(0)
        furnish(libc, limits)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        drop_everything(libc, limits)
        os.dup2(channel.fileno(), 3)
        os.closerange(4, 1 << 16)
        serve(socket.socket(fileno=3))
        os._exit(0)
    watch(child, channel, limits)
    os._exit(0)


def main(control, limits):
    """Fork for each channel that comes over the control socket, until the grader closes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0 and limits["unprivileged"]:  # root was needed to see the files; from now on there is none
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        system(libc.prctl(4, 1, 0, 0, 0))  # PR_SET_DUMPABLE, or this process's own /proc entry is root's
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        word, fds, *_ = socket.recv_fds(control, 1, 1)
        if not word:
            return
        nested = word == b"n"
        if not nested or os.fork() == 0:
            try:
                control.close()
                submission(socket.socket(fileno=fds[0]), libc, limits, nested)
            except BaseException:
                traceback.print_exc()  # the grader says it when no worker answers
            os._exit(1)
        os.close(fds[0])


if __name__ == "__main__":
    try:  # loaded once here, not once a submission
        import scipy.special  # noqa: F401
    except ImportError:
        pass
    gc.freeze()  # what is loaded now stays shared with every fork
    main(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2]))
