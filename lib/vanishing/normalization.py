"""Normalization layers: activations of mean 0 and variance 1, whatever the weights do.

A normalized output does not change when its inputs are shifted or rescaled together. So the
gradient with respect to these inputs can have no mean and no component along the activations:
`backward` removes both, in the two projections below, and divides by sigma.

    layer     statistics over                        removed from the gradient
    batch     the batch, for each unit               mean, component along xhat
    layer     the units, for each example            mean, component along xhat
    group     the units of a group, each example     mean, component along xhat
    rms       the units, for each example            component along xhat

The layers keep from their last `forward` what `backward` needs: xhat and sigma.
"""

import numpy as np

from ._validate import floating, lookup, positive_integer
from .activations import activation as _activation
from .backpropagation import Activate, Dense, Sequential, _sum_to
from .chain_rule import gradient_flow
from .initialization import initialize

__all__ = [
    "NORMALIZATIONS", "BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm", "WeightNormDense",
    "batch_norm_growth", "normalization", "normalization_grid", "normalized_factor", "set_training",
]  # fmt: skip


def standardize(x, axis, eps):
    """xhat = (x - mean) / sigma, with sigma = sqrt(variance + eps), along `axis`; return both."""
    centered = x - x.mean(axis=axis, keepdims=True)
    sigma = np.sqrt((centered**2).mean(axis=axis, keepdims=True) + eps)  # np.var is not analytic
    return centered / sigma, sigma


def d_standardize(dxhat, xhat, sigma, axis):
    """dC/dx = (dC/dxhat - mean(dC/dxhat) - xhat mean(dC/dxhat xhat)) / sigma: two projections.

    The chain rule gives the second term from dmean/dx_i = 1 / m, and the third from
    dsigma/dx_i = xhat_i / m, for m entries along `axis`. It is exact, whatever eps.
    """
    return remove_along(remove_mean(dxhat, axis), xhat, axis) / sigma


def remove_mean(d, axis):
    """d - mean(d): shifting x changes nothing."""
    return d - d.mean(axis=axis, keepdims=True)


def remove_along(d, xhat, axis):
    """d - xhat mean(d xhat): stretching x changes nothing. A projection where mean(xhat^2) = 1 (eps = 0)."""
    return d - xhat * (d * xhat).mean(axis=axis, keepdims=True)


class _Normalization:
    """What the layers share: their parameters, and y = gamma xhat + beta for each unit."""

    def __init__(self, n, eps, dtype, size, shift=True):
        self.n = positive_integer(n, "n")
        if not eps >= 0:
            raise ValueError(f"eps: got {eps}, expected at least 0")
        self.eps = eps
        shape = (*(positive_integer(m, "size") for m in np.atleast_1d(size)), self.n)
        self.parameters = {"gamma": np.ones(shape, dtype)}
        if shift:
            self.parameters["beta"] = np.zeros(shape, dtype)
        self.gradients = {}

    def _input(self, x):
        x = floating(x, "x")
        if x.ndim < 2 or x.shape[-1] != self.n:
            raise ValueError(f"x: got shape {x.shape}, expected (..., batch, {self.n})")
        return x

    def _scale_and_shift(self, xhat):
        """y = gamma xhat + beta."""
        y = self.parameters["gamma"][..., None, :] * xhat
        return y + self.parameters["beta"][..., None, :] if "beta" in self.parameters else y

    def _d_scale_and_shift(self, dy, xhat, weights):
        """dC/dxhat = gamma dy; dC/dgamma = sum of dy xhat, dC/dbeta = sum of dy over the batch."""
        if weights:
            sums = {"gamma": np.einsum("...bn,...bn->...n", dy, xhat), "beta": np.einsum("...bn->...n", dy)}
            for key, parameter in self.parameters.items():
                self.gradients[key] = _sum_to(sums[key], parameter.shape)
        return dy * self.parameters["gamma"][..., None, :]


