"""Mini-batches, the noise of their gradients, and learning-rate schedules."""

from typing import NamedTuple

import numpy as np

from ._validate import generator, positive_integer
from .backpropagation import Activate, Dense, Sequential
from .initialization import initialize
from .softmax import cross_entropy, d_cross_entropy

__all__ = [
    "GradientNoise", "batch_gradients", "batches", "constant_rate", "cosine_decay", "gradient_noise",
    "layer_noise", "noisy_paths", "quadratic_loss", "race", "step_decay", "steps_to", "warm_up",
]  # fmt: skip


def batches(n, size, *, rng=None, shuffle=True, drop_last=False):
    """Split 0 ... n - 1 into batches: one epoch, each index at most once.

        for i in batches(len(x), 32, rng=rng):
            net.backward(d_cross_entropy(net.forward(x[i]), labels[i]))

    Args:
        n: number of examples.
        size: examples in a batch; the last batch may have fewer.
        rng: numpy Generator for the order; needed if `shuffle`.
        shuffle: False keeps the order.
        drop_last: True leaves out a last batch that is not full.

    Returns:
        Iterator over integer arrays.

    Raises:
        ValueError: `drop_last` with size above n, which leaves no batch.
    """
    n, size = positive_integer(n, "n"), positive_integer(size, "size")
    if drop_last and size > n:
        raise ValueError(f"size: got {size}, expected at most n = {n} with drop_last")
    order = generator(rng).permutation(n) if shuffle else np.arange(n)
    return (order[i : i + size] for i in range(0, n - n % size if drop_last else n, size))


def batch_gradients(net, x, d_loss, batches):
    """The gradient of each batch, stacked: g_k = dC_k/dparameters.

    With batches of one, `batches(n, 1, shuffle=False)`, these are the per-example gradients.

    Args:
        net: a layer. Its `gradients` are those of the last batch afterwards.
        x: inputs, shape (..., n, n_in).
        d_loss: (y, i) -> dC/dy of the batch with outputs y and indices i.
        batches: iterable of integer arrays, as from `batches`.

    Returns:
        Dict with the keys of `net.parameters`, each (number of batches, *shape of the parameter).
    """
    rows = []
    for i in batches:
        net.backward(d_loss(net.forward(x[..., i, :]), i))
        rows.append(dict(net.gradients))
    if not rows:
        raise ValueError("batches: got none, expected at least one array of indices")
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class GradientNoise(NamedTuple):
    """Estimates of |G|^2, tr(Sigma) and their ratio, the simple noise scale."""

    squared_norm: np.ndarray
    trace: np.ndarray
    scale: np.ndarray


def gradient_noise(gradients, *, batch_size=1, ensemble_axes=0):
    """How noisy a gradient is: |G|^2, tr(Sigma) and B_simple = tr(Sigma) / |G|^2.

    G is the true gradient and Sigma the covariance of one example's. From k gradients g_i, each the
    mean over B independent examples, with mean g and s^2 = sum_i |g_i - g|^2 / (k - 1):

        tr(Sigma) ~ B s^2,    |G|^2 ~ |g|^2 - s^2 / k

    Both are unbiased; |g|^2 alone is too large by tr(Sigma) / (k B). Their ratio is not unbiased. At
    batch size B_simple noise and signal are equal: E|g_B - G|^2 = |G|^2.

    Args:
        gradients: array, or dict or list of arrays, (k, *ensemble, ...), k >= 2, as from
            `batch_gradients`.
        batch_size: B, examples in the batch of each gradient.
        ensemble_axes: how many axes after the first are the ensemble.

    Returns:
        GradientNoise(squared_norm, trace, scale), each of the ensemble's shape. Where the estimate of
        |G|^2 is not above 0, the noise hides the gradient: the scale is inf.

    Source: McCandlish et al. (2018). It is the estimator from two batch sizes of their appendix A.1,
    with the k batches as the small ones and all together as the big one.
    """
    B = positive_integer(batch_size, "batch_size")
    arrays = gradients.values() if isinstance(gradients, dict) else gradients
    arrays = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
    rows = [np.asarray(g, dtype=float) for g in arrays]
    if not rows or any(g.ndim < 1 + ensemble_axes or len(g) != len(rows[0]) or len(g) < 2 for g in rows):
        shapes = [g.shape for g in rows]
        raise ValueError(f"gradients: got shapes {shapes}, expected (k, *ensemble, ...) with the same k of at least 2")
    # (k, *ensemble, number of parameters)
    g = np.concatenate([g.reshape(*g.shape[: 1 + ensemble_axes], -1) for g in rows], axis=-1)
    trace_of_mean = g.var(axis=0, ddof=1).sum(axis=-1) / len(g)
    squared_norm = np.square(g.mean(axis=0)).sum(axis=-1) - trace_of_mean
    trace = B * len(g) * trace_of_mean
    scale = np.divide(trace, squared_norm, out=np.full_like(trace, np.inf), where=squared_norm > 0)
    return GradientNoise(squared_norm, trace, scale[()])


