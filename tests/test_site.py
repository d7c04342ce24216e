"""The built site, in a real browser with no network but the site's own server."""

import functools
import re
from base64 import b64decode
from io import BytesIO
from urllib.parse import unquote, urljoin, urlparse

import pytest
from docutils import nodes
from docutils.frontend import get_default_settings
from docutils.utils import new_document
from fontTools.ttLib import TTFont
from lxml import html

import audit
import book
import book_ext
import lighten
from browser import in_browser, open_explorable

PAGES = [page.relative_to(book.ROOT).with_suffix(".html").as_posix() for page in book.toc_pages()]


in_another = functools.partial(in_browser, group="another browser")  # the slow ones, beside the others


def test_internal_links_and_anchors(site):
    """Every link, script, style sheet and picture inside the site exists, and so does every anchor."""
    trees = {path: html.parse(str(path)).getroot() for path in site.rglob("*.html") if "_static" not in path.parts}
    del trees[site / "404.html"]  # its links begin at the root of the published site: test_publish.py
    anchors = {path: {*tree.xpath("//@id"), *tree.xpath("//@name")} for path, tree in trees.items()}
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
                    if unquote(url.fragment) not in anchors[place]:
                        broken.append(f"{path.relative_to(site)}: no anchor {target}")
    assert not broken, "\n".join(broken)


@pytest.fixture(scope="module")
def fonts(site):
    """The characters of each font of the style sheet that stands in it, by family, weight and style."""
    found = {}
    for face in re.findall(r"@font-face\s*{([^}]*)}", (site / "_static" / "site.css").read_text("utf-8")):
        if data := re.search(r"data:font/woff2;base64,([^)]+)", face):
            family, weight, style = (re.search(rf"font-{k}:([^;]+)", face)[1] for k in ("family", "weight", "style"))
            found[family.strip("'\""), weight, style] = set(TTFont(BytesIO(b64decode(data[1]))).getBestCmap())
    assert len(found) == 6
    return found


LETTERS = """() => {
  const seen = {};
  for (const formula of document.querySelectorAll(".katex-html")) {
    const texts = document.createTreeWalker(formula, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const { fontFamily, fontWeight, fontStyle } = getComputedStyle(texts.currentNode.parentElement);
      const family = fontFamily.split(",")[0].replace(/['"]/g, "");
      const key = [family, fontWeight === "700" ? "700" : "400", fontStyle].join();
      seen[key] = (seen[key] ?? "") + texts.currentNode.data;
    }
  }
  return seen;
}"""


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(tab, server, fonts, name):
    """No other host is asked, nothing fails, no picture is missing, nothing is wider than the window, and the fonts of
    formulas, which travel with the letters in use only, have every letter."""
    tab.goto(urljoin(server, name), wait_until="load")
    tab.wait_for_timeout(300)
    assert tab.outside == [] and tab.errors == []
    broken = tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    for width in (1280, 360):
        tab.set_viewport_size({"width": width, "height": 800})
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, width
    for key, text in tab.evaluate(LETTERS).items():
        missing = {c for c in text if ord(c) not in fonts.get(tuple(key.split(",")), map(ord, text))}
        assert missing <= {"\u200b"}, f"{missing} are not in {key}"  # a space without width


@in_browser
def test_mathematics_is_rendered(tab, server):
    """Formulas are KaTeX's, with its fonts from this site; no raw LaTeX stands in the text."""
    tab.goto(urljoin(server, "chapters/chain-rule/lesson.html"))
    assert tab.locator(".katex").count() > 50
    assert tab.locator(".katex-error").count() == 0
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Math'))")
    assert not re.search(r"\\(frac|mathrm|rho|cdot)", tab.inner_text("article p >> nth=0"))


def test_every_figure_says_what_is_seen(site):
    for name in PAGES:
        for image in html.parse(str(site / name)).xpath("//article//img"):
            assert len(image.get("alt") or "") > 30, f"{name}: {image.get('src')}"


LINE_STARTS = """() => {
  const found = [], texts = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode()); ) {
    const before = text.previousSibling;
    const parts = before && before.nodeType === 1 ? before.querySelectorAll(".katex .base") : [];
    if (!parts.length || !/^[.,;:!?)]/.test(text.textContent)) continue;
    const range = document.createRange();
    range.setStart(text, 0);
    range.setEnd(text, 1);
    const formula = before.querySelector("annotation").textContent;
    const below = range.getBoundingClientRect().top > parts[parts.length - 1].getBoundingClientRect().bottom - 6;
    if (below) found.push(formula);
  }
  return found;
}"""


