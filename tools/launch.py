"""How a page is found, run, mended and cited: links on the page, and what search engines and link previews read.

Everything is derived from the repository that the checkout came from (tools/repository.py).
What needs an address that is not known is left out.
"""

import re
from pathlib import Path
from urllib.parse import quote, urlparse
from xml.sax.saxutils import escape

import yaml

import book
import repository

ROOT = Path(__file__).resolve().parent.parent


def run_links(repo, page):
    """Where a page's notebook runs: (words, address) pairs."""
    path = quote(f"{page}.ipynb")
    links = []
    if repo.on_github:  # Colab opens notebooks from there only
        links.append(
            ("Colab", f"https://colab.research.google.com/github/{repo.slug}/blob/{repository.NOTEBOOKS}/{path}")
        )
    if repo.url:
        place = f"gh/{repo.slug}" if repo.on_github else f"git/{quote(repo.url, safe='')}"
        tree = quote(f"lab/tree/{path}", safe="")
        links.append(("Binder", f"https://mybinder.org/v2/{place}/{repository.NOTEBOOKS}?urlpath={tree}"))
    return links


def mend_links(repo, page, title):
    """Where a reader changes a page, or says what is wrong with it."""
    if not repo.on_github:  # each host has paths of its own
        return []
    edit = f"{repo.url}/edit/{quote(repo.branch)}/{quote(page)}.md"
    issue = f"{repo.url}/issues/new?title={quote(f'{title} ({page}): ')}"
    return [("Edit this page", edit), ("Report a mistake", issue)]


def citation(cff, site, page, title):
    """The page as BibTeX, with the book's data from CITATION.cff."""
    plain = re.sub(r"([&%#_])", r"\\\1", title)
    names = (a.get("name") or f"{a['family-names']}, {a['given-names']}" for a in cff["authors"])
    fields = {
        "author": " and ".join(f"{{{name}}}" for name in names),
        "title": f"{{{plain}}}",
        "howpublished": f"In: {cff['title']}, version {cff['version']}",
        "year": str(cff["date-released"])[:4],
    }
    if site:
        fields["url"] = f"{site}{page}.html"
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@misc{{vanishing-gradients:{page.removeprefix('chapters/').replace('/', '-')},\n{lines}}}"


def add_links(app, page, template, context, doctree):
    """A row of links above the page's text, and one below it."""
    if doctree is None or app.builder.name != "html":
        return
    repo = app.config.book_repository
    names = [parent["title"] for parent in context["parents"]] + [context["title"]]
    title = ": ".join(re.sub("<.*?>", "", name) for name in names)  # "Exercises" alone says little
    links = []
    if page in app.config.book_notebooks:
        # From the page's folder to the copy beside the site; it works from file:// too.
        own = "../" * page.count("/") + f"notebooks/{page}.ipynb"
        links = [*run_links(repo, page), ("Download notebook", own)]
    context["launch"], context["mend"] = links, mend_links(repo, page, title)
    context["bibtex"] = citation(app.config.book_citation, repo.site, page, title)
    above, below = (app.builder.templates.render(name, context) for name in ("launch.html", "cite.html"))
    context["body"] = above + context["body"] + below


def write_sitemap(app, exception):
    """All pages, not only those that this build has written anew."""
    site = app.config.book_repository.site
    if exception or not site or app.builder.name != "html":
        return
    pages = "".join(f"<url><loc>{escape(site + page)}.html</loc></url>\n" for page in sorted(app.env.found_docs))
    head = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    Path(app.outdir, "sitemap.xml").write_text(f"{head}{pages}</urlset>\n", "utf-8")
    Path(app.outdir, "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {site}sitemap.xml\n")


def fill_in_address(app, page, source):
    """The address from which the package is installed, where a page names it."""
    if url := app.config.book_repository.url:
        source[0] = source[0].replace("https://github.com/OWNER/REPOSITORY", url)


def setup(app):
    repo = repository.find(ROOT)
    notebooks = [p.relative_to(ROOT).with_suffix("").as_posix() for p in book.toc_pages() if book.has_notebook(p)]
    # As values of the configuration, so that a change of one writes every page anew.
    app.add_config_value("book_repository", repo, "env")
    app.add_config_value("book_notebooks", notebooks, "html")
    app.add_config_value("book_citation", yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8")), "html")

    # A page that is not there may be asked for in any folder: its own links start at the site's root.
    app.setup_extension("notfound.extension")
    app.config.notfound_urls_prefix = urlparse(repo.site).path or "/"
    text = '<h1>Page not found</h1><p>There is no page at this address. The <a href="{}">first page</a> lists them all.</p>'
    app.config.notfound_context = {
        "title": "Page not found",
        "body": text.format(app.config.notfound_urls_prefix + "index.html"),
    }
    app.setup_extension("sphinxext.opengraph")  # what a search or a link preview shows of a page
    app.config.ogp_site_name = app.config.html_title
    app.config.ogp_type = "article"
    app.config.ogp_social_cards = {"enable": False}
    if repo.site:
        app.config.html_baseurl = app.config.ogp_site_url = repo.site  # gives each page its canonical address
        # A card, drawn while the site is built; its address must be whole.
        app.config.ogp_social_cards = {"image_mini": "assets/favicon.png", "line_color": "#0072b2"}
    app.connect("source-read", fill_in_address)
    app.add_css_file("launch.css")
    app.add_css_file("print.css")
    app.connect("html-page-context", add_links)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
