"""Building: caching that is never stale, failures that stop the build, interruptions that do no harm.

Each test edits a scratch copy of the book with three small pages, built by the real driver.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest

from conftest import ROOT

pytestmark = pytest.mark.xdist_group("build")

PAGE = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  name: python3
  display_name: Python 3
---

# {title}

Some words.

```{{code-cell}} ipython3
{code}
```
"""

TOC = "format: jb-book\nroot: index\nchapters:\n  - file: chapters/one\n  - file: chapters/two\n"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the book's machinery with two small pages that run and one that does not."""
    top = tmp_path_factory.mktemp("book")
    for name in ("_config.yml", "requirements.txt", "references.bib", "CITATION.cff"):
        shutil.copy(ROOT / name, top)
    for name in ("lib", "tools", "assets"):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    (top / "pages").mkdir()
    (top / "chapters").mkdir()
    (top / "_toc.yml").write_text(TOC)
    (top / "index.md").write_text("# Home\n")
    write(top, "one", "import vanishing.probe\nprint('one says', vanishing.probe.VALUE)")
    write(top, "two", "print('two')")
    (top / "lib" / "vanishing" / "probe.py").write_text("VALUE = 'first'\n")
    return top


def write(top, name, code, title="A page"):
    (top / "chapters" / f"{name}.md").write_text(PAGE.format(title=title, code=code))


def build(top, what="site"):
    return subprocess.run([sys.executable, top / "tools" / "book.py", what], capture_output=True, text=True)


def executed(run):
    return [line.split()[-1] for line in run.stdout.splitlines() if line.strip().startswith("[")]


def page(top, name):
    return (top / "_build" / "html" / "chapters" / f"{name}.html").read_text("utf-8")


def test_builds_edits_failures_and_interruptions(scratch):
    """One story, in the order in which a writer would live it (each step builds on the last)."""
    first = build(scratch)
    assert first.returncode == 0, first.stdout + first.stderr
    assert sorted(executed(first)) == ["chapters/one.md", "chapters/two.md"]
    assert "one says first" in page(scratch, "one")
    assert str(scratch / "_build" / "html" / "index.html") in first.stdout

    # Nothing changed: nothing runs, in under 4 seconds.
    started = time.perf_counter()
    again = build(scratch)
    assert again.returncode == 0 and executed(again) == []
    assert time.perf_counter() - started < 4

    # The prose of one page: at most that page runs, and the site shows the new words.
    path = scratch / "chapters" / "two.md"
    path.write_text(path.read_text().replace("Some words.", "Quite other words."))
    prose = build(scratch)
    assert prose.returncode == 0 and set(executed(prose)) <= {"chapters/two.md"}
    assert "Quite other words." in page(scratch, "two")

    # The library: whatever imports it runs again, and no old output stays.
    (scratch / "lib" / "vanishing" / "probe.py").write_text("VALUE = 'second'\n")
    library = build(scratch)
    assert library.returncode == 0 and "chapters/one.md" in executed(library)
    assert "one says second" in page(scratch, "one") and "one says first" not in page(scratch, "one")

    # A page that fails: its name, the cell, the traceback, exit code 1, and the old site stays.
    write(scratch, "two", "x = 41\nassert x == 42, 'the answer'")
    failed = build(scratch)
    assert failed.returncode == 1
    for word in ("FAILED", "chapters/two.md", "assert x == 42", "AssertionError", "the answer"):
        assert word in failed.stdout
    assert "Quite other words." in page(scratch, "two")

    # A warning of Sphinx is an error too.
    write(scratch, "two", "print('two')", title="A page with {ref}`no-such-label`")
    warned = build(scratch)
    assert warned.returncode == 1 and "no-such-label" in warned.stderr

    # Interrupted in mid-run, by Ctrl-C and by kill: the next build recovers.
    for how in (signal.SIGINT, signal.SIGKILL):
        write(scratch, "two", f"import time\ntime.sleep(600)  # {how}")
        process = subprocess.Popen([sys.executable, scratch / "tools" / "book.py"], stdout=subprocess.PIPE, text=True)
        assert "executing 1" in process.stdout.readline()
        time.sleep(3)
        process.send_signal(how)
        assert process.wait(timeout=10) != 0
        process.stdout.close()
        write(scratch, "two", f"print('recovered from {how}')")
        recovered = build(scratch)
        assert recovered.returncode == 0 and f"recovered from {how}" in page(scratch, "two"), recovered.stdout


def test_notebooks_install_the_package_only_where_it_is_missing(scratch, monkeypatch):
    """The first cell does nothing here; its command names the repository that the checkout came from."""
    import book

    for remote, command in [
        ("https://github.com/some/fork", "%pip install -q git+https://github.com/some/fork@notebooks"),
        (None, "raise ModuleNotFoundError"),
    ]:
        monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
        monkeypatch.setattr(book, "ROOT", scratch)
        subprocess.run(["git", "init", "-q"], cwd=scratch, check=True)
        subprocess.run(["git", "remote", "remove", "origin"], cwd=scratch, capture_output=True)
        if remote:
            subprocess.run(["git", "remote", "add", "origin", remote], cwd=scratch, check=True)
        assert book.install_command().startswith(command)
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    assert book.install_command() == "%pip install -q git+https://github.com/owner/name@notebooks"

    notebook = json.loads((ROOT / "notebooks" / "chapters" / "chain-rule" / "lesson.ipynb").read_text("utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    assert "find_spec" in first
    exec(first.replace("%pip", "assert False, "), {})  # would fail if it did anything where the package is present


def test_serve_answers_on_loopback_and_rebuilds_what_changes(scratch):
    """The page, then its new words after an edit, then an end on Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, scratch / "tools" / "book.py", "serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while "Serving" not in (line := process.stdout.readline()):
            assert line, "it ended before it served"
        url = f"http://127.0.0.1:{port}/chapters/one.html"
        assert "one says" in urlopen(url).read().decode()
        path = scratch / "chapters" / "one.md"
        path.write_text(path.read_text().replace("Some words.", "Words while it is served."))
        deadline = time.monotonic() + 90
        while "Words while it is served." not in urlopen(url).read().decode():
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        process.stdout.close()


def test_a_port_in_use_is_an_error_that_says_so(scratch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, scratch / "tools" / "book.py", "serve", "--port", port],
            capture_output=True, text=True, timeout=120, env=os.environ,
        )  # fmt: skip
    assert run.returncode == 1 and f"Port {port}" in run.stderr and "--port" in run.stderr


def test_the_installed_package_holds_all_that_a_notebook_needs(tmp_path):
    """A wheel, as pip builds it on Colab: the checks of the exercises and the ledger are in it, and it needs no checkout."""
    import zipfile

    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import vanishing as vg; print(vg.__file__);"
        "print(vg.check('chain-rule/critical_std', lambda n: n)); print(vg.ledger.registry()['claims']['C4']['says'])"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) in run.stdout and "chain-rule/critical_std: 0 of 6 points" in run.stdout


def test_workflows_and_citation_are_valid():
    """Against the published schemas, which check-jsonschema brings along."""
    for schema, files in {
        "vendor.github-workflows": sorted((ROOT / ".github" / "workflows").glob("*.yml")),
        "vendor.citation-file-format": [ROOT / "CITATION.cff"],
    }.items():
        run = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
