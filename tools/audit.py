"""The published site, measured as a reader's browser meets it: `make audit`.

For each page, cold, from a local server that compresses as a static host does: bytes before an
explorable comes near and with the first one, requests, layout shift, largest paint with the CPU
slowed down four times (above the limit: the median of seven more visits, for one visit scatters
by half of itself), slider to paint of its slowest explorable, what axe finds. The tests hold the
figures that do not depend on the machine to budgets. Before all that, the pages whose code takes
long.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np

SITE = Path(__file__).resolve().parent.parent / "_build" / "html"
LIMITS = {"lesson": 10, "lab": 40, "exercises": 5}  # seconds to run a page's code on a quiet machine
PAINT = 1000  # ms to the largest paint
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}

# Layout shifts and paints are told to observers only, and from the start only if asked before it.
OBSERVE = """
window.seen = { shift: 0, paint: 0 };
new PerformanceObserver((list) => list.getEntries().forEach((e) => { if (!e.hadRecentInput) seen.shift += e.value; }))
  .observe({ type: "layout-shift", buffered: true });
new PerformanceObserver((list) => list.getEntries().forEach((e) => { seen.paint = e.startTime; }))
  .observe({ type: "largest-contentful-paint", buffered: true });
"""

# From each step of a control until the chart that it changed is painted. A browser hands input to the page at the
# start of a frame, and so does this; a message that is sent when the chart has changed comes after that frame's paint.
SLIDE = """
async (input) => {
  const figure = input.closest("figure");
  const options = input.tagName === "SELECT" ? [...input.options].map((o) => o.value) : null;
  const times = [];
  for (let i = 0; i < 14; i++) {
    if (options) input.value = options[i % options.length];
    else if (input.type === "range") { i % 10 < 5 ? input.stepUp() : input.stepDown(); }
    else input.click();
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.dispatchEvent(new Event("change", { bubbles: true }));
    await figure.vega.runAsync();  // the run that the event has started
    await new Promise((done) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = done;
      port2.postMessage(null);
    });
    times.push(performance.now() - start);
  }
  return times;
}
"""


class Compressing(BaseHTTPRequestHandler):
    """Serves a folder with gzip where it pays, and counts what it sends."""

    def do_GET(self):
        path = self.server.folder / unquote(urlparse(self.path).path).lstrip("/")
        if path.is_dir():
            path = path / "index.html"
        if not path.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        if path.suffix in (".html", ".css", ".js", ".svg", ".json", ".ipynb", ".xml"):
            body = compressed(path)
            self.send_header("Content-Encoding", "gzip")
        else:
            body = path.read_bytes()
        self.send_header("Content-Type", TYPES.get(path.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.sent.append((self.path, len(body)))

    def log_message(self, *_):
        pass


@cache
def compressed(path):
    """A static host compresses a file once, and not while a reader waits."""
    return gzip.compress(path.read_bytes(), 6)


@contextmanager
def serving(folder=SITE):
    """A server of a folder on loopback: `.url`, and `.sent`, a list of (path, bytes)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Compressing)
    server.folder, server.sent = Path(folder), []
    server.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def weigh(browser, server, name, slowdown=4):
    """What a cold visit costs: a dict of bytes, requests, layout shift and largest paint (ms)."""
    compressed(server.folder / name)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.add_init_script(OBSERVE)
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
    server.sent.clear()
    page.goto(server.url + name, wait_until="load")
    page.wait_for_timeout(400 * slowdown)
    found = page.evaluate("seen")
    figures = page.locator("figure.explorable")
    near = figures.count() > 0 and figures.first.bounding_box()["y"] < 900 + 600
    before, requests = sum(size for _, size in server.sent), len(server.sent)
    for _ in range(0, page.evaluate("document.documentElement.scrollHeight"), 800):
        page.mouse.wheel(0, 800)
        page.wait_for_timeout(30 * slowdown)
    vega = sum(size for path, size in server.sent if "vega.js" in path)
    result = {"before": before, "explorable": vega, "requests": requests, "near": near, "paint": found["paint"]}
    result["shift"] = page.evaluate("seen.shift")
    context.close()
    return result


def slide(page):
    """ms from each step of each control of each explorable of an open page to its paint: {explorable: times}."""
    times = {}
    wake(page)
    for figure in page.locator("figure.explorable").all():
        figure.scroll_into_view_if_needed()
        name = figure.get_attribute("id")
        controls = figure.locator(".explorable-controls :is(input, select)").all()
        times[name] = [t for control in controls for t in control.evaluate(SLIDE)[2:]]
    return times


def wake(page):
    """Bring every explorable of a page to life."""
    for figure in page.locator("figure.explorable").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_selector(f"#{figure.get_attribute('id')}[data-ready]")


# One word of code of each kind stands for all: its color comes from its classes and those around it.
# (A word of one letter is a kind of its own: axe does not judge it.)
FEWER_WORDS = """() => {
  const place = (e) => (e ? `${place(e.parentElement)} ${e.tagName}.${e.className}` : "");
  const seen = new Set();
  const words = [...document.querySelectorAll("pre span, .sig span")];
  for (const [word, kind] of words.map((e) => [e, place(e) + (e.textContent.length > 1)])) {
    if (seen.has(kind)) word.replaceWith(...word.childNodes);
    seen.add(kind);
  }
}"""


