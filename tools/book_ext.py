"""What the book adds to Sphinx: explorables, exercises, the ledger."""

import functools
import gc
import json
import re
import socket
import subprocess
import time
from html import escape
from pathlib import Path

import vl_convert
from docutils import nodes
from docutils.parsers.rst import Directive
from myst_nb.core.render import load_mime_renders
from pybtex import plugin
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxRole
from sphinxcontrib import katex

from vanishing import exercises, explorable, ledger

BUILD = Path(__file__).resolve().parent.parent / "_build"
VEGA = BUILD / f"vl-convert-{vl_convert.__version__}" / "vega.js"


class ExplorableRenderer:
    """Shows an explorable on the site: its first state as SVG, its specification for the script."""

    mime_priority_overrides = [("*", explorable.MIME, 1)]

    @staticmethod
    def handle_mime(renderer, data, inline):
        if inline or data.mime_type != explorable.MIME:
            return None
        content = data.content if isinstance(data.content, dict) else json.loads(data.content)
        name, alt, spec = content["name"], content["alt"], content["spec"]
        svg = vl_convert.vegalite_to_svg(spec)
        vega = vl_convert.vegalite_to_vega(spec)  # compiled here, the page answers sooner
        controls = sum("input" in signal.get("bind", {}) for signal in vega.get("signals", []))
        # A closing tag inside the data would end the script element.
        text = json.dumps(vega, separators=(",", ":")).replace("</", "<\\/")
        html = (
            f'<figure class="explorable" id="explorable-{escape(name)}">'
            f'<div class="explorable-view" role="img" aria-label="{escape(alt)}">{svg}</div>'
            f'<div class="explorable-controls" style="--controls: {controls}"></div>'
            f'<script type="application/json">{text}</script></figure>'
        )
        return [nodes.raw("", html, format="html")]


class FoldSolution(SphinxPostTransform):
    """On the site an exercise shows its stub; the solution is folded away under it."""

    default_priority = 900
    formats = ("html",)

    def run(self, **_):
        for block in list(self.document.findall(nodes.literal_block)):
            code = block.astext()
            if not exercises.SOLUTION.search(code):
                continue
            stub, solution = block.deepcopy(), block.deepcopy()
            solved = re.sub(r"^[ \t]*### (BEGIN|END) SOLUTION.*\n?", "", code, flags=re.M)
            for copy, text in ((stub, exercises.without_solution(code)), (solution, solved)):
                copy.rawsource, copy.children = text, [nodes.Text(text)]
            folded = [
                nodes.raw("", '<details class="solution"><summary>Solution</summary>', format="html"),
                solution,
                nodes.raw("", "</details>", format="html"),
            ]
            block.parent.replace(block, [stub, *folded])


class TrueMinus(SphinxPostTransform):
    """A computed number in a sentence has a minus sign, not a hyphen."""

    default_priority = 900

    def run(self, **_):
        for node in self.document.findall(nodes.inline):
            if "pasted-text" in node["classes"] and node.astext().startswith("-"):
                node.children = [nodes.Text(ledger.minus(node.astext()))]


class KeepTogether(SphinxPostTransform):
    """No line begins with the comma after a formula: a browser may break there, and does."""

    default_priority = 900
    formats = ("html",)

    def run(self, **_):
        for formula in list(self.document.findall(nodes.math)):
            parent, at = formula.parent, formula.parent.index(formula)
            after = parent[at + 1] if at + 1 < len(parent) else None
            found = isinstance(after, nodes.Text) and re.match(r"[.,;:!?)’”]+", after.astext())
            if found:  # by place: two texts ", " are equal
                classes = ["together", "long"] if len(formula.astext()) >= 25 else ["together"]
                pair = nodes.inline("", "", formula, nodes.Text(found.group()), classes=classes)
                parent[at : at + 2] = [pair, nodes.Text(after.astext()[found.end() :])]


