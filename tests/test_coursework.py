"""Coursework: what is handed out, how the exercises fare when they are graded, and what is written."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from urllib.parse import unquote

import joblib
import nbformat
import numpy as np
import pytest

import book
from test_coursework_hostile import ASSIGNMENT, RIGHT, notebook, sandbox  # noqa: F401
from test_exercises import ALL, TOPICS
from vanishing import exercises
from vanishing.coursework import collect as collecting
from vanishing.coursework import grade as grading
from vanishing.coursework.__main__ import main, parser
from vanishing.coursework.assign import assign, pieces, plain_markdown
from vanishing.coursework.attempt import Notebook
from vanishing.coursework.grade import grade, grade_notebook, points_table
from vanishing.coursework.report import cell
from vanishing.coursework.sandbox import Sandbox, SandboxError
from vanishing.coursework.values import decode, encode

TIME = {"call_seconds": 5.0, "seconds": 30.0}
# In the sandbox, the check cells define the wrong and the other right answers, and keep them by exercise.
ANSWERS = """
import numpy as np
class Library:
    kept = {}
    def rejects(self, name, *functions): self.kept.setdefault(name, []).extend(functions)
    accepts = rejects
    def expects(self, *_, **__): return lambda test: test
    def __getattr__(self, name): return lambda *_, **__: None
vg = Library()
"""


@pytest.fixture(scope="module")
def homework(tmp_path_factory):
    """An assignment of one chapter."""
    out = tmp_path_factory.mktemp("homework")
    assign(["chain-rule"], out, seed=1, title="Homework 1")
    return out


def points(rows):
    return sum(got for *_, got, _, _ in rows), sum(possible for *_, possible, _ in rows)


# ---------------------------------------------------------------- the exercises, through the graded path


@pytest.mark.parametrize("topic", TOPICS)
def test_solutions_get_every_point_and_stubs_none(topic, tmp_path, sandbox):  # noqa: F811
    assignment = assign([topic], tmp_path) | {"time": TIME}
    for path, share in ((f"instructor/{topic}-solutions.ipynb", 1), (f"student/{topic}.ipynb", 0)):
        rows, notes = grade_notebook((tmp_path / path).read_text("utf-8"), assignment, sandbox)
        got, possible = points(rows)
        assert got == share * possible, rows
        assert notes == []
    assert all(problem.startswith("not done yet") for *_, problem in rows)


@pytest.mark.parametrize("name", ALL)
def test_wrong_answers_lose_points_and_right_ones_do_not(name, sandbox):  # noqa: F811
    topic, function = name.split("/")
    exercises.load(topic)
    cells = [ANSWERS, *(source for kind, source in pieces(topic) if kind == "check")]
    assignment = {"exercises": [name], "points": points_table([name]), "seed": 2, "time": TIME}
    answers = [f"vg.kept[{name!r}][{i}]" for i in range(len(exercises._rejected[name] + exercises._accepted[name]))]
    full = []
    for answer in answers:
        rows, notes = grade_notebook(notebook(*cells, f"{function} = {answer}"), assignment, sandbox)
        got, possible = points(rows)
        assert notes == []
        full.append(got == possible)
    registered = [0] * len(exercises._rejected[name]) + [1] * len(exercises._accepted[name])
    assert sorted(full) == sorted(registered), (name, full)


def test_the_hidden_inputs_differ_between_terms_and_not_between_students(sandbox):  # noqa: F811
    seen = []
    tell = "def typical_factor(f):\n    return float(f.flat[0])\n"
    for seed in (1, 1, 2):
        with Notebook(sandbox, notebook(tell), **TIME) as student:
            from vanishing.coursework.grade import hidden_rng

            attempt = student.function("typical_factor")
            seen.append(attempt(hidden_rng(seed, "chain-rule/typical_factor", "x").uniform(size=3)))
    assert seen[0] == seen[1] != seen[2]


# ---------------------------------------------------------------- what travels


VALUES = [
    None, True, 3, -(10**40), 0.1, float("inf"), "ü\ud800", [1, [2.5]], (1, "a"), {"a": np.arange(3), 2: None},
    1 + 2j, np.float64(0.1), np.float32(0.1), np.int64(3), np.bool_(True), np.zeros((2, 0, 3)), np.eye(3)[::2],
    np.arange(6.0).reshape(2, 3).T, np.array(1j), np.array([np.nan, -0.0, np.inf]), np.arange(3, dtype=">i4"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v)[:30])
def test_values_travel_exactly(value):
    blobs = []
    back = decode(json.loads(json.dumps(encode(value, [], blobs))), None, blobs)
    if isinstance(value, dict):
        assert list(back) == list(value)
        back, value = back["a"], value["a"]
    assert type(back) is type(value) or type(value) is complex
    assert getattr(back, "shape", None) == getattr(value, "shape", None) or type(value) is complex
    assert back == value if not isinstance(value, np.ndarray) else np.array_equal(back, value, equal_nan=True)


def test_other_values_do_not_travel():
    for value in ({1}, object(), np.array(["a"]), np.array([None])):
        with pytest.raises(TypeError):
            encode(value, [], [])


def test_functions_are_called_back_and_returned_ones_called(sandbox):  # noqa: F811
    source = """
