"""vanishing.sweep: order, errors, interrupts, the death of a process; on the cores and on a cluster."""

import importlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from vanishing.sweep import Sweep, SweepError, sweep

module = importlib.import_module("vanishing.sweep")  # `vanishing.sweep` may be the function


class Odd(Exception):
    """An exception that can be pickled and not unpickled."""

    def __init__(self, a, b):
        super().__init__(a)


def power(base, exponent=2):
    return base**exponent


def troubled(i):
    if i == 2:
        raise ValueError("two is too many")
    if i == 3:
        raise Odd(1, 2)
    if i == 4:
        return (letter for letter in "ab")  # cannot be pickled
    if i == 5:
        sys.exit("out")
    if i == 6:
        return Unwilling()
    return i * i


class Unwilling:
    """A result that can be pickled and not unpickled."""

    def __reduce__(self):
        return int, ("seven",)


def deadly(i):
    time.sleep(0.02)
    if i == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def dies_once(i, marker):
    """Its process is killed in mid-sweep, but only the first time."""
    time.sleep(0.02)
    if i == 17:
        try:
            open(marker, "x").close()
        except FileExistsError:
            return i * i
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def blas_threads(i):
    return [library["num_threads"] for library in threadpool_info()]


grids = st.dictionaries(
    st.sampled_from(["base", "exponent"]), st.lists(st.integers(0, 5), min_size=1, max_size=4)
).filter(lambda grid: "base" in grid)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(grids)
def test_the_order_is_that_of_nested_loops(grid):
    """The last name varies fastest, points and results go together, and the array has the grid's shape."""
    results = sweep(power, grid, jobs=1, progress=False)
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    assert results.points == points
    assert results == [power(**point) for point in points]
    array = results.array()
    assert array.shape == tuple(len(values) for values in grid.values())
    for at in np.ndindex(array.shape):
        assert array[at] == power(**{name: grid[name][k] for name, k in zip(grid, at)})


def test_processes_agree_with_one():
    """Points that finish out of order come back in the order of the grid."""

    def late_first(i, seed):
        time.sleep(0.05 if i == 0 else 0)
        return np.random.default_rng([i, seed]).random(3), os.getpid()

    grid = {"i": range(10), "seed": [1, 2]}
    one, two = (sweep(late_first, grid, jobs=jobs, progress=False) for jobs in (1, 2))
    assert {pid for _, pid in one} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in two} and len({pid for _, pid in two}) == 2
    np.testing.assert_array_equal(one.array(lambda r: r[0]), two.array(lambda r: r[0]))
    assert two.array(lambda r: r[0]).shape == (10, 2, 3)


def test_all_cores_by_default(monkeypatch):
    """Without `jobs` joblib is asked for every core."""
    seen = []
    monkeypatch.setattr(module, "_on_joblib", lambda tasks, jobs: seen.append(jobs) or (x for x in [(0, 1, None)]))
    assert sweep(power, {"base": [1]}, progress=False) == [1]
    assert seen == [-1]


def test_a_list_of_points():
    """A list of dicts is taken as it is, and need not be a product."""
    points = [{"base": 2, "exponent": 3}, {"base": 5}, {"exponent": 0, "base": 7}]
    results = sweep(power, points, jobs=1, progress=False)
    assert results == [8, 25, 1] and results.points == points and results.shape == (3,)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_of_any_kind(jobs):
    """Bytes and None come back as they are, and so does an exception that is returned, not raised."""
    values = [b"raw", None, pickle.dumps(3)]
    assert sweep(lambda x: x, {"x": values}, jobs=jobs, progress=False) == values
    (returned,) = sweep(ValueError, [{}], jobs=jobs, progress=False)
    assert isinstance(returned, ValueError)


@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_are_reported_and_the_others_kept(jobs):
    """One failing point: the error has its parameters, traceback and exception; all others finished."""
    with pytest.raises(SweepError) as caught:
        sweep(troubled, {"i": [0, 2, 1, 9]}, jobs=jobs, progress=False)
    error = caught.value
    assert isinstance(error.results, Sweep) and error.results.shape == (4,)
    assert [error.results[k] for k in (0, 2, 3)] == [0, 1, 81]
    (failure,) = error.failures
    assert failure.point == {"i": 2} and failure.error is error.results[1]
    assert isinstance(failure.error, ValueError) and str(failure.error) == "two is too many"
    assert "1 of 4 points failed" in str(error) and "i=2\n" in str(error)
    assert 'raise ValueError("two is too many")' in str(error)  # the line that failed
    assert "sweep.py" not in str(error).replace("test_sweep.py", "")  # and none of ours
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_no_answer_can_spoil_the_others():
    """Exceptions and results that cannot be pickled or unpickled, and sys.exit, fail their point alone."""
    with pytest.raises(SweepError) as caught:
        sweep(troubled, {"i": range(12)}, jobs=2, progress=False)
    error = caught.value
    assert [failure.point["i"] for failure in error.failures] == [2, 3, 4, 5, 6]
    assert [r for r in error.results if isinstance(r, int)] == [i * i for i in (0, 1, *range(7, 12))]
    causes = {failure.point["i"]: failure.traceback for failure in error.failures}
    assert "raise Odd(1, 2)" in causes[3]
    assert "generator, cannot be pickled" in causes[4]
    assert "SystemExit: out" in causes[5]
    assert "invalid literal" in causes[6]


