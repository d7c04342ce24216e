"""The contract of the chapters: what every one of them has, and where its numbers come from."""

import ast
import functools
import importlib
import inspect
import json
import math
import re
import textwrap

import pytest
import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

import book
from vanishing import exercises, ledger

CHAPTERS = sorted({page.parent.name for page in book.toc_pages() if page.parent.parent.name == "chapters"})
KINDS = ("lesson", "lab", "exercises")

# Numbers in lessons that are neither computed, nor a setting of the run, nor arithmetic, nor cited, each with its reason.
GIVEN = {
    "chain-rule": {
        "0.1": "a choice of answer in a prediction",
        "0.001": "a choice of answer in a prediction, and the claim it answers",
        "45": "the exponent of the smallest float32",
        "324": "the exponent of the smallest float64",
    },
    "softmax": {
        "24.3": "what is said elsewhere, the claim that the page answers",
        "9.8": "what is said elsewhere, the claim that the page answers",
    },
    "initialization": {
        "1.1": "a stop of the explorable's slider; the page asserts what happens there",
        "1.4": "a stop of the explorable's slider; the page asserts what happens there",
    },
    "residuals": {
        "110": "layers of a network in the abstract that the sentence cites",
        "34": "layers, from the same abstract",
    },
    "recurrent": {
        "0.01": "a choice of answer in a prediction",
    },
    "mini-batch": {
        "500": "a choice of answer in a prediction; the number of training images, rounded, stands beside it",
        "1.28": "a stop of the explorable's slider; the page asserts what happens there",
        "5.12": "a stop of the explorable's slider; the page asserts what happens there",
        "10.24": "a stop of the explorable's slider; the page asserts what happens there",
        "8192": "from the abstract that is cited beside it",
    },
    "adam": {"2.1": "the number of a section of the paper"},
}


def path(chapter, kind):
    return book.ROOT / "chapters" / chapter / f"{kind}.md"


def tokens(text):
    """The tokens of a page, those inside ::: blocks included."""
    parser = MarkdownIt("commonmark")
    for plugin in (front_matter_plugin, colon_fence_plugin, dollarmath_plugin, myst_role_plugin):
        parser.use(plugin)
    for token in parser.parse(text):
        if token.type == "colon_fence":
            yield from tokens(re.sub(r"^:\w+:.*\n", "", token.content, flags=re.M))
        yield token
        yield from token.children or ()


@functools.cache
def parts(chapter, kind):
    """(prose, formulas, code) of a page: texts; its roles, fences and inline code are not prose."""
    prose, formulas, code = [], [], []
    for token in tokens(path(chapter, kind).read_text("utf-8")):
        if token.type == "text":
            prose.append(token.content)
        elif token.type in ("softbreak", "heading_open", "paragraph_open"):
            prose.append("\n")
        elif token.type.startswith("math_"):
            formulas.append(token.content)
        elif token.type == "fence" and token.info.startswith("{code-cell}"):
            code.append(token.content)
    return "".join(prose), formulas, "\n".join(code)


@functools.cache
def the_run():
    """What the last build's own runs said."""
    return json.loads((book.BUILD / "ledger.json").read_text("utf-8"))


