"""Softmax and sparsemax: vectors of scores to probabilities, with derivatives that survive saturation.

Unlike the functions in `activations`, these act on a whole row. J = dp/dz is symmetric for both, so
J dy, which the functions `d_...` compute in O(n), is the vector-Jacobian product of either convention.
Leading axes are free; complex arrays are accepted for the complex step in `gradcheck`.

Everything starts from z - max(z): probabilities ignore a shift, and no exponential overflows.
"""

import numpy as np

from . import normalization, residuals
from ._validate import floating, generator, lookup
from .backpropagation import Activate, Dense, Sequential, _sum_to
from .chain_rule import gradient_flow
from .initialization import initialize

__all__ = [
    "REMEDIES", "Attention", "Skips", "Softmax", "cross_entropy", "d_cross_entropy", "d_log_softmax", "d_softmax", "d_sparsemax", "gradient_decay",
    "log_softmax", "remedy_grid", "softmax", "softmax_jacobian", "softmax_stack", "softmax_vjp", "sparsemax",
    "sparsemax_jacobian",
]  # fmt: skip


def softmax(z, axis=-1, *, temperature=1.0):
    """p_i = exp(z_i / T) / sum_j exp(z_j / T).

    Args:
        z: scores, any shape; -inf (a mask) gives probability 0.
        axis: the axis along which p sums to 1.
        temperature: T > 0, a number, or an array that broadcasts with z and has size 1 along `axis`.

    Returns:
        Array of the shape of z.

    Raises:
        ValueError: no scores, or a temperature of 0 or below.

    Source: Bridle (1990).
    """
    e = np.exp(_shifted(z, axis, temperature)[0])
    return e / e.sum(axis=axis, keepdims=True)


def d_softmax(z, dy, axis=-1, *, temperature=1.0):
    """dC/dz_i = p_i (dy_i - sum_j p_j dy_j) / T, with dy = dC/dp, in O(n).

    A constant added to dy changes nothing. Taking dy - dy[argmax z] leaves only the small
    probabilities in the sum, so the result is right when the largest p rounds to 1: for z = (50, 0)
    it is 1.9e-22 (dy_1 - dy_2), where the plain formula has 0.
    """
    z, top = _shifted(z, axis, temperature)
    e = np.exp(z)
    p = e / e.sum(axis=axis, keepdims=True)
    dy = np.asarray(dy)
    if dy.ndim != top.ndim:
        dy, top = np.broadcast_arrays(dy, top)
    dy = dy - np.take_along_axis(dy, top, axis)
    return softmax_vjp(p, dy, axis) / _temperature(temperature, p, axis)


def softmax_vjp(p, dy, axis=-1):
    """J dy = p (dy - sum_j p_j dy_j) from the probabilities, in O(n); J is symmetric, so it is dy J too."""
    return p * (dy - (p * dy).sum(axis=axis, keepdims=True))


def softmax_jacobian(z, *, temperature=1.0):
    """J = (diag(p) - p p^T) / T: (..., n) -> (..., n, n).

    The diagonal p_i (1 - p_i) is computed as p_i times the sum of the other p_j, without cancellation.
    """
    p = softmax(z, temperature=temperature)
    J = -p[..., :, None] * p[..., None, :]
    np.einsum("...ii->...i", J)[...] = 0  # a writable view of the diagonal
    np.einsum("...ii->...i", J)[...] = -J.sum(axis=-1)
    return J / _new_axis(_temperature(temperature, p))


def log_softmax(z, axis=-1, *, temperature=1.0):
    """ln p_i = z_i / T - ln sum_j exp(z_j / T); arguments as in `softmax`.

    The largest term of the sum is exp(0) = 1, so its logarithm is log1p of the others: ln p is right
    when p rounds to 1.
    """
    z, top = _shifted(z, axis, temperature)
    others = np.exp(z)
    np.put_along_axis(others, top, 0, axis)
    return z - np.log1p(others.sum(axis=axis, keepdims=True))


def d_log_softmax(z, dy, axis=-1, *, temperature=1.0):
    """dC/dz_i = (dy_i - p_i sum_j dy_j) / T, with dy = dC/d(ln p)."""
    p = softmax(z, axis, temperature=temperature)
    return (dy - p * np.sum(dy, axis=axis, keepdims=True)) / _temperature(temperature, p, axis)


def cross_entropy(logits, labels):
    """C = -mean over the batch of ln p[label], with p = softmax(logits).

    Args:
        logits: shape (..., batch, classes).
        labels: integers in 0 ... classes - 1, shape (batch,) or (..., batch).

    Returns:
        Loss of each network, shape (...).
    """
    logits, target = _one_hot(logits, labels)
    return -np.where(target, log_softmax(logits), 0).sum(axis=-1).mean(axis=-1)


