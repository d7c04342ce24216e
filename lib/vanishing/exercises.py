"""Exercises: immediate feedback on a function that a reader has written.

An exercise lives in `chapters/<topic>/exercises.md` only: its statement, its solution
between markers, and its check in a cell tagged `check`. A check is a set of properties,
each a small function of the attempt and of fresh random input::

    @vg.expects("chain-rule/log-product", "adds the logarithms", points=2)
    def _(attempt, rng):
        factors = rng.uniform(0.1, 2.0, size=(3, 5))
        return vg.differs(attempt(factors), np.log10(factors).sum(axis=-1))

It returns nothing when the property holds, else the sentence that helps. The same cell
names wrong answers that the check must reject (`vg.rejects`) and right ones, written
differently from the solution, that it must not (`vg.accepts`).
"""

import copy
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

__all__ = ["accepts", "check", "differs", "expects", "rejects"]

SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION[^\n]*\n?", re.M | re.S)

_properties: dict[str, dict[str, "Property"]] = {}  # exercise -> what it says -> property
_rejected: dict[str, tuple[Callable, ...]] = {}
_accepted: dict[str, tuple[Callable, ...]] = {}
_loaded: set[str] = set()


@dataclass(frozen=True)
class Property:
    """One thing that a right answer does, what it is worth, and the test of it."""

    says: str
    points: float
    test: Callable


class NotDone(Exception):
    """The exercise has not been started: the attempt returned nothing, or, as the message says, is not there."""


def expects(exercise, says, *, points=1):
    """Decorator: add a property to the check of an exercise.

    Args:
        exercise: "topic/name".
        says: what a right answer does, as the reader will see it.
        points: what the property is worth.
    """

    def add(test):
        _properties.setdefault(exercise, {})[says] = Property(says, points, test)
        return test

    return add


def rejects(exercise, *wrong):
    """Register plausible wrong answers; the book's tests see that each one loses points."""
    _rejected[exercise] = wrong


def accepts(exercise, *right):
    """Register other right answers than the solution; the book's tests see that each one gets every point."""
    _accepted[exercise] = right


def differs(got, want, *, rtol=1e-6, atol=0.0, hint=""):
    """What is wrong with an array, or nothing: type, then shape, then values.

    Args:
        got: what the attempt returned.
        want: the right array.
        rtol, atol: it is right when |got - want| <= atol + rtol |want|, entry by entry.
        hint: said instead of the entry that is furthest off.

    Returns:
        A sentence, or None when got is right.
    """
    want = np.asarray(want)
    try:
        got = np.asarray([] if got is None else got, dtype=want.dtype)
    except (TypeError, ValueError):
        return f"your result is a {type(got).__name__}, expected numbers of shape {want.shape}"
    if got.shape != want.shape:
        return f"your result has shape {got.shape}, expected {want.shape}"
    wrong = ~np.isclose(got, want, rtol=rtol, atol=atol)
    if not wrong.any():
        return None
    if hint:
        return hint
    if want.ndim == 0:
        return f"your result is {got:.6g}, expected {want:.6g}"
    worst = np.unravel_index(np.argmax(np.where(wrong, np.abs(got - want), -1.0)), want.shape)
    place = ", ".join(map(str, worst))
    return f"the shape is right; entry [{place}] is {got[worst]:.6g}, expected {want[worst]:.6g}"


def judge(prop, attempt, rng):
    """Try one property of a check on an attempt: the sentence that says what is wrong, or None."""
    raised = []

    def started(*args, **kwargs):
        try:
            result = attempt(*copy.deepcopy(args), **copy.deepcopy(kwargs))  # it may change what it is given
        except Exception as error:
            raised.append(error)
            raise
        if result is None or result is Ellipsis:
            raise NotDone
        return result

    try:
        return prop.test(started, rng)
    except NotDone as why:
        return str(why) or "not done yet (or is a `return` missing?)"
    except Exception as error:  # whatever a reader's code can raise is feedback, not a crash
        if any(error is one for one in raised):
            return f"your function raised {type(error).__name__}" + (f": {error}" if str(error) else "")
        # The check could not compute with the result. Its text may quote it, and with it the hidden input.
        return (
            f"the check cannot compute with your result ({type(error).__name__}): is it of the kind that is asked for?"
        )


def names(topic):
    """The exercises of a topic, in the order of its page."""
    load(topic)
    return [name for name in _properties if name.startswith(f"{topic}/")]