def layer_noise(net, dy):
    """Signal and noise of each block's weights, from one backward pass: |G|^2 and tr(Sigma).

    One example's gradient of W is the outer product of its input h_i and its delta_i, so that
    |G_i|^2 = |h_i|^2 |delta_i|^2, and no example's gradient is ever written down:

        tr(Sigma) = mean_i |G_i|^2 - |G|^2

    Here the batch is all there is: nothing is estimated, and Sigma divides by M, not by M - 1.

    Args:
        net: `mlp` without norm and residual, after a `forward` with M examples.
        dy: gradient of the mean loss at the output, shape (..., M, n_out).

    Returns:
        (squared_norm, trace), each of shape (number of blocks, ...), first block first.
    """
    squared_norm, trace = [], []
    for block in reversed(net.layers):
        dense, *rest = getattr(block, "layers", [block])
        for layer in reversed(rest):
            dy = layer.backward(dy)
        M = dy.shape[-2]
        each = np.square(dense.x).sum(axis=-1) * np.square(M * dy).sum(axis=-1)  # (..., M): |h_i|^2 |delta_i|^2
        dy = dense.backward(dy)
        squared_norm.append(np.square(dense.gradients["W"]).sum(axis=(-2, -1)))
        trace.append(each.mean(axis=-1) - squared_norm[-1])
    return np.stack(squared_norm[::-1]), np.stack(trace[::-1])


# Descent on a quadratic, in expectation and as single runs


def quadratic_loss(rates, sizes, *, curvature, start, variance):
    """E C after each step of noisy descent on C = sum_k curvature_k w_k^2 / 2.

    The gradient of a batch of B is curvature w + noise, the noise new in each step, with mean 0 and
    variance / B. So E w^2 <- (1 - rate curvature)^2 E w^2 + rate^2 variance / B, which is exact.

    Args:
        rates, sizes: the rate and the batch size of each step, numbers or arrays (steps, ...) that
            broadcast with each other.
        curvature, start, variance: of each direction, shape (k,) or numbers: the variance is that of
            one example's gradient.

    Returns:
        Array (steps + 1, ...), the start first.
    """
    rates, sizes = np.broadcast_arrays(np.atleast_1d(rates), np.atleast_1d(sizes))
    square = np.square(np.atleast_1d(start)).astype(float)
    square, curvature = np.broadcast_arrays(square, np.atleast_1d(curvature))
    losses = [np.full(rates.shape[1:], (curvature * square).sum() / 2)]
    for eta, B in zip(rates[..., None], sizes[..., None]):
        square = (1 - eta * curvature) ** 2 * square + eta**2 * variance / B
        losses.append((curvature * square).sum(axis=-1) / 2)
    return np.stack(losses)


def noisy_paths(sizes, rates, *, rng, steps=40, curvature=(1.0, 0.2), start=(-1.5, 4.0), variance=8.0, runs=1):
    """Runs of the descent whose expected loss is `quadratic_loss`, with Gaussian noise.

    All batch sizes and rates see the same noise, times 1 / sqrt(B).

    Args:
        sizes, rates: arrays (n_sizes,) and (n_rates,).
        curvature, start, variance: as in `quadratic_loss`.

    Returns:
        Array (n_sizes, n_rates, runs, steps + 1, k) of the positions.
    """
    B, eta = np.ix_(np.asarray(sizes, float), np.asarray(rates, float))
    B, eta, curvature = B[..., None, None], eta[..., None, None], np.asarray(curvature)
    noise = variance**0.5 * generator(rng).standard_normal((steps, runs, len(curvature)))
    w = np.broadcast_to(np.asarray(start, float), (*np.broadcast_shapes(B.shape, eta.shape)[:2], runs, len(curvature)))
    path = [w]
    for e in noise:
        w = w - eta * (curvature * w + e / np.sqrt(B))
        path.append(w)
    return np.stack(path, axis=-2)


