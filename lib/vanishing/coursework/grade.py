"""Grading: a class's notebooks in, results out.

The grader compares values. It never runs a student's code, which a worker in a sandbox does
(`sandbox`, `worker`), and it never unpickles anything.
"""

import atexit
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from .. import exercises
from ..sweep import SweepError, sweep
from .attempt import Notebook, Stopped
from .collect import collect, readable
from .report import write_reports
from .sandbox import Sandbox, SandboxError


def read_assignment(folder):
    """The assignment that `assign` wrote to a folder.

    Raises:
        ValueError: it is not there, or the exercises in this version of the package are others.
    """
    paths = (Path(folder, "instructor", "assignment.json"), Path(folder, "assignment.json"))
    path = next(filter(Path.exists, paths), None)
    if path is None:
        raise ValueError(f"assignment: got {str(folder)!r}, expected the folder that `assign` wrote")
    try:
        assignment = json.loads(path.read_text("utf-8"))
        now = points_table(assignment["exercises"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"assignment: got {str(path)!r}, which is damaged ({error}); assign again") from error
    if now != assignment["points"]:
        raise ValueError(
            "assignment: it was written for other checks than this version of `vanishing` has; assign again"
        )
    # Part of it, so that results are kept only as long as the checks are the same.
    sources = "".join(exercises.source(topic) for topic in assignment["topics"])
    return assignment | {"checks": hashlib.sha256(sources.encode()).hexdigest()}


def points_table(names):
    """[[exercise, property, points], ...] of some exercises."""
    return [[name, prop.says, prop.points] for name in names for prop in exercises.properties(name)]


def hidden_rng(seed, exercise, says):
    """The source of a property's hidden inputs: the same for each student and each regrading."""
    key = hashlib.sha256(json.dumps([seed, exercise, says]).encode()).digest()
    return np.random.default_rng(np.frombuffer(key, np.uint32))


def grade_notebook(text, assignment, sandbox):
    """Grade one notebook.

    Args:
        text: the notebook file's text.
        assignment: as `read_assignment` returns it.
        sandbox: a `Sandbox`.

    Returns:
        (rows, notes): [exercise, property, points got, points possible, what is wrong] for each
        property, and sentences on the notebook as a whole.
    """
    rows, seed = [], assignment["seed"]
    with Notebook(sandbox, text, **assignment["time"]) as notebook:
        for name in assignment["exercises"]:
            attempt, stopped = notebook.function(name.split("/")[1]), ""
            for prop in exercises.properties(name):
                # A function that had to be stopped once is not tried again: its next inputs are alike.
                problem = stopped
                if not stopped:
                    try:
                        problem = exercises.judge(prop, attempt, hidden_rng(seed, name, prop.says))
                    except Stopped as error:
                        problem = str(error)
                        if not notebook.given_up:
                            notebook.notes.append(f"{name}: {problem}")
                        stopped = notebook.given_up or f"not tried: an earlier check of this function {error}"
                rows.append([name, prop.says, 0 if problem else prop.points, prop.points, problem or ""])
        return rows, notebook.notes


@cache
def sandbox_of_this_process(kind):
    """Started once in each process that grades."""
    sandbox = Sandbox(kind)
    atexit.register(sandbox.close)
    return sandbox


def grade_one(submission, assignment, kind, out, again=False):
    """Grade one submission and keep the result: it is found there when an interrupted run goes on."""
    path = Path(out, "results", submission.id, "results.json")
    try:
        text, problem = submission.text(), ""
    except ValueError as error:
        text, problem = "", str(error)
    key = hashlib.sha256(json.dumps([text, problem, assignment], sort_keys=True).encode()).hexdigest()
    if path.exists() and not again:
        kept = json.loads(path.read_text("utf-8"))
        if kept["extra_data"]["key"] == key:
            return kept
    if problem:
        rows, notes = without_points(assignment, problem)
    else:
        rows, notes = grade_notebook(text, assignment, sandbox_of_this_process(kind))
    result = gradescope(rows, notes) | about(submission, key, kind)
    write(path, json.dumps(result, indent=1, ensure_ascii=False))
    return result


def about(submission, key, kind):
    """What a result says of its submission, for the reports and for the next run."""
    who = submission.who
    told = {"id": submission.id, "student": readable(who.name), "number": who.number, "system": who.system}
    told |= {"late": who.late, "file": readable(submission.member)}
    return {"extra_data": told | {"key": key, "sandbox": kind}}


def without_points(assignment, problem):
    """Rows and notes of a submission that cannot be graded."""
    return [[name, says, 0, points, problem] for name, says, points in assignment["points"]], [problem]


def gradescope(rows, notes):
    """The result of one submission in Gradescope's format.

    The fields are those of https://gradescope-autograders.readthedocs.io/en/latest/specs/ ("Output format").
    """
    tests = []
    order = list(dict.fromkeys(name for name, *_ in rows))
    for name, says, got, possible, problem in rows:
        number = f"{order.index(name) + 1}.{sum(t['extra_data']['exercise'] == name for t in tests) + 1}"
        tests.append(
            {
                "number": number, "name": f"{name}: {says}", "score": got, "max_score": possible,
                "output": problem or "yes", "extra_data": {"exercise": name, "property": says},
            }
        )  # fmt: skip
    return {"score": sum(t["score"] for t in tests), "output": "\n".join(notes), "tests": tests}


def write(path, text):
    """Write a file in one step, so that whoever reads it finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)


def grade(
    submissions, assignment, out, *, level=None, call_seconds=None, seconds=None, again=False,
    kind="bubblewrap", jobs=None, progress=True,
):  # fmt: skip
    """Grade a class: every notebook in a folder or zip archive.

    Results of an earlier run in `out` are kept where notebook, assignment and limits are the same. Under
    `joblib.parallel_config("dask")` the work spreads over a cluster whose machines see the same files.

    Args:
        submissions: folder or zip archive.
        assignment: the folder that `assign` wrote.
        out: folder for results, feedback, tables; it may hold those of an earlier run over the same class.
        level: how far down the students' files or folders are, as in `collect`.
        call_seconds, seconds: limits as in `assign`, instead of those that the assignment says.
        again: keep no earlier result.
        kind: where the code runs, as in `Sandbox`.
        jobs: processes; by default twice the cores, as many submissions only let the clock run out.
        progress: show a bar.

    Returns:
        The results, one dict a student, in Gradescope's format.

    Raises:
        SandboxError: no sandbox is to be had here.
        ValueError: no notebooks, it is not clear whose they are, no assignment, or `out` is in use for something else.
    """
    assignment, submissions, out = read_assignment(assignment), Path(submissions).resolve(), Path(out).resolve()
    limits = {"call_seconds": call_seconds, "seconds": seconds}
    assignment["time"] |= checked_limits({name: limit for name, limit in limits.items() if limit is not None})
    found, left_out = collect(submissions, level)
    check_folders(submissions, out, found)
    Sandbox(kind).close()  # or it refuses, before anything is done
    shared = {"assignment": assignment, "kind": kind, "out": str(out), "again": again}
    points = [{"submission": s} | shared for s in found]
    if jobs is None:
        jobs = min(2 * (os.cpu_count() or 1), len(points))
    try:
        results = sweep(grade_one, points, jobs=jobs, progress=progress)
    except SweepError as error:  # the grader's own failures: the class goes on, and the next run tries them again
        results = error.results
        for i, (submission, result) in enumerate(zip(found, results)):
            if isinstance(result, BaseException):
                said = f"NOT GRADED, the grader failed: {type(result).__name__}: {result}"
                results[i] = gradescope(*without_points(assignment, said)) | about(submission, "", kind)
    write_reports(out, assignment, results, left_out)
    return list(results)


def checked_limits(limits):
    """The limits, each a number of seconds.

    Raises:
        ValueError: one is not between 0.1 and 3,600 seconds.
    """
    for name, limit in limits.items():
        if not 0.1 <= limit <= 3600:
            raise ValueError(f"{name}: got {limit:g}, expected 0.1 to 3,600 seconds")
    return limits


def check_folders(submissions, out, found):
    """Nothing may be read that was written here, and nothing of another class may stay beside the new results.

    Raises:
        ValueError: the submissions are an assignment, `out` is in their folder, or it holds other students' results.
    """
    if (submissions / "instructor" / "assignment.json").exists():
        raise ValueError(f"submissions: got {str(submissions)!r}, the assignment, expected what students handed in")
    if submissions == out or submissions in out.parents:
        raise ValueError(f"out: got {str(out)!r}, in the folder of the submissions, expected another place")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {str(out)!r}, a file, expected a folder")
    if (out / "instructor").exists():
        raise ValueError(f"out: got {str(out)!r}, the assignment, expected another folder")
    others = sorted({path.parent.name for path in out.glob("results/*/results.json")} - {s.id for s in found})
    if others:
        few = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        raise ValueError(
            f"out: got {str(out)!r}, which holds results of {len(others)} students who are not in this class ({few}), "
            "expected a new folder, or one with results of the same class"
        )


def grade_on_gradescope(root):
    """Grade the one submission in Gradescope's container, and write its results.json.

    Where the container forbids bubblewrap the code runs as an unprivileged user, to whom the checks and the
    results are closed; a line that only instructors see says so.

    Args:
        root: /autograder, in which are `source`, `submission` and `results`.
    """
    for folder in ("source", "submission", "results"):
        if not (root / folder).is_dir():
            raise ValueError(f"root: got {str(root)!r}, expected a folder with source, submission and results in it")
    for folder in ("source", "results"):
        (root / folder).chmod(0o700)
    assignment = read_assignment(root / "source")
    try:
        sandbox = Sandbox()
    except SandboxError:
        sandbox = Sandbox("container")
    try:
        if not any((root / "submission").rglob("*.ipynb")):
            raise ValueError("no notebook (.ipynb) was handed in")
        notebooks = [s for s in collect(root / "submission", level=1)[0] if s.is_notebook]
        newest = max(notebooks, key=lambda submission: submission.modified)
        text = newest.text()
        # Each text has inputs of its own, or who hands in often could collect them from the feedback.
        own = [assignment["seed"], hashlib.sha256(text.encode()).hexdigest()]
        rows, notes = grade_notebook(text, assignment | {"seed": own}, sandbox)
        if notebooks[1:]:
            notes.append(f"several notebooks were handed in; graded is the newest, {readable(newest.member)}")
    except ValueError as error:
        rows, notes = without_points(assignment, str(error))
    finally:
        sandbox.close()
    result = gradescope(rows, notes)
    if sandbox.kind == "container":
        said = "Run as an unprivileged user, not in a sandbox: bubblewrap does not start in this container."
        result["tests"].append({"name": "isolation", "output": said, "visibility": "hidden"})
    write(root / "results" / "results.json", json.dumps(result, indent=1))
