"""Found and launched: links that follow from the repository, the published branch, the PDF's joined page."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy
import pytest
from docutils import nodes
from lxml import html
from sphinx import addnodes

import launch
import pdf
import repository
import tryout
from browser import in_browser
from conftest import ROOT
from repository import Repository

FORK = Repository("https://github.com/some/fork", "main", "https://some.github.io/fork/")


@pytest.mark.parametrize(
    "remote, address",
    [
        ("https://github.com/some/fork.git", "https://github.com/some/fork"),
        ("https://github.com/some/fork/", "https://github.com/some/fork"),
        ("https://user:secret@github.com/some/fork", "https://github.com/some/fork"),
        ("git@github.com:some/fork.git", "https://github.com/some/fork"),
        ("ssh://git@gitlab.com:2222/group/sub/book.git", "https://gitlab.com/group/sub/book"),
        ("/srv/git/book.git", ""),
        ("../book.git", ""),
        ("file:///srv/git/book.git", ""),
        ("C:\\git\\book", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_remote(remote, address):
    assert repository.web_address(remote) == address


def test_the_repository_comes_from_the_variables_or_the_remote(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert repository.find(tmp_path, {}) == Repository("", "main", "")
    subprocess.run(["git", "remote", "add", "origin", "git@github.com:some/fork.git"], cwd=tmp_path, check=True)
    assert repository.find(tmp_path, {}) == FORK
    assert repository.find(tmp_path, {"BOOK_URL": "https://book.org"}).site == "https://book.org/"
    github = {"GITHUB_REPOSITORY": "Me/me.github.io", "GITHUB_REF_TYPE": "branch", "GITHUB_REF_NAME": "trunk"}
    assert repository.find(tmp_path, github) == Repository(
        "https://github.com/Me/me.github.io", "trunk", "https://me.github.io/"
    )
    assert repository.find(tmp_path, github | {"GITHUB_BASE_REF": "main"}).branch == "main"


def test_links_are_left_out_where_they_would_be_broken():
    words = lambda links: [word for word, _ in links]  # noqa: E731
    gitlab, nowhere = Repository("https://gitlab.com/a/b"), Repository()
    assert words(launch.run_links(FORK, "index")) == ["Colab", "Binder"]
    assert launch.run_links(gitlab, "index") == [
        (
            "Binder",
            "https://mybinder.org/v2/git/https%3A%2F%2Fgitlab.com%2Fa%2Fb/notebooks?urlpath=lab%2Ftree%2Findex.ipynb",
        )
    ]
    assert launch.run_links(nowhere, "index") == []
    assert launch.mend_links(nowhere, "index", "Home") == launch.mend_links(gitlab, "index", "Home") == []


def test_every_page_with_a_notebook_offers_it(site):
    """And the others do not; each page can be cited."""
    notebooks = {path.relative_to(site / "notebooks").with_suffix("") for path in site.rglob("*.ipynb")}
    assert notebooks
    for page in [*site.glob("index.html"), *site.glob("chapters/**/*.html"), *site.glob("pages/*.html")]:
        tree = html.parse(str(page)).getroot()
        offered = [a.get("href") for a in tree.xpath("//nav[@class='launch']/a[@download]")]
        assert bool(offered) == (page.relative_to(site).with_suffix("") in notebooks), page
        assert all((page.parent / href).is_file() for href in offered)
        (bibtex,) = tree.xpath("//footer[@class='page-foot']//pre")
        assert "howpublished = {In: Vanishing Gradients" in bibtex.text


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A fork with one chapter: its checkout, and a function that runs one of its tools."""
    top = tmp_path_factory.mktemp("fork")
    for name in ("lib", "tools", "assets"):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "requirements.txt", "references.bib", "CITATION.cff", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, top)
    for name in ("LICENSE", "LICENSE-prose"):
        shutil.copy(ROOT / name, top)
    (top / "chapters" / "chain-rule").mkdir(parents=True)
    shutil.copy(ROOT / "chapters" / "chain-rule" / "exercises.md", top / "chapters" / "chain-rule")
    (top / "index.md").write_text("# Home\n\n`pip install git+https://github.com/OWNER/REPOSITORY`\n")
    (top / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n  - file: chapters/chain-rule/exercises\n")
    env = os.environ | {"GITHUB_REPOSITORY": "some/fork"}
    for name in ("GITHUB_SERVER_URL", "GITHUB_REF_TYPE", "GITHUB_BASE_REF", "BOOK_URL", "BOOK_REMOTE", "PYTHONPATH"):
        env.pop(name, None)
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=top, check=True)
    commit(top)

    def tool(name, *arguments):
        command = [sys.executable, top / "tools" / name, *arguments]
        return subprocess.run(command, cwd=top, env=env, capture_output=True, text=True)

    return top, tool


