"""Explorables: charts that answer the reader with no kernel.

An explorable is an Altair chart whose sliders and menus are Vega-Lite parameters over a
grid that the library computed. The published page shows it with the site's own copy of
Vega; in Jupyter, VS Code and Colab the same object shows itself with Altair's renderer.
"""

import json

__all__ = ["Explorable"]

MIME = "application/vnd.vanishing.explorable+json"
LIMIT = 150_000  # bytes of specification and data, gzip
# Text as large as the page's, thin grids; a chart's own configuration comes on top.
CONFIG = {
    "font": "system-ui, sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "gridOpacity": 0.5},
    "legend": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"},
    "view": {"stroke": None},
}


class Explorable:
    """An Altair chart with a name and a text that says what is seen.

    Args:
        chart: an `altair.Chart` (layered, concatenated, ...) with parameters bound to inputs.
        name: short and unique within its page, as "products"; it names the figure's address.
        alt: one or two sentences for a reader who does not see the chart: what is drawn,
            and what it shows in its first state.

    Raises:
        TypeError: chart is not an Altair chart.
        ValueError: name or alt is empty, or the data is over 150 kB after gzip.
    """

    def __init__(self, chart, *, name, alt):
        import gzip

        if not hasattr(chart, "to_dict"):
            raise TypeError(f"chart: got {type(chart).__name__}, expected an Altair chart")
        if not name or not alt.strip():
            raise ValueError(
                f"name, alt: got {name!r} and {alt!r}, expected a name and a sentence that says what is seen"
            )
        self.chart, self.name, self.alt = chart, name, " ".join(alt.split())
        self.spec = chart.to_dict()
        self.spec["config"] = CONFIG | self.spec.get("config", {})
        size = len(gzip.compress(json.dumps(self.spec).encode()))
        if size > LIMIT:
            raise ValueError(f"chart: got {size} bytes of specification and data after gzip, expected at most {LIMIT}")

    def _repr_mimebundle_(self, include=None, exclude=None):
        """For the site, the specification; for every other reader, what Altair shows."""
        site = {"name": self.name, "alt": self.alt, "spec": self.spec}
        shown = self.chart._repr_mimebundle_(include, exclude)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return {**data, MIME: site, "text/plain": f"Explorable {self.name!r}: {self.alt}"}, metadata