def axe(page, colors_only=False):
    """What axe finds against WCAG 2.2 AA and its best practices, or in the contrast of colors only, as lines of text.

    The page's code loses most of its colors, as axe would look at each word for itself, and in the second case the
    page loses its formulas, which are colored as the text around them.
    """
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(FEWER_WORDS)
    options = {"resultTypes": ["violations"]}  # the rest would take half of the time
    if colors_only:
        options["runOnly"] = {"type": "rule", "values": ["color-contrast"]}
        page.evaluate("() => document.querySelectorAll('.katex').forEach((formula) => formula.replaceWith('x'))")
    formulas = {"exclude": [[".katex-html"]]}  # hidden from screen readers, which get MathML
    found = Axe().run(page, context=formulas, options=options).response["violations"]
    return [f"{v['id']} ({v['impact']}): {node['target']} {node['html'][:100]}" for v in found for node in v["nodes"]]


def lighthouse(url, chromium):
    """Lighthouse's four scores of a page, 0 to 100, or why there are none."""
    npx = shutil.which("npx")
    if not npx:
        return "no npx on this machine"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [npx, "--yes", "lighthouse@12", url, "--quiet", "--output=json", f"--chrome-flags={flags}"]
    run = subprocess.run(command, env=os.environ | {"CHROME_PATH": chromium}, capture_output=True, text=True)
    if run.returncode:
        return (run.stderr.strip().splitlines() or ["no message"])[-1][:100]
    categories = json.loads(run.stdout)["categories"]
    return ", ".join(f"{name} {100 * c['score']:.0f}" for name, c in categories.items())


@contextmanager
def stock_page():
    """The same lesson on a Jupyter Book page as it comes, not executed: its folder and the page's name."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        shutil.copy(SITE.parent.parent / "chapters" / "chain-rule" / "lesson.md", top / "lesson.md")
        (top / "_config.yml").write_text("title: Stock\nexecute:\n  execute_notebooks: 'off'\n")
        (top / "_toc.yml").write_text("format: jb-book\nroot: lesson\n")
        jupyter_book = Path(sys.executable).parent / "jupyter-book"
        subprocess.run([jupyter_book, "build", top], capture_output=True)
        yield top / "_build" / "html", "lesson.html"


def hosts(browser, url):
    """The other hosts that a page asks."""
    page, asked = browser.new_page(), set()
    page.on("request", lambda request: asked.add(urlparse(request.url).hostname))
    page.goto(url)
    page.wait_for_timeout(2000)
    page.close()
    return sorted(asked - {"127.0.0.1", None, ""})


def main():
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(SITE.parent.parent / "tests"))
    from browser import CHROMIUM, FLAGS

    if CHROMIUM is None:
        sys.exit("No Chromium on this machine: nothing was measured")
    ran = json.loads((SITE.parent / "ledger.json").read_text("utf-8"))["seconds"]
    slow = {name: seconds for name, seconds in ran.items() if seconds > LIMITS.get(name.split("/")[-1], 40)}
    print(f"Pages whose code ran longer than wanted in the last build (s): {slow or 'none'}\n")
    names = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts)
    print(
        f"{'page':38s} {'kB':>6s} {'+ kB':>6s} {'asks':>5s} {'shift':>6s} {'paint':>7s} {'median':>7s} {'worst':>6s}  axe"
    )
    print(f"{'wanted':38s} {350:6d} {330:6d} {'':5s} {0.05:6.2f} {PAINT:7d} {16.7:7.1f} {50:6d}  0")
    with sync_playwright() as play, serving() as server:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in names:
            cost = weigh(browser, server, name)
            if cost["paint"] > PAINT:
                cost = sorted((weigh(browser, server, name) for _ in range(7)), key=lambda visit: visit["paint"])[3]
            page = browser.new_page()
            page.goto(server.url + name)
            times = slide(page).values()
            answer = f"{'':14s}"
            if times:  # the slowest explorable of the page
                answer = f"{max(map(np.median, times)):7.1f} {max(map(max, times)):6.1f}"
            found = axe(page)
            page.close()
            before = cost["before"] - cost["near"] * cost["explorable"]
            print(
                f"{name:38s} {before / 1e3:6.0f} {cost['explorable'] / 1e3:6.0f} {cost['requests']:5d} "
                f"{cost['shift']:6.3f} {cost['paint']:7.0f} {answer}  {len(found)}",
                flush=True,
            )
        print(
            "\nLighthouse, a lesson:", lighthouse(server.url + "chapters/chain-rule/lesson.html", CHROMIUM), flush=True
        )
        with stock_page() as (folder, name), serving(folder) as stock:
            cost = weigh(browser, stock, name)
            print(
                f"\nThe same lesson on a stock Jupyter Book page, without figures: {cost['before'] / 1e3:.0f} kB from its "
                f"own host in {cost['requests']} requests, paint {cost['paint']:.0f} ms, shift {cost['shift']:.3f}; "
                f"it asks {', '.join(hosts(browser, stock.url + name)) or 'no other host'}"
            )
        browser.close()


if __name__ == "__main__":
    main()
