"""Run a function at each point of a grid, on all cores or on a cluster, and lose nothing."""

import inspect
import itertools
import math
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ._validate import lookup, positive_integer

__all__ = ["Failure", "Sweep", "SweepError", "sweep"]


class Sweep(list):
    """The results, a list in the order of the grid.

    Attributes:
        points: list of dicts, the parameters of each result.
        shape: the number of values of each name of the grid, (n,) for a list of n points.
    """

    def __init__(self, results, points, shape):
        super().__init__(results)
        self.points, self.shape = points, shape

    def array(self, key=None):
        """The results as one array, with an axis for each name of the grid and then their own axes.

        Args:
            key: function of a result that picks the number or array of interest, such as
                `lambda result: result.loss`. Each must have the same shape.

        Returns:
            Array of shape (*shape, *shape of one result).
        """
        values = np.stack([np.asarray(result if key is None else key(result)) for result in self])
        return values.reshape(self.shape + values.shape[1:])


class Failure(NamedTuple):
    """A point that failed: its parameters, the exception and the traceback as text."""

    point: dict
    error: BaseException
    traceback: str


class SweepError(RuntimeError):
    """Some points failed. Nothing is lost: the other points have run to the end.

    Attributes:
        results: Sweep with the exception in the place of each point that failed.
        failures: list of Failure. `[failure.point for failure in error.failures]` is a grid that
            runs them again.
    """

    def __init__(self, results, failures):
        super().__init__(results, failures)  # an exception is pickled by its arguments
        self.results, self.failures = results, failures

    def __str__(self):
        alike = {}  # one cause often fails many points: its traceback is shown once
        for failure in self.failures:
            alike.setdefault(failure.traceback, []).append(failure.point)
        causes = ["\n".join([*map(_call, points), trace]) for trace, points in alike.items()]
        head = f"{len(self.failures)} of {len(self.results)} points failed; `error.results` keeps the others"
        return "\n\n".join([head, *causes])


def sweep(function, grid, *, jobs=None, progress=True):
    """Return [function(**point) for point in grid], computed on all cores.

        results = sweep(loss, {"depth": [5, 50, 500], "seed": range(20)})
        results.array().mean(axis=-1)  # for each depth

    Each process runs BLAS on one thread: more would fight for the cores. A function from a notebook works
    as it is. Randomness is an argument here too: sweep over a seed and make the Generator of it inside.

    On a Dask cluster the same call runs unchanged:

        with dask.distributed.Client(address), joblib.parallel_config("dask"):
            results = sweep(loss, grid)

    The points of a worker that dies run again elsewhere. A point that sees more than 3 workers die
    (`distributed.scheduler.allowed-failures`) is tried once more, alone, and has then failed. The function
    travels to the workers with all that it refers to: load large data inside it. The workers
    need this library too.

    Args:
        function: called with the parameters of a point by name.
        grid: dict of name to list of values: their product, the last name varying fastest. Or a list
            of dicts, the points themselves.
        jobs: number of processes; by default the number of cores. 1 stays in this process, where a
            debugger works. A cluster uses all that it has.
        progress: show the points done, their rate and the time left, on standard error.

    Returns:
        Sweep, a list of the results in the order of the grid.

    Raises:
        SweepError: some points failed. The others are finished first, and it keeps their results. A point
            that kills its process (out of memory) has failed too.
        KeyboardInterrupt: at once, and the processes are stopped.
        TypeError, ValueError: an empty grid, values that are not a list, names that the function does
            not take, or `jobs` below 1.
    """
    if not callable(function):
        raise TypeError(f"function: got {type(function).__name__}, expected a function")
    points, shape = _points(grid)
    _check_names(function, points)
    jobs = -1 if jobs is None else positive_integer(jobs, "jobs")

    results, failures, bar = [None] * len(points), {}, _Progress(len(points), progress)
    with closing(_answers(function, points, jobs)) as answers:  # closed at once by Ctrl-C
        for index, value, trace in answers:
            results[index] = value
            if trace is not None:
                failures[index] = Failure(points[index], value, trace)
            bar.step(len(failures))
    results = Sweep(results, points, shape)
    if failures:
        raise SweepError(results, [failures[index] for index in sorted(failures)])
    return results


def _points(grid):
    """The points of a grid, a list of dicts, and its shape."""
    if not isinstance(grid, Iterable) or isinstance(grid, (str, bytes)):
        raise TypeError(f"grid: got {type(grid).__name__}, expected a dict of lists or a list of dicts")
    if not isinstance(grid, Mapping):
        points = list(grid)
        for i, point in enumerate(points):
            if not isinstance(point, Mapping):
                raise TypeError(f"grid[{i}]: got {point!r}, expected a dict of the parameters of a point")
        shape = (len(points),)
    else:
        for name, values in grid.items():
            if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
                raise TypeError(f"grid[{name!r}]: got {values!r}, expected a list of values, such as [{values!r}]")
        values = [list(values) for values in grid.values()]
        for name, of_name in zip(grid, values):
            if not of_name:
                raise ValueError(f"grid[{name!r}]: got no value, expected at least one")
        points = [dict(zip(grid, point)) for point in itertools.product(*values)] if grid else []
        shape = tuple(map(len, values))
    if not points:
        raise ValueError("grid: got no point, expected at least one")
    return points, shape