def d_cross_entropy(logits, labels):
    """dC/dlogits = (p - onehot(label)) / batch, the shape of the logits."""
    logits, target = _one_hot(logits, labels)
    log_p = log_softmax(logits)
    # p - 1 as expm1(ln p): where p rounds to 1 the gradient is small, not 0.
    return np.where(target, np.expm1(log_p), np.exp(log_p)) / logits.shape[-2]


def _one_hot(logits, labels):
    """Return checked logits, and where the label is each class, both (..., batch, classes)."""
    logits, labels = floating(logits, "logits"), np.asarray(labels)
    classes = logits.shape[-1]
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels: got an array of {labels.dtype}, expected integers")
    if logits.ndim < 2 or labels.shape[-1:] != logits.shape[-2:-1]:
        raise ValueError(f"labels: got shape {labels.shape}, expected (..., batch) for logits of shape {logits.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels: got {labels.min()} ... {labels.max()}, expected 0 ... {classes - 1}")
    return logits, labels[..., None] == np.arange(classes)


def sparsemax(z, axis=-1, *, temperature=1.0):
    """p = the point of the simplex nearest to z / T: p_i = max(z_i / T - tau, 0), with sum_i p_i = 1.

    With z / T sorted, z_(1) >= z_(2) >= ..., the support are the first k entries, k the largest with
    1 + k z_(k) > z_(1) + ... + z_(k), and tau = (z_(1) + ... + z_(k) - 1) / k.
    Arguments as in `softmax`. Source: Martins & Astudillo (2016), algorithm 1.
    """
    z, _ = _shifted(z, axis, temperature)
    z = np.moveaxis(z, axis, -1)
    # The largest entry is 0, so tau >= -1 and entries below -1 are never in the support: cut there,
    # nothing overflows in the sum.
    ordered = np.flip(np.sort(np.maximum(z, -1), axis=-1), axis=-1)
    total, k = np.cumsum(ordered, axis=-1), np.arange(1, z.shape[-1] + 1, dtype=z.real.dtype)
    size = (1 + k * ordered.real > total.real).sum(axis=-1, keepdims=True)
    tau = (np.take_along_axis(total, size - 1, -1) - 1) / size.astype(k.dtype)
    return np.moveaxis(np.where(z.real > tau.real, z - tau, 0), -1, axis)


def d_sparsemax(z, dy, axis=-1, *, temperature=1.0):
    """dC/dz_i = (dy_i - mean of dy over the support) / T for i in the support, else 0, in O(n)."""
    s = _support(z, axis, temperature)
    mean = (s * dy).sum(axis=axis, keepdims=True) / s.sum(axis=axis, keepdims=True)
    return s * (dy - mean) / _temperature(temperature, s, axis)


def sparsemax_jacobian(z, *, temperature=1.0):
    """J = (diag(s) - s s^T / sum_i s_i) / T, with s_i = 1 in the support, else 0: (..., n) -> (..., n, n).

    At T = 1 it is a projection. Where z_i = tau exactly there is a kink, and s_i = 0.
    """
    s = _support(z, -1, temperature)
    J = np.eye(s.shape[-1], dtype=s.dtype) * s[..., None]
    J = J - s[..., :, None] * s[..., None, :] / s.sum(axis=-1)[..., None, None]
    return J / _new_axis(_temperature(temperature, s))


_KINDS = {"softmax": (softmax, d_softmax, softmax_jacobian), "sparsemax": (sparsemax, d_sparsemax, sparsemax_jacobian)}


class Softmax:
    """y = softmax(x / T) or sparsemax(x / T), row by row: a layer, as in `backpropagation`.

    Args:
        kind: "softmax" or "sparsemax".
        temperature: T > 0, a number, or an array that broadcasts with x and has size 1 along its last axis.
    """

    def __init__(self, kind="softmax", temperature=1.0):
        self._f, self._d_f, self._jacobian = lookup("kind", kind, _KINDS)
        _temperature(temperature, np.zeros(1))
        self.kind, self.temperature = kind, temperature
        self.parameters, self.gradients = {}, {}

    def forward(self, x):
        """(..., batch, n) -> the same shape."""
        self.x = x
        return self._f(x, temperature=self.temperature)

    def backward(self, dy, *, weights=True):
        """dC/dx = J dy, same shape."""
        return self._d_f(self.x, dy, temperature=self.temperature)

    def jacobian(self, before=None):
        """J = dy/dx, shape (..., batch, n, n), or `before @ J`, in O(n) for each row of `before`."""
        if before is None:
            return self._jacobian(self.x, temperature=self.temperature)
        return self._d_f(self.x[..., None, :], before, temperature=_new_axis(np.asarray(self.temperature)))


# Softmax layers in a row ------------------------------------------------------------------------

