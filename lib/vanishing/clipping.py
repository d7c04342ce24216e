"""Gradient clipping: three ways to bound a step, none of which can make a small gradient larger.

Gradients are a dict or a list of arrays, as a network's `gradients`. Each function leaves them alone
and returns `(clipped, norm)`: new arrays of the same structure, and the norm before clipping, which
is worth a plot: an explosion shows there first.

In an ensemble each network is clipped by its own norm: `ensemble_axes` says how many leading axes of
every array are the ensemble. With 0 all arrays belong to one network.

Below them: the cliff of Pascanu et al. (2013), a loss with a wall, and what the floating-point formats
of 16 bits leave of a gradient.
"""

import numpy as np

from . import activations
from ._validate import floating, generator, lookup
from .activations import d_sigmoid, sigmoid
from .initialization import initialize

__all__ = [
    "cliff", "cliff_grid", "clip_adaptive", "clip_by_norm", "clip_by_value", "descend_cliff", "global_norm",
    "precision_grid", "rounded", "rounded_gradients",
]  # fmt: skip


def global_norm(gradients, *, ensemble_axes=0):
    """|g| = sqrt(sum of g_i^2 over all entries of all arrays), in float64 and without overflow.

    Args:
        gradients: dict or list of arrays.
        ensemble_axes: how many leading axes are the ensemble.

    Returns:
        One norm for each network: the shape of the ensemble axes.
    """
    rows = [_checked(key, g, ensemble_axes).reshape(*g.shape[:ensemble_axes], -1) for key, g in _items(gradients)]
    if not rows:
        raise ValueError("gradients: got none, expected at least one array; call backward first")
    entries = np.concatenate(rows, axis=-1)
    largest = np.abs(entries).max(axis=-1, initial=0.0).astype(float)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)  # the squares of 1e200 overflow
    with np.errstate(over="ignore"):
        entries = entries / scale[..., None]
        return scale * np.sqrt(np.einsum("...i,...i->...", entries, entries))


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


# The cliff ---------------------------------------------------------------------------------------


def cliff(w, b, steps=50, start=0.5, target=0.7):
    """Loss of a recurrent network of one unit, and its gradient.

        z_t = w sigmoid(z_(t-1)) + b,  C = (sigmoid(z_T) - target)^2

    The derivatives of z_t are carried along with z_t. From w = 1 / sigmoid'(start) on, the loss has a
    cliff where `start` is a fixed point, b = start - w sigmoid(start): there dz_T/dz_0 = (w sigmoid'(start))^T.

    Args:
        w, b: weight and bias, numbers or arrays that broadcast.
        steps: T, the steps in time.
        start: z_0.
        target: what sigmoid(z_T) should be.

    Returns:
        (C, dC/dw, dC/db), of the shape of w and b together.

    Source: Pascanu et al. (2013), equation 8 and figure 6.
    """
    z, dw, db = start, 0.0, 0.0
    for _ in range(steps):
        h, slope = sigmoid(z), d_sigmoid(z)
        z, dw, db = w * h + b, h + w * slope * dw, 1 + w * slope * db
    y = sigmoid(z)
    d = 2 * (y - target) * d_sigmoid(z)
    return (y - target) ** 2, d * dw, d * db


def descend_cliff(w, b, *, rate, limit=np.inf, steps=300):
    """Gradient descent on `cliff`, with each gradient clipped to the norm `limit`.

    Args:
        w, b: where it starts, numbers or arrays of the same shape (...).
        rate: learning rate, a number or an array that broadcasts with w.
        limit: largest norm; inf for no clipping.
        steps: number of steps.

    Returns:
        The places, (steps + 1, ..., 2), the start included.
    """
    w, b, rate, limit = np.broadcast_arrays(*(floating(v, "w").astype(float) for v in (w, b, rate, limit)))
    places = [np.stack([w, b], axis=-1)]
    for _ in range(steps):
        _, dw, db = cliff(w, b)
        (dw, db), _ = clip_by_norm([dw, db], limit, ensemble_axes=w.ndim)
        w, b = w - rate * dw, b - rate * db
        places.append(np.stack([w, b], axis=-1))
    return np.array(places)


def cliff_grid(
    log10_limits=tuple(k / 2 for k in range(-4, 5)),
    rates=(0.1, 0.3, 1.0),
    starts=((5.5, -1.8), (5.0, -3.5), (4.8, -1.6)),
):
    """The loss of `cliff` on a grid, and paths over it, for the lesson's explorable.

    Args:
        log10_limits: log10 of the thresholds.
        rates: learning rates.
        starts: places (w, b) where the paths start.

    Returns:
        (cells, paths). A row of cells is a dict of b, b2 (its edges), and w, w2, C (lists). A path is a dict of start
        (number), rate, log10_limit, w, b (lists: the start, each place 0.1 or more from the one before in
        the list, and the last), longest (step), C (at the end) and norm (of the gradient at the end).
    """
    ws, bs = np.linspace(3, 7, 33), np.linspace(-4, -1, 31)
    W, B = np.meshgrid((ws[1:] + ws[:-1]) / 2, (bs[1:] + bs[:-1]) / 2)
    C = cliff(W, B)[0]
    cells = [
        {
            "b": round(bs[i], 3), "b2": round(bs[i + 1], 3), "w": ws[:-1].tolist(), "w2": ws[1:].tolist(),
            "C": C[i].round(3).tolist(),
        }
        for i in range(len(C))
    ]  # fmt: skip
    s, r, k = (a.ravel() for a in np.meshgrid(np.arange(len(starts)), rates, log10_limits, indexing="ij"))
    places = descend_cliff(*np.array(starts)[s].T, rate=r, limit=10.0**k)
    longest = np.hypot(*np.moveaxis(np.diff(places, axis=0), -1, 0)).max(axis=0)
    C, dw, db = cliff(*places[-1].T)
    paths = []
    for i in range(len(s)):
        kept = [places[0, i]]
        for place in places[1:, i]:
            if np.hypot(*(place - kept[-1])) >= 0.1:
                kept.append(place)
        kept = np.round([*kept, places[-1, i]], 3)
        paths.append(
            {
                "start": int(s[i]) + 1, "rate": float(r[i]), "log10_limit": float(k[i]), "w": kept[:, 0].tolist(),
                "b": kept[:, 1].tolist(), "longest": round(float(longest[i]), 3), "C": float(f"{C[i]:.2g}"),
                "norm": float(f"{np.hypot(dw[i], db[i]):.2g}"),
            }
        )  # fmt: skip
    return cells, paths