class BatchNorm(_Normalization):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, statistics over the batch for each unit.

    In training each network of an ensemble uses the statistics of its own batch, and they are
    averaged: running = (1 - momentum) running + momentum batch, the variance as the unbiased
    estimate. In evaluation (`training = False`, see `set_training`) the running ones are used.

    Args:
        n: number of units.
        momentum: weight of the newest batch in the running statistics, 0 ... 1.
        eps: added to the variance.
        dtype: floating dtype of the parameters.
        size: leading axes of every parameter: an ensemble of independent networks.

    Attributes:
        training: whether the statistics are those of the batch.
        running_mean, running_variance: shape (..., n); at the start 0 and 1. They take on the
            leading axes of the input.

    Source: Ioffe & Szegedy (2015).
    """

    def __init__(self, n, *, momentum=0.1, eps=1e-5, dtype=float, size=()):
        super().__init__(n, eps, dtype, size)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: got {momentum}, expected 0 ... 1")
        self.momentum, self.training = momentum, True
        self.running_mean = np.zeros_like(self.parameters["gamma"])
        self.running_variance = np.ones_like(self.parameters["gamma"])

    def forward(self, x):
        """y = gamma xhat + beta: (..., batch, n) -> the same shape.

        Raises:
            ValueError: a batch of 1 in training: its variance is 0.
        """
        x = self._input(x)
        self.coupled = self.training  # `backward` must undo what this call did
        if self.training:
            if x.shape[-2] < 2:
                raise ValueError(f"x: got a batch of {x.shape[-2]}, expected at least 2 examples in training")
            self.xhat, self.sigma = standardize(x, axis=-2, eps=self.eps)
            m, B, sigma = self.momentum, x.shape[-2], self.sigma[..., 0, :].real  # a complex step must not leak
            variance = (sigma**2 - self.eps) * (B / (B - 1))
            self.running_mean = (1 - m) * self.running_mean + m * x.real.mean(axis=-2)
            self.running_variance = (1 - m) * self.running_variance + m * variance
        else:
            self.sigma = np.sqrt(self.running_variance + self.eps)[..., None, :]
            self.xhat = (x - self.running_mean[..., None, :]) / self.sigma
        return self._scale_and_shift(self.xhat)

    def backward(self, dy, *, weights=True):
        """dC/dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sigma with dxhat = gamma dy.

        The means are over the batch. In evaluation the statistics are constants, nothing is
        removed, and dC/dx = dxhat / sigma. See `Dense.backward` for the arguments.
        """
        dxhat = self._d_scale_and_shift(dy, self.xhat, weights)
        return d_standardize(dxhat, self.xhat, self.sigma, axis=-2) if self.coupled else dxhat / self.sigma

    def jacobian(self, before=None):
        """In evaluation dy/dx = diag(gamma / sigma), shape (..., 1, n, n); see `Dense.jacobian`.

        Raises:
            ValueError: after a forward in training: each output depends on the whole batch.
        """
        if self.coupled:
            raise ValueError(
                "training: got True, expected False for a Jacobian: in training the examples of a batch "
                "are coupled and none has a Jacobian of its own; use backward, or set_training(net, False)"
            )
        slope = (self.parameters["gamma"][..., None, :] / self.sigma)[..., None, :]
        return (np.eye(self.n, dtype=slope.dtype) if before is None else before) * slope


class GroupNorm(_Normalization):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, statistics over each group of units.

    Each example is alone: there is no difference between training and evaluation.

    Args:
        n: number of units.
        groups: number of groups of neighboring units, n / groups in each: at least 2, as a unit
            alone would be normalized to 0.
        eps, dtype, size: as in `BatchNorm`.

    Source: Wu & He (2018).
    """

    def __init__(self, n, groups=4, *, eps=1e-5, dtype=float, size=()):
        super().__init__(n, eps, dtype, size)
        self.groups = positive_integer(groups, "groups")
        if n % groups or n // groups < 2:
            raise ValueError(f"groups: got {groups}, expected a divisor of n = {n} that leaves groups of 2 or more")

    def forward(self, x):
        """y = gamma xhat + beta: (..., batch, n) -> the same shape."""
        self.xhat, self.sigma = standardize(self._split(self._input(x)), axis=-1, eps=self.eps)
        return self._scale_and_shift(self._join(self.xhat))

    def backward(self, dy, *, weights=True):
        """dC/dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sigma with dxhat = gamma dy.

        The means are over the group. See `Dense.backward` for the arguments.
        """
        dxhat = self._d_scale_and_shift(dy, self._join(self.xhat), weights)
        return self._join(d_standardize(self._split(dxhat), self.xhat, self.sigma, axis=-1))

    def jacobian(self, before=None):
        """dy/dx = (I - 1 1^T / m - xhat xhat^T / m) diag(gamma) / sigma in each group of m units.

        Shape (..., batch, n, n); see `Dense.jacobian`. The bracket is symmetric, so `before` times
        it is what `backward` does, to each row.
        """
        rows = np.eye(self.n, dtype=self.xhat.dtype) if before is None else before
        xhat, sigma = self.xhat[..., None, :, :], self.sigma[..., None, :, :]
        rows = self._join(d_standardize(self._split(rows), xhat, sigma, axis=-1))
        return rows * self.parameters["gamma"][..., None, None, :]

    def _split(self, x):  # (..., n) -> (..., groups, n / groups)
        return x.reshape(*x.shape[:-1], self.groups, -1)

    def _join(self, x):
        return x.reshape(*x.shape[:-2], self.n)