# Shape


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_one_topic_one_name_three_places(chapter):
    """A chapter has its three pages, a module of its name, and tests of its name."""
    for kind in KINDS:
        assert path(chapter, kind) in book.toc_pages(), f"{kind}.md is not in _toc.yml"
    module = chapter.replace("-", "_")
    assert (book.ROOT / "lib" / "vanishing" / f"{module}.py").exists()
    assert (book.ROOT / "tests" / f"test_{module}.py").exists()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_lesson_has_the_anatomy(chapter):
    """A prediction before an answer, a numbered equation, an explorable, what people say, tomorrow, take-aways."""
    text = path(chapter, "lesson").read_text("utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    for wanted in ("What people say", "Tomorrow", "Take away"):
        assert wanted in headings
    assert text.index("Predict") < text.index("```{code-cell}"), "a prediction comes before the first code"
    assert re.search(r"^\$\$ \(eq-", text, re.M), "the key equation is numbered"
    assert "vg.Explorable(" in text, "there is something to play with"
    assert "{cite}" in text
    takeaways = text.partition("## Take away")[2]
    assert 1 <= len(re.findall(r"^- ", takeaways, re.M)) <= 3


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_code_shown_is_the_librarys(chapter):
    """A function in a cell tagged `library` does what the library's function of that name does, line for line."""
    module = importlib.import_module(f"vanishing.{chapter.replace('-', '_')}")
    shown = re.findall(
        r"^:tags: \[[^]]*\blibrary\b[^]]*\]\n(.*?)^```", path(chapter, "lesson").read_text("utf-8"), re.M | re.S
    )
    assert shown, "the lesson shows the few lines that matter, in a cell tagged `library`"
    for cell in shown:
        for node in ast.parse(cell).body:
            assert body(node) == body(ast.parse(textwrap.dedent(inspect.getsource(getattr(module, node.name)))).body[0])


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_code_that_readers_see_fits_the_column(chapter, kind):
    """74 characters; cells that are folded or removed may be wider."""
    cells = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```", path(chapter, kind).read_text("utf-8"), re.M | re.S)
    wide = [
        line
        for cell in cells
        if not re.match(r":tags: .*(hide-input|remove-)", cell)
        for line in exercises.SOLUTION.sub("", cell).splitlines()
        if len(line) > 74
    ]
    assert not wide, "\n".join(wide)


def body(function):
    """The statements of a function without its docstring and without the coercion of its input."""
    source = "\n".join(
        ast.unparse(node) for node in function.body if not isinstance(getattr(node, "value", None), ast.Constant)
    )
    source = re.sub(r"floating\((\w+), '\w+'\)", r"\1", source).replace(".astype(float)", "")
    return f"({ast.unparse(function.args)})\n{source}"


# Evidence


def test_every_claim_and_result_of_a_chapter_is_answered_once():
    """What ledger.toml assigns to a chapter its pages answer, and the last page what is left for it."""
    place = {chapter: f"chapters/{chapter}/" for chapter in CHAPTERS} | {"diagnosis": "pages/tomorrow"}
    answered = {}
    for entry in the_run()["entries"]:
        answered.setdefault(entry["id"], []).append(entry["page"])
    for known in ledger.registry().values():
        for id, item in known.items():
            pages = answered.get(id, [])
            assert len(pages) == 1, f"{id} is answered on {pages}"
            assert pages[0].startswith(place[item["chapter"]]), f"{id} is answered on {pages[0]}"


# Numbers


NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\])")


def evaluate(latex):
    """The value of a piece of pure arithmetic in LaTeX, or None when it is not that."""
    s = re.sub(r"\\[,;:! ]|\\%|\\quad", " ", latex)
    s = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"((\1)/(\2))", s)
    s = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", s)
    s = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", s).replace(r"\ln", "log")
    s = re.sub(r"log\s+([\d.]+)", r"log(\1)", s)
    s = s.replace(r"\cdot", "*").replace(r"\times", "*").replace("^", "**").replace("{", "(").replace("}", ")")
    s = re.sub(r"(\d)\s+(log|sqrt)", r"\1*\2", s)
    if not re.fullmatch(r"(?:[\d.\s()*/+-]|log|sqrt)+", s) or not re.search(r"\d", s):
        return None
    try:
        return float(eval(s.strip(), {"__builtins__": {}, "log": math.log, "sqrt": math.sqrt}))
    except SyntaxError:
        return None


def written_to(latex):
    """Half a unit of the last digit of a number as it is written: the error that rounding may have made."""
    number = re.search(r"\d+(?:\.(\d+))?(?:\s*\\times 10\^\{(-?\d+)\})?", latex)
    return 0.5 * 10.0 ** (-len(number[1] or "") + int(number[2] or 0))


def sides(formula):
    """The members of the chains of = and \\approx in a formula, a list for each chain."""
    formula = re.sub(r"\\(?:begin|end)\{aligned\}|&", " ", formula)
    formula = re.sub(r"\\qquad|\\quad|\\text\{[^}]*\}|\\\\", ";", formula)
    return [re.split(r"=|\\approx", chain.rstrip(" .,")) for chain in formula.split(";")]


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("kind", ["lesson", "lab"])
def test_arithmetic_shown_is_right(chapter, kind):
    """In a chain such as 0.5^{10} = 0.0009765625 the members that are pure arithmetic agree, to the digits written."""
    for formula in parts(chapter, kind)[1]:
        for members in sides(formula):
            values = [(m, evaluate(m)) for m in members]
            known = [(m, v / 100 if r"\%" in m else v) for m, v in values if v is not None]
            for (_, exact), (text, value) in zip(known, known[1:]):
                tolerance = written_to(text) * (0.01 if r"\%" in text else 1)
                assert abs(exact - value) <= tolerance * 1.0001, f"{formula}: {exact} is not {text}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_numbers_in_a_lesson_have_a_source(chapter):
    """A number in prose is computed by the run (glue), a setting of the run (it stands in a code cell), arithmetic
    shown on the page, cited in its paragraph, a count up to twelve, or an exception listed above with its reason."""
    prose, formulas, code = parts(chapter, "lesson")
    settings = {n.replace("_", "").replace(",", "") for n in re.findall(r"\d[\d_]*(?:\.\d+)?", code)}
    settings |= {f"{float(n):g}" for n in settings}
    shown = set()
    for formula in formulas:
        if any(sum(evaluate(m) is not None for m in members) > 1 or len(members) == 1 for members in sides(formula)):
            shown |= set(re.findall(r"\d+(?:\.\d+)?", formula))
    unsourced = []
    for paragraph in prose.split("\n"):
        for match in NUMBER.finditer(paragraph):
            number = match.group().replace(",", "").rstrip(".")
            small = "." not in number and int(number) <= 12
            if not (small or number in settings or number in shown or number in GIVEN.get(chapter, {})):
                unsourced.append(f"{number!r} in {paragraph.strip()[:90]!r}")
    assert not unsourced, "\n".join(unsourced)
    text = prose + " ".join(formulas)
    for number in GIVEN.get(chapter, {}):
        assert number in text, f"the exception {number!r} is no longer needed"


# Notebooks


@pytest.mark.parametrize(
    "notebook", sorted(book.NOTEBOOKS.rglob("*.ipynb")), ids=lambda p: str(p.relative_to(book.NOTEBOOKS))
)
def test_a_notebook_opens_clean(notebook):
    """Plain Markdown: no directive, role, label or empty result of one; links to pages that exist; no outputs."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            continue
        text = re.sub(r"```.*?```", "", text, flags=re.S)
        assert not re.search(r"^(?:```|:::)\{|\{[a-z:]+\}`|^\([\w-]+\)=|^---$|None|<span", text, re.M), text
        for target in re.findall(r"\]\(([^)#\s]+\.ipynb)", text):
            assert (notebook.parent / target).exists(), target


def test_the_table_of_contents_is_valid_yaml():
    assert yaml.safe_load((book.ROOT / "_toc.yml").read_text("utf-8"))["root"] == "index"