def race(x, labels, size, rates, *, rng, steps, starts=4, hidden=16, points=40, first=1):
    """Training loss of a small tanh network by stochastic gradient descent, for several rates.

    Every rate has the same starts and sees the same batches, drawn with replacement; a `size` of at
    least len(x) means the full batch.

    Args:
        x: inputs, (M, n_in). labels: integers, (M,).
        size: examples in a batch.
        rates: learning rates, (n_rates,).
        steps: number of steps.
        starts: number of random networks.
        hidden: units of the hidden layer.
        points: about how many times the loss is measured, more often early.
        first: step of the first of these.

    Returns:
        (t, losses): the steps after which the loss over all of x was measured, 0 first, and the
        losses (len(t), n_rates, starts); inf where a run left the range of floats.
    """
    rng, M, x = generator(rng), len(x), np.asarray(x)
    eta = np.asarray(rates, x.dtype).reshape(-1, 1, 1, 1)
    widths = (x.shape[1], hidden, labels.max() + 1)
    W = [initialize("lecun_normal", a, b, rng=rng, size=(starts,), dtype=x.dtype) for a, b in zip(widths, widths[1:])]
    W = [np.repeat(w[None], len(eta), axis=0) for w in W]
    net = Sequential([Dense(W[0]), Activate("tanh"), Dense(W[1])])
    t = np.unique(np.round(np.geomspace(first, steps, points)).astype(int))
    losses = [cross_entropy(net.forward(x), labels)]
    with np.errstate(all="ignore"):  # some of the rates diverge
        for step in range(1, t[-1] + 1):
            i = rng.integers(M, size=(starts, size)) if size < M else np.arange(M)
            logits = net.forward(x[i])
            net.backward(d_cross_entropy(logits, np.broadcast_to(labels[i], logits.shape[:-1])))
            gradients = net.gradients
            for key, p in net.parameters.items():
                p -= (eta if p.ndim == 4 else eta[..., 0]) * gradients[key]
            if step in t:
                losses.append(np.nan_to_num(cross_entropy(net.forward(x), labels), nan=np.inf))
    return np.append(0, t), np.stack(losses)


def steps_to(t, losses, target):
    """The step at which each curve first comes down to `target`, linear between measurements.

    Args:
        t: steps, (n,). losses: (n, ...), above the target at first.

    Returns:
        Array (...); inf where a curve does not come down to it.
    """
    t, losses = np.asarray(t, float), np.asarray(losses, float)
    curves, column = losses.reshape(len(t), -1), np.arange(losses[0].size)
    below = curves <= target
    k = np.maximum(below.argmax(axis=0), 1)
    high, low = curves[k - 1, column], curves[k, column]
    share = np.divide(high - target, high - low, out=np.ones_like(low), where=np.isfinite(high) & (high > low))
    step = np.where(below.any(axis=0), t[k - 1] + (t[k] - t[k - 1]) * share, np.inf)
    return step.reshape(losses.shape[1:])[()]


# Learning-rate schedules: step -> rate, with steps counted from 0, for a number or an array of steps.
# They compose: warm_up(t, cosine_decay(t, 0.1, steps=1000), steps=100).


def constant_rate(step, rate):
    """rate."""
    return rate + 0.0 * np.asarray(step)


def step_decay(step, rate, *, every, factor=0.1):
    """rate * factor^floor(step / every)."""
    return rate * factor ** (np.asarray(step) // positive_integer(every, "every")).astype(float)


def cosine_decay(step, rate, *, steps, final=0.0):
    """final + (rate - final) (1 + cos(pi step / steps)) / 2, and `final` from `steps` on.

    Source: Loshchilov & Hutter (2017), without restarts.
    """
    progress = np.minimum(np.asarray(step) / positive_integer(steps, "steps"), 1)
    return final + (rate - final) * (1 + np.cos(np.pi * progress)) / 2


def warm_up(step, rate, *, steps):
    """rate * min(1, (step + 1) / steps). Source: Goyal et al. (2017)."""
    return rate * np.minimum((np.asarray(step) + 1) / positive_integer(steps, "steps"), 1)
