"""All singular values of a product of many matrices, as logarithms.

In the Jacobian of a deep network the largest singular value may be 1e-5 and the smallest 1e-150.
The product itself cannot hold both: in its rounding errors the small ones are lost. So it is
never formed. It is kept as Q D T, in which the sizes live in D alone.
"""

from functools import cache

import numpy as np

from ._validate import floating

__all__ = ["log10_singular_values"]


def log10_singular_values(factors, x=None):
    """log10 of all singular values of the product W_1 W_2 ... W_depth, largest first.

    The product is kept as Q D T: Q orthogonal, D diagonal (as logarithms), T triangular with 1 or
    -1 on its diagonal. Sizes live in D alone, so nothing underflows and nothing large drowns what is
    small. The diagonal D would be the usual QR estimate of Lyapunov exponents; the squarings at the
    end turn it into the singular values themselves.

    Args:
        factors: array (..., depth, n, n); or a list of arrays (..., n_i, n_i+1); or a network, whose
            factors are the Jacobians of its blocks at the input x.
        x: with a network, one input (n,) or a batch (..., batch, n).

    Returns:
        Shape (..., min(n_in, n_out)): (..., batch, min(n_in, n_out)) for a batch. Float64, with
        errors near 1e-10 for float64 input and 1e-5 for float32. Zero singular values (to
        rounding, within one factor) are -inf.

    Raises:
        ValueError: a network without x, or a factor with inf or nan.

    Source: Loh et al. (1989) for Q D T; the end is the QR iteration with squaring.
    """
    if hasattr(factors, "forward"):
        if x is None:
            raise ValueError("x: got None, expected an input (n,) or (..., batch, n) for the network")
        x = floating(x, "x")
        y = factors.forward(x[None] if x.ndim == 1 else x)
        steps = [layer.jacobian for layer in getattr(factors, "layers", [factors])]
        n_in, n_out, dtype = x.shape[-1], y.shape[-1], y.dtype
    else:
        if not isinstance(factors, (list, tuple)):
            factors = np.moveaxis(np.asarray(factors), -3, 0)
        factors = [floating(W, "factors") for W in factors]
        steps = [lambda before, W=W: before @ W for W in factors]
        n_in, n_out, dtype = factors[0].shape[-2], factors[-1].shape[-1], np.result_type(*factors)
    log_d = _singular_values(*_factorize(steps, n_in, decades=4 if dtype == np.float64 else 8))
    log_d = np.flip(np.sort(log_d, axis=-1), axis=-1)[..., : min(n_in, n_out)] / np.log(10)
    return log_d[..., 0, :] if x is not None and x.ndim == 1 else log_d


def _factorize(steps, n, decades):
    """ln D and T of the product, transposed: W_depth^T ... W_1^T = Q D T.

    Between two QR factorizations as many factors are multiplied as leave the result, M, a range
    of about so many decades: the relative error of the smallest values is eps times the range.

    Args:
        steps: functions before -> before W_i.
        n: rows of W_1.
        decades: the range to aim at.
    """
    before, log_d, T = _generic_rotation(n), np.zeros(n), np.eye(n)  # before is Q^T
    done, length = 0, 2
    while done < len(steps):
        M, length = before, min(length, len(steps) - done)
        with np.errstate(all="ignore"):
            for step in steps[done : done + length]:
                M = step(M)
        if not np.isfinite(M).all():
            if length == 1:
                raise ValueError("factors: got inf or nan, expected finite numbers")
            length = 1
            continue
        n_out = M.shape[-1]
        M = np.swapaxes(M, -1, -2)
        if n_out < n:
            M = np.concatenate([M, np.zeros((*M.shape[:-2], n - n_out, n))], axis=-2)
        # Large rows first: Householder QR is then accurate for the small rows too, such as those
        # of saturated units (Cox & Higham, 1998).
        size = np.abs(M).max(axis=-1)
        order = np.argsort(-size, axis=-1, kind="stable")
        Q, R = np.linalg.qr(_rows(M, order))
        rounding = n * np.finfo(float).eps * np.take_along_axis(size, order, axis=-1)[..., :n]

        r = np.abs(np.diagonal(R, axis1=-2, axis2=-1))
        alive, zero = log_d > -np.inf, r <= rounding
        if length > 1 and (alive & zero).any():
            length = 1  # is it zero, or only small? One factor can tell
            continue
        largest = np.maximum(r.max(axis=-1, keepdims=True), np.finfo(float).tiny)
        reached = np.ptp(np.log10(np.where(alive & ~zero, r, largest)), axis=-1).max()
        fitting = int(np.clip(length * decades / max(reached, 1e-9), 1, 16))
        if length > 1 and reached > decades + 2:
            length = fitting
            continue
        log_d, S = _regrade(R, log_d, rounding)
        T = S @ T
        before = np.swapaxes(_rows(Q, np.argsort(order, axis=-1))[..., :n_out, :], -1, -2)
        done, length = done + length, fitting
    return log_d, T


@cache
def _generic_rotation(n):
    """A start that leaves the singular values alone and lets zeros appear last, in any product."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]


def _rows(M, order):
    """The rows of M in this order, (..., m): `take_along_axis`, but by whole rows."""
    first = M.shape[-2] * np.arange(order[..., 0].size).reshape(*order.shape[:-1], 1)
    return M.reshape(-1, M.shape[-1])[first + order]


def _regrade(R, log_d, rounding=0.0):
    """Write R D as D' T' with 1 or -1 on the diagonal of T'; return ln D' and T'."""
    r = np.abs(np.diagonal(R, axis1=-2, axis2=-1))
    zero = np.logical_or.accumulate(r <= rounding, axis=-1)  # the rank is used up from there on
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = log_d[..., None, :] - log_d[..., :, None]
        new = np.where(zero, -np.inf, log_d + np.log(r))
    # What is tiny is left out, or denormal numbers would slow all that follows; the other bound is
    # for the triangle of zeros. Rows of zero singular values carry nothing.
    log_ratio = np.where((log_ratio > -100) & ~zero[..., None], np.minimum(log_ratio, 100), -np.inf)
    T = R / np.where(zero, 1, r)[..., None] * np.exp(log_ratio)
    np.einsum("...ii->...i", T)[zero] = 1
    return new, T


def _singular_values(log_d, T, tolerance=1e-13, rounds=20):
    """ln of the singular values of D T, unsorted.

    A squaring, (D T)^T (D T) = Q D' T', squares the ratios of neighbors. A sweep,
    (D T)^T = Q D' T', leaves the singular values alone and shrinks T - 1 by these ratios.
    Together they converge quadratically, however close the singular values.
    """
    power = 1.0
    for _ in range(rounds):
        for _ in range(4):
            log_d, S = _regrade(np.linalg.qr(np.swapaxes(T, -1, -2), mode="r"), 2 * log_d)
            T, power = S @ T, 2 * power
        log_d, T = _regrade(np.linalg.qr(np.swapaxes(T, -1, -2), mode="r"), log_d)
        t = np.abs(T) - np.eye(T.shape[-1])
        with np.errstate(invalid="ignore"):
            gap = log_d[..., :, None] - log_d[..., None, :]
        # An entry t moves a pair of values by t^2 / gap, but by no more than t.
        if (t * t / (np.fmax(t, gap) + 1e-300)).max() < tolerance * T.shape[-1] * power:
            break
    return log_d / power
