"""Checks of arguments. Each error names the argument, what came and what was expected."""

import difflib

import numpy as np


def lookup(kind, name, known):
    """Return `known[name]`, or raise an error that lists the known names and the nearest one."""
    if not isinstance(name, str):
        raise TypeError(f"{kind}: got {type(name).__name__}, expected one of {', '.join(known)}")
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{kind}: got {name!r}, expected one of {', '.join(known)}.{hint}")
    return known[name]


def floating(x, name="z"):
    """Return `x` as an array of a floating (or complex) dtype; only integers are converted."""
    x = np.asarray(x)
    if x.dtype.kind in "fc":
        return x
    if x.dtype == object or not np.can_cast(x.dtype, np.float64):
        raise TypeError(f"{name}: got an array of {x.dtype}, expected numbers")
    return x.astype(np.float64)


def positive_integer(value, name):
    """Return `value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: got {value!r}, expected an integer")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")
    return int(value)


def generator(rng):
    """Return `rng` if it is a numpy Generator: randomness is an argument, never a global."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng: got {type(rng).__name__}, expected a numpy.random.Generator, for example numpy.random.default_rng(0)"
        )
    return rng
