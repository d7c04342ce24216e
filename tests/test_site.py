"""The built site, in a real browser with no network but the site's own server."""

import functools
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urljoin, urlparse

import numpy as np
import pytest
from lxml import html

import book

pytestmark = pytest.mark.xdist_group("browser")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages are not opened")
PAGES = [page.relative_to(book.ROOT).with_suffix(".html").as_posix() for page in book.toc_pages()]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def test_internal_links_and_anchors(site):
    """Every link, script, style sheet and picture inside the site exists, and so does every anchor."""
    trees = {path: html.parse(str(path)).getroot() for path in site.rglob("*.html") if "_static" not in path.parts}
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


@pytest.fixture(scope="module")
def server(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, server):
    """A page whose requests to any other host are refused and noted, as are its errors."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.outside, page.errors = [], []

    def gate(route):
        if route.request.url.startswith((server, "data:", "blob:")):
            route.continue_()
        else:
            page.outside.append(route.request.url)
            route.abort()

    page.route("**/*", gate)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()


@needs_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_host_and_has_no_error(tab, server, name):
    tab.goto(urljoin(server, name), wait_until="load")
    tab.wait_for_timeout(300)
    assert tab.outside == [] and tab.errors == []
    broken = tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} px wider than its window"


@needs_browser
def test_mathematics_is_rendered(tab, server):
    """Formulas are KaTeX's, with its fonts from this site; no raw LaTeX stands in the text."""
    tab.goto(urljoin(server, "chapters/chain-rule/lesson.html"))
    assert tab.locator(".katex").count() > 50
    assert tab.locator(".katex-error").count() == 0
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Math'))")
    assert not re.search(r"\\(frac|mathrm|rho|cdot)", tab.inner_text("article p >> nth=0"))


@needs_browser
def test_every_figure_says_what_is_seen(tab, server):
    for name in PAGES:
        tab.goto(urljoin(server, name))
        for image in tab.locator("article img").all():
            assert len(image.get_attribute("alt") or "") > 30, f"{name}: {image.get_attribute('src')}"


def open_explorable(tab, server, page, name):
    tab.goto(urljoin(server, page))
    figure = tab.locator(f"#explorable-{name}")
    assert figure.locator("svg").count() == 1, "a still picture stands there before the script has come"
    figure.scroll_into_view_if_needed()
    tab.wait_for_selector(f"#explorable-{name}[data-ready]")
    return figure


def drawn(tab, name, *fields):
    """The rows, with these fields, that an explorable's chart draws at this moment."""
    tab.wait_for_timeout(100)
    return tab.evaluate(
        """([name, fields]) => {
          const view = document.querySelector(`#explorable-${name}`).vega;
          const names = Object.keys(view.getState({ data: () => true, signals: () => false }).data);
          const rows = names.map((n) => view.data(n)).find((d) => d.length && fields.every((f) => f in d[0]));
          return rows.map((row) => Object.fromEntries(fields.map((f) => [f, row[f]])));
        }""",
        [name, fields],
    )


@needs_browser
def test_the_explorable_of_products_moves_and_is_right(tab, server):
    """Each slider, moved by keyboard; the curve drawn is the one that the library computes for those values."""
    from vanishing import chain_rule

    figure = open_explorable(tab, server, "chapters/chain-rule/lesson.html", "products")
    grid = chain_rule.product_grid(rng=np.random.default_rng(1))
    sliders = figure.locator("input[type=range]")
    assert sliders.count() == 3
    for presses in (("ArrowRight", 2), ("ArrowLeft", 5), ("ArrowRight", 4)):
        for i in range(3):
            before = sliders.nth(i).input_value()
            sliders.nth(i).focus()
            for _ in range(presses[1]):
                tab.keyboard.press(presses[0])
            assert sliders.nth(i).input_value() != before
        mean, spread, depth = (float(sliders.nth(i).input_value()) for i in range(3))
        seen = {row["factors"]: row["median_log10"] for row in drawn(tab, "products", "factors", "median_log10")}
        row = min(grid, key=lambda r: abs(r["spread"] - spread))
        assert abs(row["spread"] - spread) < 1e-9
        for factors, median in zip(row["factors"], row["median"]):
            assert seen[factors] == pytest.approx(factors * np.log10(mean) + median, abs=1e-9)
        assert figure.locator("text", has_text=f"after {depth:.0f} factors").count() == 1
    assert tab.errors == [] and tab.outside == []


@needs_browser
def test_with_scripts_off_the_still_picture_is_there(browser, server):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(urljoin(server, "chapters/chain-rule/lesson.html"))
    view = page.locator("#explorable-products .explorable-view")
    assert view.locator("svg").is_visible() and len(view.get_attribute("aria-label")) > 50
    context.close()


@needs_browser
def test_the_page_works_from_a_folder(browser, site):
    """file:// as from a USB stick: mathematics, figures and the explorable."""
    context = browser.new_context()
    page = context.new_page()
    page.goto((site / "chapters" / "chain-rule" / "lesson.html").as_uri())
    page.locator("#explorable-products").scroll_into_view_if_needed()
    page.wait_for_selector("#explorable-products[data-ready]")
    context.close()
