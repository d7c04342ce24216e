"""Singular values of products, against arbitrary precision and plain SVD."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishing import backpropagation as bp
from vanishing.spectrum import log10_singular_values

repeat = settings(derandomize=True, max_examples=20, deadline=None)


def exact_product(matrices):
    product = mpmath.eye(matrices[0].shape[-2])
    for W in matrices:
        product = product * mpmath.matrix(W.tolist())
    return product


def exact_log10_singular_values(matrices, dps=800):
    with mpmath.workdps(dps):
        s = mpmath.svd_r(exact_product(matrices), compute_uv=False)
        return np.array(sorted((float(mpmath.log10(v)) for v in s), reverse=True))


def orthogonal(rng, *size):
    return np.linalg.qr(rng.standard_normal(size))[0]


def test_singular_values_of_a_deep_product_are_exact():
    """Width 8, depth 200: the values span 1e-5 to 1e-150, where a plain SVD is noise."""
    W = np.random.default_rng(1).standard_normal((2, 200, 8, 8)) / 8**0.5
    got = log10_singular_values(W)
    exact = np.array([exact_log10_singular_values(w) for w in W])
    np.testing.assert_allclose(got, exact, atol=1e-10, rtol=0)
    assert exact[0, -1] < -100
    np.testing.assert_allclose(log10_singular_values(W.astype(np.float32)), exact, atol=1e-3)


@repeat
@given(st.lists(st.integers(1, 7), min_size=2, max_size=6), st.lists(st.integers(1, 3), max_size=2))
def test_singular_values_agree_with_plain_svd(widths, size):
    """Shallow products of any shapes, where SVD is valid; below a bottleneck all is -inf."""
    rng = np.random.default_rng(sum(widths))
    factors = [rng.standard_normal((*size, n, m)) for n, m in zip(widths[:-1], widths[1:], strict=True)]
    product = factors[0]
    for W in factors[1:]:
        product = product @ W
    got, plain = log10_singular_values(factors), np.log10(np.linalg.svd(product, compute_uv=False))
    assert got.shape == plain.shape
    rank = min(widths)
    assert np.all(got[..., rank:] == -np.inf)
    valid = (plain > plain[..., :1] - 4) & (np.arange(plain.shape[-1]) < rank)
    np.testing.assert_allclose(got[valid], plain[valid], atol=1e-8)


def test_singular_values_that_coincide_or_nearly_so():
    """Equal, close and far ones in one product: convergence must not depend on the gaps."""
    got = log10_singular_values(np.broadcast_to(np.diag([3, 2, 2, 2 - 1e-9, 1e-3, 0.0]), (100, 6, 6)))
    exact = [*100 * np.log10([3, 2, 2, 2 - 1e-9, 1e-3]), -np.inf]
    np.testing.assert_allclose(got, exact, atol=1e-9)
    rng = np.random.default_rng(0)
    rotations = orthogonal(rng, 100, 16, 16)
    np.testing.assert_allclose(log10_singular_values(rotations), 0, atol=1e-12)
    for gap in 10.0 ** -np.arange(1, 12):
        close = 1 / (1 + gap * np.arange(16))
        got = log10_singular_values([rotations[0] * close, rotations[1]])
        np.testing.assert_allclose(got, np.log10(close), atol=1e-13)
    near = rotations @ (np.eye(16) + 1e-3 * rng.standard_normal((100, 16, 16)))
    plain = near[0]
    for W in near[1:]:
        plain = plain @ W
    np.testing.assert_allclose(
        log10_singular_values(near), np.log10(np.linalg.svd(plain, compute_uv=False)), atol=1e-11
    )


@pytest.mark.filterwarnings("error")
def test_singular_values_of_singular_products():
    """Zero, and low rank by rounding: -inf, not 1e-16, and no warning."""
    rng = np.random.default_rng(0)
    assert np.all(log10_singular_values(np.zeros((3, 4, 4))) == -np.inf)
    low = rng.standard_normal((30, 6, 2)) @ rng.standard_normal((30, 2, 6))
    got = log10_singular_values(low)
    np.testing.assert_allclose(got[:2], exact_log10_singular_values(low)[:2], atol=1e-9)
    assert np.all(got[2:] == -np.inf)


@pytest.mark.parametrize("activation, gain, depth", [("tanh", 3.0, 21), ("sigmoid", 1.0, 21), ("relu", 1.4, 4)])
def test_singular_values_of_a_network(activation, gain, depth):
    """Saturated and dead units; one input or a batch; against the exact product or its rank."""
    rng = np.random.default_rng(5)
    init = "gaussian" if activation == "tanh" else "lecun_normal"
    net = bp.mlp([8] * depth + [5], activation=activation, init=init, gain=gain, rng=rng)
    x = rng.standard_normal((2, 8))
    got = log10_singular_values(net, x)
    assert got.shape == (2, 5)
    net.forward(x)
    jacobians = [np.broadcast_to(block.jacobian(), (2, *block.jacobian().shape[1:])) for block in net.layers]
    product = net.jacobian()
    for i in range(2):
        if activation == "relu":
            plain, rank = np.linalg.svd(product[i], compute_uv=False), np.linalg.matrix_rank(product[i])
            assert 0 < rank < 5
            np.testing.assert_allclose(got[i, :rank], np.log10(plain[:rank]), atol=1e-9)
            assert np.all(got[i, rank:] == -np.inf)
        else:
            exact = exact_log10_singular_values([J[i] for J in jacobians])
            np.testing.assert_allclose(got[i], exact, atol=1e-9)
    np.testing.assert_allclose(log10_singular_values(net, x[0]), got[0], atol=1e-9)


@pytest.mark.parametrize("bad", [1e-9, 1e-13, 1e-20])
def test_a_bad_factor_in_a_long_group_of_good_ones(bad):
    """Many good factors are multiplied at once; one that is nearly singular must not be lost in them."""
    rng = np.random.default_rng(0)
    W = orthogonal(rng, 2, 60, 5, 5)  # of an ensemble, only the second member is bad
    for i, scales in ((25, [1, 0.5, 1, bad, bad**2]), (26, [bad, 1, 1, 1, 0.5]), (44, [bad, bad, 1, 1, 1])):
        W[1, i] *= scales  # columns, as saturated units scale them
    got = log10_singular_values(W)
    np.testing.assert_allclose(got[0], 0, atol=1e-11)
    np.testing.assert_allclose(got[1], exact_log10_singular_values(W[1]), atol=1e-8)


@pytest.mark.filterwarnings("error")
def test_rank_is_lost_in_the_middle():
    """-inf below the rank of one factor in a long group, for that member of the ensemble alone."""
    rng = np.random.default_rng(1)
    W = orthogonal(rng, 2, 60, 5, 5)
    W[1, 40] = W[1, 40] @ np.diag([2, 1, 0.5, 0, 0]) @ W[1, 41].T
    got = log10_singular_values(W)
    np.testing.assert_allclose(got[0], 0, atol=1e-11)
    np.testing.assert_allclose(got[1], [np.log10(2), 0, -np.log10(2), -np.inf, -np.inf], atol=1e-11)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exponent", [-200, 200])
def test_groups_neither_overflow_nor_underflow(exponent):
    """Entries of 1e200 and 1e-200: no group of two can be formed, and the answer is right."""
    W = orthogonal(np.random.default_rng(2), 40, 6, 6) * 10.0**exponent
    np.testing.assert_allclose(log10_singular_values(W), 40 * exponent, rtol=1e-13)


def test_nan_in_a_late_factor():
    """Found in a group as well as alone."""
    W = orthogonal(np.random.default_rng(3), 40, 4, 4)
    W[30, 2, 1] = np.nan
    with pytest.raises(ValueError, match="factors: got inf or nan, expected finite numbers"):
        log10_singular_values(W)


@pytest.mark.parametrize("activation, gain", [("tanh", 1.0), ("tanh", 1.2), ("leaky_relu", 1.4)])
def test_float32_networks(activation, gain):
    """Within 1e-3 of the same network in float64 over dozens of decades; float64 out; an ensemble too."""
    rng, size = np.random.default_rng(4), (2,)
    net = bp.mlp([32] * 41, activation=activation, init="lecun_normal", gain=gain, rng=rng, dtype=np.float32, size=size)
    x = rng.standard_normal((2, 3, 32)).astype(np.float32)
    got = log10_singular_values(net, x)
    assert got.dtype == np.float64 and got.shape == (2, 3, 32)
    double = bp.mlp([32] * 41, activation=activation, init="zeros", rng=rng, size=size)
    for key, p in double.parameters.items():
        p[...] = net.parameters[key]
    exact = log10_singular_values(double, x.astype(float))
    assert exact[..., -1].max() < exact[..., 0].min() - 20
    np.testing.assert_allclose(got, exact, atol=1e-3)
    double.forward(x[:, :1].astype(float))
    alone = [np.broadcast_to(block.jacobian(), (2, 1, 32, 32))[1, 0] for block in double.layers]
    np.testing.assert_allclose(log10_singular_values(alone), exact[1, 0], atol=1e-9)


@pytest.mark.parametrize(
    "factors, message",
    [
        (bp.Dense(np.eye(2)), r"x: got None, expected an input \(n,\) or \(..., batch, n\)"),
        (np.full((1, 2, 2), np.nan), "factors: got inf or nan"),
    ],
)
def test_bad_input(factors, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(ValueError, match=message):
        log10_singular_values(factors)
