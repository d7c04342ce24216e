"""A real browser on the built site, with no network but the site's own server."""

import shutil
from urllib.parse import urljoin

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def in_browser(test, group="browser"):
    """For a test that takes the fixture `tab` or `browser`: skipped without Chromium; those of a group share one."""
    without = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages are not opened")
    return pytest.mark.xdist_group(group)(without(test))


def open_explorable(tab, server, page, name):
    tab.goto(urljoin(server, page))
    figure = tab.locator(f"#explorable-{name}")
    assert figure.locator("svg").count() == 1, "a still picture stands there before the script has come"
    figure.scroll_into_view_if_needed()
    tab.wait_for_selector(f"#explorable-{name}[data-ready]")
    return figure


def move(control, key, times=1):
    """Move a slider or a menu by keyboard, which must change it; its value afterwards, a number where it is one."""
    before = control.input_value()
    for _ in range(times):
        control.press(key)
    after = control.input_value()
    assert after != before
    try:
        return float(after)
    except ValueError:
        return after


def choose(menu, option):
    """Choose another option of a menu by arrows: some begin alike, so that typing would not tell them apart."""
    assert menu.input_value() != option
    menu.press("Home")
    for _ in range(menu.locator("option").all_text_contents().index(option)):
        menu.press("ArrowDown")
    assert menu.input_value() == option


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
