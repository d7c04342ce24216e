"""Vanishing Gradients: the code of the book, one module a topic.

    import vanishing as vg

Everything public is reached from here. A module is imported when one of its names is
first used, so that this import costs little more than NumPy's.
"""

import importlib

# Where each public name lives. The order is the book's.
_MODULES = {
    "backpropagation": (
        "Activate", "Dense", "Sequential", "cross_entropy", "d_cross_entropy", "d_mean_squared_error",
        "gradcheck", "mean_squared_error", "mlp",
    ),
    "chain_rule": (
        "gaussian_growth_rate", "gradient_flow", "log10_norms", "log10_product", "log10_singular_values",
        "lognormal_factors", "lognormal_rates", "product_grid", "relu_growth_rate",
    ),
    "activations": ("ACTIVATIONS", "activation", "sigmoid"),
    "initialization": ("initialize",),
    "data": ("digits",),
    "figures": ("band", "lines", "style"),
    "explorable": ("Explorable",),
    "ledger": ("claim", "glue", "reproduction", "scientific"),
    "exercises": ("check", "differs", "expects", "rejects"),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_MODULES, *_HOME]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"vanishing.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"vanishing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vanishing' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
