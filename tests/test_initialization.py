"""Initial weights have the variance that the table promises."""

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishing import backpropagation as bp
from vanishing.activations import ACTIVATIONS
from vanishing.initialization import GAINS, SCHEMES, gain, initialize, lsuv
from vanishing.residuals import Residual

VARIANCE = {
    "zeros": lambda i, o: 0,
    "constant": lambda i, o: 0,
    "gaussian": lambda i, o: 1,
    "normal": lambda i, o: 1,
    "uniform": lambda i, o: 1,
    "lecun_normal": lambda i, o: 1 / i,
    "lecun_uniform": lambda i, o: 1 / i,
    "glorot_normal": lambda i, o: 2 / (i + o),
    "glorot_uniform": lambda i, o: 2 / (i + o),
    "he_normal": lambda i, o: 2 / i,
    "he_uniform": lambda i, o: 2 / i,
    "orthogonal": lambda i, o: 1 / max(i, o),
}
each = pytest.mark.parametrize("scheme", SCHEMES)


@each
def test_mean_and_variance(scheme):
    """A swapped fan, a missing factor 2 or 3. The bar is 5 standard errors of 120,000 draws."""
    n = 50 * 60 * 40
    w = initialize(scheme, 60, 40, rng=np.random.default_rng(0), size=50, gain=1.5)
    variance = 1.5**2 * VARIANCE[scheme](60, 40)
    assert abs(w.mean() - (1.5 if scheme == "constant" else 0)) <= 5 * (variance / n) ** 0.5
    assert abs(w.var() - variance) <= 5 * variance * (2 / n) ** 0.5


@pytest.mark.parametrize(
    "scheme, a", [("lecun_uniform", 0.5), ("glorot_uniform", 0.5), ("he_uniform", 0.5**0.5), ("uniform", 3**0.5)]
)
def test_uniform_bounds(scheme, a):
    """Glorot & Bengio, eq. 16: a = sqrt(6 / (fan_in + fan_out)); here fan_in = fan_out = 12."""
    w = np.abs(initialize(scheme, 12, 12, rng=np.random.default_rng(0), size=100))
    assert 0.99 * a < w.max() <= a


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.sampled_from(list(SCHEMES)), st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 3), max_size=2))
def test_shape_and_dtype(scheme, fan_in, fan_out, size):
    """Any shape, any number of ensemble axes; float32 weights are the float64 ones, rounded."""
    w, single = (
        initialize(scheme, fan_in, fan_out, rng=np.random.default_rng(0), size=size, dtype=dtype)
        for dtype in (np.float64, np.float32)
    )
    assert w.shape == (*size, fan_in, fan_out)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, w.astype(np.float32))


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_orthogonal(fan_in, fan_out):
    """All singular values equal the gain, tall or wide."""
    w = initialize("orthogonal", fan_in, fan_out, rng=np.random.default_rng(1), size=3, gain=2)
    np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), 2, rtol=1e-12)


def test_orthogonal_is_uniform():
    """Without the sign correction diagonal entries are negative on average (Mezzadri 2007)."""
    w = initialize("orthogonal", 4, 4, rng=np.random.default_rng(2), size=4000)
    assert abs(w[:, 0, 0].mean()) < 5 * (0.25 / 4000) ** 0.5


def test_gain_for_each_member_and_same_draw():
    """One gain for each network of an ensemble scales the same random numbers."""
    gains = np.array([0.5, 1, 3])
    w = initialize("he_normal", 5, 4, rng=np.random.default_rng(3), size=3, gain=gains)
    one = initialize("he_normal", 5, 4, rng=np.random.default_rng(3), size=3)
    np.testing.assert_allclose(w, gains[:, None, None] * one)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"scheme": "he_norml"}, ValueError, "scheme: got 'he_norml'.*Did you mean 'he_normal'"),
        ({"fan_in": 0}, ValueError, "fan_in: got 0, expected at least 1"),
        ({"fan_out": 2.0}, TypeError, "fan_out: got 2.0, expected an integer"),
        ({"rng": 3}, TypeError, "rng: got int, expected a numpy.random.Generator"),
        ({"gain": [1, 2]}, ValueError, r"gain: got shape \(2,\), expected .* size \(3,\)"),
    ],
)
def test_bad_input(change, error, message):
    """Errors name the argument, what came and what was expected."""
    arguments = {"scheme": "zeros", "fan_in": 2, "fan_out": 2, "rng": np.random.default_rng(0), "size": 3}
    with pytest.raises(error, match=message):
        initialize(**{**arguments, **change})


