"""Explorables: what they refuse, and what each reader of a notebook is given."""

import altair as alt
import numpy as np
import pytest

from vanishing.explorable import MIME, Explorable


def chart(n=3):
    values = [{"x": i, "y": float(v)} for i, v in enumerate(np.random.default_rng(0).random(n))]
    return alt.Chart(alt.Data(values=values)).mark_line().encode(x="x:Q", y="y:Q")


def test_the_site_gets_a_specification_and_others_get_altairs_rendering():
    data, _ = Explorable(chart(), name="a", alt="A line  that\n rises.")._repr_mimebundle_()
    assert data[MIME]["spec"]["mark"]["type"] == "line"
    assert data[MIME]["alt"] == "A line that rises."
    assert "text/html" in data and "A line that rises." in data["text/plain"]


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="chart: got dict, expected an Altair chart"):
        Explorable({}, name="a", alt="b")
    with pytest.raises(ValueError, match="name, alt"):
        Explorable(chart(), name="a", alt=" ")


def test_too_much_data_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"chart: got \d+ bytes .* expected at most 150000"):
        Explorable(chart(30_000), name="a", alt="b")
