"""Activation functions, each with its derivative directly under it.

Every function works entry by entry on an array `z` of any shape, keeps its floating dtype, and
is accurate in the tails: sigmoid'(50) is 1.9e-22, not 0. Complex arrays are accepted too, which
is what the complex step in `gradcheck` needs. The kinked functions take the derivative of their
left branch at 0, as torch does: relu'(0) = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._validate import floating, lookup, positive_integer

__all__ = [
    "ACTIVATIONS", "Activation", "activation",
    "identity", "d_identity", "sigmoid", "d_sigmoid", "d2_sigmoid", "tanh", "d_tanh", "d2_tanh",
    "softsign", "d_softsign", "relu", "d_relu", "leaky_relu", "d_leaky_relu", "elu", "d_elu",
    "selu", "d_selu", "gelu", "d_gelu", "silu", "d_silu", "softplus", "d_softplus", "d2_softplus",
    "activation_grid", "born_dead", "flat_share", "gaussian_mean", "hermite_shares", "kept_factor",
    "largest_slope",
]  # fmt: skip

# Klambauer et al. (2017), eq. 14: the pair that makes mean 0, variance 1 a fixed point.
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def _abs(z):
    """|z| for real z; for complex z the analytic continuation of |Re z|."""
    return np.where(z.real >= 0, z, -z) if np.iscomplexobj(z) else np.abs(z)


def _negative_part(z):
    """min(z, 0); for complex z by the sign of Re z."""
    # np.where on random signs is 40 times slower than np.minimum (mispredicted branches).
    return np.where(z.real < 0, z, 0) if np.iscomplexobj(z) else np.minimum(z, 0)


def identity(z):
    """f(z) = z."""
    return floating(z)


def d_identity(z):
    """f'(z) = 1."""
    return np.ones_like(floating(z))


def sigmoid(z):
    """f(z) = 1 / (1 + exp(-z)) = (1 if z >= 0 else e) / (1 + e) with e = exp(-|z|), which cannot overflow."""
    z = floating(z)
    e = np.exp(-_abs(z))
    y = np.maximum(e, z.real >= 0)  # e is at most 1
    e += 1
    y /= e
    return y


def d_sigmoid(z, y=None):
    """f'(z) = f(z) (1 - f(z)) = e / (1 + e)^2 with e = exp(-|z|).

    The first form rounds to 0 at z = 37, the second does not. `y`, if it is at hand, is f(z):
    then the first form is used, which is faster, wherever it is accurate.
    """
    z = floating(z)
    if y is not None:
        slope = y * (1 - y)
        return _with_exact_tail(slope, z, d_sigmoid)
    e = np.exp(-_abs(z))
    return e / (1 + e) ** 2


def _with_exact_tail(slope, z, exact):
    """Replace the slopes in which 1 - |y| has lost digits, which only saturated units have."""
    flat = np.flatnonzero(slope < 0.01)
    if flat.size:
        np.put(slope, flat, exact(np.take(z, flat)))  # a quarter of the time of slope[slope < 0.01]
    return slope


def d2_sigmoid(z):
    """f''(z) = f'(z) (1 - 2 f(z)) = -f'(z) tanh(z / 2)."""
    return -d_sigmoid(z) * np.tanh(floating(z) / 2)


def tanh(z):
    """f(z) = tanh(z) = 2 sigmoid(2z) - 1."""
    return np.tanh(floating(z))


def d_tanh(z, y=None):
    """f'(z) = 1 - tanh(z)^2 = 4 sigmoid'(2z). `y`, if it is at hand, is f(z), as in `d_sigmoid`."""
    z = floating(z)
    if y is not None:
        slope = y * y
        np.subtract(1, slope, out=slope)
        return _with_exact_tail(slope, z, d_tanh)
    return 4 * d_sigmoid(2 * z)


def d2_tanh(z):
    """f''(z) = -2 tanh(z) tanh'(z)."""
    return -2 * tanh(z) * d_tanh(z)


def softsign(z):
    """f(z) = z / (1 + |z|). Source: Bergstra et al. (2009)."""
    z = floating(z)
    return z / (1 + _abs(z))


def d_softsign(z):
    """f'(z) = 1 / (1 + |z|)^2."""
    return 1 / (1 + _abs(floating(z))) ** 2


def relu(z):
    """f(z) = max(z, 0). Source: Nair & Hinton (2010)."""
    return np.maximum(floating(z), 0)


def d_relu(z):
    """f'(z) = 1 if z > 0, else 0."""
    z = floating(z)
    return (z.real > 0).astype(z.dtype)


def leaky_relu(z, slope=0.01):
    """f(z) = z if z > 0, else slope z. Source: Maas et al. (2013)."""
    z = floating(z)
    return np.maximum(z, 0) + slope * _negative_part(z)