def test_one_traceback_for_one_cause():
    """Points that failed alike are all listed, above one traceback."""
    with pytest.raises(SweepError) as caught:
        sweep(troubled, [{"i": 2}] * 3 + [{"i": 5}], jobs=1, progress=False)
    assert str(caught.value).count("Traceback") == 2
    assert "i=2\ni=2\ni=2\nTraceback" in str(caught.value)


def test_a_killed_process_fails_its_point_alone():
    """A point that kills its process (out of memory) takes no other with it."""
    with pytest.raises(SweepError) as caught:
        sweep(deadly, {"i": range(40)}, jobs=2, progress=False)
    assert [failure.point for failure in caught.value.failures] == [{"i": 7}]
    assert "TerminatedWorkerError" in str(caught.value)
    assert [r for i, r in enumerate(caught.value.results) if i != 7] == [i * i for i in range(40) if i != 7]


def test_a_process_killed_from_outside_loses_nothing(tmp_path):
    """Points whose process was killed run again."""
    results = sweep(dies_once, {"i": range(40), "marker": [tmp_path / "died"]}, jobs=2, progress=False)
    assert results == [i * i for i in range(40)] and (tmp_path / "died").exists()


def gone(pid):
    """Whether a process has ended, waited for by its parent or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.filterwarnings("ignore")  # what distributed says while its workers die is not the point here
def test_on_a_cluster_a_killed_worker_loses_nothing(tmp_path):
    """Under parallel_config("dask"): a worker killed in mid-sweep, and a point that kills whoever runs it."""
    joblib = pytest.importorskip("joblib")
    distributed = pytest.importorskip("distributed", reason="needs the optional dask[distributed]")
    dask = pytest.importorskip("dask")
    where = dict(host="127.0.0.1", dashboard_address=None, silence_logs="CRITICAL")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),  # 3 by default: fewer deaths, faster
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **where) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        before = set(client.run(os.getpid).values())
        results = sweep(dies_once, {"i": range(60), "marker": [tmp_path / "died"]}, progress=False)
        assert results == [i * i for i in range(60)] and (tmp_path / "died").exists()
        assert any(gone(pid) for pid in before)  # it did run there, and was killed

        with pytest.raises(SweepError) as caught:
            sweep(deadly, {"i": range(10)}, progress=False)
        assert [failure.point for failure in caught.value.failures] == [{"i": 7}]
        assert "KilledWorker" in str(caught.value)
        assert [r for i, r in enumerate(caught.value.results) if i != 7] == [i * i for i in range(10) if i != 7]


NOTEBOOK = """
import os, sys, time
from typing import NamedTuple
from vanishing.sweep import sweep
assert not {"joblib", "sklearn", "distributed"} & set(sys.modules), "only when used"
class Result(NamedTuple):
    i: int
    pid: int
scale = 3
def function(i):
    return Result(scale * i, os.getpid())
results = sweep(function, {"i": range(8)}, jobs=2, progress=False)
assert all(isinstance(r, Result) for r in results) and [r.i for r in results] == list(range(0, 24, 3))
assert os.getpid() not in {r.pid for r in results}
"""


def test_functions_and_classes_of_a_notebook():
    """What __main__ defines goes to the processes and comes back the same; joblib is imported only when used."""
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


INTERRUPTED = """
import sys, time
from vanishing.sweep import sweep
def slow(i):
    if i == 1:
        print("running", flush=True)
    time.sleep(60 if i else 0)
try:
    sweep(slow, {"i": range(8)}, jobs=2, progress=False)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["notebook", "terminal"])
def test_interrupt_returns_at_once_and_leaves_no_worker(send):
    """SIGINT to this process, or to its group: KeyboardInterrupt within 2 s, and no worker lives on."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            assert process.stdout.readline() == "running\n"
            workers = _workers(process.pid)
            assert len(workers) == 2
            start = time.monotonic()
            send(process.pid, signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert time.monotonic() - start < 2
            _, alive = psutil.wait_procs(workers, timeout=1)
            assert not alive and not _workers(process.pid)
            process.communicate("")
            assert process.returncode == 0
        finally:
            timer.cancel()
            process.kill()


@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupt_inside_the_function(jobs):
    """An interrupt that reaches the function first is no failure of a point: the sweep ends."""

    def interrupted(i):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(interrupted, {"i": range(4)}, jobs=jobs, progress=False)


def test_interrupt_between_two_answers(monkeypatch, recwarn):
    """While an answer is being noted too: the workers are stopped at once, without a warning."""

    def interrupt(bar, failed):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Progress, "step", interrupt)
    before = _workers(os.getpid())  # other tests' processes
    with pytest.raises(KeyboardInterrupt) as caught:  # a notebook keeps the last traceback, and its frames, too
        sweep(lambda i: time.sleep(i), {"i": [0, 60, 60, 60]}, jobs=2, progress=False)
    assert not set(_workers(os.getpid())) - set(before), caught
    assert not recwarn.list


def _workers(pid):
    """The children that compute; Python's resource trackers end with their parent."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_blas_thread(jobs):
    """BLAS has one thread in each process, whatever it has outside, and what it had afterwards."""
    with threadpool_limits(2):
        outside = blas_threads(0)
        assert 2 in outside
        inside = sweep(blas_threads, {"i": range(4)}, jobs=jobs, progress=False)
        assert inside.array().max() == 1
        assert blas_threads(0) == outside


