"""Activation functions, each with its derivative directly under it.

Every function works entry by entry on an array `z` of any shape, keeps its floating dtype, and
is accurate in the tails: sigmoid'(50) is 1.9e-22, not 0. Complex arrays are accepted too, which
is what the complex step in `gradcheck` needs. The kinked functions take the derivative of their
left branch at 0, as torch does: relu'(0) = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._validate import floating, lookup

__all__ = [
    "ACTIVATIONS", "Activation", "activation",
    "identity", "d_identity", "sigmoid", "d_sigmoid", "d2_sigmoid", "tanh", "d_tanh", "d2_tanh",
    "softsign", "d_softsign", "relu", "d_relu", "leaky_relu", "d_leaky_relu", "elu", "d_elu",
    "selu", "d_selu", "gelu", "d_gelu", "silu", "d_silu", "softplus", "d_softplus", "d2_softplus",
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
    """f(z) = 1 / (1 + exp(-z)) = exp(min(z, 0)) / (1 + exp(-|z|)), which cannot overflow."""
    z = floating(z)
    y = np.exp(_negative_part(z))
    y /= 1 + np.exp(-_abs(z))
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
    flat = slope < 0.01
    if flat.any():
        slope[flat] = exact(z[flat])
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


def activation(name):
    """Return the `Activation` called `name`; an `Activation` of your own passes through.

    Raises:
        ValueError: unknown name; the message lists the known ones and the nearest.
    """
    return name if isinstance(name, Activation) else lookup("activation", name, ACTIVATIONS)