import numpy as np
def derivative(f, x, rng=None):
    noise = 0 * rng.normal()
    return (f(x + 1e-6) - f(x - 1e-6)) / 2e-6 + noise
def layer(W):
    def backward(g): return g @ W.T
    return W.sum(), backward
"""
    with Notebook(sandbox, notebook(source), **TIME) as student:
        x, rng = np.array([0.5, 1.0]), np.random.default_rng(3)
        assert np.allclose(student.function("derivative")(np.sin, x, rng=rng), np.cos(x))
        total, backward = student.function("layer")(np.ones((2, 3)))
        assert total == 6 and np.array_equal(backward(np.ones((1, 3))), 3 * np.ones((1, 2)))
        with pytest.raises(ValueError):
            student.function("derivative")(lambda x: 1 / 0, x, rng=rng)


# ---------------------------------------------------------------- handing out


@pytest.mark.parametrize("topic", TOPICS)
def test_student_files_hold_no_solution_no_output_no_hidden_input(topic, tmp_path):
    assign([topic], tmp_path, seed=123456789)
    files = sorted(p for p in (tmp_path / "student").rglob("*") if p.is_file())
    assert [p.name for p in files] == ["README.md", f"{topic}.ipynb"]
    text = "".join(p.read_text("utf-8") for p in files)
    solved = (tmp_path / "instructor" / f"{topic}-solutions.ipynb").read_text("utf-8")
    for word in ("SOLUTION", "expects", "rejects", "accepts", "123456789"):
        assert word not in text
    for code in exercises.cells(topic):
        for region in exercises.SOLUTION.finditer(code):
            for line in filter(lambda line: len(line) > 12, map(str.strip, region.group().splitlines()[1:-1])):
                assert json.dumps(line)[1:-1] not in text
                assert json.dumps(line)[1:-1] in solved
    book = nbformat.read(tmp_path / "student" / f"{topic}.ipynb", as_version=4)
    nbformat.validate(book)
    assert all(not c.outputs and c.execution_count is None for c in book.cells if c.cell_type == "code")


@pytest.mark.parametrize("topic", TOPICS)
def test_statements_are_plain_markdown(topic):
    text = "\n".join(source for kind, source in pieces(topic) if kind == "markdown")
    assert len(text) > 500
    assert not re.search(r"\{[\w:-]+\}[`\n]|^:::|^```\{|^\([\w-]+\)=", text, re.M)


def test_plain_markdown():
    source = "(target)=\n## A\n\n:::{note} Look\nAt $x$ {cite}`he2015`.\n:::\n\n$$\ny\n$$ (eq-y)\n\n{doc}`the lesson <lesson>`\n"
    assert plain_markdown(source) == "## A\n\n> **Look**\n>\n> At $x$ (he2015).\n\n$$\ny\n$$\n\nthe lesson"
    with pytest.raises(ValueError, match="directive 'figure'"):
        plain_markdown("```{figure} x.png\n```\n")
    with pytest.raises(ValueError, match="role 'glue:text'"):
        plain_markdown("{glue:text}`slope`")


def test_the_handed_out_notebook_runs(homework, tmp_path):
    """Top to bottom, as Jupyter would run it."""
    code = nbformat.read(homework / "student" / "chain-rule.ipynb", as_version=4).cells
    namespace = {}
    for c in code:
        if c.cell_type == "code" and "%pip" not in c.source:
            exec(c.source, namespace)


def test_assign_is_repeatable_and_says_what_is_wrong(homework, tmp_path):
    assign(["chain-rule"], tmp_path / "again", seed=1, title="Homework 1")
    for path in homework.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(homework)).read_bytes(), path
    with pytest.raises(ValueError, match="holds an assignment"):
        assign(["chain-rule"], homework)
    with pytest.raises(ValueError, match="got topic 'softmx'"):
        assign(["softmx"], tmp_path / "x")
    with pytest.raises(ValueError, match="both define"):
        assign(["chain-rule", "chain-rule"], tmp_path / "x")
    with pytest.raises(ValueError, match="expected the folder that `assign` wrote"):
        grade(tmp_path, tmp_path / "x", tmp_path / "y")
    with pytest.raises(ValueError, match="seconds: got -5, expected 0.1 to 3,600"):
        assign(["chain-rule"], tmp_path / "x", seconds=-5)
    with pytest.raises(ValueError, match="install: got .* expected one thing that pip installs"):
        assign(["chain-rule"], tmp_path / "x", install='git+https://x.org/a b"; import os #')
    assert not (tmp_path / "x" / "instructor").exists()
    assert assign(["chain-rule"], tmp_path / "x")["seed"] != assign(["chain-rule"], tmp_path / "y")["seed"]


def test_the_whole_book_is_one_assignment(tmp_path):
    """No two chapters ask for functions of the same name; the time grows with the chapters, and the student is told."""
    assignment = assign(TOPICS, tmp_path, install="git+https://example.org/book")
    assert assignment["time"]["seconds"] == 10 * len(TOPICS)
    cells = nbformat.read(next(tmp_path.glob("student/*.ipynb")), as_version=4).cells
    assert "2 seconds; all of them together 110." in cells[0].source
    assert "%pip install -q git+https://example.org/book" in cells[1].source
    assert "git+https://example.org/book" in (tmp_path / "student" / "README.md").read_text("utf-8")
    text = "\n".join(c.source for c in cells)
    assert "the site" not in text and "this page" not in text


# ---------------------------------------------------------------- who handed in what


@pytest.mark.parametrize("level, members, students", [
    (None, ["Zoë Smith.ipynb"], ["Zoë Smith"]),
    (None, ["Zoë Smith/homework.ipynb"], ["Zoë Smith"]),
    (None, ["smithzoe_4711_98765_homework-1.ipynb"], ["smithzoe 4711 canvas"]),
    (None, ["smithzoe_LATE_4711_98765_home_work.ipynb", "x_1_2_h.zip"], ["smithzoe 4711 canvas late", "x 1 canvas"]),
    (None, ["Zoë Smith_4711_assignsubmission_file_/homework.ipynb"], ["Zoë Smith 4711 moodle"]),
    (None, ["Zoë Smith_4711_assignsubmission_file/sub/a_1_2_b.ipynb"], ["Zoë Smith 4711 moodle"]),
    (None, ["Zoë Smith_4711_assignsubmission_file_homework.ipynb"], ["Zoë Smith 4711 moodle"]),
    (None, ["Ona Text_7_assignsubmission_onlinetext_/onlinetext.html"], ["Ona Text 7 moodle"]),
    (None, ["assignment_export/submission_4711/homework.ipynb"], ["submission_4711"]),
    (None, ["CS_1_2_export/submission_1/homework.ipynb"], ["submission_1"]),
    (None, ["team_red_4711_98_h.ipynb", "pat_12_text.html", "pat_LATE_13_link.html"],
     ["team_red 4711 canvas", "pat 12 canvas", "pat 13 canvas late"]),
    (None, ["anon_Zx3fa_98765_h.ipynb", "LATE_anon_Q7_98_h.ipynb"], ["anon_Zx3fa", "anon_Q7 late"]),
    (2, ["A/zoe_4711_98_h.ipynb", "A/ben_LATE_12_99_h.ipynb", "B/eva_13_97_h.ipynb"],
     ["zoe 4711 canvas", "ben 12 canvas late", "eva 13 canvas"]),
    (None, ["Ada/home_1_2_work.ipynb", "Ben/x.ipynb"], ["Ada", "Ben"]),
    # a folder that holds all the others does not count
    (None, ["all/Anna.ipynb", "all/Ben.ipynb"], ["Anna", "Ben"]),
    (None, ["a/b/Anna/hw.ipynb", "a/b/Ben/hw.ipynb", "a/b/Emil/"], ["Anna", "Ben", "Emil"]),
    (None, ["Zoë_4711_assignsubmission_file_/a.ipynb", "Zoë_4711_assignsubmission_file_/b.ipynb"], ["Zoë 4711 moodle"] * 2),
    # something else than a notebook, in a student's folder and beside
    (None, ["Pia/hw.py", "Anna.ipynb", "Ola.py"], ["Pia", "Anna", "Ola"]),
    (None, ["x_1_2_h.ipynb", "README.txt"], ["x 1 canvas", None]),
    # one student's several files, or several students'
    (1, ["Sam/a.ipynb", "Sam/b/x.ipynb", "Ben.ipynb"], ["Sam", "Sam", "Ben"]),
    (2, ["A/Anna.ipynb", "A/Ben.ipynb", "B/Anna.ipynb", "Cleo.ipynb"], ["A/Anna", "Ben", "B/Anna", "Cleo"]),
    (2, ["A/Anna/hw.ipynb", "B/Anna/hw.ipynb", "B/Ben/x/hw.ipynb"], ["A/Anna", "B/Anna", "Ben"]),
])  # fmt: skip
def test_whose_files_they_are(level, members, students):
    found = collecting.who(members, level)
    assert [who and " ".join(filter(None, (*who[:3], "late" * who.late))) for who in found] == students


@pytest.mark.parametrize(
    "members", [["A/Anna.ipynb", "A/Ben.ipynb", "B/Anna.ipynb"], ["A/Anna/x.ipynb", "A/Ben/x.ipynb", "Z.ipynb"]]
)
def test_a_folder_of_one_or_of_several_students_is_asked_for(members):
    with pytest.raises(ValueError, match="level: got 2 notebooks in 'A', expected 1 .* if a folder is one student's"):
        collecting.who(members)


def test_the_newest_notebook_counts(tmp_path):
    ages = {"zoe/a.ipynb": 100, "zoe/b.ipynb": 10, "zoe/c.py": 0, "Zoe/c.ipynb": 50, "adam.ipynb": 0, "pia/hw.py": 0}
    for name, age in ages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "adam.ipynb").write_text("{}")
    (tmp_path / "emil").mkdir()
    os.symlink("/etc/passwd", tmp_path / "link.ipynb")
    found, left_out = collecting.collect(tmp_path, level=1)
    assert [s.member for s in found] == ["adam.ipynb", "emil/", "pia/hw.py", "zoe/b.ipynb"]
    assert [file for file, _ in left_out] == ["Zoe/c.ipynb", "zoe/a.ipynb"]
    for submission, why in zip(found[1:3], ("nothing in the folder", "not a notebook")):
        with pytest.raises(ValueError, match=why):
            submission.text()


def test_archives_and_files_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adam.ipynb", "{}")
        archive.writestr("../../up.ipynb", "{}")  # not looked at
        archive.writestr("bomb.ipynb", "x" * 10_000_000)
        archive.writestr("__MACOSX/._adam.ipynb", "x")
        archive.mkdir("emil")
        archive.mkdir("zoe")
        archive.writestr("zoe/hw.ipynb", "{}")
    found, _ = collecting.collect(tmp_path / "all.zip")
    assert [s.id for s in found] == ["adam", "bomb", "emil", "zoe"]
    assert found[0].text() == "{}"
    with pytest.raises(ValueError, match="more than the"):
        found[1].text()
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ValueError, match="submissions: got .* expected"):
            collecting.collect(wrong)


@pytest.mark.parametrize(
    "name", ["../../etc/x", "a/b", "", ".", "-rf", "CON", "x" * 300, "a\nb", "Ünï côdé", "=cmd|'/c calc'!A1"]
)
def test_names_of_files_are_safe(name):
    id = collecting.Submission(collecting.Student(name), None, "", 0, 0).id
    assert re.fullmatch(r"[\w.-]+", id) and not id.startswith((".", "-")) and len(id) < 100


# ---------------------------------------------------------------- a class


@pytest.fixture(scope="module")
def graded(homework, tmp_path_factory, sandbox):  # noqa: F811
    """A small class, graded: the folder, the results, the submissions."""
    folder, out = tmp_path_factory.mktemp("class"), tmp_path_factory.mktemp("grades")
    solved = (homework / "instructor" / "chain-rule-solutions.ipynb").read_text("utf-8")
    stub = (homework / "student" / "chain-rule.ipynb").read_text("utf-8")
    for name, text in {
        "Zoë Smith_11_assignsubmission_file_/hw.ipynb": solved,
        "Zoë Smith_11_assignsubmission_file_/old.ipynb": stub,
        "=cmd|' /C calc'!A0.ipynb": notebook(RIGHT),
        "+Ада Лавлейс.ipynb": notebook(RIGHT, "raise ValueError('<script>')"),
        '<b>bold</b>, "quoted"_12_345_hw.ipynb'.replace("/", ""): stub,
        "broken.ipynb": solved[:-50],
        "late_LATE_13_346_hw.ipynb": notebook(RIGHT, "import torch.nn, numpy\nfrom os import nothing"),
        "Pia/hw.py": RIGHT,
        "notes.txt": "no notebook",
        os.fsdecode(b"\xff\xfe.ipynb"): "{}",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    with open(folder / "huge.ipynb", "wb") as file:
        file.truncate(100 << 20)
    os.utime(folder / "Zoë Smith_11_assignsubmission_file_" / "old.ipynb", (1e9, 1e9))
    results = grade(folder, homework, out, jobs=1, progress=False)
    return out, {r["extra_data"]["student"]: r for r in results}, folder


def test_results_in_gradescopes_format(graded):
    out, results, _ = graded
    scores = {name: r["score"] for name, r in results.items()}
    assert scores == {"Zoë Smith": 30, "late": 4, "broken": 0, "Pia": 0, "huge": 0} | scores and len(scores) == 9
    result = json.loads(
        (out / "results" / results["Zoë Smith"]["extra_data"]["id"] / "results.json").read_text("utf-8")
    )
    assert result == results["Zoë Smith"]
    assert results["huge"]["score"] == 0 and "100 MB, more than the 16" in results["huge"]["output"]
    assert result["score"] == sum(t["score"] for t in result["tests"])
    assert set(result["tests"][0]) == {"number", "name", "score", "max_score", "output", "extra_data"}
    assert [t["number"] for t in result["tests"]][:5] == ["1.1", "1.2", "1.3", "1.4", "2.1"]


def test_tables(graded):
    out, results, _ = graded
    rows = {name: list(csv.reader(io.StringIO((out / name).read_text("utf-8-sig")))) for name in
            ("grades.csv", "canvas.csv", "moodle.csv")}  # fmt: skip
    for table in rows.values():
        for row in table:
            assert len(row) == len(table[0])
            assert not any(value.startswith(("=", "+", "-", "@", "\t")) for value in row)
    assert rows["canvas.csv"][0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Homework 1"]
    assert rows["canvas.csv"][1] == ["    Points Possible", "", "", "", "", "30"]
    assert ["late", "13", "", "", "", "4"] in rows["canvas.csv"]
    assert ["Zoë Smith", "", "", "", "", "30"] in rows["canvas.csv"], "Moodle's number is not Canvas's"
    assert {"Identifier", "Grade", "Last modified (grade)"} < set(rows["moodle.csv"][0])
    assert ["Participant 11", "Zoë Smith", "30", "30", ""] in rows["moodle.csv"]
    assert ["", "late", "4", "30", ""] in rows["moodle.csv"]
    assert rows["grades.csv"][0][:4] == ["student", "number", "points", "of"]
    late = rows["grades.csv"][0].index("late")
    assert {row[0]: row[late] for row in rows["grades.csv"][1:] if row[late]} == {"late": "late"}


def test_pages(graded):
    out, results, _ = graded
    summary = (out / "summary.html").read_text("utf-8")
    for said in ("9 students", "old.ipynb</code> is older", "notes.txt</code> has no name of a student", "Late: late.",
                 "code cell 2: os is not there", "torch is not there", "27 to 30", ">Pia</a> (0 points): the file is not"):  # fmt: skip
        assert said in " ".join(summary.split()), said
    for link in re.findall(r'href="([^"]+)"', summary):
        assert (out / unquote(link)).is_file()
    for result in results.values():
        page = (out / "feedback" / f"{result['extra_data']['id']}.html").read_text("utf-8")
        for text in (page, summary):
            assert "<script" not in text and "<b>bold" not in text
    assert "30 of 30 points" in (out / "feedback" / f"{results['Zoë Smith']['extra_data']['id']}.html").read_text(
        "utf-8"
    )


def test_feedback_goes_back_under_the_names_of_what_came(graded):
    """Canvas and Moodle find the student by the name of the file or of its folder."""
    out, results, _ = graded
    with zipfile.ZipFile(out / "feedback.zip") as archive:
        for name in ("Zoë Smith_11_assignsubmission_file_/hw.html", "late_LATE_13_346_hw.html", "Pia/hw.html"):
            student = next(r["extra_data"] for r in results.values() if r["extra_data"]["file"].startswith(name[:-4]))
            assert archive.read(name) == (out / "feedback" / f"{student['id']}.html").read_bytes()
        assert len(archive.namelist()) == len(results)


def test_limits_can_be_changed_when_grading(homework, tmp_path, sandbox):  # noqa: F811
    """What was stopped is said to the student and to the instructor, and tried again with more time."""
    (tmp_path / "class").mkdir()
    slow = f"""{RIGHT}
