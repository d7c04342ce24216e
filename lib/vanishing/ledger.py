"""The ledger: what a page's own run says of a claim, of a landmark result, of a number.

Each of the three shows itself on the page and leaves a record in its cell's output. The
pages Claims and Results are generated from those records, and prose takes its numbers
from them, so that a measured number is computed in one place and typed in none.
"""

import math
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files

from ._validate import lookup

__all__ = ["claim", "glue", "reproduction", "scientific"]

VERDICTS = ("holds", "holds when ...", "half true", "false")


@cache
def registry():
    """The claims and results that the book answers: {"claims": {id: ...}, "results": {id: ...}}."""
    return tomllib.loads((files("vanishing") / "ledger.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Record:
    """An entry of the ledger, which shows itself as a box on the page."""

    data: dict

    def _repr_mimebundle_(self, **_):
        shown = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return shown, {"ledger": self.data}  # the metadata is what the generated pages read

    def __repr__(self):
        d = self.data
        lines = [f"{d['id']}  {d['says']}", f"    {d['verdict']}" + (f": {d['numbers']}" if d["numbers"] else "")]
        for row in d.get("rows", ()):
            lines.append("    " + "  ".join(f"{name}: {value}" for name, value in row.items()))
        return "\n".join(lines + ([f"    why: {d['reason']}"] if d.get("reason") else []))

    def _repr_html_(self):
        d = {name: escape(value) if isinstance(value, str) else value for name, value in self.data.items()}
        verdict = d["verdict"][0].upper() + d["verdict"][1:]
        kind = self.data["verdict"].split()[0]  # holds, half, false, reproduced, differs, not
        html = f'<div class="verdict verdict-{kind}" id="{d["id"].lower()}">'
        html += f'<p><span class="verdict-id">{d["id"]}</span> <q>{d["says"]}</q></p>'
        html += f"<p><strong>{verdict}.</strong> {d['numbers']}</p>"
        if d.get("rows"):
            names = "".join(f"<th>{escape(name)}</th>" for name in d["rows"][0])
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(v)}</td>" for v in row.values()) + "</tr>" for row in d["rows"]
            )
            html += f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
        if d.get("reason"):
            html += f"<p>{d['reason']}</p>"
        return html + "</div>"


def claim(id, verdict, *, because, numbers):
    """The measured verdict on something that people say.

    Args:
        id: the claim's number, such as "C5".
        verdict: "holds", "holds when ..." (with the condition), "half true" or "false".
        because: {sentence: bool}, the tests that the verdict stands on.
        numbers: one or two sentences with the measured numbers, formatted from the run.

    Returns:
        A `Record`; as the last line of a cell it shows itself on the page.

    Raises:
        AssertionError: one of the tests does not hold, so neither does the verdict.
        ValueError: an unknown id or verdict.
    """
    known = lookup("id", id, registry()["claims"])
    if verdict not in VERDICTS and not verdict.startswith("holds when "):
        raise ValueError(f"verdict: got {verdict!r}, expected one of {', '.join(map(repr, VERDICTS))}")
    if not because:
        raise ValueError("because: got no tests, expected at least one that the verdict stands on")
    failed = [says for says, true in because.items() if not true]
    if failed:
        raise AssertionError(
            f"{id}: the verdict {verdict!r} no longer stands, for it is not true that {'; nor that '.join(failed)}"
        )
    return Record({"kind": "claim", "id": id, "says": known["says"], "verdict": verdict, "numbers": minus(numbers)})


def reproduction(id, verdict, *, rows, seconds, source, reason=""):
    """A landmark result beside our own measurement of it.

    Args:
        id: the result's number, such as "R1".
        verdict: what the page says: "reproduced" (every row within its tolerance),
            "not reproduced" (none) or "differs" (some).
        rows: a list of (quantity, published value, our value, tolerance): |ours - published| <= tolerance.
        seconds: how long our measurement took.
        source: where the published value stands (paper and place).
        reason: what differs and why; required unless the verdict is "reproduced".

    Returns:
        A `Record`; as the last line of a cell it shows itself on the page.

    Raises:
        AssertionError: the rows do not give this verdict.
        ValueError: an unknown id, or no reason where one is due.
    """
    known = lookup("id", id, registry()["results"])
    inside = [abs(ours - published) <= tolerance for _, published, ours, tolerance in rows]
    measured = "reproduced" if all(inside) else "differs" if any(inside) else "not reproduced"
    table = [
        {
            "quantity": quantity,
            "reference": minus(as_stated(published, tolerance)),
            "ours": minus(to_tolerance(ours, tolerance)),
            "tolerance": two_digits(tolerance),
            "within": "yes" if ok else "no",
        }
        for (quantity, published, ours, tolerance), ok in zip(rows, inside)
    ]
    if measured != verdict:
        raise AssertionError(f"{id}: the page says {verdict!r}, the run {measured!r}: {table}")
    if verdict != "reproduced" and not reason:
        raise ValueError(f"reason: got none, expected why {id} {verdict}")
    numbers = f"{sum(inside)} of {len(inside)} quantities within tolerance, in {seconds:.1f} s. Source: {source}."
    return Record(
        {"kind": "result", "id": id, "says": known["says"], "verdict": verdict, "numbers": numbers,
         "rows": table, "reason": minus(reason)}
    )  # fmt: skip


def to_tolerance(value, tolerance):
    """A number to the second digit of its tolerance: what lies behind says nothing."""
    if tolerance <= 0:
        return short(f"{value:.4f}")
    return f"{value:.{max(0, 1 - math.floor(math.log10(tolerance)))}f}"


def as_stated(value, tolerance):
    """A number that has few digits, with all of them; one that a formula gave, to the second digit of the tolerance."""
    whole = f"{value:.10g}"
    return whole if len(whole.lstrip("-0.")) <= 5 and "e" not in whole else short(to_tolerance(value, tolerance))


def two_digits(value):
    """0.22 for 0.2234, 100 for 100.0, 9.7 × 10⁻⁶ for 9.712e-6."""
    text = f"{float(f'{value:.2g}'):g}"
    return scientific(value) if "e" in text else text


def short(number):
    """A decimal number without zeros at its end: 6.57 for 6.5700."""
    return number.rstrip("0").rstrip(".") if "." in number else number


def minus(text):
    """The text with a minus sign, not a hyphen, before its negative numbers (and "1e-20" as it is)."""
    return re.sub(r"(?<!\w)-(?=\.?\d)", "−", text)


def glue(**numbers):
    """Keep numbers of this run by name, for sentences of the page: {glue:text}`slope:.2f`.

    The same output format as myst_nb's glue, which a notebook on Colab does not have.

    Args:
        numbers: name=value; a name is unique within its page, a value a number or a text.
    """
    from IPython.display import display

    prefix = "application/papermill.record/"
    for name, value in numbers.items():
        text = repr(value.item() if hasattr(value, "item") else value)  # "24,960" without its quotes would be a pair
        display({f"{prefix}text/plain": text}, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}}, raw=True)


def scientific(value, digits=2):
    """A number as one writes it: 5.7 × 10⁻⁷ for 5.7e-07.

    Args:
        value: a number.
        digits: significant digits.
    """
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if not exponent:  # inf, nan
        return mantissa
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"{minus(mantissa)} × 10{str(int(exponent)).translate(superscript)}"
