"""What travels is what is used: the built site without the theme's ballast.

The theme brings 540 kB (gzip) of icons for a dozen that it shows, and style rules for hundreds of
components that this book does not have. This runs after Sphinx, and again does no harm.
"""

import hashlib
import re
import shutil
from base64 import b64encode
from functools import cache
from html import unescape
from io import BytesIO
from itertools import islice
from pathlib import Path

import pydata_sphinx_theme
import tinycss2
from fontTools import subset
from PIL import Image

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
UNUSED = ["scripts/fontawesome.js*", "scripts/bootstrap.js*", "vendor", "locales", "**/*.map", "images"]

SHEET = re.compile(r'<link\b[^>]*\srel="stylesheet"[^>]*>\s*')
SCRIPT = re.compile(r'<script defer(?:="defer")? src="([^"]*_static/)([^"?]+)[^"]*"></script>\s*')
OPTIONS = re.compile(r'<script src="[^"]*_static/(documentation_options\.js)[^"]*"></script>\s*')
# Fonts of formulas, and the classes of the text that they set; the first sets whatever has no font of its own.
FONTS = {
    "Main-Regular": {
        "mord",
        "mbin",
        "mrel",
        "mopen",
        "mclose",
        "mpunct",
        "mop",
        "minner",
        "mspace",
        "mtight",
        "accent-body",
    },
    "Main-Bold": {"mathbf"},
    "Math-Italic": {"mathnormal"},
    "SansSerif-Regular": {"mathsf"},
    "Caligraphic-Regular": {"mathcal"},
    "Size1-Regular": {"small-op", "size1"},
}

IDENTIFIER = re.compile(r"[A-Za-z_][\w-]*")
STRING = re.compile(r"""("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)""")
FIRST_SCREEN = 1500  # characters that a window of 1,200 by 900 pixels shows
HIDDEN = re.compile(r"<math.*?</math>|<[^>]*>", re.DOTALL)  # of a formula, what is for screen readers
LONG_NAME = re.compile(r'<span class="pre">(?=[^<]{28})')  # code in a sentence that may fill a narrow window
# Said by book.css in another way; for each element of a page the browser would look at all that stand before it.
SLOW = re.compile(r"admonition-title\s*~\s*\*")


def lighten(site):
    """Rewrite the style sheets, icons and pictures of a built site in place."""
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html") if "_static" not in path.parts}
    words = set()
    for text in pages.values():
        for value in re.findall(r"""(?:class|id)=["']([^"']+)["']""", text):
            words.update(value.split())
        words.update(re.findall(r"<([a-z]\w*)", text))
        scripts = re.findall(r"<script[^>]*\ssrc=\"([^\"?]+)", text)
        words.update(f"script:{Path(name).name}" for name in scripts)
    for script in site.glob("_static/**/*.js"):  # a script may give an element any class that it names
        if f"script:{script.name}" in words:
            words.update(w for text in STRING.findall(script.read_text("utf-8")) for w in IDENTIFIER.findall(text))

    static = site / "_static"
    for sheet in static.rglob("*.css"):
        if sheet.name != "book.css":
            write(sheet, purge(sheet.read_text("utf-8"), words))
    pages = with_one_script(with_one_sheet(pages, static), static)
    for path in (path for pattern in UNUSED for path in list(static.glob(pattern))):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for picture in site.glob("_images/*.png"):
        shrink(picture)
    for path, text in pages.items():
        text = LONG_NAME.sub('<span class="pre long">', with_sizes(path, text))
        write(path, at_once(with_icons(named(text))))


def write(path, text):
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def with_one_sheet(pages, static):
    """The pages with one style sheet in place of many, for which a page would wait one by one."""
    addresses = {
        path: re.findall(r'href="([^"]*_static/)([^"?]+)', "".join(SHEET.findall(text))) for path, text in pages.items()
    }
    fresh = [
        [name for _, name in found] for found in addresses.values() if len(found) > 1
    ]  # as Sphinx has written them
    if not fresh:
        return pages
    css = "\n".join(rebased(static / name, static) for name in fresh[0])
    css = with_fonts(css, static, letters(pages.values()))
    write(static / "site.css", css)
    name = f"site.css?v={hashlib.sha256(css.encode()).hexdigest()[:8]}"

    def joined(path, text):
        first = SHEET.search(text).start()
        text = SHEET.sub("", text)
        return f'{text[:first]}<link rel="stylesheet" href="{addresses[path][0][0]}{name}" />\n{text[first:]}'

    return {path: joined(path, text) for path, text in pages.items()}


