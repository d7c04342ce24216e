"""The plot helpers return the figure, label its axes, and leave no figure open to be shown twice."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from vanishing import figures


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.lines(np.arange(3), {"a": np.arange(3), "b": np.ones(3)}, xlabel="x", ylabel="y"),
        lambda: figures.band(np.arange(3), {"a": np.ones((5, 3))}, xlabel="x", ylabel="y", theory={"t": np.ones(3)}),
    ],
)
def test_a_figure_is_returned_labelled_and_closed(figure):
    axes = figure().axes[0]
    assert axes.get_xlabel() == "x" and axes.get_ylabel() == "y"
    assert len(axes.get_legend().get_texts()) == 2
    assert plt.get_fignums() == []


def test_the_band_holds_the_middle_eighty_percent():
    samples = np.tile(np.arange(101.0)[:, None], (1, 2))
    figure = figures.band([0, 1], {"a": samples}, xlabel="x", ylabel="y")
    low, high = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min(), 90.0
    assert low == pytest.approx(10) and figure.axes[0].collections[0].get_paths()[0].vertices[
        :, 1
    ].max() == pytest.approx(high)


def test_the_style_pairs_each_color_with_a_dash():
    """Color is never the only carrier."""
    figures.style()
    cycle = list(plt.rcParams["axes.prop_cycle"])
    assert len({step["color"] for step in cycle}) == len({str(step["linestyle"]) for step in cycle}) == 7