def commit(top):
    who = ["-c", "user.name=A Writer", "-c", "user.email=writer@example.org"]
    subprocess.run(["git", "add", "."], cwd=top, check=True)
    subprocess.run(["git", *who, "commit", "-qm", "A change"], cwd=top, check=True)


def branch(bare, *arguments):
    return subprocess.run(["git", *arguments], cwd=bare, check=True, capture_output=True, text=True).stdout


@pytest.mark.xdist_group("publish")
def test_a_forks_site_leads_to_the_fork(fork):
    top, tool = fork
    run = tool("book.py", "archive")
    assert run.returncode == 0, run.stdout + run.stderr
    built = top / "_build" / "html"
    page = html.parse(str(built / "chapters" / "chain-rule" / "exercises.html")).getroot()
    links = {a.text_content(): a.get("href") for a in page.iter("a")}
    path = "chapters/chain-rule/exercises"
    assert links["Colab"] == f"https://colab.research.google.com/github/some/fork/blob/notebooks/{path}.ipynb"
    assert links["Binder"].startswith("https://mybinder.org/v2/gh/some/fork/notebooks?urlpath=lab%2Ftree%2Fchapters")
    assert links["Edit this page"] == f"https://github.com/some/fork/edit/main/{path}.md"
    assert links["Report a mistake"].startswith("https://github.com/some/fork/issues/new?title=Exercises")
    assert f"url = {{{FORK.site}{path}.html}}" in page.text_content()
    assert "git+https://github.com/some/fork<" in (built / "index.html").read_text("utf-8")

    # Found: the canonical address, the preview and its card, the sitemap, the page for a wrong address.
    assert page.xpath("//link[@rel='canonical']/@href") == [f"{FORK.site}{path}.html"]
    (card,) = page.xpath("//meta[@property='og:image']/@content")
    assert (built / card.removeprefix(FORK.site)).is_file() and card.startswith(FORK.site)
    assert page.xpath("//meta[@property='og:site_name']/@content") == ["Vanishing Gradients"]
    places = [loc.text for loc in ElementTree.parse(built / "sitemap.xml").iter() if loc.tag.endswith("loc")]
    assert places == [f"{FORK.site}{path}.html", f"{FORK.site}index.html"]
    wrong = html.parse(str(built / "404.html")).getroot()
    own = [url for url in wrong.xpath("//@href | //@src") if url.startswith("/")]
    names = {url.partition("?")[0].rsplit("/", 1)[-1] for url in own}
    assert names >= {"site.css", "site.js", "favicon.svg", "search.html", "index.html"}
    for url in own:
        assert url.startswith("/fork/") and (built / url.removeprefix("/fork/").partition("?")[0]).exists(), url

    shutil.unpack_archive(top / "_build" / "vanishing-gradients-site.zip", top / "_build" / "unpacked")
    assert (top / "_build" / "unpacked" / "html" / "notebooks" / "index.ipynb").is_file()