def with_one_script(pages, static):
    """The pages with one deferred script in place of many: each that comes would interrupt the first paint."""
    addresses = {path: SCRIPT.findall(text) for path, text in pages.items()}
    fresh = [[name for _, name in found] for found in addresses.values() if len(found) > 1]
    if not fresh:
        return pages
    if any(names != fresh[0] for names in fresh):
        raise ValueError(f"scripts: expected the same on each page, got {sorted({tuple(names) for names in fresh})}")
    # After a semicolon the first one's "use strict" is that script's no more, and so nobody's.
    js = "".join(f";\n{(static / name).read_text('utf-8')}\n" for name in fresh[0])
    write(static / "site.js", js)
    name = f"site.js?v={hashlib.sha256(js.encode()).hexdigest()[:8]}"

    def joined(path, text):
        if len(addresses[path]) < 2:
            return text
        first = SCRIPT.search(text).start()
        text = (
            f'{text[:first]}<script defer src="{addresses[path][0][0]}{name}"></script>\n{SCRIPT.sub("", text[first:])}'
        )
        text = OPTIONS.sub(lambda match: f"<script>{(static / match[1]).read_text('utf-8')}</script>\n", text)
        return re.sub(
            r'<script src="([^"]+)">', r'<script src="\1" defer>', text
        )  # the search's, which need the others

    return {path: joined(path, text) for path, text in pages.items()}


def rebased(sheet, static):
    """A style sheet with its addresses as they are from another folder."""
    folder, css = sheet.parent.relative_to(static).as_posix(), sheet.read_text("utf-8")
    return re.sub(r"""url\((?!["']?(?:data:|/))["']?([^)"']+)["']?\)""", rf"url({folder}/\1)", css)


def letters(texts):
    """The characters of the formulas by font: each piece of text in them has a class that says which."""
    found = {font: set() for font in FONTS}
    for text in texts:
        for classes, piece in re.findall(r'<span class="([^"]*)"[^>]*>([^<]+)</span>', text):
            for font, names in FONTS.items():
                if names & set(classes.split()):
                    found[font].update(unescape(piece))
    return found


def with_fonts(css, static, letters):
    """The style sheet with the fonts that stand in sentences, their letters in use: coming later, they would move lines of text."""
    options = subset.Options(flavor="woff2", layout_features=["*"])
    for name, used in letters.items():
        address = f"katex/fonts/KaTeX_{name}.woff2"
        font, subsetter, out = subset.load_font(static / address, options), subset.Subsetter(options), BytesIO()
        subsetter.populate(text="".join(used))
        subsetter.subset(font)
        subset.save_font(font, out, options)
        css = css.replace(f"url({address})", f"url(data:font/woff2;base64,{b64encode(out.getvalue()).decode()})")
    return css


def purge(css, words):
    """The style sheet without the rules that can match nothing on any page."""
    rules = tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True)
    return "".join(filter(None, (kept(rule, words) for rule in rules)))


def kept(rule, words):
    """The text of a rule, with those of its selectors that may match; empty if none does."""
    if rule.type == "qualified-rule":
        selectors = split(rule.prelude)
        matching = [s for s in selectors if may_match(s, words)]
        return f"{','.join(matching)}{{{tinycss2.serialize(rule.content)}}}" if matching else ""
    if rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports", "layer") and rule.content:
        inner = purge(tinycss2.serialize(rule.content), words)
        return f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}" if inner else ""
    text = rule.serialize() if rule.type == "at-rule" else ""
    return "" if text.startswith("@font-face") and "Font Awesome" in text.replace("\\", "") else text


def split(prelude):
    """The selectors of a list, at its top level."""
    selectors = [[]]
    for token in prelude:
        if token == ",":
            selectors.append([])
        else:
            selectors[-1].append(token)
    return [tinycss2.serialize(s).strip() for s in selectors]