quick, pause = typical_factor, [3]
def typical_factor(f):  # the first call in a process: far above the limit, as a busy grader may hear of it late
    import time
    time.sleep(pause.pop() if pause else 0)
    return quick(f)"""
    (tmp_path / "class" / "zoe.ipynb").write_text(notebook(slow))

    def points(**limits):
        (result,) = grade(tmp_path / "class", homework, tmp_path / "out", jobs=1, progress=False, **limits)
        return result["score"], result["output"]

    assert points(call_seconds=1) == (0, "chain-rule/typical_factor: took longer than 1 s and was stopped")
    assert "took longer than 1 s" in (tmp_path / "out" / "summary.html").read_text("utf-8")
    assert points(call_seconds=5, seconds=30) == (4, "")
    kept = tmp_path / "out" / "results" / "zoe" / "results.json"
    before = kept.stat().st_mtime_ns
    assert points(call_seconds=5, seconds=30) == (4, "") and kept.stat().st_mtime_ns == before
    assert points(call_seconds=5, seconds=30, again=True) == (4, "") and kept.stat().st_mtime_ns > before
    with pytest.raises(ValueError, match="call_seconds: got 0, expected 0.1 to 3,600"):
        points(call_seconds=0)


def test_folders_that_are_something_else_are_refused(graded, homework, tmp_path):
    """Nothing is graded that was written here, and no mark of another class stays beside the new ones."""
    out, _, folder = graded
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "new.ipynb").write_text(notebook(RIGHT))
    (tmp_path / "file").write_text("")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for submissions, where, said in (
        (tmp_path / "class", out, "results of 9 students who are not in this class"),
        (tmp_path / "class", tmp_path / "class" / "out", "in the folder of the submissions"),
        (tmp_path / "class", tmp_path / "file", "a file, expected a folder"),
        (homework, tmp_path / "out", "the assignment, expected what students handed in"),
    ):
        with pytest.raises(ValueError, match=said):
            grade(submissions, homework, where, level=1, jobs=1, progress=False)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert len(grade(tmp_path / "class", homework / "instructor", tmp_path / "out", jobs=1, progress=False)) == 1


def test_regrading_changes_nothing_and_an_interrupted_run_goes_on(graded, homework):
    out, _, folder = graded

    def picture():
        return {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    before = picture()
    grade(folder, homework, out, jobs=1, progress=False)
    assert picture() == before
    written = {p: p.stat().st_mtime_ns for p in out.rglob("results.json")}
    shutil.rmtree(next(iter(sorted(out.glob("results/*")))))
    grade(folder, homework, out, jobs=1, progress=False)
    assert picture() == before
    assert sum(p.stat().st_mtime_ns != written[p] for p in out.rglob("results.json")) == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_run_that_is_killed_goes_on(name, homework, tmp_path, sandbox):  # noqa: F811
    """By Ctrl-C or worse, in the middle of a class: what was graded is kept, and the end is as if nothing had been."""
    folder, out = tmp_path / "class", tmp_path / "grades"
    folder.mkdir()
    for i in range(12):
        (folder / f"student {i}.ipynb").write_text(notebook(RIGHT, "import time\ntime.sleep(0.5)"), "utf-8")
    command = [sys.executable, "-m", "vanishing.coursework", "grade", folder, "--assignment", homework, "--out", out]
    run = subprocess.Popen([*command, "--jobs", "2"], start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("results/*/results.json"))) < 3:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (os.kill if name == "SIGTERM" else os.killpg)(run.pid, getattr(signal, name))  # Ctrl-C reaches the workers, too
    said = run.communicate(timeout=30)[1]
    assert run.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130)
    assert name == "SIGKILL" or ("the same command goes on" in said and "Traceback" not in said)
    kept = {p: p.stat().st_mtime_ns for p in out.glob("results/*/results.json")}
    assert 3 <= len(kept) < 12 and not (out / "grades.csv").exists()
    again = grade(folder, homework, out, jobs=2, progress=False)
    assert len(again) == 12 and {r["score"] for r in again} == {4}
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    whole = grade(folder, homework, tmp_path / "whole", jobs=2, progress=False)
    assert whole == again and (tmp_path / "whole" / "grades.csv").read_bytes() == (out / "grades.csv").read_bytes()


def test_a_class_in_processes_and_on_a_cluster(graded, homework, tmp_path):
    _, results, folder = graded
    by_processes = grade(folder, homework, tmp_path / "a", jobs=2, progress=False)
    assert by_processes == list(results.values())
    from dask.distributed import Client, LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        with joblib.parallel_config("dask"):
            assert grade(folder, homework, tmp_path / "b", progress=False) == by_processes


def test_a_failure_of_the_grader_itself_does_not_stop_the_class(graded, homework, tmp_path, monkeypatch):
    _, results, folder = graded
    kept = grading.grade_notebook

    def fails(text, *rest):
        if "<script>" in text:
            raise RuntimeError("bug")
        return kept(text, *rest)

    monkeypatch.setattr(grading, "grade_notebook", fails)
    scores = {r["extra_data"]["student"]: r["score"] for r in grade(folder, homework, tmp_path, jobs=1, progress=False)}
    assert scores == {name: r["score"] for name, r in results.items()} | {"+Ада Лавлейс": 0}
    assert "NOT GRADED" in (tmp_path / "summary.html").read_text("utf-8")
    monkeypatch.setattr(grading, "grade_notebook", kept)
    assert list(results.values()) == grade(folder, homework, tmp_path, jobs=1, progress=False)


# ---------------------------------------------------------------- without a sandbox, and on Gradescope


def test_without_a_sandbox_it_refuses(homework, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.ipynb").write_text(notebook(RIGHT, "while True: pass"))
    with pytest.raises(SandboxError, match="apt install bubblewrap.*--trust"):
        try:
            grade(tmp_path / "class", homework, tmp_path / "out", jobs=1, progress=False)
        except SandboxError as error:
            raise SandboxError(" ".join(str(error).split())) from None
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["coursework", "grade", str(tmp_path / "class"), "--assignment", str(homework), "--out",
                                      str(tmp_path / "out"), "--jobs", "1", "--trust"])  # fmt: skip
    main()
    assert json.loads((tmp_path / "out" / "results" / "a" / "results.json").read_text())["score"] == 4
    assert "Graded without a full sandbox (trust)" in " ".join((tmp_path / "out" / "summary.html").read_text().split())


def test_one_sandbox_for_each_submission_where_inner_namespaces_are_forbidden(sandbox, monkeypatch):  # noqa: F811
    plain = Sandbox.__new__(Sandbox)
    plain.__dict__.update(kind="bubblewrap", limits=sandbox.limits, process=None, nested=False)
    for cells, got in (([RIGHT], 4), ([RIGHT, "import os\nos._exit(0)"], 4), (["while True: pass", RIGHT], 4)):
        rows, notes = grade_notebook(notebook(*cells), ASSIGNMENT | {"time": {"call_seconds": 3, "seconds": 9}}, plain)
        assert points(rows)[0] == got, notes
    plain.close()


@pytest.mark.parametrize("allowed", [True, False])
def test_gradescope(homework, tmp_path, sandbox, monkeypatch, allowed):  # noqa: F811
    """Its archive, unpacked as Gradescope does, grades a submission."""
    for folder in ("source", "submission", "results"):
        (tmp_path / folder).mkdir()
    with zipfile.ZipFile(homework / "instructor" / "gradescope.zip") as archive:
        assert {"setup.sh", "run_autograder", "instructor/assignment.json"} < set(archive.namelist())
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
        archive.extractall(tmp_path / "source")
    (tmp_path / "submission" / "My homework.ipynb").write_text(notebook(RIGHT))
    env = os.environ | {"PYTHONPATH": str(tmp_path / "source")}
    if not allowed:
        if os.getuid() != 0:
            pytest.skip("only root, as on Gradescope, can hand over to another user")
        env["PATH"] = ""
    command = [sys.executable, "-m", "vanishing.coursework", "gradescope", str(tmp_path)]
    subprocess.run(command, env=env, check=True, cwd=tmp_path, timeout=60)
    result = json.loads((tmp_path / "results" / "results.json").read_text())
    assert result["score"] == 4
    hidden = [t for t in result["tests"] if t.get("visibility") == "hidden"]
    assert bool(hidden) != allowed
    assert (tmp_path / "source").stat().st_mode & 0o77 == 0

    def outputs(*cells):
        (tmp_path / "submission" / "My homework.ipynb").write_text(notebook(*cells))
        subprocess.run(command, env=env, check=True, cwd=tmp_path, timeout=60)
        return [t["output"] for t in json.loads((tmp_path / "results" / "results.json").read_text())["tests"]]

    # The feedback has numbers in it. Who hands in again meets others, so there is nothing to collect.
    wrong = "import numpy as np\ndef typical_factor(f):\n    return np.mean(f, axis=-1)"
    first = outputs(wrong)
    assert first == outputs(wrong)
    assert first != outputs(wrong, "# once more")


def test_the_commands_of_the_guide_exist():
    text = (book.ROOT / "pages" / "instructors.md").read_text("utf-8")
    commands = re.findall(r"^python -m vanishing\.coursework (.+)$", text, re.M)
    assert [parser().parse_args(command.split()).command for command in commands] == ["assign", "grade"]
    known = {option for words in ("assign", "grade") for option in re.findall(r"--[a-z-]+", usage(words))}
    for command in re.findall(r"`(?:assign |grade )?(--[a-z-]+)", text):
        assert command in known
    for topic in TOPICS:
        assert f"/chapters/{topic}/lesson>" in text, f"the guide's table has no row for {topic}"


def usage(command):
    """The help of a command."""
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as told:
        parser().parse_args([command, "--help"])
    return told.getvalue()


def test_nothing_of_it_is_imported_with_the_library():
    code = "import sys, vanishing; print([m for m in sys.modules if 'coursework' in m or m == 'nbformat'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_cells_of_tables_are_no_formulas():
    assert [cell(v) for v in ("=1", " +1", "-1", "@x", "ok", -1)] == ["'=1", "' +1", "'-1", "'@x", "ok", -1]