def properties(exercise):
    """The properties of an exercise, in the order of its page.

    Raises:
        ValueError: no exercise of that name; the known ones are listed.
    """
    load(exercise.split("/")[0])
    if exercise not in _properties:
        known = sorted(_properties)
        near = difflib.get_close_matches(exercise, known, 1)
        raise ValueError(
            f"exercise: got {exercise!r}, expected one of {', '.join(known)}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return list(_properties[exercise].values())


def check(exercise, attempt, *, rng=None):
    """Try a function on fresh random inputs and say which properties it has.

    Args:
        exercise: "topic/name", as the page gives it.
        attempt: your function.
        rng: the source of the inputs; by default they are new each time.

    Returns:
        A `Feedback`, which shows itself as a table.

    Raises:
        ValueError: no exercise of that name; the known ones are listed.
        TypeError: attempt cannot be called.
    """
    known = properties(exercise)
    if not callable(attempt):
        raise TypeError(f"attempt: got {type(attempt).__name__}, expected the function that you wrote")
    rng = np.random.default_rng() if rng is None else rng
    return Feedback(exercise, [(prop, judge(prop, attempt, rng)) for prop in known])


@dataclass(frozen=True)
class Feedback:
    """What a check found: one row a property."""

    exercise: str
    rows: list

    @property
    def points(self):
        return sum(prop.points for prop, problem in self.rows if not problem)

    @property
    def possible(self):
        return sum(prop.points for prop, _ in self.rows)

    @property
    def alike(self):
        """What is wrong, if it is the same with each property."""
        first, *others = {problem for _, problem in self.rows}
        return "" if others else first or ""

    @property
    def summary(self):
        points = f"{self.exercise}: {self.points:g} of {self.possible:g} points"
        return f"{points}: {self.alike}" if self.alike else points

    def __repr__(self):
        lines = [self.summary]
        for prop, problem in () if self.alike else self.rows:
            lines.append(f"  {'x' if problem else 'v'} {prop.says}" + (f": {problem}" if problem else ""))
        return "\n".join(lines)

    def _repr_html_(self):
        head, rows = ["holds", "property", "what to look at", "points"], []
        for prop, problem in self.rows:
            got = 0 if problem else prop.points
            rows.append(["✗ no" if problem else "✓ yes", prop.says, problem or "", f"{got:g} / {prop.points:g}"])
        if not any(row[2] for row in rows):
            head, *rows = ([holds, says, points] for holds, says, _, points in (head, *rows))
        lines = "".join(f"<tr>{''.join(f'<td>{markup(text)}</td>' for text in row)}</tr>" for row in rows)
        titles = "".join(f"<th>{text}</th>" for text in head)
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
        return (
            f'<div class="feedback"><p><strong>{markup(self.summary)}</strong></p>{"" if self.alike else table}</div>'
        )


def markup(text):
    """Text with `code` in it, as HTML."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def source(topic):
    """The text of a topic's exercises.md: beside the package once installed, in the book's checkout before that."""
    here = Path(__file__).resolve().parent
    places = (here / "chapters", here.parent.parent / "chapters")
    for chapters in places:
        path = chapters / topic / "exercises.md"
        if path.exists():
            return path.read_text("utf-8")
    topics = sorted({p.parent.name for chapters in places for p in chapters.glob("*/exercises.md")})
    raise ValueError(f"exercise: got topic {topic!r}, expected one of {', '.join(topics)}")


def cells(topic, tag=None):
    """The code cells of a topic's exercises.md, those with this tag if one is given."""
    from markdown_it import MarkdownIt

    found = []
    for token in MarkdownIt().parse(source(topic)):
        if token.type == "fence" and token.info.startswith("{code-cell}"):
            options, code = re.match(r"((?::[^\n]*\n)*)(.*)", token.content, re.S).groups()
            tags = re.findall(r"[\w-]+", options.partition(":tags:")[2])
            if tag is None or tag in tags:
                found.append(code)
    return found


def load(topic):
    """Run the check cells of a topic once, which registers its properties."""
    if topic in _loaded:
        return
    import vanishing

    for code in cells(topic, "check"):
        exec(compile(code, f"{topic}/exercises.md", "exec"), {"np": np, "vg": vanishing})
    _loaded.add(topic)


def without_solution(code):
    """The code of a cell with each region between the solution markers replaced by a place to write."""
    return SOLUTION.sub(r"\1...  # write your code here\n", code).rstrip("\n")