REMEDIES = (
    "none", "residual", "skip", "batch norm", "layer norm", "relu", "leaky relu", "sparsemax"
)  # fmt: skip


class Skips(Sequential):
    """h_l = layers[l](h_{l-1}) + h_{l-2} from the third layer on: each softmax is added to a later one.

    The first two layers stand alone: the earliest output that is added again is the first layer's own.

    Args:
        layers: a list of layers with as many outputs as inputs.
    """

    def forward(self, x):
        """(..., batch, n) -> the same shape."""
        h = [x]
        for i, layer in enumerate(self.layers):
            y = layer.forward(h[-1])
            h.append(y + h[-2] if i > 1 else y)
        return h[-1]

    def backward(self, dy, *, weights=True):
        """g_{l-1} = layers[l] backward (g_l) + g_{l+1}; all of g_0 ... g_L are kept as `g`."""
        self.g = [0.0] * len(self.layers) + [dy]
        for i in reversed(range(len(self.layers))):
            self.g[i] = self.g[i] + self.layers[i].backward(self.g[i + 1], weights=weights)
            if i > 1:
                self.g[i - 1] = self.g[i - 1] + self.g[i + 1]
        return self.g[0]

    def jacobian(self, before=None):
        """dh_L/dx from P_l = P_{l-1} J_l + P_{l-2}, shape (..., batch, n, n); see `Dense.jacobian`."""
        P = [before]
        for i, layer in enumerate(self.layers):
            J = layer.jacobian(P[-1])
            P.append(J + P[-2] if i > 1 else J)
        return P[-1]


def softmax_stack(remedy, n, depth, *, rng, gain=1.0, size=(), dtype=float):
    """h_l = softmax(h_{l-1} W_l) for l = 1 ... depth, with a remedy in each layer.

    ===========  =======================================================================
    remedy       layer l
    ===========  =======================================================================
    none         softmax(h W)
    residual     h + softmax(h W)
    skip         softmax(h W) + h_{l-2}, from the third layer on (`Skips`)
    batch norm   softmax(batch norm(h W))
    layer norm   softmax(layer norm(h W))
    relu         softmax(relu(h W)); leaky relu likewise, with slope 0.01 below 0
    sparsemax    sparsemax(h W)
    ===========  =======================================================================

    Args:
        remedy: a name from the table.
        n: number of scores of each softmax.
        depth: number of layers.
        rng: numpy Generator for the weights, independent N(0, gain^2 / n).
        gain: a number, or an array that broadcasts to `size`.
        size: leading axes of every parameter: an ensemble of independent networks.
        dtype: floating dtype of the parameters.

    Returns:
        Sequential with one block for each layer, or `Skips`.
    """
    lookup("remedy", remedy, dict.fromkeys(REMEDIES))

    def layer():
        dense = Dense(initialize("lecun_normal", n, n, rng=rng, gain=gain, size=size, dtype=dtype))
        before = []
        if remedy.endswith("norm"):
            before = [normalization.normalization(remedy.split()[0], n, dtype=dtype, size=size)]
        elif remedy.endswith("relu"):
            before = [Activate(remedy.replace(" ", "_"))]
        return Sequential([dense, *before, Softmax("sparsemax" if remedy == "sparsemax" else "softmax")])

    layers = [layer() for _ in range(depth)]
    if remedy == "skip":
        return Skips(layers)
    return Sequential([residuals.Residual(one) for one in layers] if remedy == "residual" else layers)


def gradient_decay(net, x, *, rng):
    """log10 of the gradient's size at h_{L-k} over that at h_L, for k = 0 ... L, for a random gradient at h_L.

    Args:
        net: as `softmax_stack` returns it.
        x: input, shape (..., batch, n).
        rng: numpy Generator for the gradient at the output, N(0, 1).

    Returns:
        Shape (..., depth + 1); the last entry is what reaches the input. Sizes are root mean
        squares over batch and units; -inf where nothing arrives.
    """
    if isinstance(net, Skips):
        net.backward(generator(rng).standard_normal(net.forward(x).shape), weights=False)
        with np.errstate(divide="ignore"):
            size = np.log10(np.stack([(g**2).mean(axis=(-2, -1)) for g in net.g], axis=-1)) / 2
    else:
        size = gradient_flow(net, x, rng=rng).log10_gradient
    return np.flip(size - size[..., -1:], axis=-1)


