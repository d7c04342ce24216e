"""Mini-batches, the noise of their gradients, and learning-rate schedules."""

from typing import NamedTuple

import numpy as np

from ._validate import generator, positive_integer

__all__ = [
    "GradientNoise", "batch_gradients", "batches", "constant_rate", "cosine_decay", "gradient_noise",
    "step_decay", "warm_up",
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
    """The gradient of each batch, stacked: g_k = dL_k/dparameters.

    With batches of one, `batches(n, 1, shuffle=False)`, these are the per-example gradients.

    Args:
        net: a layer. Its `gradients` are those of the last batch afterwards.
        x: inputs, shape (..., n, n_in).
        d_loss: (y, i) -> dL/dy of the batch with outputs y and indices i.
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
        batch_size: B.
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
