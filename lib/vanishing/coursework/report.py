"""What is written when a class has been graded: a page for each student, tables, a summary."""

import csv
import zipfile
from collections import Counter
from pathlib import PurePosixPath

import jinja2

from ..exercises import Feedback, Property
from .collect import readable

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{% block title %}{% endblock %}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, p, li { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0 0 1.5rem; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
td.number { white-space: nowrap; }
tbody th { padding-top: 1rem; }
.bar { background: #3b6ea5; height: .8rem; display: inline-block; max-width: 35vw; }
</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""
STUDENT = """\
{% extends "page" %}
{% block title %}{{ assignment.title }}: {{ student }}{% endblock %}
{% block body %}
<h1>{{ assignment.title }}</h1>
<p>{{ student }}: <strong>{{ "%g"|format(score) }} of {{ "%g"|format(possible) }} points</strong>.
The file was <code>{{ file }}</code>.</p>
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}
{% for feedback in exercises %}{{ feedback._repr_html_()|safe }}
{% endfor %}
{% if file.endswith(".ipynb") %}<p>For what does not hold, run the check of that exercise in your notebook: it tells more.</p>{% endif %}
{% endblock %}
"""
SUMMARY = """\
{% extends "page" %}
{% macro link(r) %}<a href="feedback/{{ r.extra_data.id|urlencode }}.html">{{ r.extra_data.student }}</a>{% endmacro %}
{% block title %}{{ assignment.title }}: summary{% endblock %}
{% block body %}
<h1>{{ assignment.title }}</h1>
<p>{{ results|length }} students; median {{ "%g"|format(median) }} of {{ "%g"|format(possible) }} points.
{% if unsafe %}<strong>Graded without a full sandbox ({{ unsafe }}).</strong>{% endif %}</p>
<h2>Distribution</h2>
<table><thead><tr><th>points</th><th>students</th><td></td></tr></thead><tbody>
{% for label, count in bins %}<tr><td class="number">{{ label }}</td><td>{{ count }}</td>
<td><span class="bar" style="width: {{ (12 * count / results|length)|round(2) }}rem"></span></td></tr>
{% endfor %}</tbody></table>
<h2>To look at</h2>
{% if not (left_out or noted or late) %}<p>Nothing.</p>{% endif %}
<ul>
{% if late %}<li>Late: {{ late|join(", ") }}.</li>{% endif %}
{% for file, why in left_out %}<li>Not looked at: <code>{{ file|readable }}</code> {{ why|readable }}.</li>
{% endfor %}
{% for r in noted %}<li>{{ link(r) }} ({{ "%g"|format(r.score) }} points): {{ r.output.splitlines()|join("; ") }}.</li>
{% endfor %}
</ul>
<h2>Pass rate of each property</h2>
<table><thead><tr><th>property</th><th>points</th><th>passed</th></tr></thead><tbody>
{% for name, group in rates %}<tr><th colspan="3">{{ name }}</th></tr>
{% for says, points, rate in group %}<tr><td>{{ says }}</td>
<td>{{ "%g"|format(points) }}</td><td class="number">{{ (100 * rate)|round|int }} %</td></tr>
{% endfor %}{% endfor %}</tbody></table>
<h2>Students</h2>
<table><thead><tr><th>student</th><th>points</th></tr></thead><tbody>
{% for r in results %}<tr><td>{{ link(r) }}</td><td class="number">{{ "%g"|format(r.score) }}</td></tr>
{% endfor %}</tbody></table>
{% endblock %}
"""
PAGES = jinja2.Environment(
    loader=jinja2.DictLoader({"page": PAGE, "student": STUDENT, "summary": SUMMARY}), autoescape=True
)
PAGES.filters["readable"] = readable


def cell(value):
    """A cell of a table that no spreadsheet takes for a formula, whatever a student is called."""
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@") else value


def write_reports(out, assignment, results, left_out):
    """Write feedback pages, tables and the summary for the results of a class.

    Args:
        out: folder.
        assignment: as `grade.read_assignment` returns it.
        results: one dict a student, in Gradescope's format.
        left_out: (file, why) of those that were not looked at.
    """
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    possible, pages = sum(points for *_, points in assignment["points"]), []
    for result in results:
        who = result["extra_data"]
        exercises = {}
        for test in result["tests"]:
            prop = Property(test["extra_data"]["property"], test["max_score"], None)
            rows = exercises.setdefault(test["extra_data"]["exercise"], [])
            rows.append((prop, "" if test["score"] == test["max_score"] else test["output"]))
        page = PAGES.get_template("student").render(
            assignment=assignment, student=who["student"], file=who["file"], score=result["score"], possible=possible,
            notes=result["output"].splitlines(), exercises=[Feedback(*item) for item in exercises.items()],
        )  # fmt: skip
        (out / "feedback" / f"{who['id']}.html").write_text(page, "utf-8")
        pages.append((who["file"], page))
    write_archive(out / "feedback.zip", pages)
    write_tables(out, assignment, results, possible)
    write_summary(out, assignment, results, left_out, possible)


def write_archive(path, pages):
    """The feedback pages under the names of what was handed in, by which Canvas and Moodle find the student.

    Canvas reads name_user_attachment (`generate_comments_from_files` of its app/models/assignment.rb), Moodle
    name_participant_assignsubmission_file (mod/assign/feedback/file/importziplib.php).
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, page in pages:
            name = f"{file}feedback.html" if file.endswith("/") else str(PurePosixPath(file).with_suffix(".html"))
            archive.writestr(zipfile.ZipInfo(name), page, zipfile.ZIP_DEFLATED)  # the same pages are the same archive


def write_tables(out, assignment, results, possible):
    """grades.csv, and the tables that Canvas and Moodle import."""
    title, names = assignment["title"], assignment["exercises"]
    grades, canvas, moodle = [], [], []
    for result in results:
        who, by_exercise = result["extra_data"], Counter()
        for test in result["tests"]:
            by_exercise[test["extra_data"]["exercise"]] += test["score"]
        score, student, number = result["score"], cell(who["student"]), who["number"]
        late = "late" if who["late"] else ""
        grades.append([student, number, score, possible, *(by_exercise[n] for n in names), late, cell(who["file"])])
        canvas.append([student, number if who["system"] == "canvas" else "", "", "", "", score])
        participant = f"Participant {number}" if who["system"] == "moodle" else ""
        moodle.append([participant, student, score, possible, ""])
    tables = {
        "grades.csv": [["student", "number", "points", "of", *names, "late", "file"], *grades],
        # The columns of Canvas's gradebook, in its order; it finds a student by ID, else by name:
        # https://github.com/instructure/canvas-lms/blob/master/lib/gradebook_importer.rb
        "canvas.csv": [
            ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", cell(title)],
            ["    Points Possible", "", "", "", "", possible],
            *canvas,
        ],
        # What Moodle's import of a grading worksheet asks for: "Identifier", "Grade", "Last modified (grade)".
        # https://github.com/moodle/moodle/blob/main/mod/assign/feedback/offline/importgradeslib.php
        "moodle.csv": [["Identifier", "Full name", "Grade", "Maximum grade", "Last modified (grade)"], *moodle],
    }
    for name, rows in tables.items():
        with open(out / name, "w", newline="", encoding="utf-8-sig" if name == "grades.csv" else "utf-8") as file:
            csv.writer(file).writerows(rows)


def write_summary(out, assignment, results, left_out, possible):
    """summary.html, for the instructor."""
    scores, width = sorted(result["score"] for result in results), max(-(-possible // 10), 1)
    counts = Counter(min(score, possible - 1) // width for score in scores)
    bins = []
    for i, low in enumerate(range(0, int(possible), int(width))):
        high = low + width - 1 if low + width < possible else possible
        bins.append((f"{low} to {high:g}" if high > low else f"{low}", counts[i]))
    passed = Counter(
        (t["extra_data"]["exercise"], t["extra_data"]["property"])
        for r in results for t in r["tests"] if t["score"] == t["max_score"]
    )  # fmt: skip
    rates = {name: [] for name in assignment["exercises"]}
    for name, says, points in assignment["points"]:
        rates[name].append((says, points, passed[name, says] / len(results)))
    kinds = {result["extra_data"]["sandbox"] for result in results} - {"bubblewrap"}
    page = PAGES.get_template("summary").render(
        assignment=assignment, results=results, median=scores[len(scores) // 2], possible=possible, bins=bins,
        rates=rates.items(), left_out=left_out, noted=[r for r in results if r["output"]],
        late=[r["extra_data"]["student"] for r in results if r["extra_data"]["late"]],
        unsafe=", ".join(sorted(kinds)),
    )  # fmt: skip
    (out / "summary.html").write_text(page, "utf-8")
