"""Handing out: from the exercises of some chapters to the notebooks and files of an assignment."""

import ast
import csv
import json
import re
import secrets
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from .. import exercises
from .grade import checked_limits, points_table
from .report import cell

INTRODUCTION = """\
# {title}

{count} exercises, {points:g} points. Write each function where it says so, run the cell, and run the check under it: it tries your function on new random inputs each time and says what to look at. Grading uses the same checks on other inputs.

- Keep the names of the functions. Cells may be added; what a function needs must be in the notebook.
- Use Python, NumPy and SciPy. Other imports are not there while your notebook is graded, nor are files, the network and `vanishing` itself.
- A cell, and a call of a function, may take {call_seconds:g} seconds; all of them together {seconds:g}.
- "The lesson" and "the lab" are those of the chapter in the book *Vanishing Gradients*.
- Hand in this one file, as a notebook (`.ipynb`), under your own name.
"""

README = """\
# {title}: how to work on it and hand it in

1. Open `{name}.ipynb` in JupyterLab, VS Code, or Colab (File, Upload notebook).
2. Run the first cell. {how}
3. Write each function where it says `# write your code here`. The table under it says what holds and what to look at.
4. Before you hand in: Kernel, Restart and run all. What does not run there does not run when it is graded.
5. Hand in the notebook file, unless you were told otherwise as `Your Name.ipynb`.

Partial credit is given for each line of a table. Grading tries the same properties on inputs that nobody has seen.
"""

INSTALL = """\
# Where the package with the checks is missing (on Colab, say); elsewhere this does nothing.
import importlib.util

if importlib.util.find_spec("vanishing") is None:
    {install}"""

DIRECTIVE = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<title>[^\n]*)\n"
                       r"(?P<options>(?::[\w-]+:[^\n]*\n)*)(?P<body>.*?)^(?P=fence)[ \t]*$", re.M | re.S)  # fmt: skip
BOXES = ("admonition", "attention", "dropdown", "hint", "important", "note", "seealso", "tip", "warning")


def plain_markdown(text, answers=True):
    """MyST Markdown as exercises use it, in Markdown that every notebook shows; without folded answers, if so asked.

    Raises:
        ValueError: a directive or role without a plain form.
    """

    def box(match):
        if match["name"] == "dropdown" and not answers:
            return ""
        if match["name"] not in BOXES:
            raise ValueError(f"got the directive {match['name']!r}, which has no form in a notebook of an assignment")
        title = match["title"] or match["name"].capitalize()
        return "\n".join(f"> {line}".rstrip() for line in [f"**{title}**", "", *match["body"].strip().splitlines()])

    def role(match):
        name, label = match.groups()
        if name in ("ref", "doc", "numref", "term", "download"):
            return re.sub(r"\s*<[^>]*>$", "", label)
        if name == "math":
            return f"${label}$"
        if name.startswith("cite"):
            return f"({label})"
        raise ValueError(f"got the role {name!r}, which has no form in a notebook of an assignment")

    text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.M)  # targets of references
    text = re.sub(r"^\$\$[ \t]*\([\w-]+\)[ \t]*$", "$$", text, flags=re.M)  # labels of equations
    text = re.sub(r"\[([^\]\n]+)\]\((?!\w+:)[^)\n]*\)", r"\1", text)  # links to other pages of the book
    return re.sub(r"\{([\w:]+)\}`([^`]+)`", role, DIRECTIVE.sub(box, text)).strip()


def pieces(topic, answers=True):
    """A topic's exercises as [kind, source] in order: "markdown", "code", or "check", the hidden cells."""
    from markdown_it import MarkdownIt

    text = re.sub(r"\A---\n.*?\n---\n", "", exercises.source(topic), flags=re.S)
    lines, at, found = text.splitlines(keepends=True), 0, []
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.info.startswith("{code-cell}"):
            options, code = re.match(r"((?::[^\n]*\n)*)(.*)", token.content, re.S).groups()
            found.append(("markdown", plain_markdown("".join(lines[at : token.map[0]]), answers)))
            found.append(("check" if re.search(r"\bcheck\b", options) else "code", code.rstrip("\n")))
            at = token.map[1]
    found.append(("markdown", plain_markdown("".join(lines[at:]), answers)))
    return [(kind, source) for kind, source in found if source]


def functions(topic):
    """The names of all functions that a topic's notebook defines."""
    code = "\n".join(source for kind, source in pieces(topic) if kind == "code")
    return {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}


def notebook(assignment, solved):
    """The notebook of an assignment: for students, or with the solutions and what each check asks."""
    from nbformat import v4

    points = assignment["points"]
    install = 'raise ModuleNotFoundError("Ask your instructor how to install `vanishing`.")'
    if assignment["install"]:
        install = f"%pip install -q {assignment['install']}"
    cells = [
        v4.new_markdown_cell(
            INTRODUCTION.format(
                title=assignment["title"], count=len(assignment["exercises"]), points=sum(p for *_, p in points),
                **assignment["time"],
            )
        ),
        v4.new_code_cell(INSTALL.format(install=install)),
    ]  # fmt: skip
    for topic in assignment["topics"]:
        for kind, source in pieces(topic, answers=solved):
            if kind == "markdown":
                # The introduction of the page speaks of the book; the notebook has its own.
                source = re.sub(r"\A# Exercises: ([^\n]*)\n.*\Z", r"# \1", source, flags=re.S)
                cells.append(v4.new_markdown_cell(source))
            elif kind == "code":
                shown = re.sub(r"^[ \t]*### (BEGIN|END) SOLUTION[^\n]*\n?", "", source, flags=re.M).rstrip()
                cells.append(v4.new_code_cell(shown if solved else exercises.without_solution(source)))
                checked = re.search(r"vg\.check\(\"([^\"]+)\"", source)
                if solved and checked:
                    asks = [f"- {says} ({p:g})" for name, says, p in points if name == checked[1]]
                    cells.append(v4.new_markdown_cell("\n".join(["Points:", "", *asks])))
    for number, new in enumerate(cells):
        new["id"] = f"cell-{number}"  # not random: the same assignment is the same file
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return v4.new_notebook(cells=cells, metadata=kernel)


