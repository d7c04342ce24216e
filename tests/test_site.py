"""The built site, in a real browser with no network but the site's own server."""

import re
from urllib.parse import unquote, urljoin, urlparse

import pytest
from lxml import html

import book
from browser import in_browser

PAGES = [page.relative_to(book.ROOT).with_suffix(".html").as_posix() for page in book.toc_pages()]


def test_internal_links_and_anchors(site):
    """Every link, script, style sheet and picture inside the site exists, and so does every anchor."""
    trees = {path: html.parse(str(path)).getroot() for path in site.rglob("*.html") if "_static" not in path.parts}
    del trees[site / "404.html"]  # its links begin at the root of the published site: test_publish.py
    broken = []
    for path, tree in trees.items():
        for element in tree.iter():
            for name in ("href", "src"):
                target = element.get(name) if isinstance(element.tag, str) else None
                if not target or urlparse(target).scheme or target.startswith("//"):
                    continue
                url = urlparse(target)
                place = (path.parent / unquote(url.path)).resolve() if url.path else path
                if not place.exists():
                    broken.append(f"{path.relative_to(site)}: {target}")
                elif url.fragment and place in trees and place.name not in ("search.html", "genindex.html"):
                    anchor = unquote(url.fragment)
                    if not trees[place].xpath("//*[@id=$a or @name=$a]", a=anchor):
                        broken.append(f"{path.relative_to(site)}: no anchor {target}")
    assert not broken, "\n".join(broken)


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_host_and_has_no_error(tab, server, name):
    tab.goto(urljoin(server, name), wait_until="load")
    tab.wait_for_timeout(300)
    assert tab.outside == [] and tab.errors == []
    broken = tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} px wider than its window"


@in_browser
def test_mathematics_is_rendered(tab, server):
    """Formulas are KaTeX's, with its fonts from this site; no raw LaTeX stands in the text."""
    tab.goto(urljoin(server, "chapters/chain-rule/lesson.html"))
    assert tab.locator(".katex").count() > 50
    assert tab.locator(".katex-error").count() == 0
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Math'))")
    assert not re.search(r"\\(frac|mathrm|rho|cdot)", tab.inner_text("article p >> nth=0"))


@in_browser
def test_every_figure_says_what_is_seen(tab, server):
    for name in PAGES:
        tab.goto(urljoin(server, name))
        for image in tab.locator("article img").all():
            assert len(image.get_attribute("alt") or "") > 30, f"{name}: {image.get_attribute('src')}"


@in_browser
def test_with_scripts_off_the_still_picture_is_there(browser, server):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(urljoin(server, "chapters/chain-rule/lesson.html"))
    view = page.locator("#explorable-products .explorable-view")
    assert view.locator("svg").is_visible() and len(view.get_attribute("aria-label")) > 50
    context.close()


@in_browser
def test_the_page_works_from_a_folder(browser, site):
    """file:// as from a USB stick: mathematics, figures and the explorable."""
    context = browser.new_context()
    page = context.new_page()
    page.goto((site / "chapters" / "chain-rule" / "lesson.html").as_uri())
    page.locator("#explorable-products").scroll_into_view_if_needed()
    page.wait_for_selector("#explorable-products[data-ready]")
    context.close()
