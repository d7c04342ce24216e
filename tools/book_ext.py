"""What the book adds to Sphinx: explorables, exercises, the ledger."""

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
from sphinx.transforms.post_transforms import SphinxPostTransform
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
        # A closing tag inside the data would end the script element.
        text = json.dumps(spec, separators=(",", ":")).replace("</", "<\\/")
        html = (
            f'<figure class="explorable" id="explorable-{escape(name)}">'
            f'<div class="explorable-view" role="img" aria-label="{escape(alt)}">{svg}</div>'
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
                node.children = [nodes.Text("−" + node.astext()[1:])]


class QuoteAdmonition(SphinxPostTransform):
    """In a notebook an admonition is a quotation with a bold title, not a heading of the first order."""

    default_priority = 900
    formats = ("ipynb",)

    def run(self, **_):
        for node in list(self.document.findall(nodes.Admonition)):
            title = node[0].astext() if isinstance(node[0], nodes.title) else node.tagname.capitalize()
            body = [child for child in node if not isinstance(child, nodes.title)]
            node.replace_self(nodes.block_quote("", nodes.paragraph("", "", nodes.strong("", title)), *body))


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


def table(head, rows):
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
    return nodes.table("", group, classes=["ledger"])


def fill_ledgers(app, doctree, docname):
    for node in list(doctree.findall(ledger_node)):
        kind = node["kind"]
        found = {e["id"]: e for e in json.loads((BUILD / "ledger.json").read_text("utf-8"))["entries"]}
        answered, open_rows = [], []
        for id, known in ledger.registry()[kind].items():
            entry = found.get(id)
            if entry is None:
                open_rows.append([id, known["says"], known["chapter"]])
                continue
            place = app.builder.get_relative_uri(docname, entry["page"]) + f"#{id.lower()}"
            link = nodes.reference("", known["chapter"], refuri=place, internal=True)
            verdict = nodes.strong("", entry["verdict"])
            if kind == "claims":
                answered.append([id, known["says"], verdict, entry["numbers"], link])
            else:
                for row in entry["rows"]:
                    values = [row["published"], row["ours"], row["tolerance"]]
                    answered.append([id, row["quantity"], *values, verdict.deepcopy(), link.deepcopy()])
                if entry["reason"]:
                    answered.append([id, "why", entry["reason"], "", "", "", link.deepcopy()])
        head = {
            "claims": ["id", "people say", "verdict", "the numbers", "where"],
            "results": ["id", "quantity", "published", "ours", "tolerance", "verdict", "where"],
        }[kind]
        replacement = [table(head, answered)]
        if open_rows:
            replacement.append(nodes.rubric("", f"Open: {len(open_rows)} that no chapter has answered yet"))
            replacement.append(table(["id", "what is said", "chapter to come"], open_rows))
        node.replace_self(replacement)


def write_vega(app):
    """The site's own copy of Vega, Vega-Lite and Vega-Embed, as a plain script (modules do not load from file://)."""
    if app.builder.format != "html":
        return
    if not VEGA.exists():
        bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        VEGA.parent.mkdir(parents=True, exist_ok=True)
        VEGA.write_text(f"(() => {{{bundle}}})();")
    app.config.html_static_path.append(str(VEGA.parent))


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
    katex.KaTeXServer.start_server_process = start_katex
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0
    katex.KATEX_DEFAULT_OPTIONS["throwOnError"] = True  # a formula that cannot be read fails the build
    # myst_nb finds such plugins by entry point only, which a book's own folder cannot have;
    # the list that it keeps is the same object each time.
    if ExplorableRenderer not in load_mime_renders():
        load_mime_renders().append(ExplorableRenderer)
    app.add_post_transform(FoldSolution)
    app.add_post_transform(TrueMinus)
    app.add_post_transform(QuoteAdmonition)
    app.add_node(ledger_node)
    app.add_directive("ledger", LedgerTable)
    app.connect("doctree-resolved", fill_ledgers)
    app.connect("builder-inited", write_vega)
    app.add_js_file("explorable.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