def origin():
    """What pip installed this package from, if others can install it from there, too."""
    try:
        found = json.loads(distribution("vanishing").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return ""
    return f"git+{found['url']}@{found['vcs_info']['commit_id']}" if "vcs_info" in found else ""


def assign(topics, out, *, title="", seed=None, install="", call_seconds=2, seconds=None):
    """Write an assignment: `student/` to hand out, `instructor/` to keep.

    Args:
        topics: chapters, such as ["softmax", "initialization"].
        out: a folder, which must not hold an assignment yet.
        title: by default made of the topics.
        seed: of the hidden inputs; by default a random one. Keep it secret: who knows it knows them.
        install: what pip installs where the package is missing, such as "git+https://..."; by default what was
            installed here, if it came from a repository.
        call_seconds: how long a cell or a call of a function may take when it is graded.
        seconds: how long a whole notebook may take, by default 10 for each topic.

    Returns:
        The assignment, a dict, as it is written to `instructor/assignment.json`.

    Raises:
        ValueError: a topic without exercises, two topics with functions of the same name, `out` is in use, or a limit
            or what to install is nonsense.
    """
    import nbformat

    out, seen = Path(out), {}
    for topic in topics:
        for name in functions(topic):
            if name in seen:
                raise ValueError(
                    f"topics: {seen[name]!r} and {topic!r} both define {name}, expected one assignment for each"
                )
            seen[name] = topic
    if re.search(r"[\s\"';]", install):
        raise ValueError(f"install: got {install!r}, expected one thing that pip installs, such as git+https://...")
    limits = {"call_seconds": call_seconds, "seconds": 10 * len(topics) if seconds is None else seconds}
    names = [name for topic in topics for name in exercises.names(topic)]
    assignment = {
        "title": title or f"Exercises: {', '.join(topics)}",
        "name": "-".join(topics),
        "topics": list(topics),
        "exercises": names,
        "points": points_table(names),
        "seed": secrets.randbits(64) if seed is None else seed,
        "time": checked_limits(limits),
        "install": install or origin(),
    }
    if (out / "instructor" / "assignment.json").exists():
        raise ValueError(f"out: got {str(out)!r}, which holds an assignment, expected a new folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {str(out)!r}, a file, expected a new folder")
    (out / "student").mkdir(parents=True, exist_ok=True)
    (out / "instructor").mkdir(exist_ok=True)
    student, solved = (notebook(assignment, solved) for solved in (False, True))
    nbformat.write(student, out / "student" / f"{assignment['name']}.ipynb")
    nbformat.write(solved, out / "instructor" / f"{assignment['name']}-solutions.ipynb")
    how = "It needs the package `vanishing`, which holds the checks: ask how to install it."
    if assignment["install"]:
        how = f"It installs the package `vanishing`, which holds the checks, where it is missing ({assignment['install']})."
    (out / "student" / "README.md").write_text(README.format(**assignment, how=how), "utf-8")
    with open(out / "instructor" / "points.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["exercise", "property", "points"], *([*map(cell, row)] for row in assignment["points"])]
        )
    gradescope_archive(assignment, out / "instructor" / "gradescope.zip")
    (out / "instructor" / "assignment.json").write_text(json.dumps(assignment, indent=1), "utf-8")
    return assignment


# What Gradescope builds a container with, and what it runs there for each submission; both must lie in the root
# of the archive: https://gradescope-autograders.readthedocs.io/en/latest/specs/
SETUP = """\
#!/usr/bin/env bash
# Builds the container: bubblewrap, and a Python that is new enough, in a place that every user may read.
set -euo pipefail
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap python3-pip python3-venv >/dev/null
python3 -m venv /opt/uv
/opt/uv/bin/pip install --quiet uv
export UV_PYTHON_INSTALL_DIR=/opt/python
/opt/uv/bin/uv venv --quiet --python 3.12 /opt/grader
/opt/uv/bin/uv pip install --quiet --python /opt/grader/bin/python -r /autograder/source/requirements.txt
"""
RUN = """\
#!/usr/bin/env bash
# Grades the one submission in /autograder/submission and writes /autograder/results/results.json.
PYTHONPATH=/autograder/source exec /opt/grader/bin/python -m vanishing.coursework gradescope /autograder
"""
NEEDS = "numpy\nscipy\nmarkdown-it-py\njoblib\nthreadpoolctl\njinja2\n"


def gradescope_archive(assignment, path):
    """The autograder that Gradescope takes: two scripts, the package with the checks, the assignment."""
    package = files("vanishing")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name, text, mode=0o644):
            entry = zipfile.ZipInfo(name)  # its date is fixed: the same assignment is the same archive
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)

        add("setup.sh", SETUP, 0o755)
        add("run_autograder", RUN, 0o755)
        add("requirements.txt", NEEDS)
        add("instructor/assignment.json", json.dumps(assignment, indent=1))
        for file in sorted(Path(str(package)).rglob("*.[pt]*")):
            if file.suffix in (".py", ".toml"):
                add(f"vanishing/{file.relative_to(str(package)).as_posix()}", file.read_text("utf-8"))
        for topic in assignment["topics"]:
            add(f"vanishing/chapters/{topic}/exercises.md", exercises.source(topic))