@in_browser
@pytest.mark.parametrize("chapter", ["residuals", "adam", "mini-batch"])
def test_no_line_begins_with_the_comma_after_a_formula(tab, server, chapter):
    """Between a formula and what follows it a browser may break the line."""
    for width in (360, 520, 1200):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.goto(urljoin(server, f"chapters/{chapter}/lesson.html"))
        assert tab.evaluate(LINE_STARTS) == []


def test_each_formula_keeps_its_own_comma():
    """Two commas of one sentence are equal as texts; each stays with the formula before it, and a long one may break inside."""
    long = r"c = f \odot c_0 + i \odot a"
    words = [
        nodes.math("", long),
        ", with ",
        nodes.math("", "i"),
        ", ",
        nodes.math("", long),
        ", ",
        nodes.math("", "f"),
        ", ",
    ]
    sentence = nodes.paragraph("", "", *(nodes.Text(w) if isinstance(w, str) else w for w in words))
    document = new_document("page", get_default_settings())
    document += sentence
    text = sentence.astext()
    book_ext.KeepTogether(document).run()
    assert sentence.astext() == text
    pairs = {pair.astext(): pair["classes"] for pair in sentence.findall(nodes.inline)}
    assert pairs == {"i,": ["together"], f"{long},": ["together", "long"], "f,": ["together"]}


@pytest.fixture(scope="module")
def host(site):
    """The site as a static host serves it, compressed."""
    with audit.serving(site) as server:
        yield server


@in_another
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(tab, server, name):
    """WCAG 2.2 AA and axe's best practices, with the explorables alive; and the colors of the dark theme."""
    tab.goto(urljoin(server, name))
    audit.wake(tab)
    assert audit.axe(tab) == []
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")  # as the button above the page does
    tab.wait_for_timeout(300)  # until the colors have changed
    assert audit.axe(tab, colors_only=True) == []


@in_another
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light_and_stands_still(browser, host, name):
    """Budgets of a cold visit, gzip: 350 kB, and 330 kB with the first explorable; layout shift below 0.05."""
    cost = audit.weigh(browser, host, name, slowdown=1)
    assert cost["before"] - cost["near"] * cost["explorable"] <= 350_000
    assert cost["explorable"] <= 330_000
    assert cost["shift"] < 0.05


@in_browser
@pytest.mark.parametrize("page", ["lesson", "exercises"])
def test_the_first_frame_holds_the_first_screen(tab, server, page):
    """A browser waits for the text that fills a window and not for much more."""
    tab.set_viewport_size({"width": 1200, "height": 900})
    tab.goto(urljoin(server, f"chapters/softmax/{page}.html"))
    assert 900 <= tab.evaluate("document.querySelector('#first-screen').getBoundingClientRect().top") < 1800


def test_a_page_asks_for_one_script(site):
    """Each one that comes would interrupt the first paint; and none of the pieces makes the others strict."""
    for path in site.glob("chapters/*/*.html"):
        addresses = html.parse(str(path)).xpath("//script/@src")
        assert [urlparse(a).path.rsplit("/", 1)[-1] for a in addresses] == ["site.js"], path
    assert (site / "_static" / "site.js").read_text("utf-8").startswith(";")


@in_browser
def test_search_finds_and_the_buttons_of_a_page_work(browser, server):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(urljoin(server, "chapters/softmax/lesson.html"))
    page.keyboard.press("Control+k")
    page.locator("#pst-search-dialog input").fill("clipping")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=clipping")
    page.locator("#search-results li a[href*='chapters/clipping/']").first.click()
    page.wait_for_url("**/chapters/clipping/*.html*")
    code = page.locator("div.highlight >> visible=true").first
    code.hover()
    code.locator("xpath=..").locator("button.copybtn").click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == code.inner_text().strip()
    page.locator(".theme-switch-button >> visible=true").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.set_viewport_size({"width": 360, "height": 800})
    for button, dialog in (
        ("primary-toggle", "primary-sidebar-modal"),
        ("secondary-toggle", "secondary-sidebar-modal"),
    ):
        page.locator(f".{button} >> visible=true").click()
        page.locator(f"#pst-{dialog} a >> visible=true").first.wait_for()
        page.keyboard.press("Escape")
    page.locator(".search-button >> visible=true").click()
    page.locator("#pst-search-dialog input").wait_for()
    assert errors == []
    context.close()