def d_leaky_relu(z, slope=0.01):
    """f'(z) = 1 if z > 0, else slope."""
    z = floating(z)
    return np.where(z.real > 0, 1, slope).astype(z.dtype)


def elu(z, alpha=1.0):
    """f(z) = z if z > 0, else alpha (exp(z) - 1). Source: Clevert et al. (2016), eq. 15."""
    z = floating(z)
    return np.maximum(z, 0) + alpha * np.expm1(_negative_part(z))


def d_elu(z, alpha=1.0):
    """f'(z) = 1 if z > 0, else alpha exp(z)."""
    z = floating(z)
    return np.where(z.real > 0, 1, alpha * np.exp(_negative_part(z)))


def selu(z):
    """f(z) = 1.0507 elu(z, alpha=1.6733). Source: Klambauer et al. (2017), eq. 2."""
    return SELU_SCALE * elu(z, SELU_ALPHA)


def d_selu(z):
    """f'(z) = 1.0507 elu'(z, alpha=1.6733)."""
    return SELU_SCALE * d_elu(z, SELU_ALPHA)


def gelu(z):
    """f(z) = z Phi(z), with Phi the standard normal distribution function.

    Source: Hendrycks & Gimpel (2016), the exact form.
    """
    z = floating(z)
    return z * _normal_cdf(z)


def d_gelu(z):
    """f'(z) = Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)."""
    z = floating(z)
    return _normal_cdf(z) + z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5


def _normal_cdf(z):
    # numpy has no erf, and an approximation of it would cost readers more than this import;
    # it stands here so that `import vanishing` does not pay for it.
    from scipy.special import ndtr

    return ndtr(z)


def silu(z):
    """f(z) = z sigmoid(z), also called swish. Source: Elfwing et al. (2018)."""
    z = floating(z)
    return z * sigmoid(z)


def d_silu(z):
    """f'(z) = sigmoid(z) + z sigmoid'(z)."""
    z = floating(z)
    return sigmoid(z) + z * d_sigmoid(z)


def softplus(z):
    """f(z) = ln(1 + exp(z)) = max(z, 0) + ln(1 + exp(-|z|))."""
    z = floating(z)
    return np.maximum(z, 0) + np.log1p(np.exp(-_abs(z)))


def d_softplus(z):
    """f'(z) = sigmoid(z)."""
    return sigmoid(z)


def d2_softplus(z):
    """f''(z) = sigmoid'(z)."""
    return d_sigmoid(z)


@dataclass(frozen=True)
class Activation:
    """A named function with its derivatives.

    Attributes:
        name: what error messages and figures call it.
        f, df: z -> f(z) and z -> f'(z), arrays of the same shape.
        d2f: z -> f''(z), or None where the book does not need it.
        homogeneous: whether f(c z) = c f(z) for every c > 0.
        slope_from_value: whether df takes f(z) as a second argument and is faster with it.
    """

    name: str
    f: Callable
    df: Callable
    d2f: Callable | None = None
    homogeneous: bool = False
    slope_from_value: bool = False


ACTIVATIONS = {
    a.name: a
    for a in (
        Activation("identity", identity, d_identity, homogeneous=True),
        Activation("sigmoid", sigmoid, d_sigmoid, d2_sigmoid, slope_from_value=True),
        Activation("tanh", tanh, d_tanh, d2_tanh, slope_from_value=True),
        Activation("softsign", softsign, d_softsign),
        Activation("relu", relu, d_relu, homogeneous=True),
        Activation("leaky_relu", leaky_relu, d_leaky_relu, homogeneous=True),
        Activation("elu", elu, d_elu),
        Activation("selu", selu, d_selu),
        Activation("gelu", gelu, d_gelu),
        Activation("silu", silu, d_silu),
        Activation("softplus", softplus, d_softplus, d2_softplus),
    )
}

# The slopes of the sigmoid without its mean: what the lesson compares it with.
CENTERED_SIGMOID = Activation("sigmoid − ½", lambda z: sigmoid(z) - 0.5, d_sigmoid)


def activation(name):
    """Return the `Activation` called `name`; an `Activation` of your own passes through.

    Raises:
        ValueError: unknown name; the message lists the known ones and the nearest.
    """
    return name if isinstance(name, Activation) else lookup("activation", name, ACTIVATIONS)


# What a layer does with them -------------------------------------------------------------------


def gaussian_mean(g, spread):
    """E[g(z)] for z ~ N(0, spread^2), by the midpoint rule on 4,000 cells of -10 ... 10 spreads.

    A jump or a kink of g at 0 is the edge of a cell. For the squared slopes of this module the error is
    below 2e-5 with spreads up to 5 and below 1e-4 with spreads up to 20; for the squares of the functions
    themselves it is below 1e-5 of the value.

    Args:
        g: function of an array, entry by entry.
        spread: standard deviation of z, a number or an array.

    Returns:
        The shape of `spread`.
    """
    x = np.linspace(-10, 10, 4001)
    x = (x[:-1] + x[1:]) / 2
    weight = np.exp(-(x**2) / 2)
    return g(np.multiply.outer(spread, x)) @ (weight / weight.sum())


