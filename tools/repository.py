"""Where this checkout is published: all that the book knows of its repository, in one place.

From the CI's variables where there are some, else from the git remote `origin`, so that
a fork's site links to the fork. Two settings in the environment come before both:
BOOK_REMOTE names another remote, BOOK_URL the address at which the site will stand.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = "notebooks"  # the branch that tools/publish.py writes

# https://host/owner/name.git and its like; git@host:owner/name.git. A path on disk is neither.
URL = re.compile(r"(?:https?|ssh|git)://(?:[^@/]+@)?([^/:]+)(?::\d+)?/(.+?)(?:\.git)?/?")
SCP = re.compile(r"(?:[^@/:]+@)?([^/:]{2,}):(?!/)([^\\]+?)(?:\.git)?/?")


@dataclass(frozen=True)
class Repository:
    """Addresses; each is empty where it is not known."""

    url: str = ""  # https://github.com/owner/name
    branch: str = "main"  # the one that readers edit
    site: str = ""  # https://owner.github.io/name/

    @property
    def on_github(self):
        return self.url.startswith("https://github.com/")

    @property
    def slug(self):
        """owner/name"""
        return self.url.split("/", 3)[-1]


def web_address(remote):
    """The address of a remote in a browser: without user, password and port; "" for a path on disk."""
    found = URL.fullmatch(remote) or SCP.fullmatch(remote)
    return f"https://{found[1]}/{found[2]}" if found else ""


def pages_address(url):
    """Where GitHub Pages serves a repository's site."""
    if not url.startswith("https://github.com/"):
        return ""
    owner, name = url.split("/")[-2:]
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def find(root=ROOT, env=os.environ):
    """The repository of the checkout in `root`."""
    if name := env.get("GITHUB_REPOSITORY"):
        url = f"{env.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
    elif shutil.which("git"):
        command = ["git", "remote", "get-url", env.get("BOOK_REMOTE", "origin")]
        url = web_address(subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip())
    else:
        url = ""
    # On a pull request the current "branch" is a merge that nobody can edit.
    branch = env.get("GITHUB_BASE_REF") or (env.get("GITHUB_REF_TYPE") == "branch" and env.get("GITHUB_REF_NAME"))
    site = env.get("BOOK_URL") or pages_address(url)
    return Repository(url, branch or "main", site and site.rstrip("/") + "/")