def test_pages_with_different_scripts_are_refused(tmp_path):
    script = '<script defer="defer" src="_static/{}.js?v=1"></script>'
    pages = {name: script.format("a") + script.format(name) for name in ("b", "c")}
    with pytest.raises(ValueError, match="expected the same on each page"):
        lighten.with_one_script(pages, tmp_path)


def test_every_icon_is_drawn(site):
    icons = [
        (path.name, icon)
        for path in site.rglob("*.html")
        if "_static" not in path.parts
        for icon in html.parse(str(path)).xpath("//*[contains(@class, 'fa-solid') or contains(@class, 'fas ')]")
    ]
    assert len(icons) > 500
    assert [
        (page, icon.get("class")) for page, icon in icons if not icon.xpath("svg/path[string-length(@d) > 20]")
    ] == []


def test_an_icon_that_the_theme_lacks_is_named():
    with pytest.raises(ValueError, match="fa-no-such-icon"):
        lighten.with_icons('<i class="fa-solid fa-no-such-icon"></i>')


EXPLORABLES = [
    (name, match)
    for name in PAGES
    for match in re.findall(r'name="([\w-]+)",\n? *alt=', (book.ROOT / name).with_suffix(".md").read_text("utf-8"))
]


@in_browser
@pytest.mark.parametrize(("name", "chart"), EXPLORABLES)
def test_an_explorable_keeps_its_promises(tab, server, name, chart):
    """Every control has a label and moves by pointer and keyboard; the address holds the state, restores it, and refuses nonsense;
    the data are there as a table; at 360 px nothing is cut off."""
    figure = open_explorable(tab, server, name, chart)
    controls = figure.locator(".explorable-controls :is(input, select)")
    assert controls.count() >= 1
    for control in controls.all():
        assert len(control.evaluate("e => e.closest('label, [aria-label]').innerText").strip()) > 1
    for slider in figure.locator(".explorable-controls input[type=range]").all():
        slider.scroll_into_view_if_needed()
        box, was = slider.bounding_box(), slider.input_value()
        for share in (0.9, 0.1):  # by pointer
            tab.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            if slider.input_value() != was:
                break
        assert slider.input_value() != was
    figure.locator("button", has_text="Reset").click()
    tab.evaluate("new Promise(done => setTimeout(done, 300))")  # the address follows, by the page's own clock
    before = tab.evaluate("location.hash")
    first = controls.first
    first.focus()
    at_the_end = first.evaluate("e => e.options ? e.selectedIndex === e.options.length - 1 : e.value === e.max")
    keys = ("ArrowRight", "ArrowLeft") if first.get_attribute("type") == "range" else ("ArrowDown", "ArrowUp")
    tab.keyboard.press(keys[at_the_end])
    tab.wait_for_function("before => location.hash !== before", arg=before)
    assert f"#explorable-{chart}?" in tab.url
    figure.locator("summary", has_text="Data").click()
    figure.locator("table tbody tr").first.wait_for(timeout=5000)

    state = tab.evaluate(
        "name => { const v = document.querySelector(`#explorable-${name}`).vega; return v.getState().signals; }", chart
    )
    url = tab.url
    tab.goto("about:blank")
    tab.set_viewport_size({"width": 360, "height": 800})
    tab.goto(f"{url}&nonsense=1")
    tab.wait_for_selector(f"#explorable-{chart}[data-ready]")
    again = tab.evaluate(
        "name => { const v = document.querySelector(`#explorable-${name}`).vega; return v.getState().signals; }", chart
    )
    names = re.findall(r"[?&]([^=&]+)=", url)
    assert names and all(again[n] == state[n] for n in names if n in state)
    assert "nonsense" in tab.locator(f"#explorable-{chart} .explorable-note").inner_text()
    room = tab.locator(f"#explorable-{chart}")
    assert room.evaluate("f => f.scrollWidth - f.clientWidth") <= 0
    tab.wait_for_timeout(300)
    small = room.evaluate(
        "f => Math.min(...[...f.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert small > 9, "the smallest text of the chart is too small to read"
    assert tab.errors == [] and tab.outside == []


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
