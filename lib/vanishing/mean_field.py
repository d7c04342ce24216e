"""Mean-field theory: what infinitely wide random networks do to signals and gradients.

In z = h W + b, h = f(z of the layer before), with independent weights of variance weight_variance / n and
biases of variance bias_variance, the z of a wide layer are Gaussian. Two numbers then say everything
about two inputs: the length q = E[z^2], and the correlation c between them. Layer by layer

    q -> weight_variance E[f(z)^2] + bias_variance                      (q_map)
    c -> (weight_variance E[f(z1) f(z2)] + bias_variance) / q           (c_map)

with z1 and z2 of variance q and correlation c, and the squared gradient is multiplied by

    chi = weight_variance E[f'(z)^2],

which is also the slope of the c map at c = 1. Where chi < 1 (the ordered phase) gradients vanish and all
inputs become alike; where chi > 1 (the chaotic phase) gradients explode and similar inputs part.

Source: Poole et al. (2016); Schoenholz et al. (2017).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from . import activations
from ._validate import floating

__all__ = ["MeanField", "c_map", "critical_weight_variance", "mean_field", "q_map"]


@dataclass(frozen=True)
class MeanField:
    """The fixed point of an infinitely wide network; arrays of one shape.

    It unpacks as `q, chi, depth_scale = mean_field(...)`.

    Attributes:
        q: fixed point of the length map, E[z^2].
        chi: factor of the squared gradient per layer.
        depth_scale: xi_c, the number of layers in which c - c* falls by a factor of e; above 0.
        c: c*, the stable fixed point of the correlation map; 1 in the ordered phase.
    """

    q: np.ndarray
    chi: np.ndarray
    depth_scale: np.ndarray
    c: np.ndarray

    def __iter__(self):
        return iter((self.q, self.chi, self.depth_scale))

    @property
    def gradient_scale(self):
        """1 / |ln chi|, the layers in which the squared gradient changes by a factor of e.

        It equals `depth_scale` in the ordered phase, and is another number in the chaotic one.
        """
        return _scale(self.chi)


def mean_field(activation, weight_variance, bias_variance=0.0, *, q0=1.0):
    """The fixed point q, chi, and the depth scale of correlations.

        q = weight_variance E[f(sqrt(q) xi)^2] + bias_variance, xi ~ N(0, 1)
        chi = weight_variance E[f'(sqrt(q) xi)^2]
        depth_scale = -1 / ln(weight_variance E[f'(z1) f'(z2)]) at the correlation c

    Args:
        activation: a name in `ACTIVATIONS` or an `Activation`.
        weight_variance: n times the variance of a weight: 1 for "lecun", 2 for "he". It broadcasts with
            `bias_variance`, numbers of at least 0.
        q0: the length, above 0, that the length map starts from. Of several fixed points q is the first
            that an increasing length map meets.

    Returns:
        MeanField in the dtype of `weight_variance`. q and chi are right to 1e-10. So are c and depth_scale
        but close to the critical line on its chaotic side: depth_scale to 1e-6 at 2 % from it with bias
        variance 3, to 1e-2 with 30. Two limits:

        * q = inf where the map diverges, or passes 1e12 (relu above 2). Then chi is the limit of large q, c = 1, and
          depth_scale = inf, because c approaches 1 as a power of depth.
        * q = 0 where all signals die out (tanh up to 1 without biases). Then c = 1 and depth_scale are
          the limits of small biases.

        relu at 2 without biases leaves every q as it is: q = q0.

    Raises:
        ValueError: a variance or q0 out of range.

    Source: Schoenholz et al. (2017) for the depth scales.
    """
    f = activations.activation(activation)
    dtype = floating(weight_variance, "weight_variance").dtype
    weight, bias = _variances(weight_variance=weight_variance, bias_variance=bias_variance)
    shape, weight, bias = weight.shape, weight.ravel(), bias.ravel()
    if np.ndim(q0) or not 0 < q0 < np.inf:
        raise ValueError(f"q0: got {q0}, expected a number above 0")

    q, chi = _fixed_point(f, weight, bias, q0)
    c, rate = np.ones_like(q), np.where(np.isinf(q), 1, chi)
    chaotic = (chi > 1) & np.isfinite(q) & (q > 0)
    if chaotic.any():
        c[chaotic], rate[chaotic] = _correlation(_tails(f, q[chaotic]), weight[chaotic] / q[chaotic])
    return MeanField(*(x.reshape(shape).astype(dtype)[()] for x in (q, chi, _scale(rate), c)))


def critical_weight_variance(activation, bias_variance=0.0):
    """The weight variance at which chi = 1: the edge of chaos.

    chi = 1 and the fixed point of the length map give both variances as functions of q,

        weight_variance = 1 / E[f'(z)^2]        bias_variance = q - E[f(z)^2] / E[f'(z)^2]

    and the second is solved for q.

    Args:
        activation: a name in `ACTIVATIONS` or an `Activation`.
        bias_variance: number or array of numbers of at least 0.

    Returns:
        Number or array of the shape of `bias_variance`. relu gives 2 for every bias variance: without biases
        any q will do, with biases q = inf. nan where no weight variance gives chi = 1 in `mean_field`, because
        q jumps, and chi with it (gelu and silu, with small biases).

    Raises:
        ValueError: a variance out of range.

    Source: Poole et al. (2016); Schoenholz et al. (2017).
    """
    f = activations.activation(activation)
    dtype = floating(bias_variance, "bias_variance").dtype
    (bias,) = _variances(bias_variance=bias_variance)
    shape, bias = bias.shape, bias.ravel()
    if f.homogeneous:
        return np.full(shape, 1 / _slope_of_homogeneous(f), dtype)[()]

    def gap(q, i):
        (square, growth), (slope, d_slope) = _mean_square(f.f, q), _mean_square(f.df, q)
        return bias[i] + square / slope - q, (growth - square * d_slope / slope) / slope - 1

    with np.errstate(all="ignore"):  # the slope of a bounded f is 0 for the largest q
        gaps = bias[:, None] + _mean_square(f.f, _LENGTHS)[0] / _mean_square(f.df, _LENGTHS)[0] - _LENGTHS
    q = _first_crossing(gap, gaps, _LENGTHS, start=0)
    weight = 1 / _mean_square(f.df, q)[0]
    weight[np.abs(_fixed_point(f, weight, bias)[1] - 1) > 1e-4] = np.nan  # that q is not the one reached
    return weight.reshape(shape).astype(dtype)[()]


def q_map(activation, q, weight_variance, bias_variance=0.0):
    """q -> weight_variance E[f(sqrt(q) xi)^2] + bias_variance: the length after one more layer.

    Args:
        activation: a name in `ACTIVATIONS` or an `Activation`.
        q, weight_variance, bias_variance: numbers of at least 0; they broadcast.
    """
    f, dtype = activations.activation(activation), floating(q, "q").dtype
    q, weight, bias = _variances(q=q, weight_variance=weight_variance, bias_variance=bias_variance)
    square = _mean_square(f.f, q.ravel())[0].reshape(q.shape)
    return (weight * square + bias).astype(dtype)[()]


def c_map(activation, c, q, weight_variance, bias_variance=0.0):
    """c -> (weight_variance E[f(z1) f(z2)] + bias_variance) / (weight_variance E[f(z)^2] + bias_variance).

    The correlation of two inputs after one more layer; z1 and z2 have variance q and correlation c. At a
    fixed point of the length map the denominator is q.

    Args:
        activation: a name in `ACTIVATIONS` or an `Activation`.
        c: numbers in -1 ... 1.
        q, weight_variance, bias_variance: numbers of at least 0; all broadcast.

    The expectation is a series of 128 Hermite polynomials, exact to rounding for |c| < 0.75. Nearer to 1 or
    -1 the error is below 1e-4 for kinked functions, and for sigmoid and tanh with q up to 10; at
    q = 200 it is 0.03 next to -1.

    Source: Poole et al. (2016).
    """
    f, dtype = activations.activation(activation), floating(c, "c").dtype
    if not np.all(np.abs(c) <= 1):
        raise ValueError(f"c: got {c}, expected numbers in -1 ... 1")
    q, weight, bias = _variances(q=q, weight_variance=weight_variance, bias_variance=bias_variance)
    c, q, weight, bias = np.broadcast_arrays(c, q, weight, bias)
    shape, c, q = c.shape, c.ravel(), q.ravel()
    lost = (1 - c) * _polynomial(_tails(f, q), c)[0]  # E[f(z)^2] - E[f(z1) f(z2)]
    square, _ = _mean_square(f.f, q)
    lost, square = lost.reshape(shape), square.reshape(shape)
    return (1 - weight * lost / (weight * square + bias)).astype(dtype)[()]


def _variances(**variances):
    """Broadcast float64 copies of numbers of at least 0."""
    for name, value in variances.items():
        value = floating(value, name)
        if not np.all((value >= 0) & (value < np.inf)):
            raise ValueError(f"{name}: got {value}, expected finite numbers of at least 0")
    return np.broadcast_arrays(*(np.asarray(value, float) for value in variances.values()))


def _scale(rate):
    with np.errstate(divide="ignore"):
        return 1 / np.abs(np.log(rate))


# Gaussian expectations -------------------------------------------------------------------------

# Gauss-Legendre on panels that are as wide as 1.5 far out, and shrink towards 0: a kink at 0 is the end of
# a panel, and f(sqrt(q) x) is resolved however steep it is. Beyond 10.5 the density is below 1e-24.
_EDGES = 1.5 * np.concatenate([[0], 4.0 ** np.arange(-9, 0), np.arange(1, 8)])


@cache
def _nodes():
    """Nodes x and weights w with E[g(xi)] = sum w g(x), xi ~ N(0, 1)."""
    x, w = np.polynomial.legendre.leggauss(16)
    half = np.diff(_EDGES)[:, None] / 2
    x, w = (_EDGES[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()
    x, w = np.concatenate([-x, x]), np.concatenate([w, w])
    return x, w * np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5


def _mean_square(f, q):
    """E[f(sqrt(q) xi)^2] and its derivative E[f(sqrt(q) xi)^2 (xi^2 - 1)] / (2q), for q of shape (n,)."""
    x, w = _nodes()
    q = np.minimum(q, 1e30)  # stands for inf
    both = np.stack([w, w * (x**2 - 1) / 2], axis=-1)
    # In parts: small enough for the cache, and for the memory whatever n.
    parts = [f(np.sqrt(part)[:, None] * x) ** 2 @ both for part in np.array_split(q, len(q) // 64 + 1)]
    square, growth = np.concatenate(parts).T
    return square, growth / np.maximum(q, 1e-300)


def _slope_of_homogeneous(f):
    """E[f'(z)^2] of a function that is linear on each side of 0."""
    return (f.df(np.array([-1.0, 1.0])) ** 2).mean()


@cache
def _hermite(terms=128):
    """w h_k(x) at the nodes, shape (nodes, terms), with the orthonormal Hermite polynomials

    h_0 = 1, h_1 = x, h_k+1 = (x h_k - sqrt(k) h_k-1) / sqrt(k + 1).
    """
    x, w = _nodes()
    h = [w, w * x]
    for k in range(1, terms - 1):
        h.append((x * h[k] - k**0.5 * h[k - 1]) / (k + 1) ** 0.5)
    return np.stack(h, axis=-1)


def _tails(f, q):
    """T_j = sum over k > j of a_k^2, with a_k = E[f(sqrt(q) xi) h_k(xi)], shape (n, terms + 1).

    E[f(z1) f(z2)] is the sum of a_k^2 c^k (Mehler's formula), which is E[f(z)^2] - (1 - c) S(c) with
    S(c) = sum T_j c^j. The last column is what is left of S(1) = q E[f'(z)^2].
    """
    x, _ = _nodes()
    a = np.concatenate([f.f(np.sqrt(part)[:, None] * x) @ _hermite() for part in np.array_split(q, len(q) // 64 + 1)])
    tails = np.maximum(_mean_square(f.f, q)[0][:, None] - np.cumsum(a**2, axis=-1), 0)
    left = q * _mean_square(f.df, q)[0] - tails.sum(axis=-1)
    return np.concatenate([tails, np.maximum(left, 0)[:, None]], axis=-1)


def _polynomial(tails, c):
    """S = sum T_j c^j and dS/dc, by Horner's rule."""
    S, dS = np.where(c > 0, tails[:, -1], 0), np.zeros(len(c))  # for c < 0 what is left nearly cancels
    for T in tails.T[-2::-1]:
        S, dS = S * c + T, dS * c + S
    return S, dS


def _correlation(tails, scale):
    """The fixed point c < 1 of 1 - (1 - c) scale S(c), and the slope of the map there.

    c = 1 is another one. Divided out, it leaves scale S(c) = 1, whose left side is increasing and convex:
    Newton's method descends to the root from c = 1, and is as accurate for roots next to 1.
    """
    c = np.ones(len(tails))
    for _ in range(60):
        S, dS = _polynomial(tails, c)
        new = np.clip(c - (S - 1 / scale) / dS, 0, 1)
        done = np.all(np.abs(new - c) <= 1e-15)
        c = new
        if done:
            break
    return c, 1 - (1 - c) * scale * _polynomial(tails, c)[1]


# The fixed point of the length map -------------------------------------------------------------

# Beyond 2^40 = 1e12 rounding decides whether there is a fixed point.
_LENGTHS = np.concatenate([[0], 2.0 ** np.arange(-50, 41)])


def _fixed_point(f, weight, bias, q0=1.0):
    """q and chi for variances of shape (n,); see `mean_field`."""
    if f.homogeneous:  # E[f(z)^2] = q E[f'(z)^2]: the length map is a straight line of slope chi
        chi = weight * _slope_of_homogeneous(f)
        level = np.isclose(chi, 1, rtol=1e-14, atol=0)
        q = np.where(chi < 1, bias / np.where(chi < 1, 1 - chi, 1), np.inf)
        return np.where(level, np.where(bias == 0, q0, np.inf), q), chi

    def gap(q, i):
        square, growth = _mean_square(f.f, q)
        return weight[i] * square + bias[i] - q, weight[i] * growth - 1

    table = np.union1d(_LENGTHS, q0)
    gaps = weight[:, None] * _mean_square(f.f, table)[0] + bias[:, None] - table
    q = _first_crossing(gap, gaps, table, start=np.searchsorted(table, q0))
    return q, weight * _mean_square(f.df, q)[0]


def _first_crossing(gap, gaps, table, start):
    """Where gap(q) falls through 0: the first such q above table[start] if the gap is positive there, else below.

    Args:
        gap: function of q (n,) and of the indices i (n,) of the equations -> gap and its derivative.
        gaps: its values, shape (equations, table), at least 0 in column 0.
        table: increasing lengths. q = inf is the answer beyond the last of them.
    """
    k = np.arange(len(table))
    up = gaps[:, start] > 0
    above = np.where((k > start) & (gaps <= 0), k, len(k)).min(axis=1) - 1
    below = np.where((k <= start) & (gaps >= 0), k, 0).max(axis=1)
    left = np.where(up, above, below)
    q = np.where(left == len(k) - 1, np.inf, table[left])
    i = np.flatnonzero(np.isfinite(q) & (gaps[np.arange(len(q)), left] > 0))
    low, high = table[left[i]], table[left[i] + 1]
    g_low, g_high = gaps[i, left[i]], gaps[i, left[i] + 1]
    q[i] = low + (high - low) * g_low / (g_low - g_high)
    for _ in range(100):  # Newton's method, with a bisection where it would leave the bracket
        g, slope = gap(q[i], i)
        low, high = np.where(g > 0, q[i], low), np.where(g > 0, high, q[i])
        with np.errstate(all="ignore"):
            new = q[i] - g / slope
        new = np.where((new >= low) & (new <= high), new, (low + high) / 2)
        moving = np.abs(new - q[i]) > 4e-16 * new
        q[i] = new
        i, low, high = i[moving], low[moving], high[moving]
        if not len(i):
            break
    return q