def remedy_grid(*, rng, sizes=(3, 10, 30), networks=5, batch=6):
    """What the explorable of the remedies draws: a row for each remedy, number of scores and gain.

    The gains go from 1 to 100, for all remedies the same networks up to their remedy.

    Args:
        rng: numpy Generator.
        sizes: numbers of scores n.
        networks: networks for each row.
        batch: examples that are sent through each network.

    Returns:
        List of dicts with `remedy`, `n`, `gain`, and lists over 0 ... 32
        layers passed: `layers`, and `low`, `median` and `high` of the networks, log10.
    """
    depth, gains = 32, np.array([1, 2, 3, 5, 8, 10, 15, 24, 30, 100])
    rows, seed = [], generator(rng).integers(2**32)
    for remedy in REMEDIES:
        if remedy == "leaky relu":  # on the axis it cannot be told from relu
            continue
        for n in sizes:
            one = np.random.default_rng(seed)
            net = softmax_stack(remedy, n, depth, rng=one, gain=gains[:, None], size=(gains.size, networks))
            decay = gradient_decay(net, one.standard_normal((gains.size, networks, batch, n)), rng=one)
            decay = np.maximum(decay, -400)  # JSON has no infinity
            low, median, high = (np.round(q, 2).tolist() for q in np.quantile(decay, [0, 0.5, 1], axis=1))
            for i, gain in enumerate(gains.tolist()):
                rows.append(
                    {"remedy": remedy, "n": n, "gain": gain, "layers": list(range(depth + 1)),
                     "low": low[i], "median": median[i], "high": high[i]}
                )  # fmt: skip
    return rows


# Attention --------------------------------------------------------------------------------------


class Attention:
    """y = A v with A = softmax(q k^T scale), row by row: q = x W_q, k = x W_k, v = x W_v.

    The rows of x are the tokens of one sequence; leading axes are sequences and networks. The
    gradient comes back on two roads, through v, where nothing of the softmax is differentiated,
    and through the scores, where its Jacobian stands.

    Args:
        query, key: W_q and W_k, shape (..., n, d).
        value: W_v, shape (..., n, n_out).
        scale: factor of the scores; 1 / sqrt(d) if not given.
        causal: whether a token sees only itself and those before it.

    Source: Vaswani et al. (2017), section 3.2.1.
    """

    def __init__(self, query, key, value, *, scale=None, causal=True):
        self.parameters = {"query": query, "key": key, "value": value}
        self.gradients = {}
        self.scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.causal = causal

    def forward(self, x):
        """(..., T, n) -> (..., T, n_out)."""
        self.x = x
        self.q, self.k, self.v = (x @ W for W in self.parameters.values())
        scores = self.scale * (self.q @ np.swapaxes(self.k, -1, -2))
        if self.causal:
            scores = np.where(np.tri(x.shape[-2], dtype=bool), scores, -np.inf)
        self.scores, self.A = scores, softmax(scores)
        return self.A @ self.v

    def backward(self, dy, *, weights=True):
        """dC/dx, and the gradients of the three matrices unless `weights` is False."""
        dv = np.swapaxes(self.A, -1, -2) @ dy
        dscores = self.scale * d_softmax(self.scores, dy @ np.swapaxes(self.v, -1, -2))
        down = dscores @ self.k, np.swapaxes(dscores, -1, -2) @ self.q, dv
        dx = 0.0
        for (name, W), d in zip(self.parameters.items(), down):
            if weights:
                self.gradients[name] = _sum_to(np.swapaxes(self.x, -1, -2) @ d, W.shape)
            dx = dx + d @ np.swapaxes(W, -1, -2)
        return dx


def _temperature(temperature, z, axis=-1):
    """T in the precision of z, so that float32 stays float32."""
    T = np.asarray(temperature)
    if not (np.issubdtype(T.dtype, np.number) and np.all(T > 0)):
        raise ValueError(f"temperature: got {temperature}, expected numbers above 0")
    if T.ndim and np.reshape(T, (1,) * (z.ndim - T.ndim) + T.shape).shape[axis] != 1:
        raise ValueError(f"temperature: got shape {T.shape}, expected size 1 along axis {axis}")
    return T.astype(z.real.dtype)


def _new_axis(T):
    """Room for one more axis of scores: (..., 1) -> (..., 1, 1); a number stays one."""
    return T[..., None] if T.ndim else T


def _shifted(z, axis, temperature):
    """(z - z[top]) / T and top, the index of the largest entry along `axis` (kept, with size 1)."""
    z = floating(z)
    if z.ndim == 0 or z.shape[axis] == 0:
        raise ValueError(f"z: got shape {z.shape}, expected at least one score along axis {axis}")
    T = _temperature(temperature, z, axis)
    if T.ndim:
        z, T = np.broadcast_arrays(z, T)
    top = np.expand_dims(z.real.argmax(axis=axis), axis)
    return (z - np.take_along_axis(z, top, axis)) / T, top


def _support(z, axis, temperature):
    """1 where sparsemax(z) > 0, else 0."""
    p = sparsemax(z, axis, temperature=temperature)
    return (p.real > 0).astype(p.dtype)