class PlainNotebook(SphinxPostTransform):
    """What a notebook has no form for, in plain Markdown: boxes, foldable answers, code that is only shown."""

    default_priority = 900
    formats = ("ipynb",)

    def run(self, **_):
        for node in list(self.document.findall(nodes.Admonition)):
            self.unbox(node)
        for node in list(self.document.findall(nodes.container)):
            if node.get("design_component") == "dropdown":
                self.fold(node)
        for block in self.document.findall(nodes.literal_block):
            if block.parent.get("nb_element") != "cell_code_source":
                block["classes"].append("no-execute")

    def unbox(self, node):
        """A box becomes its paragraphs, with its title in bold before the first."""
        title = node[0].astext() if isinstance(node[0], nodes.title) else node.tagname.capitalize()
        body = [child for child in node if not isinstance(child, nodes.title)]
        body[0].insert(0, nodes.strong("", f"{title}."))
        body[0].insert(1, nodes.Text(" "))
        node.replace_self(body)

    def fold(self, node):
        title, *body = node.children
        first = nodes.paragraph("", f"<details><summary>{title.astext()}</summary>")
        node.replace_self([first, *body, nodes.paragraph("", "</details>")])


class LedgerTable(Directive):
    """`{ledger} claims` or `{ledger} results`: what the chapters' own runs said, and what is still open."""

    required_arguments = 1

    def run(self):
        env = self.state.document.settings.env
        env.note_dependency(str(BUILD / "ledger.json"))
        node = ledger_node(kind=self.arguments[0])
        return [node]


class ledger_node(nodes.General, nodes.Element):
    pass


class LedgerRole(SphinxRole):
    """`{ledger}`C33``: a link to the place where a claim or a result has its verdict."""

    def run(self):
        self.env.note_dependency(str(BUILD / "ledger.json"))
        return [ledger_link(id=self.text)], []


class ledger_link(nodes.Inline, nodes.Element):
    pass


def table(head, rows, *classes):
    """A docutils table of strings and nodes."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
        for line in lines:
            row = nodes.row()
            for cell in line:
                inner = cell if isinstance(cell, nodes.Node) else nodes.Text(cell)
                row += nodes.entry("", nodes.paragraph("", "", inner))
            part += row
        group += part
    return nodes.table("", group, classes=["ledger", *classes])


def fill_ledgers(app, doctree, docname):
    """Put what the runs said in the place of each `{ledger}`."""
    links, tables = (list(doctree.findall(node)) for node in (ledger_link, ledger_node))
    if not links + tables:
        return
    found = {e["id"]: e for e in json.loads((BUILD / "ledger.json").read_text("utf-8"))["entries"]}

    def place(entry, text):
        target = app.builder.get_relative_uri(docname, entry["page"]) + f"#{entry['id'].lower()}"
        return nodes.reference("", text, refuri=target, internal=True)

    for node in links:
        if node["id"] not in found:
            raise ExtensionError(f"{docname}: {{ledger}}`{node['id']}`, which no page has answered")
        node.replace_self(place(found[node["id"]], node["id"]))
    for node in tables:
        kind = node["kind"]
        known = ledger.registry()[kind]
        answered = [entry for id, entry in found.items() if id in known]  # in the order of reading
        still_open = [[id, item["says"], item["chapter"]] for id, item in known.items() if id not in found]

        def where(entry):
            return place(entry, entry["page"].removeprefix("chapters/").replace("/", " "))

        content = claims(answered, where) if kind == "claims" else results(answered, where)
        if still_open:
            content.append(nodes.rubric("", f"Open: {len(still_open)} that no chapter has answered yet"))
            content.append(table(["id", "what is said", "chapter to come"], still_open))
        node.replace_self(content)


def claims(entries, where):
    rows = [[e["id"], e["says"], nodes.strong("", e["verdict"]), e["numbers"], where(e)] for e in entries]
    return [table(["id", "people say", "verdict", "the numbers", "where"], rows, "stacked")]


def results(entries, where):
    """The verdicts in one table; then, for each result, its source, the reason, and its quantities to unfold."""
    rows = [[e["id"], e["says"], nodes.strong("", e["verdict"]), where(e)] for e in entries]
    content = [table(["id", "result", "verdict", "where"], rows, "stacked")]
    for e in entries:
        content.append(nodes.paragraph("", "", nodes.strong("", e["id"]), nodes.Text(f" {e['says']}. {e['numbers']}")))
        if e["reason"]:
            content.append(nodes.paragraph("", e["reason"]))
        columns = ["quantity", "reference", "ours", "tolerance", "within"]  # a notebook sorts its metadata
        content.append(
            nodes.raw("", f'<details class="values"><summary>The values of {e["id"]}</summary>', format="html")
        )
        content.append(table(columns, [[row[name] for name in columns] for row in e["rows"]]))
        content.append(nodes.raw("", "</details>", format="html"))
    return content


def write_vega(app):
    """The site's own copy of Vega and Vega-Embed, as a plain script (modules do not load from file://)."""
    if app.builder.format != "html":
        return
    if not VEGA.exists():
        bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        VEGA.parent.mkdir(parents=True, exist_ok=True)
        VEGA.write_text(f"(() => {{{bundle}}})();")
    app.config.html_static_path.append(str(VEGA.parent))


