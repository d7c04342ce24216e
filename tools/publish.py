"""Publish the notebooks: python tools/publish.py [REMOTE]  (a name, an address or a path; default: origin)

Writes one commit to the remote's branch `notebooks`, from a temporary clone; this checkout stays
as it is. The branch holds

    index.ipynb, chapters/, pages/   the notebooks, in the folders that their pages have here
    binder/                          what Binder installs: the pins of requirements.txt
    pyproject.toml, lib/             the package, for `pip install git+ADDRESS@notebooks`

so that a notebook, its package and its environment come from one commit. The history is kept:
it is small, as notebooks carry no outputs; nobody's clone breaks; and what a class has opened
in spring can still be found in autumn.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import book
import repository

ROOT = Path(__file__).resolve().parent.parent
BRANCH = repository.NOTEBOOKS
PYTHON = "3.12"  # Binder's

README = """\
# Vanishing Gradients: the notebooks

Written by `tools/publish.py`; what is changed here is lost at the next publication.
The pages are edited in the branch `{branch}`. `binder/` and `lib/` are there so that a notebook finds
what it needs: Binder installs it by itself, elsewhere the first cell does.
"""


def git(*arguments, cwd=ROOT):
    run = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"git {' '.join(arguments)} failed:\n{run.stderr.strip()}")
    return run.stdout.strip()


def address(remote):
    """What git pushes to: the address of a remote by that name, or `remote` itself."""
    if remote in git("remote").split():
        return git("remote", "get-url", "--push", remote)
    if Path(remote).exists():
        return str(Path(remote).resolve())
    if not repository.web_address(remote):
        sys.exit(f"There is no remote `{remote}`: name another one, or add it (git remote add {remote} ADDRESS)")
    return remote


def fill(folder):
    """Everything that the branch holds, from the last commit and from notebooks/."""
    shutil.copytree(book.NOTEBOOKS, folder, dirs_exist_ok=True)
    # The package. Its exercises' checks are in the chapters' text, which would lie between the notebooks.
    with tempfile.TemporaryDirectory() as temporary:
        archive, source = f"{temporary}/source.zip", f"{temporary}/source"
        git("archive", "-o", archive, "HEAD", "lib", "chapters", "pyproject.toml", "LICENSE", "LICENSE-prose")
        shutil.unpack_archive(archive, source)
        shutil.move(f"{source}/chapters", f"{source}/lib/chapters")
        shutil.copytree(source, folder, dirs_exist_ok=True)
    project = folder / "pyproject.toml"
    before = project.read_text("utf-8")
    after = before.replace('"chapters" = ', '"lib/chapters" = ')
    assert after != before, "pyproject.toml no longer says where the chapters go"
    project.write_text(after, "utf-8")

    binder = folder / "binder"
    binder.mkdir()
    (binder / "runtime.txt").write_text(f"python-{PYTHON}\n")
    # Of the pins pip takes those that the package needs, directly or not.
    shutil.copy(ROOT / "requirements.txt", binder / "constraints.txt")
    needs = tomllib.loads(before)["project"]["dependencies"]
    (binder / "requirements.txt").write_text("\n".join(["-c constraints.txt", *needs]) + "\n")
    (binder / "postBuild").write_text("#!/bin/sh\nexec python -m pip install --no-deps .\n")
    (binder / "postBuild").chmod(0o755)
    (folder / "README.md").write_text(README.format(branch=repository.find(ROOT).branch), "utf-8")


def publish(remote):
    if git("status", "--porcelain"):
        sys.exit("The checkout has changes that are in no commit: commit or stash them, then publish")
    target = address(remote)
    os.environ.setdefault("BOOK_REMOTE", remote)  # the notebooks install from where they are published
    book.build()
    if not repository.find(ROOT).url:
        print(f"{target} has no address on the web: the notebooks will ask for the package to be installed by hand")

    commit, author, email = git("log", "-1", "--format=%h%n%an%n%ae").split("\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "branch"
        if git("ls-remote", "--heads", target, BRANCH):
            git("clone", "-q", "--single-branch", "--branch", BRANCH, target, str(folder))
            git("rm", "-rfq", ".", cwd=folder)
        else:
            git("init", "-q", "-b", BRANCH, str(folder))
        fill(folder)
        git("add", "--all", "--force", ".", cwd=folder)
        if not git("status", "--porcelain", cwd=folder):
            print(f"The branch `{BRANCH}` of {target} is as it should be")
            return
        who = ["-c", f"user.name={author}", "-c", f"user.email={email}"]
        git(*who, "commit", "-qm", f"The notebooks of {commit}", cwd=folder)
        git("push", "-q", target, BRANCH, cwd=folder)
    print(f"Published the notebooks of {commit} on the branch `{BRANCH}` of {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("remote", nargs="?", default="origin")
    publish(parser.parse_args().remote)