def _check_names(function, points):
    """A misspelled name would fail each point: say so before any runs."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C do not tell
        return
    takes = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needs = {name for name, p in takes.items() if p.default is p.empty}
    for point in points:
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            for name in point:
                lookup("grid", name, takes)
        if missing := needs - set(point):
            raise ValueError(f"grid: got {_call(point)}, expected {', '.join(sorted(missing))} as well")


def _call(point):
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _answers(function, points, jobs):
    """Yield (index, result, None) or (index, exception, traceback) for each point, as they finish."""
    import joblib
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    on_dask = hasattr(backend, "client")
    pack = on_dask or joblib.effective_n_jobs(jobs) > 1
    if pack:
        try:
            _cloudpickle().dumps((function, points))
        except Exception as error:
            raise TypeError(f"function and grid: got {error}, expected what can be pickled, or jobs=1") from error
    tasks = [(function, index, point, pack) for index, point in enumerate(points)]
    answers = _on_dask(tasks, backend.client) if on_dask else _on_joblib(tasks, jobs)
    try:
        for index, value, trace in answers:
            if pack and isinstance(value, bytes):
                try:
                    value = _cloudpickle().loads(value)
                except Exception as error:  # some exceptions can be pickled and not unpickled
                    trace = trace or _trace(error)
                    value = RuntimeError(trace.splitlines()[-1])
            yield index, value, trace
    finally:
        with warnings.catch_warnings(action="ignore"):  # joblib's, that results are thrown away
            answers.close()


def _on_joblib(tasks, jobs):
    """Answers from this machine's cores."""
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    groups = [tasks]
    while groups:
        group, sent, done = groups.pop(), [], set()
        calls = (sent.append(task) or delayed(_attempt)(*task) for task in group)
        # Copy-on-write: a function may change its large arrays as it may its small ones.
        run = Parallel(jobs, return_as="generator_unordered", mmap_mode="c")
        try:
            for answer in run(calls):
                done.add(answer[0])
                yield answer
        except Exception as error:
            suspects = [task for task in sent if task[1] not in done]
            if isinstance(error, TerminatedWorkerError) and len(group) > 1:
                # One of the points that were under way killed its process: alone, each shows whether it did.
                groups += [[task] for task in suspects]
                groups += [group[len(sent) :]] if len(sent) < len(group) else []
            else:
                for task in group:
                    if task[1] not in done:
                        yield task[1], error, f"{type(error).__name__}: {error}"


def _on_dask(tasks, client):
    """Answers from a cluster. Not by joblib.Parallel: it waits forever for a point that kills its workers."""
    from distributed import KilledWorker, as_completed

    groups = [tasks]
    while groups:
        group = groups.pop(0)
        futures = client.map(_attempt, *zip(*group), pure=False)
        pending = {future.key: (task, future) for task, future in zip(group, futures)}
        arriving = as_completed(futures, with_results=True, raise_errors=False)
        del futures  # the cluster forgets what has arrived
        try:
            for future, answer in arriving:
                task, _ = pending.pop(future.key)
                if future.status == "finished":
                    yield answer
                    continue
                error = answer[1] if isinstance(answer, tuple) else answer
                if isinstance(error, KilledWorker) and len(group) > 1:
                    groups += [[task]]  # its neighbor may have done it
                else:
                    yield task[1], error, f"{type(error).__name__}: {error}"
        finally:
            client.cancel([future for _, future in pending.values()])


def _attempt(function, index, point, pack):
    """One point: (index, result, None) or (index, exception, traceback).

    The result is pickled here, where one that cannot be is a failure of this point and of no other.
    """
    with _blas(len(sys.modules)).limit(limits=1):
        try:
            value, trace = function(**point), None
        except (Exception, SystemExit) as error:
            value, trace = error, _trace(error, skip=1)
    if pack:
        try:
            value = _cloudpickle().dumps(value)
        except Exception as error:
            trace = trace or f"TypeError: the result, {type(value).__name__}, cannot be pickled: {error}"
            value = TypeError(trace.splitlines()[-1])
    return index, value, trace


@lru_cache(maxsize=1)
def _blas(modules):
    """The BLAS libraries. To find them takes 0.5 ms, so they are looked for when modules have been imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _trace(error, skip=0):
    """The traceback as text, without the first `skip` frames, which are this module's."""
    tb = error.__traceback__
    for _ in range(skip):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb)).rstrip()


def _cloudpickle():
    """The pickle that joblib uses, which takes what a notebook defines."""
    try:
        from joblib.externals import cloudpickle
    except ImportError:  # since joblib 1.6
        import cloudpickle
    return cloudpickle


class _Progress:
    """One line that is written over: count, rate, time left."""

    def __init__(self, total, show):
        self.total, self.show, self.done, self.start, self.shown = total, show, 0, time.monotonic(), -math.inf

    def step(self, failed):
        """One more point is done."""
        self.done, now = self.done + 1, time.monotonic()
        last = self.done == self.total
        if not self.show or (now < self.shown + 0.1 and not last):
            return
        self.shown, elapsed = now, max(now - self.start, 1e-9)
        bar = "#" * (20 * self.done // self.total)
        line = f"\r[{bar:.<20}] {self.done}/{self.total}, {self.done / elapsed:.3g}/s, "
        line += f"{elapsed:.0f} s" if last else f"{elapsed / self.done * (self.total - self.done):.0f} s left"
        line += f", {failed} failed" if failed else ""
        print(f"{line:<79}", end="\n" if last else "", file=sys.stderr, flush=True)
