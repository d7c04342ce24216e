"""Products of many factors: how fast they shrink or grow, carried as logarithms.

A gradient at depth 1,000 may be 1e-600, which no float64 can hold. Everything here rescales as it
goes and keeps the logarithm, so it is right where the plain product is 0, inf or noise. All
logarithms returned are float64, whatever the dtype of the input; the log10 of 0 is -inf.
"""

from copy import copy
from dataclasses import dataclass

import numpy as np

from ._validate import floating, generator
from .backpropagation import Activate, Dense, Sequential
from .residuals import DenseSkip, Residual

__all__ = [
    "GradientFlow", "gaussian_growth_rate", "gradient_flow", "log10_norms", "log10_product",
    "lognormal_factors", "lognormal_rates", "product_grid", "relu_growth_rate",
]  # fmt: skip


# Products of numbers ---------------------------------------------------------------------------


def log10_product(factors, axis=-1):
    """log10 |f_1 f_2 ... f_k| = sum of log10 |f_i| along `axis`."""
    with np.errstate(divide="ignore"):
        return np.log10(np.abs(floating(factors, "factors")).astype(float)).sum(axis=axis)


def lognormal_factors(mean, spread, size, *, rng):
    """f = mean exp(spread xi - spread^2 / 2), xi ~ N(0, 1), so that E[f] = mean exactly.

    Args:
        mean, spread: mean > 0 and standard deviation >= 0 of ln f; they broadcast to `size`.
        size: shape of the result.
        rng: numpy Generator.

    Returns:
        Array of shape `size`.
    """
    mean, spread = _mean_and_spread(mean, spread)
    return mean * np.exp(spread * generator(rng).standard_normal(size) - spread**2 / 2)


def lognormal_rates(mean, spread):
    """(log10 E[f], E[log10 f]) of one factor; the second is spread^2 / (2 ln 10) lower.

    The mean of a product of k factors grows as 10^(k first), its median as 10^(k second).
    """
    mean, spread = _mean_and_spread(mean, spread)
    return np.log10(mean), np.log10(mean) - spread**2 / (2 * np.log(10))


def product_grid(spreads=tuple(k / 20 for k in range(31)), depth=100, samples=1000, *, rng):
    """Quantiles of products of log-normal factors of mean 1, for the lesson's explorable.

    A mean other than 1 only adds k log10(mean) to each of them.

    Args:
        spreads: standard deviations of ln f.
        depth: largest number of factors k.
        samples: number of products drawn for each spread.
        rng: numpy Generator.

    Returns:
        For each spread a dict of "spread", "factors" (0 ... depth), and the 10 %, 50 % and 90 %
        quantiles of log10 of the product of so many factors: "low", "median", "high".
    """
    # The same draws for every spread: what changes with the slider is the spread alone.
    walk = np.cumsum(np.log(lognormal_factors(1.0, 1.0, (samples, depth), rng=rng)) + 0.5, axis=1)
    walk = np.concatenate([np.zeros((samples, 1)), walk], axis=1) / np.log(10)
    low, median, high = np.quantile(walk, [0.1, 0.5, 0.9], axis=0)
    factors = np.arange(depth + 1)
    drift = [factors * lognormal_rates(1.0, spread)[1] for spread in spreads]
    return [
        {"spread": s, "factors": factors.tolist()}
        | {name: np.round(d + s * q, 4).tolist() for name, q in (("low", low), ("median", median), ("high", high))}
        for s, d in zip(spreads, drift)
    ]


def _mean_and_spread(mean, spread):
    mean, spread = floating(mean, "mean"), floating(spread, "spread")
    if not np.all(mean > 0):
        raise ValueError(f"mean: got {mean}, expected numbers above 0")
    if not np.all(spread >= 0):
        raise ValueError(f"spread: got {spread}, expected numbers of at least 0")
    return mean, spread


# Growth rates of random matrices ---------------------------------------------------------------


def gaussian_growth_rate(n, std=1.0):
    """E ln |v W| for a unit vector v and W of n x n entries N(0, std^2): the top Lyapunov exponent.

        (ln 2 + psi(n / 2)) / 2 + ln std

    In natural logarithms per factor; psi is the digamma function. |v W|^2 / std^2 is chi-squared
    with n degrees of freedom, whatever v, so the exponent is the mean logarithm of one factor.

    Args:
        n: width, integers of at least 1; broadcasts with `std`.
        std: standard deviation of an entry.

    Source: Newman (1986); Cohen & Newman (1984).
    """
    n = _widths(n)
    return (np.log(2) + _digamma_halves(n.max(initial=1))[n]) / 2 + np.log(std)