def kept_factor(activation, spread):
    """chi = spread^2 E[f'(z)^2] / E[f(z)^2], z ~ N(0, spread^2): the layer's factor at a kept spread.

    Weights of variance spread^2 / (n E[f(z)^2]) give the next wide layer pre-activations of the same
    spread, without biases. Then the mean square of the gradient is multiplied by chi in each layer.

    Args:
        activation: an `Activation`.
        spread: standard deviation of the pre-activations, above 0, a number or an array.

    Returns:
        The shape of `spread`. It is 1 where f is positively homogeneous.
    """
    square = gaussian_mean(lambda z: activation.f(z) ** 2, spread)
    slope = gaussian_mean(lambda z: activation.df(z) ** 2, spread)
    return spread**2 * slope / square


def hermite_shares(activation, spread, degrees=4):
    """a_k^2 / E[f(z)^2] with a_k = E[f(spread xi) h_k(xi)], xi ~ N(0, 1), k = 0 ... degrees - 1.

    The shares of the constant, the linear, the quadratic ... part of f, as the layer's Gaussian
    pre-activations see it; h_k are the orthonormal Hermite polynomials

        h_0 = 1, h_1 = xi, h_k+1 = (xi h_k - sqrt(k) h_k-1) / sqrt(k + 1).

    All shares add up to 1, and the sum of k times share k is `kept_factor`.

    Args:
        activation: an `Activation`.
        spread: a number above 0.
        degrees: how many shares.

    Returns:
        Array of shape (degrees,).
    """

    def times_h(k):
        def product(xi):
            h, before = np.ones_like(xi), np.zeros_like(xi)
            for j in range(k):
                h, before = (xi * h - j**0.5 * before) / (j + 1) ** 0.5, h
            return activation.f(spread * xi) * h

        return product

    a = np.array([gaussian_mean(times_h(k), 1.0) for k in range(positive_integer(degrees, "degrees"))])
    return a**2 / gaussian_mean(lambda xi: activation.f(spread * xi) ** 2, 1.0)


def largest_slope(activation):
    """max |f'(z)| on -20 ... 20, of an `Activation`."""
    return np.abs(activation.df(np.linspace(-20, 20, 40001))).max()


def flat_share(activation, spread, below=0.1):
    """P(|f'(z)| < below max |f'|), z ~ N(0, spread^2): the share of units that one calls saturated."""
    steepest = largest_slope(activation)
    return gaussian_mean(lambda z: (np.abs(activation.df(z)) < below * steepest) * 1.0, spread)


def born_dead(width, layers):
    """1 - (1 - 2^-width)^layers: the probability that a ReLU network gives 0 for one fixed input.

    For weights that are symmetric about 0 and independent, without biases: each layer whose input is not 0
    has no active unit with probability 2^-width. For a set of inputs it is an upper bound on the probability
    that the network is 0 on all of them. Source: Lu et al. (2020).

    Args:
        width, layers: units in a hidden layer and number of hidden layers, integers of at least 1; they broadcast.
    """
    width, layers = np.asarray(width), np.asarray(layers)
    for name, value in (("width", width), ("layers", layers)):
        if not np.issubdtype(value.dtype, np.integer) or np.any(value < 1):
            raise ValueError(f"{name}: got {value}, expected integers of at least 1")
    return -np.expm1(layers * np.log1p(-(0.5**width)))


def activation_grid(spreads=tuple(k / 10 for k in range(1, 81))):
    """The curves and factors of all activations but identity, and of the sigmoid minus ½, for the lesson's explorable.

    Args:
        spreads: standard deviations of the pre-activations.

    Returns:
        For each activation a dict of "name"; "z" (-6 ... 6), "f", "df"; and for each spread "spread", "gain" (times
        1 / sqrt(n) the standard deviation of weights that keep this spread), "decades" (log10 of the
        root of `kept_factor`) and "flat" (`flat_share` in percent).
    """
    z, spreads = np.linspace(-6, 6, 121), np.asarray(spreads)

    def row(a):
        columns = {
            "z": z, "f": a.f(z), "df": a.df(z), "spread": spreads,
            "gain": spreads / np.sqrt(gaussian_mean(lambda z: a.f(z) ** 2, spreads)),
            "decades": np.log10(kept_factor(a, spreads)) / 2, "flat": 100 * flat_share(a, spreads),
        }  # fmt: skip
        return {"name": a.name} | {name: np.round(column, 4).tolist() for name, column in columns.items()}

    first, *others = (a for a in ACTIVATIONS.values() if a.name != "identity")
    return [row(a) for a in (first, CENTERED_SIGMOID, *others)]
