"""The picture in README.md, taken from the built site: `python tools/screenshot.py` after `make book`."""

import shutil

from playwright.sync_api import sync_playwright

from book import ROOT, SITE

with sync_playwright() as play:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")  # else Playwright's own
    browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1180, "height": 760})
    page.goto((SITE / "chapters" / "chain-rule" / "lesson.html").as_uri())
    figure = page.locator("#explorable-products")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("#explorable-products[data-ready]")
    sliders = figure.locator("input[type=range]")
    sliders.nth(0).fill("1.05")
    sliders.nth(1).fill("0.9")
    page.evaluate("document.activeElement.blur()")
    figure.evaluate("figure => scrollTo(0, figure.getBoundingClientRect().top + scrollY - 150)")
    page.wait_for_timeout(500)
    page.screenshot(path=ROOT / "assets" / "screenshot.png")
    browser.close()
