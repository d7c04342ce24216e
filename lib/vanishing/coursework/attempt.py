"""The grader's side of the conversation with a worker: a student's notebook as functions to call."""

import builtins
import json
import re
import time
from itertools import accumulate

import numpy as np

from ..exercises import NotDone
from .sandbox import MIB
from .values import decode, encode, pack

REPLY = 4 * MIB  # bytes of one reply, checked before it is parsed
PATIENCE = 10  # on a busy machine a limit may take this many times as long on the clock
CALLBACKS = 20_000  # calls of the grader's functions by one of the student's

# What a student's code raises is raised here again if it is one of these; its text never is:
# it could carry the hidden inputs out, into the feedback.
ERRORS = {
    name: error for name, error in vars(builtins).items()
    if isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, UnicodeError)
}  # fmt: skip
ERRORS["LinAlgError"] = np.linalg.LinAlgError

UNREADABLE = "the file is not a notebook that can be read"


class Stopped(BaseException):
    """The worker had to be stopped, or is gone. Not an Exception: no check may take it for an error to expect."""


class Notebook:
    """A student's notebook, running in the sandbox.

    Its code cells are run in order; one that raises does not stop the others. When a cell or a
    call has to be killed, the worker is started again, without that cell, as long as there is time.

    Limits are seconds of the clock. But a worker that is computing when one has passed, and has not had as much of the
    processor as the limit allows, goes on until it has, or until the clock shows ten times the limit: the class, and
    whatever else runs on the machine, costs no student a point.

    Args:
        sandbox: a `Sandbox`.
        text: the notebook file's text. It is parsed in the sandbox.
        call_seconds: how long a cell or a call may take.
        seconds: how long all of them may take together.

    Attributes:
        notes: sentences on what happened to the cells.
        given_up: why nothing more of this notebook will run, if so.
    """

    def __init__(self, sandbox, text, *, call_seconds, seconds):
        self.sandbox, self.text, self.call_seconds, self.left = sandbox, text, call_seconds, seconds
        self.seconds, self.end = seconds, time.monotonic() + PATIENCE * seconds
        self.since = self.spent = 0.0  # when this worker was started; clock time of its calls
        self.lost = 0.0  # seconds that the workers before this one have had
        self.start = self.limit = self.deadline = 0.0  # of the call that is under way
        self.channel, self.notes, self.killers, self.given_up = None, [], set(), ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hang_up()

    def function(self, name):
        """The function that the notebook defines under this name, to be called with the grader's values."""

        def attempt(*args, **kwargs):
            if self.channel is None:
                self._start()
            return self._call(name, args, kwargs)

        return attempt

    def _start(self):
        """Run the cells, from the first one, until they come to their end."""
        first = not self.notes
        while not self.given_up:
            self.since, self.spent = time.clock_gettime(time.CLOCK_BOOTTIME), 0.0
            self.channel, self.buffer, self.n, self.functions = self.sandbox.open(), bytearray(), 0, []
            try:
                cells = self._ask({"notebook": self.text}).get("value")
            except Stopped as stopped:
                self.given_up = str(stopped)
                break
            if not isinstance(cells, int):
                self.given_up = UNREADABLE
                self._hang_up()
                break
            for cell in range(min(cells, 1000)):
                if cell in self.killers:
                    continue
                try:
                    reply = self._ask({"cell": cell})
                except Stopped as stopped:
                    self.killers.add(cell)
                    self.notes.append(f"code cell {cell + 1}: {stopped}")
                    break
                if first and "error" in reply:
                    self.notes.append(f"code cell {cell + 1} raised {known_error(reply['error']).__name__}")
                if first:
                    self.notes += [
                        f"code cell {cell + 1}: {module} is not there while a notebook is graded"
                        for module in modules(reply.get("refused"))
                    ]
            else:
                return
            first = False
        if self.given_up not in self.notes:
            self.notes.append(self.given_up)
        raise Stopped(self.given_up)

    def _call(self, which, args, kwargs):
        blobs = []
        sent = [encode(value, self.functions, blobs) for value in (args, kwargs)]
        reply = self._ask({"call": which, "args": sent}, blobs)
        if "missing" in reply:
            raise NotDone(f"the notebook does not define {which}")
        if "error" in reply:
            error = known_error(reply["error"])
            raise error("only NumPy, SciPy and Python's own are there") if issubclass(error, ImportError) else error
        if "unsendable" in reply:
            raise TypeError("your result is neither a number nor an array, nor a list, tuple or dict of these")
        return self._decode(reply.get("value"), reply["blobs"])

    def _decode(self, tree, blobs):
        """A value out of a reply, or what is wrong with it."""
        try:
            return decode(tree, lambda index: lambda *args, **kwargs: self._call(index, args, kwargs), blobs)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise self._stop("sent a reply that cannot be read") from None

    def _ask(self, request, blobs=()):
        """Send a request; return the reply that belongs to it, answering calls of our functions meanwhile."""
        if self.left < self.call_seconds and time.monotonic() < self.end:  # by the clock; by the processor?
            self.left = self.seconds - self.lost - self.sandbox.computed(self.since)[0]
        if self.left <= 0 or time.monotonic() > self.end:
            raise self._stop("not tried, because the time for this notebook was used up")
        # To read the file is the worker's own work: a large one on a busy machine may take longer than a call.
        seconds = self.left if "notebook" in request else min(self.call_seconds, self.left)
        self.n += 1
        n, start, callbacks, ours = self.n, time.monotonic(), 0, 0.0
        self.start, self.limit, self.deadline, self.overtime = start, seconds, start + seconds, False
        try:
            self._send({"n": n, **request}, blobs)
            while True:
                reply = self._receive()
                if reply.get("n") != n:
                    continue  # an answer to an earlier question, or invented
                if "callback" not in reply:
                    return reply
                callbacks += 1
                if callbacks > CALLBACKS:
                    raise self._stop(f"called the given function more than {CALLBACKS} times")
                asked = time.monotonic()
                self._send(*self._call_back(reply))
                if time.monotonic() < start + PATIENCE * seconds:  # what the grader does takes nothing of the limit
                    ours += time.monotonic() - asked
                    self.deadline += time.monotonic() - asked
        except TimeoutError:
            if seconds < self.call_seconds:
                raise self._stop("stopped, because the time for this notebook was used up") from None
            raise self._stop(f"took longer than {seconds:.3g} s and was stopped") from None
        except (ConnectionError, EOFError):
            raise self._stop("ended the Python process, or took too much memory") from None
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise self._stop("sent a reply that cannot be read") from None
        finally:
            took = time.monotonic() - start - ours
            self.spent += took
            self.left -= min(took, seconds)

    def _more_time(self):
        """Whether the worker is computing and has had less of the processor than its limit: then the deadline moves."""
        now = time.monotonic()
        seconds, waits = self.sandbox.computed(self.since)
        # Of the worker's whole time, what its earlier calls took on the clock is the most that they can have used.
        missing = self.limit - max(seconds - self.spent, 0)
        if not waits or missing < 0.1 * self.limit or now > self.start + PATIENCE * self.limit:
            return False
        self.deadline = now + missing
        return True

    def _call_back(self, reply):
        """Evaluate one of our own functions for the student's code."""
        args, kwargs = (self._decode(tree, reply["blobs"]) for tree in reply["args"])
        try:
            index, blobs = reply["callback"], []
            return {"value": encode(self.functions[index](*args, **kwargs), self.functions, blobs)}, blobs
        except Exception as error:  # of our function, given what it was given
            return {"error": f"{type(error).__name__}: {error}"}, ()

    def _send(self, message, blobs=()):
        self.channel.settimeout(max(self.deadline - time.monotonic(), 0.001))
        self.channel.sendall(pack(message, blobs))

    def _receive(self):
        """The next message of the worker, with the bytes that follow its line."""
        self._fill(lambda: b"\n" in self.buffer)
        line, _, self.buffer = self.buffer.partition(b"\n")
        message = json.loads(line)
        sizes = message.get("blobs", [])
        total = sum(sizes)
        if not all(size >= 0 for size in sizes) or total > REPLY:
            raise ValueError
        self._fill(lambda: len(self.buffer) >= total)
        blobs = [bytes(self.buffer[end - size : end]) for size, end in zip(sizes, accumulate(sizes))]
        del self.buffer[:total]
        return message | {"blobs": blobs}

    def _fill(self, enough):
        """Receive until there is enough in the buffer."""
        while not enough():
            if time.monotonic() >= self.deadline and not self._more_time():
                if self.overtime:
                    raise TimeoutError
                self.overtime = True  # once more: the reply may have come while this process had to wait for its turn
            self.channel.settimeout(max(self.deadline - time.monotonic(), 0.001))
            try:
                part = self.channel.recv(1 << 20)
            except TimeoutError:
                continue
            if not part:
                raise EOFError
            self.buffer += part
            if len(self.buffer) > REPLY:
                raise ValueError

    def _stop(self, why):
        self.lost += max(self.sandbox.computed(self.since)[0], min(time.monotonic() - self.start, self.limit))
        self._hang_up()
        return Stopped(why)

    def _hang_up(self):
        if self.channel is not None:
            self.sandbox.end(self.channel)
            self.channel = None


def modules(names):
    """The packages among these names, if they are names: no other text of a student's is shown."""
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    found = [re.match(r"([a-z_]\w{0,29})(?:\.|$)", name, re.A | re.I) for name in names]
    return sorted({match[1] for match in found if match})


def known_error(names):
    """The first of these exception classes that is Python's or NumPy's own."""
    return next((ERRORS[name] for name in names if isinstance(name, str) and name in ERRORS), Exception)