class LayerNorm(GroupNorm):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, statistics over the units of each example.

    It is `GroupNorm` with one group, which holds all n units (at least 2).

    Args:
        n, eps, dtype, size: as in `BatchNorm`.

    Source: Ba, Kiros & Hinton (2016).
    """

    def __init__(self, n, *, eps=1e-5, dtype=float, size=()):
        if n == 1:
            raise ValueError("n: got 1, expected at least 2 units: one alone would be normalized to 0")
        super().__init__(n, 1, eps=eps, dtype=dtype, size=size)


class RMSNorm(_Normalization):
    """y = gamma x / sqrt(mean(x^2) + eps), the mean over the units of each example; no beta.

    Args:
        n, eps, dtype, size: as in `BatchNorm`.

    Source: Zhang & Sennrich (2019).
    """

    def __init__(self, n, *, eps=1e-5, dtype=float, size=()):
        super().__init__(n, eps, dtype, size, shift=False)

    def forward(self, x):
        """y = gamma xhat with xhat = x / sigma: (..., batch, n) -> the same shape."""
        x = self._input(x)
        self.sigma = np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.eps)
        self.xhat = x / self.sigma
        return self._scale_and_shift(self.xhat)

    def backward(self, dy, *, weights=True):
        """dC/dx = (dxhat - xhat mean(dxhat xhat)) / sigma with dxhat = gamma dy: the mean may stay.

        See `Dense.backward` for the arguments.
        """
        dxhat = self._d_scale_and_shift(dy, self.xhat, weights)
        return remove_along(dxhat, self.xhat, axis=-1) / self.sigma

    def jacobian(self, before=None):
        """dy/dx = (I - xhat xhat^T / n) diag(gamma) / sigma, (..., batch, n, n); see `Dense.jacobian`."""
        rows = np.eye(self.n, dtype=self.xhat.dtype) if before is None else before
        rows = remove_along(rows, self.xhat[..., None, :], axis=-1) / self.sigma[..., None, :]
        return rows * self.parameters["gamma"][..., None, None, :]


class WeightNormDense:
    """y = x W + b with W = g v / |v| for each output unit: its length g and direction v, apart.

    Args:
        v: directions, shape (..., n_in, n_out); |v| is over n_in.
        g: lengths, shape (..., n_out); |v| if not given, so that W = v.
        b: biases, shape (..., n_out); zeros if not given.

    Source: Salimans & Kingma (2016).
    """

    def __init__(self, v, g=None, b=None):
        v = floating(v, "v")
        if not v.any(axis=-2).all():
            raise ValueError("v: got a column of zeros, expected a direction for each output unit")
        g = np.sqrt((v**2).sum(axis=-2)) if g is None else floating(g, "g")
        if g.shape[-1:] != v.shape[-1:]:
            raise ValueError(f"g: got shape {g.shape}, expected (..., n_out) for v of shape {v.shape}")
        self.parameters = {"v": v, "g": g, "b": Dense(v, b).parameters["b"]}
        self.gradients = {}

    def forward(self, x):
        """y = x W + b with W = g u, u = v / |v|: (..., batch, n_in) -> (..., batch, n_out)."""
        v, g, b = self.parameters.values()
        self.length = np.sqrt((v**2).sum(axis=-2, keepdims=True))
        self.dense = Dense(g[..., None, :] * v / self.length, b)
        return self.dense.forward(x)

    def backward(self, dy, *, weights=True):
        """dC/dg = u . dC/dW and dC/dv = (g / |v|) (dC/dW - u (u . dC/dW)), the rest as in `Dense`.

        The gradient of v is orthogonal to v: a step can only turn it, and lengthens it.
        """
        dx = self.dense.backward(dy, weights=weights)
        if weights:
            v, g, b = self.parameters.values()
            dW, u = self.dense.gradients["W"], v / self.length
            dg = (u * dW).sum(axis=-2, keepdims=True)
            self.gradients["v"] = _sum_to(g[..., None, :] / self.length * (dW - u * dg), v.shape)
            self.gradients["g"] = _sum_to(dg[..., 0, :], g.shape)
            self.gradients["b"] = self.dense.gradients["b"]
        return dx

    def jacobian(self, before=None):
        """dy/dx = W; see `Dense.jacobian`."""
        return self.dense.jacobian(before)


NORMALIZATIONS = {"batch": BatchNorm, "layer": LayerNorm, "group": GroupNorm, "rms": RMSNorm}


def normalization(name, n, *, dtype=float, size=()):
    """Return a new layer of the kind called `name` for n units.

    Args:
        name: a name in `NORMALIZATIONS`.
        n, dtype, size: as in `BatchNorm`.

    Raises:
        ValueError: unknown name; the message lists the known ones and the nearest.
    """
    return lookup("norm", name, NORMALIZATIONS)(n, dtype=dtype, size=size)


def set_training(layer, training):
    """Set `training` in a layer and in all layers within it; only `BatchNorm` has one here."""
    if hasattr(layer, "training"):
        layer.training = training
    for part in (*getattr(layer, "layers", ()), *filter(None, [getattr(layer, "block", None)])):
        set_training(part, training)


# Theory: the factor of the squared gradient per layer at the start


def normalized_factor(activation, norm):
    """E f'(y)^2 / Var f(y) for "batch", E f'(y)^2 / E f(y)^2 for "layer" and "rms", with y ~ N(0, 1).

    The factor by which a layer f(norm(h W)) of a wide network multiplies the mean squared gradient,
    whatever the variance of the weights; for "batch" with a large batch, where it is never below 1
    (Gaussian Poincare inequality) and is 1 for straight lines alone.

    Args:
        activation: a name or an `Activation`.
        norm: "batch", "layer" or "rms".

    Returns:
        A number, right to about 1e-6.

    Source: derived in the lesson. That batch normalization makes gradients explode: Yang et al. (2019), abstract.
    """
    lookup("norm", norm, {"batch": 0, "layer": 0, "rms": 0})
    f = _activation(activation)
    y = np.arange(-12, 12, 1e-3) + 5e-4
    bell = np.exp(-(y**2) / 2)
    bell /= bell.sum()
    mean = bell @ f.f(y) if norm == "batch" else 0.0
    return float(bell @ f.df(y) ** 2 / (bell @ (f.f(y) - mean) ** 2))


def batch_norm_growth(batch):
    """Factor of the mean squared gradient per layer relu(batchnorm(h W)), for a batch of B examples.

    (1/2 - (1 - p - r) / B) B / ((1/2 - r) (B - 3)), with the correlation c = -1 / (B - 1) of two
    examples, p = 1/4 + arcsin(c) / (2 pi) the probability that both are active, and
    r = (sqrt(1 - c^2) + c (pi - arccos c)) / (2 pi) the mean product of their activations.
    For large B it is pi / (pi - 1) = 1.467. The width is much larger than B.

    Args:
        batch: B, at least 4, a number or an array; below 4 the mean is infinite.

    Source: derived in the lab.
    """
    B = np.asarray(batch, float)
    if not np.all(B >= 4):
        raise ValueError(f"batch: got {batch}, expected at least 4: below, the mean is infinite")
    c = -1 / (B - 1)
    p = 1 / 4 + np.arcsin(c) / (2 * np.pi)
    r = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / (2 * np.pi)
    return ((1 / 2 - (1 - p - r) / B) * B / ((1 / 2 - r) * (B - 3)))[()]


def normalization_grid(
    *, rng, names=("relu", "tanh", "sigmoid", "identity"), batches=(4, 16, 64), width=64, depth=60, networks=2, every=5
):
    """Sizes of activations and gradients by layer: no normalization or one of three, activation, batch size.

    The weights have the variance 1/width (2/width for relu). The input is what such a layer would put out,
    f(N(0, 1)), the gradient at the last layer is N(0, 1). The same random numbers serve all normalizations and activations.

    Args:
        rng: numpy Generator.
        names: activation functions.
        batches: batch sizes; the smaller batches are the first examples of the largest.
        width, depth: units in each layer, and layers.
        networks: how many for each choice.
        every: the layers that are kept.

    Returns:
        A list of rows {"norm", "activation", "batch", "network", "layer", "forward", "backward"}: the last
        three are lists over the layers. "forward" is log10 of the size of the activations, "backward" that
        of the gradient over its size at the last layer.
    """
    kept = np.arange(0, depth + 1, every)
    draws = initialize("lecun_normal", width, width, rng=rng, size=(depth, networks), dtype=np.float32)
    x, dy = rng.standard_normal((2, networks, max(batches), width)).astype(np.float32)
    rows = []
    for norm in ("none", "batch", "layer", "rms"):
        for name in names:
            weights = draws * np.float32(2**0.5 if name == "relu" else 1)
            for batch in batches:
                blocks = []
                for W in weights:
                    norms = [] if norm == "none" else [normalization(norm, width, dtype=np.float32)]
                    blocks.append(Sequential([Dense(W), *norms, Activate(name)]))
                flow = gradient_flow(Sequential(blocks), _activation(name).f(x[:, :batch]), dy=dy[:, :batch])
                backward = flow.log10_gradient - flow.log10_gradient[:, -1:]
                for k in range(networks):
                    sizes = (np.round(a[k, kept], 2).tolist() for a in (flow.log10_activation, backward))
                    rows.append(
                        {"norm": norm, "activation": name, "batch": batch, "network": k, "layer": kept.tolist()}
                        | dict(zip(("forward", "backward"), sizes))
                    )
    return rows