@pytest.mark.xdist_group("publish")
def test_publishing_and_running_what_was_published(fork, tmp_path):
    """To a bare repository; then a reader without the package opens the notebook, and its first cell installs it."""
    top, tool = fork
    bare = tmp_path / "published.git"
    subprocess.run(["git", "init", "-q", "--bare", bare], check=True)

    missing = tool("publish.py")
    assert missing.returncode == 1 and "no remote `origin`" in missing.stderr
    subprocess.run(["git", "remote", "add", "origin", bare], cwd=top, check=True)
    (top / "LICENSE").write_text("Another license")
    dirty = tool("publish.py")
    assert dirty.returncode == 1 and "commit or stash" in dirty.stderr
    commit(top)

    before = (branch(top, "rev-parse", "HEAD"), branch(top, "branch", "--all"))
    run = tool("publish.py")
    assert run.returncode == 0, run.stdout + run.stderr
    files = branch(bare, "ls-tree", "-r", "--name-only", "notebooks").split()
    assert {"index.ipynb", "chapters/chain-rule/exercises.ipynb", "lib/vanishing/chain_rule.py", "README.md"} <= set(
        files
    )
    assert {"binder/requirements.txt", "binder/constraints.txt", "binder/runtime.txt", "binder/postBuild"} <= set(files)
    assert "chapters/chain-rule/exercises.md" not in files  # it holds the solutions
    needs = branch(bare, "show", "notebooks:binder/requirements.txt").split()
    pins = {line.split("==")[0] for line in branch(bare, "show", "notebooks:binder/constraints.txt").split("\n")}
    assert needs[:2] == ["-c", "constraints.txt"] and {need.split(">")[0] for need in needs[2:]} <= pins
    assert "100755" in branch(bare, "ls-tree", "notebooks", "binder/postBuild")
    assert branch(bare, "log", "--format=%an: %s", "notebooks").startswith("A Writer: The notebooks of ")

    # Once more changes nothing; a change adds one commit.
    assert "as it should be" in tool("publish.py").stdout
    (top / "LICENSE").write_text("A third license")
    commit(top)
    assert tool("publish.py").returncode == 0
    assert branch(bare, "rev-list", "--count", "notebooks").strip() == "2"
    assert branch(bare, "show", "notebooks:LICENSE") == "A third license"
    assert branch(top, "status", "--porcelain") == "" and branch(top, "branch", "--all") == before[1]

    # A reader: the libraries are there, the package is not, and pip asks no one but the repository.
    venv.create(tmp_path / "reader")
    (place,) = (tmp_path / "reader").rglob("site-packages")
    for entry in Path(numpy.__file__).parent.parent.iterdir():
        if "vanishing" not in entry.name:
            (place / entry.name).symlink_to(entry)
    env = tryout.reader(bare, FORK.url) | {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    python = tmp_path / "reader" / "bin" / "python"
    tryout.run_notebooks(python, bare, tmp_path / "notebooks", env)
    found = subprocess.run(
        [python, "-c", "import vanishing; print(vanishing.__file__)"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(str(place)), found


@in_browser
@pytest.mark.xdist_group("publish")
def test_the_book_as_a_pdf(fork):
    """Pages, an outline, a tagged structure, text, and links within the document and out of it."""
    from pypdf import PdfReader

    top, tool = fork
    run = tool("pdf.py")
    assert run.returncode == 0, run.stdout + run.stderr
    book = PdfReader(top / "_build" / "vanishing-gradients.pdf")
    titles = [entry["/Title"] for entry in flat(book.outline)]
    assert "Exercises: Products of factors" in titles and len(titles) > 5
    assert book.trailer["/Root"]["/MarkInfo"]["/Marked"]
    width, height = (float(x) for x in book.pages[0].mediabox[2:])
    assert abs(width - 595.3) < 1 and abs(height - 841.9) < 1  # A4
    text = "".join(page.extract_text() for page in book.pages)
    assert "Contents" in text and "Solution" in text and "Download notebook" not in text
    notes = [note.get_object() for page in book.pages for note in page.get("/Annots", [])]
    assert any("/Dest" in note for note in notes)
    assert {note["/A"]["/URI"] for note in notes if "/A" in note} >= {FORK.site}


def flat(outline):
    for entry in outline:
        yield from flat(entry) if isinstance(entry, list) else [entry]


def test_a_joined_page_keeps_its_links_apart():
    """Two pages have a section of one name; a link to each finds its own."""
    pages = []
    for name in ("chapters/a/exercises", "chapters/b/exercises"):
        section = nodes.section("", nodes.title("", "Exercises"), ids=["exercises"])
        section += nodes.reference("", "here", refid="exercises")
        page = addnodes.start_of_file("", docname=name)
        page += section
        pages.append(page)
    elsewhere = nodes.reference("", "there", refuri="#document-chapters/b/exercises#exercises")
    document = nodes.section("", elsewhere, *pages)
    pdf.tell_apart(SimpleNamespace(builder=SimpleNamespace(name="singlehtml")), document, "index")
    assert [s["ids"] for s in document.findall(nodes.section)][1:] == [
        ["chapters-a-exercises-exercises"],
        ["chapters-b-exercises-exercises"],
    ]
    links = [r.get("refid") or r["refuri"].split("#")[-1] for r in document.findall(nodes.reference)]
    assert links == [
        "chapters-b-exercises-exercises",
        "chapters-a-exercises-exercises",
        "chapters-b-exercises-exercises",
    ]
