"""Gradient clipping: three ways to bound a step, none of which can make a small gradient larger.

Gradients are a dict or a list of arrays, as a network's `gradients`. Each function leaves them alone
and returns `(clipped, norm)`: new arrays of the same structure, and the norm before clipping, which
is worth a plot: an explosion shows there first.

In an ensemble each network is clipped by its own norm: `ensemble_axes` says how many leading axes of
every array are the ensemble. With 0 all arrays belong to one network.
"""

import numpy as np

from ._validate import floating

__all__ = ["clip_adaptive", "clip_by_norm", "clip_by_value", "global_norm"]


def global_norm(gradients, *, ensemble_axes=0):
    """|g| = sqrt(sum of g_i^2 over all entries of all arrays), in float64 and without overflow.

    Args:
        gradients: dict or list of arrays.
        ensemble_axes: how many leading axes are the ensemble.

    Returns:
        One norm for each network: the shape of the ensemble axes.
    """
    rows = [
        np.abs(_checked(key, g, ensemble_axes).astype(float)).reshape(*g.shape[:ensemble_axes], -1)
        for key, g in _items(gradients)
    ]
    if not rows:
        raise ValueError("gradients: got none, expected at least one array; call backward first")
    entries = np.concatenate(rows, axis=-1)
    largest = entries.max(axis=-1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)  # the squares of 1e200 overflow
    with np.errstate(over="ignore"):
        return scale * np.sqrt(np.square(entries / scale[..., None]).sum(axis=-1))


def clip_by_value(gradients, limit, *, ensemble_axes=0, error_if_nonfinite=True):
    """g_i -> min(max(g_i, -limit), limit), entry by entry: it changes the direction of g.

    Args:
        gradients: dict or list of arrays.
        limit: number above 0; see `clip_by_norm` for one for each network.
        ensemble_axes, error_if_nonfinite: as in `clip_by_norm`; if False, inf becomes the limit and
            nan stays.

    Returns:
        (clipped, norm), the second as in `global_norm`.

    Source: Mikolov (2012), PhD thesis.
    """
    norm = _norm(gradients, ensemble_axes, error_if_nonfinite)
    limit = _limit(limit, norm)

    def clip(key, g):
        bound = _lift(limit, g).astype(g.dtype)
        return np.clip(g, -bound, bound)

    return _map(clip, gradients), norm


def clip_by_norm(gradients, limit, *, ensemble_axes=0, error_if_nonfinite=True):
    """g -> g min(1, limit / |g|), with |g| the norm of all arrays together: the direction stays.

    Args:
        gradients: dict or list of arrays.
        limit: largest norm, a number above 0, or an array with one for each network.
        ensemble_axes: how many leading axes are the ensemble.
        error_if_nonfinite: whether inf or nan raise. An infinite norm has no direction to keep. If
            False such a network gets what torch gives it: finite entries become 0 under an infinite
            norm, all else nan. The other networks of the ensemble are clipped as usual.

    Returns:
        (clipped, norm), the second as in `global_norm`. torch divides by |g| + 1e-6, and so ends
        slightly below the limit; here the norm is the limit.

    Raises:
        ValueError: inf or nan in the gradients, or a limit of 0 or below.

    Source: Pascanu et al. (2013), algorithm 1.
    """
    norm = _norm(gradients, ensemble_axes, error_if_nonfinite)
    limit = _limit(limit, norm)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is replaced, inf * 0 is announced above
        scale = np.where(norm <= limit, 1.0, limit / norm)
        return _map(lambda key, g: (g * _lift(scale, g)).astype(g.dtype), gradients), norm


def clip_adaptive(gradients, parameters, limit=0.01, eps=1e-3, *, ensemble_axes=0, error_if_nonfinite=True):
    """G -> G min(1, limit max(|W|, eps) / |G|) for each unit: a step is small relative to the weights.

    A unit is a column of W, shape (..., n_in, n_out): the weights into one output. A bias, which has
    one axis besides the ensemble's, is one unit as a whole, as in the authors' code. The paper leaves
    the last layer unclipped: leave it out of `gradients` and `parameters`.

    Args:
        gradients, parameters: dicts or lists of arrays with the same keys and shapes.
        limit: largest ratio |G| / |W| of a unit, a number above 0, or one for each network.
        eps: least |W| that counts, so that units that start at 0 can leave it.
        ensemble_axes, error_if_nonfinite: as in `clip_by_norm`, unit by unit.

    Returns:
        (clipped, norm), the second as in `global_norm`.

    Source: Brock et al. (2021), adaptive gradient clipping (AGC).
    """
    norm = _norm(gradients, ensemble_axes, error_if_nonfinite)
    limit = _limit(limit, norm)
    weights = dict(_items(parameters))
    if weights.keys() != dict(_items(gradients)).keys():
        raise ValueError(
            f"parameters: got keys {[*weights]}, expected those of gradients, {[*dict(_items(gradients))]}"
        )

    def clip(key, g):
        W = np.asarray(weights[key])
        if W.shape != g.shape:
            raise ValueError(f"parameters[{key!r}]: got shape {W.shape}, expected {g.shape}, the gradient's")
        size, largest = _unit_norm(g, ensemble_axes), _lift(limit, g) * np.maximum(_unit_norm(W, ensemble_axes), eps)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (g * np.where(size <= largest, 1.0, largest / size)).astype(g.dtype)

    return _map(clip, gradients), norm


def _unit_norm(p, ensemble_axes):
    """Norm of each unit in float64, with its axis kept: of the columns of a matrix, or of a vector."""
    if p.ndim == ensemble_axes:
        return np.abs(p.astype(float))
    axis = -1 if p.ndim == ensemble_axes + 1 else -2
    return np.linalg.norm(p.astype(float), axis=axis, keepdims=True)


def _items(gradients):
    return gradients.items() if isinstance(gradients, dict) else enumerate(gradients)


def _map(f, gradients):
    """f(key, array) of each array, in the same structure."""
    mapped = {key: f(key, np.asarray(g)) for key, g in _items(gradients)}
    return mapped if isinstance(gradients, dict) else [*mapped.values()]


def _lift(value, g):
    """One value for each network, with as many axes behind as g has."""
    return value.reshape(value.shape + (1,) * (g.ndim - value.ndim))


def _checked(key, g, ensemble_axes):
    if not isinstance(g, (np.ndarray, np.floating)) or not np.issubdtype(g.dtype, np.floating):
        raise TypeError(f"gradients[{key!r}]: got {getattr(g, 'dtype', type(g).__name__)}, expected an array of floats")
    if g.ndim < ensemble_axes:
        raise ValueError(f"gradients[{key!r}]: got shape {g.shape}, expected at least {ensemble_axes} ensemble axes")
    return g


def _limit(limit, norm):
    limit = floating(limit, "limit").astype(float)
    if not np.all(limit > 0):
        raise ValueError(f"limit: got {limit}, expected numbers above 0")
    if limit.ndim and limit.shape != norm.shape:
        raise ValueError(f"limit: got shape {limit.shape}, expected a number, or {norm.shape} as the ensemble axes say")
    return limit


def _norm(gradients, ensemble_axes, error_if_nonfinite):
    norm = global_norm(gradients, ensemble_axes=ensemble_axes)
    if error_if_nonfinite and not np.isfinite(norm).all():
        where = [key for key, g in _items(gradients) if not np.isfinite(g).all()]
        raise ValueError(
            f"gradients: got a norm of inf or nan, from {where}, expected finite numbers; "
            "error_if_nonfinite=False lets the other networks go on"
        )
    return norm
