"""The book as a PDF, figures as still pictures: python tools/pdf.py  (needs Chromium)

Sphinx joins the pages into one (its builder singlehtml), and the browser prints that, so
mathematics, figures and links are those of the site. How it looks is in assets/print.css.
As a Sphinx extension, this file keeps the links of the joined page unambiguous.
"""

import shutil
import time
from collections import Counter
from html import escape
from urllib.parse import quote

from docutils import nodes
from lxml import html
from sphinx import addnodes

import repository

PAGE_NUMBER = """
<div style="width: 100%; text-align: center; font: 8pt sans-serif; color: #555"><span class="pageNumber"></span></div>
"""


def elements(node, page=""):
    """(page, element) for all that is inside a joined document; Sphinx leaves wrong parents in it."""
    for child in node.children:
        if isinstance(child, nodes.Element):
            inside = child["docname"] if isinstance(child, addnodes.start_of_file) else page
            yield inside, child
            yield from elements(child, inside)


def tell_apart(app, doctree, docname):
    """Every chapter has a section "exercises" and a reference "id1": give each its page's name."""
    if app.builder.name != "singlehtml":
        return
    owners = {(page, id) for page, element in elements(doctree) for id in element["ids"]}
    count = Counter(id for _, id in owners)
    new = {(page, id): f"{page.replace('/', '-')}-{id}" for page, id in owners if page and count[id] > 1}
    for page, element in elements(doctree):
        for name in ("ids", "backrefs"):
            if element.get(name):
                element[name] = [new.get((page, id), id) for id in element[name]]
        if "refid" in element:
            element["refid"] = new.get((page, element["refid"]), element["refid"])
        # To another page: index.html#document-PAGE#ID, of which Sphinx keeps the last part only.
        start, *anchors = element.get("refuri", "").split("#")
        if len(anchors) == 2:
            target = (anchors[0].removeprefix("document-"), anchors[1])
            element["refuri"] = "#".join([start, anchors[0], new.get(target, anchors[1])])


def setup(app):
    app.connect("doctree-resolved", tell_apart, priority=900)  # when the links are there
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def for_print(text, site):
    """The joined page with a table of contents, everything unfolded, and links that stay in the document."""
    tree = html.document_fromstring(text.replace('href="index.html#', 'href="#'))
    tree.set("class", "printed-book")
    tree.set("data-theme", "light")  # which a script chooses on the site
    entries = []
    for start in tree.xpath('//span[starts-with(@id, "document-")]'):
        heading = start.getnext().xpath("(.//h1|.//h2|.//h3|.//h4)[1]")[0]
        title = escape(heading.xpath("string(.)").rstrip("#"))
        entries.append(f'<li class="toc-{heading.tag}"><a href="#{start.get("id")}">{title}</a></li>')
    where = f'<a href="{site}">On the site</a>' if site else "On the site"
    note = f"<p>Figures are still pictures here. {where} they answer, and each page is a notebook.</p>"
    contents = html.fragment_fromstring(
        f'<nav class="printed-contents"><h2>Contents</h2><ul>{"".join(entries)}</ul>{note}</nav>'
    )
    (first,) = tree.xpath('//*[@id="jb-print-toc"]')
    first.getparent().replace(first, contents)
    for details in tree.iter("details"):
        if "hide" not in details.get("class", "").split():  # the code of a figure stays folded
            details.set("open", "")
    return html.tostring(tree, encoding="unicode", doctype="<!DOCTYPE html>")


def main():
    from playwright.sync_api import sync_playwright

    import book

    started = time.perf_counter()
    book.build()
    print("PDF: joining the pages", flush=True)
    book.sphinx("--builder", "singlehtml")
    page_file = book.BUILD / "singlehtml" / "index.html"
    page_file.write_text(for_print(page_file.read_text("utf-8"), repository.find().site), "utf-8")

    print("PDF: printing", flush=True)
    result = book.BUILD / "vanishing-gradients.pdf"
    with sync_playwright() as play:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")  # else Playwright's own
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        # Without scripts explorables stay as they are: pictures.
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto("file://" + quote(str(page_file)))
        page.pdf(
            path=result,
            format="A4",
            margin={"top": "20mm", "bottom": "20mm", "left": "20mm", "right": "20mm"},
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=PAGE_NUMBER,
            print_background=True,
            outline=True,
            tagged=True,
        )
        browser.close()
    print(f"PDF: {result} ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