F = {
    "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + mp.exp(-z)),
    "tanh": mp.tanh,
    "softsign": lambda z: z / (1 + abs(z)),
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: z if z > 0 else mp.mpf("0.01") * z,
    "elu": lambda z: z if z > 0 else mp.expm1(z),
    "selu": None,
    "gelu": lambda z: z * mp.ncdf(z),
    "silu": lambda z: z / (1 + mp.exp(-z)),
    "softplus": lambda z: mp.log1p(mp.exp(z)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain_in_arbitrary_precision(name):
    """Against adaptive quadrature in 20 digits; selu has 1 by its construction."""
    if name == "selu":
        assert gain(name) == pytest.approx(1, rel=1e-13)
        return
    with mp.workdps(20):
        second = mp.quad(lambda z: mp.npdf(z) * F[name](z) ** 2, [-mp.inf, -4, 0, 4, mp.inf])
    np.testing.assert_allclose(gain(name), float(1 / mp.sqrt(second)), rtol=2e-14)


def test_gain_keeps_the_variance():
    """What it is for: depth 30, width 400, second moments of z stay within 30 % of 1 on average."""
    for name in ("tanh", "relu", "selu"):
        rng = np.random.default_rng(0)
        z = rng.standard_normal((100, 400))
        for _ in range(30):
            z = ACTIVATIONS[name].f(z) @ initialize("lecun_normal", 400, 400, rng=rng, gain=gain(name))
        assert 0.7 < (z**2).mean() < 1.3


def test_gains_of_torch():
    """The table for comparison is torch's; where the definition agrees, so do we."""
    names = {"identity": "linear"}
    for name, value in GAINS.items():
        assert value == pytest.approx(torch.nn.init.calculate_gain(names.get(name, name)), rel=1e-15)
        assert (abs(gain(name) / value - 1) < 1e-14) == (name in ("identity", "relu", "leaky_relu"))


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=2, max_size=5), st.lists(st.integers(1, 3), max_size=2), st.booleans())
def test_lsuv(widths, size, shared):
    """Every x W + b has variance 1, with the same directions and biases, for each network alone."""
    rng = np.random.default_rng(0)
    net = bp.mlp(widths, activation="tanh", init="orthogonal", rng=rng, gain=rng.uniform(0.1, 5, size), size=size)
    for key, p in net.parameters.items():
        if key.endswith("b"):
            p[...] = 0.2 * rng.standard_normal(p.shape)
    x = rng.standard_normal((*(() if shared else size), 40, widths[0]))
    arrays, before = net.parameters, {k: p.copy() for k, p in net.parameters.items()}
    reached = lsuv(net, x, tolerance=1e-4, max_iterations=40)
    assert reached.shape == (len(widths) - 1, *size)
    np.testing.assert_allclose(reached, 1, atol=1e-4)
    for key, p in net.parameters.items():
        assert p is arrays[key]
        ratio = p / before[key]
        expected = ratio[..., :1, :1] if key.endswith("W") else np.ones(1)
        np.testing.assert_allclose(ratio, np.broadcast_to(expected, p.shape), rtol=1e-12)
    for block in net.layers:
        dense = block if isinstance(block, bp.Dense) else block.layers[0]
        y = dense.forward(x)
        np.testing.assert_allclose(y.var(axis=(-2, -1)), 1, atol=1e-4)
        x = block.forward(x)


def test_lsuv_of_skip_connections_and_its_limits():
    """A Dense inside a block is reached with what it sees there; networks already close stay as they are."""
    rng = np.random.default_rng(1)
    inner = bp.mlp([4, 4, 4], activation="relu", init="orthogonal", rng=rng, gain=3)
    net = bp.Sequential([Residual(inner), bp.Activate("tanh"), bp.Dense(5 * rng.standard_normal((4, 3)))])
    x = rng.standard_normal((50, 4))
    np.testing.assert_allclose(lsuv(net, x), 1, atol=1e-12)
    np.testing.assert_allclose(net.forward(x).var(), 1, atol=1e-12)
    W = net.parameters["2.W"]
    W *= 1.02  # variance 1.04
    before = W.copy()
    np.testing.assert_allclose(lsuv(net, x, tolerance=0.1)[-1], 1.0404, rtol=1e-12)
    np.testing.assert_array_equal(W, before)
    pair = bp.Dense(np.stack([W, 3 * W]))  # the first is within the tolerance, the second is not
    seen = net.layers[-1].x
    np.testing.assert_allclose(lsuv(pair, seen, tolerance=0.1), [[1.0404, 1]], rtol=1e-12)
    np.testing.assert_array_equal(pair.parameters["W"][0], W)
    biased = bp.Dense(np.full((1, 1, 2), 9.0), np.array([[0.0, 1.5]]))  # one iteration is not enough here
    one, two = (
        lsuv(bp.Dense(biased.parameters["W"].copy(), biased.parameters["b"]), x[None, :, :1], max_iterations=k)
        for k in (1, 5)
    )
    assert abs(one - 1) > abs(two - 1)
    single = bp.mlp([4, 4], activation="relu", init="orthogonal", rng=rng, dtype=np.float32)
    lsuv(single, x.astype(np.float32))
    assert single.parameters["0.W"].dtype == np.float32


def test_lsuv_with_shared_weights():
    """One W under an ensemble of inputs gets the variance over all of them."""
    rng = np.random.default_rng(2)
    dense, x = bp.Dense(rng.standard_normal((3, 4))), rng.standard_normal((5, 20, 3)) * np.arange(1, 6)[:, None, None]
    assert lsuv(dense, x).shape == (1,)
    np.testing.assert_allclose(dense.forward(x).var(), 1, rtol=1e-12)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gain("tahn"), ValueError, "activation: got 'tahn'.*Did you mean 'tanh'"),
        (lambda: lsuv(bp.Activate("tanh"), np.ones((2, 3))), ValueError, "net: got Activate without a Dense layer"),
        (lambda: lsuv(bp.Dense(np.zeros((3, 2))), np.ones((2, 3))), ValueError, "net: got variance 0.0 in Dense layer 0"),
        (lambda: lsuv(bp.Dense(np.eye(2)), np.eye(2), tolerance=0), ValueError, "tolerance: got 0, expected a number above 0"),
        (lambda: lsuv(bp.Dense(np.eye(2)), np.eye(2), max_iterations=0), ValueError, "max_iterations: got 0"),
    ],
)  # fmt: skip
def test_bad_input_of_gain_and_lsuv(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()
