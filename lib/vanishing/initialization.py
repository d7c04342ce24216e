"""Initial weights: how large the random numbers are that a network starts from."""

import numpy as np

from ._validate import generator, lookup, positive_integer

__all__ = ["SCHEMES", "initialize"]

# Variance of one weight at gain 1, as a function of fan_in and fan_out.
_VARIANCES = {
    "gaussian": lambda fan_in, fan_out: 1.0,
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
}

# name: (variance or None, how the weights are drawn)
SCHEMES = {
    "zeros": (None, "zeros"),
    "gaussian": ("gaussian", "normal"),
    "lecun_normal": ("lecun", "normal"),
    "lecun_uniform": ("lecun", "uniform"),
    "glorot_normal": ("glorot", "normal"),
    "glorot_uniform": ("glorot", "uniform"),
    "he_normal": ("he", "normal"),
    "he_uniform": ("he", "uniform"),
    "orthogonal": (None, "orthogonal"),
}


def initialize(scheme, fan_in, fan_out, *, rng, size=(), gain=1.0, dtype=float):
    """Draw weights W, used as `x @ W`, with mean 0 and the variance of the scheme.

    ==========================  =============================  ===================================
    scheme                      variance of one weight         source
    ==========================  =============================  ===================================
    zeros                       0
    gaussian                    gain^2
    lecun_normal, _uniform      gain^2 / fan_in                LeCun et al. (1998), eq. 16
    glorot_normal, _uniform     2 gain^2 / (fan_in + fan_out)  Glorot & Bengio (2010), eq. 12, 16
    he_normal, _uniform         2 gain^2 / fan_in              He et al. (2015), eq. 10
    orthogonal                  gain^2 / max(fan_in, fan_out)  Saxe et al. (2014)
    ==========================  =============================  ===================================

    A uniform scheme draws from [-a, a] with a = sqrt(3 variance). Orthogonal weights are `gain`
    times a matrix with orthonormal columns (or rows, if fan_in < fan_out), uniform among them.

    Args:
        scheme: a name from the table.
        fan_in, fan_out: number of inputs and outputs of the layer.
        rng: numpy Generator. The draw is made in float64 and then rounded, so that networks of
            both precisions start from the same weights.
        size: leading axes, one matrix for each member of an ensemble.
        gain: number, or array that broadcasts to `size`: one gain for each member.
        dtype: floating dtype of the result.

    Returns:
        Array of shape (*size, fan_in, fan_out).

    Raises:
        ValueError: unknown scheme, size below 1, or a gain that does not broadcast to `size`.
        TypeError: `rng` is not a Generator.
    """
    variance, kind = lookup("scheme", scheme, SCHEMES)
    n_in, n_out = positive_integer(fan_in, "fan_in"), positive_integer(fan_out, "fan_out")
    rng = generator(rng)
    size = tuple(positive_integer(n, "size") for n in np.atleast_1d(size))
    try:
        gain = np.broadcast_to(np.asarray(gain, dtype=float), size)[..., None, None]
    except ValueError:
        raise ValueError(f"gain: got shape {np.shape(gain)}, expected one that broadcasts to size {size}") from None
    shape = (*size, n_in, n_out)

    if kind == "zeros":
        return np.zeros(shape, dtype)
    if kind == "orthogonal":
        return (gain * _orthogonal(shape, rng)).astype(dtype)
    std = gain * _VARIANCES[variance](n_in, n_out) ** 0.5
    if kind == "uniform":
        return (std * rng.uniform(-(3**0.5), 3**0.5, shape)).astype(dtype)
    return (std * rng.standard_normal(shape)).astype(dtype)


def _orthogonal(shape, rng):
    """Matrices with orthonormal columns or rows, uniform (Haar). Source: Mezzadri (2007), sec. 5."""
    *size, n_in, n_out = shape
    q, r = np.linalg.qr(rng.standard_normal((*size, max(n_in, n_out), min(n_in, n_out))))
    # LAPACK fixes the signs of r arbitrarily; without this line q is not uniform.
    q *= np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return q if n_in >= n_out else np.swapaxes(q, -1, -2)
