"""Run the published notebooks as readers do: python tools/tryout.py binder|colab

Publishes to a bare repository in a temporary folder, makes a fresh environment in which the
package is not installed, and runs every notebook from the branch: its first cell has to install
the package. It needs a package registry, and minutes; the weekly workflow runs it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import publish
import repository

# What differs on Colab from what pip would choose, as googlecolab/backend-info lists it.
COLAB = ["numpy==2.1.3", "ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel==6.17.1"]

RUN = """
import sys, time, nbformat
from nbclient import NotebookClient
for path in sys.argv[1:]:
    started = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    print(f"{time.perf_counter() - started:6.1f} s  {path}", flush=True)
"""


def reader(bare, url):
    """The variables of a reader without this checkout, for whom git and pip find `url` on disk."""
    env = os.environ | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{bare.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": url,
    }
    env.pop("PYTHONPATH", None)  # it would lead to this checkout's package
    return env


def run_notebooks(python, bare, folder, env):
    """Run every notebook of the branch with the kernel of that interpreter."""
    subprocess.run(["git", "clone", "-q", "--branch", publish.BRANCH, str(bare), str(folder)], check=True)
    subprocess.run([python, "-m", "ipykernel", "install", "--sys-prefix"], check=True, env=env, capture_output=True)
    missing = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vanishing') is not None)"
    subprocess.run([python, "-c", missing], check=True, env=env, cwd=folder)
    notebooks = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.ipynb"))
    subprocess.run([python, "-c", RUN, *notebooks], check=True, env=env, cwd=folder)


def versions(python):
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    return {p["name"]: p["version"] for p in json.loads(listed.stdout)}


def main(where):
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        bare = top / "published.git"
        publish.git("init", "-q", "--bare", str(bare))
        if not repository.find().url:
            os.environ["GITHUB_REPOSITORY"] = "example/book"
        publish.publish(str(bare))
        env = reader(bare, repository.find().url)
        venv.create(top / "fresh", with_pip=True)
        python = top / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
        binder = top / "binder"
        binder.mkdir()
        for name in ("requirements.txt", "constraints.txt"):
            text = publish.git("show", f"{publish.BRANCH}:binder/{name}", cwd=bare)
            (binder / name).write_text(text)
        if where == "colab":
            (binder / "constraints.txt").write_text("\n".join(COLAB))
        command = [python, "-m", "pip", "install", "-q", "-r", binder / "requirements.txt", "ipykernel", "nbclient"]
        subprocess.run(command, check=True, env=env)
        before = versions(python)
        print(f"Installed in {time.perf_counter() - started:.0f} s", flush=True)
        run_notebooks(python, bare, top / "notebooks", env)
        after = versions(python)
        moved = {name: (before.get(name), after[name]) for name in after if before.get(name) != after[name]}
        if set(moved) != {"vanishing"}:
            sys.exit(f"Installing the package moved others: {moved}")
    chosen = ", ".join(f"{name} {after[name]}" for name in ("numpy", "ipywidgets", "ipython", "ipykernel", "altair"))
    print(f"Every notebook ran with {chosen}, in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=["binder", "colab"])
    main(parser.parse_args().where)