def defer_scripts(app, pagename, templatename, context, doctree):
    """Scripts wait until the page is read; the one that others ask at once does not, and no page has tabs."""
    scripts = [s for s in context["script_files"] if "design-tabs" not in str(s.filename)]
    for script in scripts:
        if script.filename and "documentation_options" not in script.filename:
            script.attributes["defer"] = "defer"
    context["script_files"] = scripts


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are written to be read in the source: their formulas are no reStructuredText.

    `name` becomes ``name``; a star, a bar or an underscore elsewhere stands for itself. What is set in
    after an empty line is code or formulas, and shown line by line as it is.
    """
    shown, margin, block = [""], 0, False  # the text's indent; whether we are in what is set in from it
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line and indent <= margin:
            block = False
        elif line and not block and not shown[-1] and len(shown) > 1:
            block = True
            shown += [] if shown[-2].endswith("::") else [" " * margin + "::", ""]
        if line and not block:
            margin = indent
            bullet, text = re.match(r"(\s*\* )?(.*)", line).groups()
            pieces = re.split(r"(``.+?``|`[^`]+`)", text)
            pieces[::2] = [re.sub(r"([*|]|_(?=\W|$))", r"\\\1", text) for text in pieces[::2]]
            pieces[1::2] = [f"``{code.strip('`')}``" for code in pieces[1::2]]
            line = (bullet or "") + "".join(pieces)
        shown.append(line)
    lines[:] = shown[1:]


def start_katex(rundir, timeout):
    """Start the renderer of mathematics and connect to it.

    In place of sphinxcontrib-katex's own start, which connects once, as soon as the socket file
    is there. That is a moment before it accepts connections, and a busy machine then loses the build.
    """
    path = rundir / "katex.sock"
    process = subprocess.Popen(
        katex.KaTeXServer.build_command(socket=path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=rundir
    )
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(path))
            return process, connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise katex.KaTeXServer.timeout_error(timeout) from None
            time.sleep(0.01)


def setup(app):
    # Sphinx keeps what it allocates: looking for garbage as often as usual is a sixth of its time.
    gc.set_threshold(100_000, 50, 100)
    # For each citation it reads the metadata of every installed package again, 30 ms each time.
    plugin._load_entry_point = functools.cache(plugin._load_entry_point)
    katex.KaTeXServer.start_server_process = start_katex
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0
    katex.KATEX_DEFAULT_OPTIONS["throwOnError"] = True  # a formula that cannot be read fails the build
    # myst_nb finds such plugins by entry point only, which a book's own folder cannot have;
    # the list that it keeps is the same object each time.
    if ExplorableRenderer not in load_mime_renders():
        load_mime_renders().append(ExplorableRenderer)
    app.add_post_transform(FoldSolution)
    app.add_post_transform(TrueMinus)
    app.add_post_transform(KeepTogether)
    app.add_post_transform(PlainNotebook)
    app.add_node(ledger_node)
    app.add_node(ledger_link)
    app.add_directive("ledger", LedgerTable)
    app.add_role("ledger", LedgerRole())
    app.connect("doctree-resolved", fill_ledgers)
    app.connect("builder-inited", write_vega)
    app.connect("html-page-context", defer_scripts, priority=900)  # after those who add scripts
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon's
    app.add_js_file("explorable.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