def relu_growth_rate(n, std=1.0):
    """E ln |relu(v W)| for a unit vector v: only k ~ Binomial(n, 1/2) units are active.

        E_k[(ln 2 + psi(k / 2)) / 2 | k >= 1] + ln std

    In natural logarithms per factor. The signs of v W are independent of the magnitudes: exact for
    activations, and for a gradient that is independent of which units are active. With k = 0
    (probability 2^-n) the network is dead; it is left out.
    """
    n = _widths(n)[..., None]
    k = np.arange(n.max(initial=1) + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    log_weight = log_factorial[n] - log_factorial[k] - log_factorial[np.maximum(n - k, 0)]
    log_weight = np.where((k >= 1) & (k <= n), log_weight, -np.inf)
    weight = np.exp(log_weight - log_weight.max(axis=-1, keepdims=True))
    rates = (np.log(2) + np.where(k >= 1, _digamma_halves(k[-1]), 0)) / 2
    return (weight * rates).sum(axis=-1) / weight.sum(axis=-1) + np.log(std)


def _widths(n):
    n = np.asarray(n)
    if not np.issubdtype(n.dtype, np.integer) or np.any(n < 1):
        raise ValueError(f"n: got {n}, expected integers of at least 1")
    return n


def _digamma_halves(n_max):
    """psi(n / 2) for n = 0 ... n_max, from psi(x + 1) = psi(x) + 1 / x; entry 0 is a pole, -inf."""
    psi = np.full(n_max + 2, -np.inf)
    psi[1] = -np.euler_gamma - 2 * np.log(2)
    psi[2:3] = -np.euler_gamma
    for first in (1, 2):  # odd n, then even n
        steps = 2 / np.arange(first, n_max, 2)
        psi[first + 2 : n_max + 1 : 2] = psi[first] + np.cumsum(steps)[: len(psi[first + 2 : n_max + 1 : 2])]
    return psi[: n_max + 1]


# Products of matrices --------------------------------------------------------------------------


def log10_norms(matrices, v):
    """log10 |v W_1 ... W_k| for k = 1 ... depth.

    Args:
        matrices: W, shape (..., depth, n, n).
        v: row vector, shape (..., n).

    Returns:
        Shape (..., depth).
    """
    matrices, v = floating(matrices, "matrices"), floating(v, "v").astype(float)
    if matrices.ndim < 3 or matrices.shape[-2:] != 2 * v.shape[-1:]:
        raise ValueError(f"matrices: got shape {matrices.shape}, expected (..., depth, n, n) with n = {v.shape[-1]}")
    total, norms = 0.0, []
    for W in np.moveaxis(matrices, -3, 0):
        v = (v[..., None, :] @ W.astype(float))[..., 0, :]
        largest = np.abs(v).max(axis=-1)  # dividing by it, not by the norm, cannot overflow
        v = v / np.where(largest > 0, largest, 1)[..., None]
        with np.errstate(divide="ignore"):
            total = total + np.log10(largest)
            norms.append(total + np.log10(np.linalg.norm(v, axis=-1)))
    return np.stack(norms, axis=-1)


# Gradients through a network -------------------------------------------------------------------


@dataclass(frozen=True)
class GradientFlow:
    """log10 of the root mean square, over batch and units, at the input and after each block.

    Attributes:
        log10_activation: of the activations, shape (..., depth + 1).
        log10_gradient: of the gradient with respect to them, shape (..., depth + 1).
    """

    log10_activation: np.ndarray
    log10_gradient: np.ndarray


@np.errstate(divide="ignore", over="ignore")  # the logarithm of 0 is -inf; squares may overflow
def gradient_flow(net, x, *, rng=None, dy=None):
    """Send x forward and a random gradient backward, and measure both at every block.

    The gradient is kept near 1 by powers of two, which is exact, and the exponent is carried. So
    are the activations, if every activation function is positively homogeneous, as relu is:
    f(c z) = c f(z), biases scaled along. Other activations are not rescaled.

    Args:
        net: Sequential of blocks. Its parameters and gradients stay as they are.
        x: input, shape (..., batch, n).
        rng: numpy Generator for the gradient at the output, N(0, 1); needed unless `dy` is given.
        dy: gradient at the output, shape (..., batch, n_out), instead of a random one.

    Returns:
        GradientFlow.
    """
    x = floating(x, "x")
    if x.ndim < 2:
        raise ValueError(f"x: got shape {x.shape}, expected (..., batch, n)")
    if dy is None:
        generator(rng)
    homogeneous = _is_homogeneous(net)
    # Biases keep activations from vanishing, so they are never scaled up (which could overflow).
    biases = homogeneous and any(p.any() for key, p in net.parameters.items() if key.endswith("b"))
    lowest = 0 if biases else -(2**30)

    blocks, exponent = [], np.zeros((), int)  # the true activations are x 2^exponent
    log2_activation = [_log2_rms(x)]
    for block in net.layers:
        if homogeneous:
            x, exponent = _rescale(x, exponent, log2_activation[-1], lowest)
            block = _with_biases_scaled(block, -exponent)
        x = block.forward(x)
        blocks.append(block)
        log2_activation.append(_log2_rms(x) + exponent)

    if dy is None:
        dy = generator(rng).standard_normal(x.shape, np.float32 if x.dtype == np.float32 else np.float64)
    dy = np.broadcast_to(dy, x.shape)
    dy, exponent = dy.astype(x.dtype, copy=False), np.zeros((), int)  # the true gradient is dy 2^exponent
    log2_gradient = [_log2_rms(dy)]
    for block in reversed(blocks):
        dy, exponent = _rescale(dy, exponent, log2_gradient[-1])
        dy = block.backward(dy, weights=False)
        log2_gradient.append(_log2_rms(dy) + exponent)
    return GradientFlow(_log10_stack(log2_activation), _log10_stack(log2_gradient[::-1]))


def _log2_rms(x):
    """log2 of the root mean square of x over its last two axes, in float64."""
    row, column = x.reshape(*x.shape[:-2], 1, -1), x.reshape(*x.shape[:-2], -1, 1)
    square = (row @ column)[..., 0, 0].astype(float)  # BLAS: 8 times faster
    size = np.log2(square / row.shape[-1]) / 2
    if np.abs(size).max() < 50:
        return size
    # Squares may leave the range of float32 where the numbers do not.
    largest = np.abs(row).max(axis=(-2, -1)).astype(float)
    scale = np.where(largest > 0, largest, 1)
    square = np.square(row / scale[..., None, None]).sum(axis=(-2, -1))
    return np.log2(square / row.shape[-1]) / 2 + np.log2(scale)


def _rescale(x, exponent, log2_size, lowest=-(2**30)):
    """Turn x 2^exponent, of this size, into x' 2^exponent' with x' near 1, if x is far enough from it.

    No exponent is made lower than `lowest`.
    """
    if np.abs(log2_size - exponent).max() < 16:
        return x, exponent
    target = np.maximum(_exponent(log2_size), lowest)
    return np.ldexp(x, (exponent - target)[..., None, None]), target


def _exponent(log2_size):
    """The integer power of two nearest to a size; 0 for a size of 0, inf or nan."""
    return np.rint(np.where(np.isfinite(log2_size), log2_size, 0)).astype(int)


def _log10_stack(log2_sizes):
    return np.log10(2) * np.stack(np.broadcast_arrays(*log2_sizes), axis=-1)


def _is_homogeneous(layer):
    """Whether layer(c x) = c layer(x) for c > 0 once its biases are scaled by c too."""
    if isinstance(layer, Sequential):
        return all(_is_homogeneous(part) for part in layer.layers)
    if isinstance(layer, (Residual, DenseSkip)):
        return _is_homogeneous(layer.block)
    return isinstance(layer, Dense) or (isinstance(layer, Activate) and layer.activation.homogeneous)


def _with_biases_scaled(layer, exponent):
    """A copy of a homogeneous layer, sharing its weights, with its biases times 2^exponent."""
    if isinstance(layer, Sequential):
        return Sequential([_with_biases_scaled(part, exponent) for part in layer.layers])
    if isinstance(layer, (Residual, DenseSkip)):
        layer = copy(layer)
        layer.block = _with_biases_scaled(layer.block, exponent)
        return layer
    if isinstance(layer, Dense):
        W, b = layer.parameters["W"], layer.parameters["b"]
        return Dense(W, np.ldexp(b, exponent[..., None]) if b.any() else b)
    return Activate(layer.activation)