# Floating-point formats --------------------------------------------------------------------------

PRECISIONS = ("float64", "float32", "bfloat16", "float16")


def rounded(x, precision):
    """x as this format can hold it: to the nearest, ties to even, inf where it overflows.

    bfloat16 is the upper half of a float32: 8 bits of exponent, 7 of fraction. NumPy does not have it, so that
    x is rounded to float32 first.

    Args:
        x: array of floats.
        precision: "float64", "float32", "bfloat16" or "float16".

    Returns:
        Array of float64 for "float64", else of float32, whose values are numbers of the format.
    """
    lookup("precision", precision, dict.fromkeys(PRECISIONS))
    with np.errstate(over="ignore", under="ignore"):
        if precision != "bfloat16":
            return floating(x, "x").astype(precision).astype(np.float64 if precision == "float64" else np.float32)
        x = np.array(floating(x, "x"), np.float32)
        bits = x.view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.where(np.isnan(x), x, ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32))


def rounded_gradients(weights, x, dy, *, activation, precision, scale=1.0):
    """Gradients of the weights of a network, each result rounded to a format as soon as it is there.

    Layers are h = f(h W). Sums inside a matrix product are taken in float32, as accelerators do, and their
    results rounded.

    Args:
        weights: list of matrices (n, n), from the first layer on.
        x: input, (batch, n).
        dy: dC/dy at the output, (batch, n).
        activation: f, a name or an `Activation`.
        precision: as in `rounded`.
        scale: factor on dy, the loss scale: a number, or an array (...), whose axes come first in the result.

    Returns:
        List of the gradients of the weights, (..., n, n), times the scale.

    Source: Micikevicius et al. (2018) for the loss scale.
    """
    f = activations.activation(activation)
    weights = [rounded(W, precision) for W in weights]
    h, inputs, zs = rounded(x, precision), [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for W in weights:
            inputs.append(h)
            zs.append(rounded(h @ W, precision))
            h = rounded(f.f(zs[-1]), precision)
        d, gradients = rounded(np.asarray(scale, float)[..., None, None] * dy, precision), []
        for W, h, z in zip(reversed(weights), reversed(inputs), reversed(zs)):
            d = rounded(d * rounded(f.df(z), precision), precision)
            gradients.append(rounded(h.T @ d, precision))
            d = rounded(d @ W.T, precision)
    return gradients[::-1]


def precision_grid(
    *,
    rng,
    depths=(5, 10, 15, 20, 25, 30),
    log2_scales=tuple(range(0, 29, 4)),
    names=("sigmoid", "tanh"),
    width=32,
    batch=32,
):
    """How much of a gradient is lost in each format of 32 and 16 bits, by layer, for the lesson's explorable.

    Weights have variance 1 / n. The gradient at the output is that of the mean squared error of random
    outputs. An entry is lost if it is 0, inf or nan.

    Args:
        rng: numpy Generator.
        depths: numbers of layers.
        log2_scales: log2 of the loss scales.
        names: activation functions.
        width: n, units in each layer.
        batch: number of examples.

    Returns:
        For each activation, format, depth and scale a dict of "activation", "precision", "depth", "log2_scale",
        "zero" and "infinite" (shares of the entries of layers 1 ... depth, in percent).
    """
    weights = [initialize("lecun_normal", width, width, rng=generator(rng)) for _ in range(max(depths))]
    x, dy = rng.standard_normal((2, batch, width))
    dy = 2 * dy / dy.size
    rows = []
    for name in names:
        for precision in PRECISIONS[1:]:
            for depth in depths:
                g = rounded_gradients(
                    weights[:depth], x, dy, activation=name, precision=precision, scale=2.0 ** np.array(log2_scales)
                )
                zero = [100 * (layer == 0).mean(axis=(-2, -1)) for layer in g]
                infinite = [100 * (~np.isfinite(layer)).mean(axis=(-2, -1)) for layer in g]
                for i, k in enumerate(log2_scales):
                    rows.append(
                        {
                            "activation": name, "precision": precision, "depth": depth, "log2_scale": k,
                            "zero": [round(float(z[i]), 1) for z in zero],
                            "infinite": [round(float(z[i]), 1) for z in infinite],
                        }
                    )  # fmt: skip
    return rows


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