def test_large_arrays_may_be_changed():
    """joblib maps arrays over 1 MB read-only by itself; a function may write to its own."""

    def doubled(x):
        x *= 2
        return x.sum()

    x = np.ones(300_000)
    assert sweep(doubled, {"x": [x, 2 * x]}, jobs=2, progress=False) == [600_000, 1_200_000]
    assert x.sum() == 300_000


def test_progress(capsys):
    """Count, rate, failures and time left on standard error, one line; nothing without `progress`."""

    def slowly(i):
        time.sleep(0.11)
        return 1 / i

    with pytest.raises(SweepError):
        sweep(slowly, {"i": [0, 1, 2]}, jobs=1)
    first, second, last = capsys.readouterr().err.strip().split("\r")
    assert first.startswith("[######..............] 1/3") and "/s, 0 s left, 1 failed" in first
    assert second.startswith("[#############.......] 2/3")
    assert last.startswith("[####################] 3/3, ") and last.endswith("/s, 0 s, 1 failed")
    assert 5 < float(last.split()[2].removesuffix("/s,")) < 9.1
    sweep(power, {"base": [1]}, jobs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_says_the_time_left(capsys, monkeypatch):
    """After 10 of 40 points in 20 s, 60 s are left; updates within 0.1 s are not shown."""
    now = iter([0.0, *[0.05] * 8, 19.99, 20.0, 20.05])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    bar = module._Progress(40, True)
    for _ in range(11):
        bar.step(0)
    shown = capsys.readouterr().err.split("\r")
    assert [line.split()[1] for line in shown[1:]] == ["1/40,", "9/40,"]
    monkeypatch.setattr(module.time, "monotonic", iter([0.0, 20.0]).__next__)
    bar = module._Progress(40, True)
    bar.done = 9
    bar.step(0)
    assert "10/40, 0.5/s, 60 s left" in capsys.readouterr().err


@pytest.mark.parametrize(
    "function, grid, jobs, error, message",
    [
        (3, {"base": [1]}, 1, TypeError, "function: got int, expected a function"),
        (power, {}, 1, ValueError, "grid: got no point"),
        (power, [], 1, ValueError, "grid: got no point"),
        (power, {"base": []}, 1, ValueError, r"grid\['base'\]: got no value"),
        (power, "base", 1, TypeError, "grid: got str, expected a dict of lists or a list of dicts"),
        (power, 3, 1, TypeError, "grid: got int"),
        (power, {"base": "relu"}, 1, TypeError, r"grid\['base'\]: got 'relu', expected a list .* \['relu'\]"),
        (power, {"base": 3}, 1, TypeError, r"grid\['base'\]: got 3"),
        (power, [{"base": 1}, 2], 1, TypeError, r"grid\[1\]: got 2, expected a dict"),
        (power, {"bose": [1]}, 1, ValueError, "grid: got 'bose', expected one of base, exponent. .*mean 'base'"),
        (power, [{"base": 1}, {"bose": 1}], 1, ValueError, "grid: got 'bose'"),
        (power, {1: [1]}, 1, TypeError, "grid: got int, expected one of base, exponent"),
        (power, {"exponent": [1]}, 1, ValueError, "grid: got exponent=1, expected base as well"),
        (power, {"base": [1]}, 0, ValueError, "jobs: got 0, expected at least 1"),
        (power, {"base": [1]}, -1, ValueError, "jobs: got -1"),
        (power, {"base": [1]}, 1.5, TypeError, "jobs: got 1.5, expected an integer"),
        (power, {"base": [1]}, True, TypeError, "jobs: got True"),
        (power, {"base": [threading.Lock()]}, 2, TypeError, "function and grid: got .*lock.* can be pickled"),
    ],
)
def test_bad_input(function, grid, jobs, error, message):
    """Errors name the argument, what came and what was expected, before any point runs."""
    with pytest.raises(error, match=message):
        sweep(function, grid, jobs=jobs, progress=False)


def test_functions_that_take_any_name():
    """**kwargs takes every name; a function written in C may not say what it takes."""
    assert sweep(lambda **kwargs: kwargs, {"a": [1], "b": [2]}, jobs=1, progress=False) == [{"a": 1, "b": 2}]
    assert sweep(dict, {"a": [1, 2]}, jobs=1, progress=False) == [{"a": 1}, {"a": 2}]
