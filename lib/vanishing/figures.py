"""One style for the book's figures, and the few plots that recur.

Functions take data, hold no mathematics, and return the figure.
"""

import numpy as np

__all__ = ["COLORS", "band", "lines", "style"]

# Okabe & Ito's palette, told apart by color-blind readers; each line has its own dash too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def style():
    """Set the book's matplotlib style for this notebook."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "svg.fonttype": "path",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    )


def lines(x, ys, *, xlabel, ylabel, title="", log=False):
    """Curves over a common axis.

    Args:
        x: positions, shape (n,).
        ys: {label: values of shape (n,)}.
        xlabel, ylabel, title: texts; an axis without a label is not a figure.
        log: a logarithmic vertical axis.

    Returns:
        The matplotlib figure.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    for label, y in ys.items():
        axes.plot(x, y, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log else "linear")
    if len(ys) > 1:
        axes.legend()
    plt.close(figure)  # a returned figure is shown by the notebook; an open one would be shown twice
    return figure


def band(x, samples, *, xlabel, ylabel, title="", theory=None):
    """Measurements with their band over seeds, and a theory drawn over them.

    Args:
        x: positions, shape (n,).
        samples: {label: values of shape (seeds, n)}, five at most; the line is the median
            (points, where there is a theory), the band holds the middle 80 % of the seeds.
        theory: {label: values of shape (n,)}, drawn as black lines.

    Returns:
        The matplotlib figure.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    for marker, (label, values) in zip("oxs^v", samples.items()):
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
        # Over a theory, points: two lines on top of each other look like one.
        look = {"linestyle": "none", "marker": marker} if theory else {}
        (line,) = axes.plot(x, middle, label=label, **look)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for dash, (label, y) in zip(("--", ":", "-."), (theory or {}).items()):
        axes.plot(x, y, color="black", linestyle=dash, linewidth=1.4, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(samples) + len(theory or {}) > 1:
        axes.legend()
    plt.close(figure)
    return figure
