"""Initial weights: how large the random numbers are that a network starts from."""

import numpy as np

from . import activations
from ._validate import floating, generator, lookup, positive_integer

__all__ = ["GAINS", "SCHEMES", "gain", "gain_grid", "initialize", "lsuv", "phase_grid", "variance_factors"]

# Variance of one weight at gain 1, as a function of fan_in and fan_out.
_VARIANCES = {
    "unit": lambda fan_in, fan_out: 1.0,
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
}

# name: (variance or None, how the weights are drawn)
SCHEMES = {
    "zeros": (None, "zeros"),
    "constant": (None, "constant"),
    "gaussian": ("unit", "normal"),
    "normal": ("unit", "normal"),
    "uniform": ("unit", "uniform"),
    "lecun_normal": ("lecun", "normal"),
    "lecun_uniform": ("lecun", "uniform"),
    "glorot_normal": ("glorot", "normal"),
    "glorot_uniform": ("glorot", "uniform"),
    "he_normal": ("he", "normal"),
    "he_uniform": ("he", "uniform"),
    "orthogonal": (None, "orthogonal"),
}


def initialize(scheme, fan_in, fan_out, *, rng, size=(), gain=1.0, dtype=float):
    """Draw weights W, used as `x @ W`, with mean 0 (but "constant") and the variance of the scheme.

    ==========================  =============================  ===================================
    scheme                      variance of one weight         source
    ==========================  =============================  ===================================
    zeros                       0
    constant                    0; each weight is gain
    gaussian or normal          gain^2
    uniform                     gain^2
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
    if kind == "constant":
        return np.broadcast_to(gain, shape).astype(dtype)
    if kind == "orthogonal":
        return (gain * _orthogonal(shape, rng)).astype(dtype)
    std = gain * _VARIANCES[variance](n_in, n_out) ** 0.5
    W = rng.uniform(-(3**0.5), 3**0.5, shape) if kind == "uniform" else rng.standard_normal(shape)
    W *= std
    return W.astype(dtype, copy=False)


def _orthogonal(shape, rng):
    """Matrices with orthonormal columns or rows, uniform (Haar). Source: Mezzadri (2007), sec. 5."""
    *size, n_in, n_out = shape
    q, r = np.linalg.qr(rng.standard_normal((*size, max(n_in, n_out), min(n_in, n_out))))
    # LAPACK fixes the signs of r arbitrarily; without this line q is not uniform.
    q *= np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return q if n_in >= n_out else np.swapaxes(q, -1, -2)


# The gains of torch.nn.init.calculate_gain, for comparison with `gain`.
GAINS = {
    "identity": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": 2**0.5,
    "leaky_relu": (2 / (1 + 0.01**2)) ** 0.5,
    "selu": 3 / 4,
}


def gain(activation):
    """1 / sqrt(E[f(z)^2]), z ~ N(0, 1): the gain that makes variance 1 a fixed point.

    With weights of variance gain^2 / fan_in ("lecun_normal") and inputs f(z) of wide layers with z of
    variance 1, the next z have variance gain^2 E[f(z)^2] = 1. For relu it is sqrt(2), He's. It speaks of
    the forward pass alone, and a fixed point need not be stable.

    `GAINS` are the gains that torch uses. They agree for identity, relu and leaky_relu, not for

    ==========  ===============  ======  =============================================================
    activation  this definition  torch   why
    ==========  ===============  ======  =============================================================
    sigmoid     1.8463           1       torch has no gain for it
    tanh        1.5925           5/3     slightly too large here: the fixed point is above variance 1
    selu        1                3/4     Klambauer et al. (2017) make 1 right; torch says it uses 3/4
                                         for stability
    ==========  ===============  ======  =============================================================

    Args:
        activation: a name in `ACTIVATIONS` or an `Activation`.

    Returns:
        Number. The integral is computed by Gauss-Legendre quadrature on both sides of 0, to about 1e-14:
        Gauss-Hermite would lose that to the kinks at 0.
    """
    x, w = np.polynomial.legendre.leggauss(100)
    z = 6 * (x + 1)  # on [0, 12]; beyond 12 the normal density is below 1e-31
    z, w = np.concatenate([-z, z]), 6 * np.concatenate([w, w])
    density = np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
    return float((w * density * activations.activation(activation).f(z) ** 2).sum() ** -0.5)


def lsuv(net, x, *, tolerance=0.01, max_iterations=10):
    """Rescale each W until x W + b has variance 1 on a batch, first layer first: W /= sqrt(Var).

    Layer-sequential unit-variance initialization starts from orthogonal weights, so call it after
    `mlp(..., init="orthogonal")`. It changes the weights in place and leaves their directions and the
    biases alone. Without biases one iteration per layer is exact.

    Args:
        net: Dense layers, nested in Sequential and skip connections.
        x: batch of data, shape (..., batch, n_in). The variance is over batch and units.
        tolerance: rescale while |Var - 1| >= tolerance; above 0.
        max_iterations: the most rescalings of one layer.

    Returns:
        The variances reached, shape (number of Dense layers, ...): of each layer and network.

    Raises:
        ValueError: no Dense layer, or a variance of 0, inf or nan, which no factor repairs.

    Source: Mishkin & Matas (2016), algorithm 1.
    """
    max_iterations = positive_integer(max_iterations, "max_iterations")
    if not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance}, expected a number above 0")
    x, denses, reached = floating(x, "x"), list(_denses(net)), []
    if not denses:
        raise ValueError(f"net: got {type(net).__name__} without a Dense layer, expected at least one")
    for dense in denses:
        net.forward(x)  # each layer keeps the input it saw
        W = dense.parameters["W"]
        for iteration in range(max_iterations + 1):
            y = dense.forward(dense.x)
            # Over the batch, the units, and the networks that share this W.
            variance = y.var(axis=(*range(y.ndim - W.ndim), -2, -1), dtype=float)
            if not np.all((variance > 0) & np.isfinite(variance)):
                raise ValueError(f"net: got variance {variance} in Dense layer {len(reached)}, expected it above 0")
            far = np.abs(variance - 1) >= tolerance
            if iteration == max_iterations or not far.any():
                break
            W /= np.where(far, np.sqrt(variance), 1)[..., None, None]
        reached.append(variance)
    return np.stack(reached)


def _denses(layer):
    """The Dense layers inside a layer, in the order of the forward pass."""
    from .backpropagation import Dense  # that module imports this one

    if isinstance(layer, Dense):
        yield layer
    for part in getattr(layer, "layers", [layer.block] if hasattr(layer, "block") else []):
        yield from _denses(part)


def variance_factors(fan_in, fan_out, variance, square=1.0, slope=1.0):
    """The factors of the mean square in z = h W: forward, of h -> f(z), and backward, of g -> dC/dh.

        forward  = fan_in variance E[f(z)^2] / E[z^2]
        backward = fan_out variance E[f'(z)^2]

    Args:
        fan_in, fan_out: number of inputs and outputs of the layer.
        variance: of one weight; the weights are independent with mean 0.
        square: E[f(z)^2] / E[z^2]: 1 for the identity, 1/2 for relu.
        slope: E[f'(z)^2]: 1 for the identity, 1/2 for relu.

    Returns:
        (forward, backward). All arguments broadcast.

    Source: Glorot & Bengio (2010), eq. 5 and 6; He et al. (2015), eq. 9 and 13.
    """
    return fan_in * variance * square, fan_out * variance * slope


# Grids of the explorables ----------------------------------------------------------------------


def gain_grid(*, rng, names=("tanh", "sigmoid", "relu", "gelu"), width=64, depth=40, networks=3, every=4):
    """Sizes of activations and gradients by layer, for each activation function and gain.

    The weights are "lecun_normal" times the gain, the input and the gradient at the last layer N(0, 1). The
    same random numbers serve all activations and gains. Sizes are root mean squares over 4 inputs and the units.

    Args:
        rng: numpy Generator.
        names: activation functions.
        width, depth: units in each layer, and layers.
        networks: how many for each activation and gain.
        every: the layers that are kept.

    Returns:
        A list of rows {"activation", "gain", "network", "layer", "forward", "backward"}: the last three are
        lists over the layers. "forward" is log10 of the size of the activations, "backward" that of the
        gradient over its size at the last layer.
    """
    from .backpropagation import Activate, Dense, Sequential  # that module imports this one
    from .chain_rule import gradient_flow

    kept = np.arange(0, depth + 1, every)
    draws = initialize("lecun_normal", width, width, rng=rng, size=(depth, networks), dtype=np.float32)
    x, dy = rng.standard_normal((2, networks, 4, width)).astype(np.float32)
    rows = []
    for name in names:
        for gains in np.split(np.round(np.arange(0.5, 3.05, 0.1), 1), 2):  # in two parts: small enough for the cache
            scaled = gains.astype(np.float32)[:, None, None, None] * draws[:, None]  # (depth, gains, networks, n, n)
            net = Sequential([Sequential([Dense(W), Activate(name)]) for W in scaled])
            both = [np.broadcast_to(a, (len(gains), *a.shape)) for a in (x, dy)]
            flow = gradient_flow(net, both[0], dy=both[1])
            backward = flow.log10_gradient - flow.log10_gradient[..., -1:]
            for i, k in np.ndindex(len(gains), networks):
                sizes = (np.round(a[i, k, kept], 2).tolist() for a in (flow.log10_activation, backward))
                rows.append(
                    {"activation": name, "gain": float(gains[i]), "network": k, "layer": kept.tolist()}
                    | dict(zip(("forward", "backward"), sizes))
                )
    return rows


def phase_grid(*, rng, activation="tanh", width=64, depth=40, seeds=10, every=4):
    """The phase diagram: mean-field theory at each pair of variances, and a measured profile.

    The profile is that of networks at that place: two inputs that differ by a tenth go forward, a gradient
    goes backward.

    Args:
        rng: numpy Generator.
        activation: a name in `ACTIVATIONS` or an `Activation`.
        width, depth: units in each layer, and layers.
        seeds: networks at each place.
        every: the layers that are kept.

    Returns:
        A list of rows {"weight", "bias" (variances), "q", "chi", "scale" (the depth scale, 999 at most),
        "layer", "difference", "gradient"}: the last three are lists over the layers, medians over the networks.
        "difference" is log10 of the root mean square of the two inputs' z_1 - z_2, 0 for the inputs themselves;
        "gradient" is log10 of the gradient's size over that at the last layer.
    """
    from .mean_field import mean_field

    f = activations.activation(activation)
    weight, bias = (a.ravel() for a in np.meshgrid(np.arange(0.25, 4.01, 0.125), np.arange(0, 0.51, 0.0625)))
    theory = mean_field(f, weight, bias)
    kept = np.arange(0, depth + 1, every)

    W = initialize("lecun_normal", width, width, rng=rng, size=(depth, seeds))
    b = rng.standard_normal((depth, seeds, 1, width))
    x, other = rng.standard_normal((2, seeds, 1, width))
    h = np.broadcast_to(np.concatenate([x, x + 0.1 * other], axis=1), (len(weight), seeds, 2, width))
    std, std_b = np.sqrt(weight)[:, None, None, None], np.sqrt(bias)[:, None, None, None]

    slopes, difference, z = [], [], h
    for layer in range(depth + 1):
        apart = np.square(z[..., 1, :] - z[..., 0, :]).mean(axis=-1)
        difference.append(np.log10(apart) / 2)
        if layer < depth:
            z = std * (h @ W[layer]) + std_b * b[layer]
            h = f.f(z)
            slopes.append(f.df(z[..., :1, :]))
    g = np.broadcast_to(rng.standard_normal((seeds, 1, width)), slopes[0].shape)
    sizes = [np.square(g).mean(axis=(-2, -1))]
    for layer in reversed(range(depth)):
        g = std * ((g * slopes[layer]) @ np.swapaxes(W[layer], -1, -2))
        sizes.append(np.square(g).mean(axis=(-2, -1)))
    gradient = np.log10(np.array(sizes[::-1]) / sizes[0]) / 2

    difference, gradient = (
        np.round(np.median(a - start, axis=-1)[kept].T, 2)
        for a, start in ((np.array(difference), difference[0]), (gradient, 0))
    )
    return [
        {
            "weight": float(weight[i]),
            "bias": float(bias[i]),
            "q": round(float(theory.q[i]), 3),
            "chi": round(float(theory.chi[i]), 4),
            "scale": round(min(float(theory.depth_scale[i]), 999.0), 2),
            "layer": kept.tolist(),
            "difference": difference[i].tolist(),
            "gradient": gradient[i].tolist(),
        }
        for i in range(len(weight))
    ]
