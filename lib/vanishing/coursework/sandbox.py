"""Where students' code runs: bubblewrap, or nothing that pretends to be it.

`Sandbox.open()` gives a channel to a worker for one submission. Closing the channel ends the
worker and everything that it has started.
"""

import json
import os
import shutil
import site
import socket
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
BESIDE = [Path(__file__).with_name(name) for name in ("cells.py", "values.py")]  # what it imports
MIB = 1 << 20
LIMITS = {
    "memory": 384 * MIB,  # of all processes of a submission together
    "address_space": 1024 * MIB,  # of each one, NumPy's libraries included
    "cpu_seconds": 30,
    "processes": 16,  # and threads
    "disk": 8 * MIB,  # in /tmp, the only place to write
}
KINDS = ("bubblewrap", "container", "trust")
REFUSAL = """\
Nothing is graded: students' code would run on this machine without a sandbox ({why}).
Install bubblewrap (Debian, Ubuntu: `apt install bubblewrap`; Fedora: `dnf install bubblewrap`); on macOS
and Windows, grade in a Linux machine or container that has it, or upload the archive to Gradescope.
`--trust` runs the code with your own rights instead: it can then read, change and send whatever you can."""


class SandboxError(RuntimeError):
    """No sandbox is to be had; the message says what to install."""


class Sandbox:
    """A process that has loaded NumPy, behind walls, and forks a worker for each submission.

    Args:
        kind: "bubblewrap"; "container", an unprivileged user in a container that holds one submission
            (Gradescope); or "trust", this user and no walls.
        limits: see `LIMITS`.

    Raises:
        SandboxError: it does not start here.
    """

    def __init__(self, kind="bubblewrap", limits=LIMITS):
        self.kind, self.limits, self.process = kind, limits, None
        if kind == "bubblewrap" and not shutil.which("bwrap"):
            raise SandboxError(REFUSAL.format(why="bubblewrap is not installed"))
        if kind == "container" and os.getuid() != 0:
            raise SandboxError(REFUSAL.format(why="only root can hand over to another user"))
        # One set of walls for all submissions and inner ones for each, where the system lets a sandbox
        # make namespaces; otherwise (Ubuntu's AppArmor, for one) a new sandbox for each submission.
        for self.nested in (True, False) if kind == "bubblewrap" else (False,):
            self._start()
            if self._works():
                return
            said = self.close()
        raise SandboxError(REFUSAL.format(why=f"{kind} does not start: {said or 'no reason given'}"))

    def open(self):
        """A channel to a new worker."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"n" if self.nested else b"1"], [theirs.fileno()])
        return ours

    def computed(self, since):
        """What the processes in here that started after a moment have done: (seconds of CPU, whether one waits for more).

        Args:
            since: seconds, of the clock CLOCK_BOOTTIME.
        """
        if self.process is None:
            return 0.0, False
        tick, parents, found = os.sysconf("SC_CLK_TCK"), {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, *rest = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            pid = int(stat.parent.name)
            parents[pid] = int(parent)
            if int(rest[17]) / tick > since - 0.05:  # a tick is 0.01 s
                found[pid] = (int(rest[9]) + int(rest[10])) / tick, state == "R"

        def inside(pid):
            while pid and pid != self.process.pid:
                pid = parents.get(pid, 0)
            return bool(pid)

        own = [value for pid, value in found.items() if inside(pid)]
        return sum(seconds for seconds, _ in own), any(waits for _, waits in own)

    def end(self, channel):
        """Hang up, and return when the worker and all that it started are gone."""
        try:
            channel.shutdown(socket.SHUT_WR)
            channel.settimeout(5)
            while channel.recv(1 << 16):  # the end comes when nobody holds the other side any more
                pass
        except TimeoutError:  # down with everything
            self.close()
        except OSError:  # it was gone already
            pass
        channel.close()
        if not self.nested:
            self.close()

    def close(self):
        """End everything; returns what the sandbox said on its way."""
        if self.process is None:
            return ""
        self.control.close()
        if self.nested or self.process.poll() is None:
            self.process.kill()  # bubblewrap takes its children with it
        said = self.process.communicate()[1].decode(errors="replace").strip()[-300:]
        self.process = None
        return said

    def _works(self):
        """Does a worker answer?"""
        channel = self.open()
        try:
            channel.settimeout(20)  # it loads NumPy first
            channel.sendall(b'{"n": 0, "notebook": "{\\"cells\\": []}"}\n')
            answered = channel.recv(100) == b'{"n": 0, "value": 0}\n'
        except OSError:
            answered = False
        if answered:
            self.end(channel)
        channel.close()
        return answered

    def _start(self):
        self.control, theirs = socket.socketpair()
        kind = {"unprivileged": self.kind != "trust", "alone": self.kind == "bubblewrap"}
        settings = [str(theirs.fileno()), json.dumps(self.limits | kind)]
        env = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        python = os.path.realpath(sys.executable)
        if self.kind == "bubblewrap":
            env["PYTHONPATH"] = "/packages"
            command = [*walls(self.limits, self.nested, env), python, "-sSP", "/worker.py", *settings]
        else:
            env["PYTHONPATH"] = os.pathsep.join(sorted({str(p.parent) for p in (*packages(), WORKER)}))
            command = [python, "-sSP", str(WORKER), *settings]
        with theirs:
            self.process = subprocess.Popen(
                command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip


def packages():
    """The folders of NumPy and SciPy, with the libraries that their wheels bring."""
    for name in ("numpy", "scipy"):
        if spec := find_spec(name):
            folder = Path(spec.submodule_search_locations[0]).resolve()
            yield from filter(Path.is_dir, (folder, folder.with_name(f"{name}.libs")))


def walls(limits, nested, env):
    """The command that starts bubblewrap: Python and NumPy to read, /tmp to write, and nothing else.

    Neither this package nor the book nor any other installed one is there to be read: they hold the solutions.
    """
    python = Path(sys.executable).resolve()
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    command = ["bwrap", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if os.getuid() == 0:  # the worker itself changes to an unprivileged user, after these files are open
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for parent in sorted({*python.parents, *stdlib.parents, Path("/dev"), Path("/packages")} - {Path("/")}):
        command += ["--perms", "0755", "--dir", parent]  # bubblewrap's own are for root alone
    for folder in ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64"):  # the C library and its loader
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        else:
            command += ["--ro-bind-try", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    command += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    command += ["--ro-bind", python, python, "--ro-bind", stdlib, stdlib]
    for library in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        command += ["--ro-bind", library, library]
    hidden = {*site.getsitepackages([sys.base_prefix]), stdlib / "site-packages", stdlib / "dist-packages"}
    for folder in {*hidden, "/usr/lib/python3/dist-packages"}:
        if os.path.isdir(folder):
            command += ["--tmpfs", folder, "--remount-ro", folder]
    for folder in packages():
        command += ["--ro-bind", folder, f"/packages/{folder.name}"]
    for file, place in ((WORKER, "/worker.py"), *((file, f"/packages/{file.name}") for file in BESIDE)):
        command += ["--ro-bind", file, place]
    command += ["--dev-bind", "/dev/null", "/dev/null"]
    command += ["--ro-bind", "/dev/urandom", "/dev/urandom", "--size", str(limits["disk"]), "--tmpfs", "/tmp"]
    # A new /proc may only be mounted inside where one is seen in full; nothing of this one is, under the new one.
    command += ["--dev-bind", "/proc", "/proc"] if nested else ["--proc", "/proc"]
    for name, value in env.items():
        command += ["--setenv", name, value]
    return [*map(str, command), "--remount-ro", "/"]
