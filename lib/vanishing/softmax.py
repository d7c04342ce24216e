"""Softmax and sparsemax: vectors of scores to probabilities, with derivatives that survive saturation.

Unlike the functions in `activations`, these act on a whole row. J = dp/dz is symmetric for both, so
J dy, which the functions `d_...` compute in O(n), is the vector-Jacobian product of either convention.
Leading axes are free; complex arrays are accepted for the complex step in `gradcheck`.

Everything starts from z - max(z): probabilities ignore a shift, and no exponential overflows.
"""

import numpy as np

from ._validate import floating, lookup

__all__ = [
    "Softmax", "d_log_softmax", "d_softmax", "d_sparsemax", "log_softmax", "softmax", "softmax_jacobian",
    "sparsemax", "sparsemax_jacobian",
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
    """dL/dz_i = p_i (dy_i - sum_j p_j dy_j) / T, with dy = dL/dp, in O(n).

    A constant added to dy changes nothing. Taking dy - dy[argmax z] leaves only the small
    probabilities in the sum, so the result is right when the largest p rounds to 1: for z = (50, 0)
    it is 1.9e-22 (dy_1 - dy_2), where the plain formula has 0.
    """
    z, top = _shifted(z, axis, temperature)
    e = np.exp(z)
    p = e / e.sum(axis=axis, keepdims=True)
    dy = dy - np.take_along_axis(*np.broadcast_arrays(dy, top), axis)
    return p * (dy - (p * dy).sum(axis=axis, keepdims=True)) / _temperature(temperature, p, axis)


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
    """dL/dz_i = (dy_i - p_i sum_j dy_j) / T, with dy = dL/d(ln p)."""
    p = softmax(z, axis, temperature=temperature)
    return (dy - p * np.sum(dy, axis=axis, keepdims=True)) / _temperature(temperature, p, axis)


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
    """dL/dz_i = (dy_i - mean of dy over the support) / T for i in the support, else 0, in O(n)."""
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
        """dL/dx = J dy, same shape."""
        return self._d_f(self.x, dy, temperature=self.temperature)

    def jacobian(self, before=None):
        """J = dy/dx, shape (..., batch, n, n), or `before @ J`, in O(n) for each row of `before`."""
        if before is None:
            return self._jacobian(self.x, temperature=self.temperature)
        return self._d_f(self.x[..., None, :], before, temperature=_new_axis(np.asarray(self.temperature)))


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
    z, T = np.broadcast_arrays(z, _temperature(temperature, z, axis))
    top = np.expand_dims(z.real.argmax(axis=axis), axis)
    return (z - np.take_along_axis(z, top, axis)) / T, top


def _support(z, axis, temperature):
    """1 where sparsemax(z) > 0, else 0."""
    p = sparsemax(z, axis, temperature=temperature)
    return (p.real > 0).astype(p.dtype)
