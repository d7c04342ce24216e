"""The walls around a student's notebook, from the inside of the sandbox.

The grader starts this file as a program. It needs `cells` and `values` and nothing else of the
package, which the sandbox does not contain. Once NumPy is loaded it forks for each submission:
one process in new namespaces of its own (user, process, mount, network, ...) that watches, and
under it one that drops every right it has and runs the code. The watcher is process 1 of its
namespace, so when it ends, everything that the submission started ends too.
"""

import contextlib
import ctypes
import errno
import gc
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import traceback

from cells import serve

NAMESPACES = 0x10000000 | 0x20000000 | 0x00020000 | 0x08000000 | 0x40000000 | 0x04000000 | 0x02000000
#            user         process      mount        IPC          network      host name    cgroup
# System calls of no use to a notebook, by number: ways to networks (some, such as VSOCK, know no namespaces), to
# memory that belongs to no process, to more rights in new namespaces, to other processes, to the kernel's machines.
FORBIDDEN = {
    "socket": (41, 198),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "open_by_handle_at": (304, 265), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, the kernel's name
MS_SAFE = 2 | 4 | 8  # no set-user-ID programs, no devices, no execution
NOBODY = 65534


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
    forbid_system_calls(libc)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    system(libc.capset(header, none))


def forbid_system_calls(libc):
    """Install the filter: those calls fail, another architecture's kill the process."""
    machine = os.uname().machine
    if machine not in MACHINES:
        return  # the other walls stand
    column, architecture = MACHINES[machine]
    numbers = [n[column] for n in FORBIDDEN.values()]
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06  # instructions of the kernel's packet filter
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0), (load, 0, 0, 0)]
    code += [(above, len(numbers) + 1, 0, 0x40000000)]  # the numbers of x86's third architecture
    code += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    code += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    head = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    system(libc.prctl(22, 2, head, 0, 0))  # PR_SET_SECCOMP


def others():
    """The other processes of this namespace: [(number, bytes of memory, seconds of CPU), ...]."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"):
        try:
            with open(f"/proc/{pid}/status") as status, open(f"/proc/{pid}/stat") as stat:
                memory = 1024 * sum(map(int, re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status.read())))
                ticks = sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
            found.append((pid, memory, ticks / os.sysconf("SC_CLK_TCK")))
        except OSError:
            pass  # it has ended
    return found


def watch(child, channel, limits):
    """Return when the child has ended, the grader has hung up, or the memory is used up.

    Whoever computes for long stands back a little for the rest of the class: grading takes milliseconds.
    """
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(channel, select.POLLRDHUP)
    while not poll.poll(50):
        if limits["alone"]:
            processes = others()
            if sum(memory for _, memory, _ in processes) > limits["memory"]:
                return
            if sum(seconds for *_, seconds in processes) > 0.5:
                for pid, *_ in processes:
                    with contextlib.suppress(OSError):  # it has ended
                        os.setpriority(os.PRIO_PROCESS, pid, 5)


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
        os.setpgid(0, 0)
        drop_everything(libc, limits)
        os.dup2(channel.fileno(), 3)
        os.closerange(4, 1 << 16)
        serve(socket.socket(fileno=3))
        os._exit(0)
    watch(child, channel, limits)
    with contextlib.suppress(OSError):  # where this is not process 1 of its namespace, the end of it is no end
        os.killpg(child, signal.SIGKILL)
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
