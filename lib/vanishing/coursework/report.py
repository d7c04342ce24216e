"""What is written when a class has been graded: a page for each student, tables, a summary."""

import csv
from collections import Counter

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
table { border-collapse: collapse; margin: 0 0 1.5rem; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
.bar { background: #3b6ea5; height: .8rem; display: inline-block; }
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
<p>A line that does not hold: run the check of that exercise in your notebook, which tells more.</p>
{% endblock %}
"""
SUMMARY = """\
{% extends "page" %}
{% block title %}{{ assignment.title }}: summary{% endblock %}
{% block body %}
<h1>{{ assignment.title }}</h1>
<p>{{ results|length }} students; median {{ "%g"|format(median) }} of {{ "%g"|format(possible) }} points.
{% if unsafe %}<strong>Graded without a full sandbox ({{ unsafe }}).</strong>{% endif %}</p>
<h2>Distribution</h2>
<table><thead><tr><th>points</th><th>students</th><th></th></tr></thead><tbody>
{% for label, count in bins %}<tr><td>{{ label }}</td><td>{{ count }}</td>
<td><span class="bar" style="width: {{ (300 * count / results|length)|round|int }}px"></span></td></tr>
{% endfor %}</tbody></table>
<h2>Pass rate of each property</h2>
<table><thead><tr><th>exercise</th><th>property</th><th>points</th><th>passed</th></tr></thead><tbody>
{% for name, says, points, rate in rates %}<tr><td>{{ name }}</td><td>{{ says }}</td>
<td>{{ "%g"|format(points) }}</td><td>{{ (100 * rate)|round|int }} %</td></tr>
{% endfor %}</tbody></table>
<h2>To look at</h2>
{% if not replaced and not noted %}<p>Nothing.</p>{% endif %}
<ul>
{% for s in replaced %}<li>{{ s.student|readable }} handed in more than once: <code>{{ s.member|readable }}</code> is older, and was not graded.</li>
{% endfor %}
{% for r in noted %}<li>{{ r.extra_data.student }} ({{ "%g"|format(r.score) }} points): {{ r.output }}</li>
{% endfor %}
</ul>
{% endblock %}
"""
PAGES = jinja2.Environment(
    loader=jinja2.DictLoader({"page": PAGE, "student": STUDENT, "summary": SUMMARY}), autoescape=True
)
PAGES.filters["readable"] = readable


def cell(value):
    """A cell of a table that no spreadsheet takes for a formula, whatever a student is called."""
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@") else value


def write_reports(out, assignment, results, replaced):
    """Write feedback pages, tables and the summary for the results of a class.

    Args:
        out: folder.
        assignment: as `grade.read_assignment` returns it.
        results: one dict a student, in Gradescope's format.
        replaced: older submissions of the same students.
    """
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    possible = sum(points for *_, points in assignment["points"])
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
    write_tables(out, assignment, results, possible)
    write_summary(out, assignment, results, replaced, possible)


def write_tables(out, assignment, results, possible):
    """grades.csv, and the tables that Canvas and Moodle import."""
    title, names = assignment["title"], assignment["exercises"]
    grades, canvas, moodle = [], [], []
    for result in results:
        who, by_exercise = result["extra_data"], Counter()
        for test in result["tests"]:
            by_exercise[test["extra_data"]["exercise"]] += test["score"]
        score, student, number = result["score"], cell(who["student"]), who["number"]
        grades.append([student, number, score, possible, *(by_exercise[name] for name in names), cell(who["file"])])
        canvas.append([student, number, "", "", "", score])
        moodle.append([f"Participant {number}" if number else "", student, score, possible, ""])
    tables = {
        "grades.csv": [["student", "number", "points", "of", *names, "file"], *grades],
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


def write_summary(out, assignment, results, replaced, possible):
    """summary.html, for the instructor."""
    scores = sorted(result["score"] for result in results)
    edges = [possible * i / 10 for i in range(11)]
    counts = Counter(min(int(10 * score / possible), 9) for score in scores)
    bins = [(f"{low:.3g} to {high:.3g}", counts[i]) for i, (low, high) in enumerate(zip(edges, edges[1:]))]
    passed = Counter(
        (t["extra_data"]["exercise"], t["extra_data"]["property"])
        for r in results for t in r["tests"] if t["score"] == t["max_score"]
    )  # fmt: skip
    rates = [(name, says, points, passed[name, says] / len(results)) for name, says, points in assignment["points"]]
    kinds = {result["extra_data"]["sandbox"] for result in results} - {"bubblewrap"}
    page = PAGES.get_template("summary").render(
        assignment=assignment, results=results, median=scores[len(scores) // 2], possible=possible, bins=bins,
        rates=rates, replaced=replaced, noted=[r for r in results if r["output"]], unsafe=", ".join(sorted(kinds)),
    )  # fmt: skip
    (out / "summary.html").write_text(page, "utf-8")