def may_match(selector, words):
    """Whether every tag, class and id that a selector asks for is somewhere; what is in :is() or :not() is no demand."""
    if SLOW.search(selector):
        return False
    while (shorter := re.sub(r"\([^()]*\)", "", selector)) != selector:
        selector = shorter
    selector = re.sub(r"\[[^]]*\]", "", selector)
    names = re.findall(r"[.#]((?:[\w-]|\\.)+)", selector) + re.findall(r"(?:^|[\s>+~])([a-z]\w*)", selector)
    return all(name.replace("\\", "") in words for name in names)


def shrink(picture):
    """A figure has few colors: a palette holds them in a third of the bytes, and looks the same."""
    image = Image.open(picture)
    if image.mode == "P":
        return
    out = BytesIO()
    image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE).save(out, "PNG", optimize=True)
    if len(out.getvalue()) < picture.stat().st_size:
        picture.write_bytes(out.getvalue())


def with_sizes(path, text):
    """Pictures with their size, so that the text does not jump, and loaded when they come near."""

    def image(match):
        tag, source = match.group(), re.search(r'src="([^"]+\.png)"', match.group())
        if not source or "loading=" in tag or not (path.parent / source[1]).exists():
            return tag
        width, height = Image.open(path.parent / source[1]).size
        tag = re.sub(r'\s(?:width|height)="[^"]*"', "", tag)
        return tag.replace("<img", f'<img loading="lazy" width="{width}" height="{height}"', 1)

    return re.sub(r"<img\b[^>]*>", image, text)


def with_icons(text):
    """Icons drawn in the page, in the color of the text around them: a picture in a style sheet costs a document each."""

    def drawn(match):
        start, name, end = match.groups()
        return f"{start}{drawing(name)}{end}"

    return re.sub(r'(<(?:i|span) class="[^"]*\bfa-(?!solid|lg)([\w-]+)[^>]*>)(</(?:i|span)>)', drawn, text)


@cache
def drawing(name):
    """An icon of Font Awesome Free (fontawesome.com, CC BY 4.0) as SVG, from the theme's copy."""
    drawings = (THEME / "scripts" / "fontawesome.js").read_text("utf-8")
    found = re.search(rf'(?<=[{{,])"?{name}"?:\[(\d+),(\d+),\[[^]]*\],"[^"]*","([^"]+)"\]', drawings)
    if not found:
        raise ValueError(f"class fa-{name}: expected an icon of Font Awesome Free that the theme has")
    width, height, path = found.groups()
    return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"><path d="{path}"/></svg>'


def named(text):
    """Names and roles, for those who do not see them, where the theme has none or a wrong one."""
    for old, new in (
        (
            '<summary><span class="toctree-toggle"',
            '<summary aria-label="Pages of this chapter"><span class="toctree-toggle"',
        ),
        (' role="doc-biblioentry"', ""),  # a list item's role, on what is no list item
        ('<div role="list" class="citation-list">', '<div class="citation-list">'),
        ('<div id="pst-primary-sidebar"', '<div role="region" aria-label="The book" id="pst-primary-sidebar"'),
    ):
        text = text.replace(old, new)
    return text


def at_once(text):
    """The first screen of text in the first frame: else a browser lays out the page's frame, and then all once more."""
    if 'id="first-screen"' in text or "<article" not in text:
        return text
    head, article = text.split("<article", 1)
    read = end = 0
    for paragraph in islice(re.finditer(r".*?</p>", article, re.DOTALL), 8):  # in a table, each cell has one
        read += len(" ".join(HIDDEN.sub("", paragraph.group()).split()))
        end = paragraph.end()
        if read >= FIRST_SCREEN:
            break
    if not end:
        return text
    article = f'{article[:end]}<i id="first-screen"></i>{article[end:]}'
    wait = '<link rel="expect" href="#first-screen" blocking="render" />\n'
    return f"{head.replace('<link', wait + '<link', 1)}<article{article}"


if __name__ == "__main__":
    import sys

    lighten(Path(sys.argv[1]))
