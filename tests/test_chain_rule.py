"""Products of many factors, against arbitrary precision, Monte Carlo and autograd."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp
from vanishing import chain_rule as cr

repeat = settings(derandomize=True, max_examples=20, deadline=None)


# Numbers


@repeat
@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=30))
def test_log10_product_agrees_with_arbitrary_precision(factors):
    """Neither underflow nor overflow; signs do not matter."""
    exact = float(mpmath.log10(mpmath.fprod(factors)))
    assert cr.log10_product(-np.array(factors)) == pytest.approx(exact, rel=1e-12, abs=1e-10)


@pytest.mark.filterwarnings("error")
def test_log10_product_of_zero_and_axes():
    """A zero factor is -inf in silence; any axis; float32 in, float64 out."""
    f = np.array([[0.1, 0], [0.1, 10]], np.float32)
    np.testing.assert_allclose(cr.log10_product(f), [-np.inf, 0], atol=1e-7)
    np.testing.assert_allclose(cr.log10_product(f, axis=0), [-2, -np.inf], rtol=1e-7)
    assert cr.log10_product(f).dtype == np.float64
    assert cr.log10_product(np.full(5000, 1e-300)) == pytest.approx(-1.5e6)


def test_lognormal_factors_have_the_promised_rates():
    """E[f] = mean and E[log10 f] = the second rate, within 5 standard errors of 400,000 draws."""
    mean, spread, n = np.array([0.5, 1.2]), np.array([0.4, 0.8]), 400_000
    f = cr.lognormal_factors(mean, spread, (n, 2), rng=np.random.default_rng(0))
    log_mean, mean_log = cr.lognormal_rates(mean, spread)
    assert f.shape == (n, 2)
    assert np.all(np.abs(f.mean(axis=0) - 10**log_mean) < 5 * f.std(axis=0) / n**0.5)
    assert np.all(np.abs(np.log10(f).mean(axis=0) - mean_log) < 5 * spread / np.log(10) / n**0.5)
    np.testing.assert_allclose(10**log_mean, mean)


# Growth rates


@repeat
@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.floats(0.1, 10))
def test_growth_rates_agree_with_arbitrary_precision(n, std):
    """The digamma recurrence and the binomial mean, vectorized over n."""
    with mpmath.workdps(40):

        def rate(k):
            return (mpmath.log(2) + mpmath.psi(0, mpmath.mpf(k) / 2)) / 2

        gaussian = [float(rate(k) + mpmath.log(std)) for k in n]
        relu = [
            float(sum(mpmath.binomial(m, k) * rate(k) for k in range(1, m + 1)) / (mpmath.mpf(2) ** m - 1)
                  + mpmath.log(std)) for m in n
        ]  # fmt: skip
    np.testing.assert_allclose(cr.gaussian_growth_rate(n, std), gaussian, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(cr.relu_growth_rate(n, std), relu, rtol=1e-11, atol=1e-12)
    assert cr.gaussian_growth_rate(n[0], std) == pytest.approx(gaussian[0], rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_growth_rates_agree_with_monte_carlo(n):
    """The formulas describe products: 5 standard errors of the mean over 8,000 factors."""
    rng, std, depth, runs = np.random.default_rng(n), 0.7, 40, 200
    W, v = std * rng.standard_normal((runs, depth, n, n)), rng.standard_normal((runs, n))
    logs = np.diff(cr.log10_norms(W, v), axis=-1) * np.log(10)
    assert abs(logs.mean() - cr.gaussian_growth_rate(n, std)) < 5 * logs.std() / logs.size**0.5
    z = np.maximum(std * rng.standard_normal((8000, n)), 0)
    logs = np.log(np.linalg.norm(z[z.any(axis=1)], axis=-1))
    assert abs(logs.mean() - cr.relu_growth_rate(n, std)) < 5 * logs.std() / logs.size**0.5


# Matrices


@pytest.mark.parametrize("std", [1e-3, 1.0, 1e3])
def test_log10_norms_agree_with_arbitrary_precision(std):
    """1e-500 and 1e+500, at every depth, and independently for each member of an ensemble."""
    rng = np.random.default_rng(0)
    W, v = std * rng.standard_normal((2, 200, 4, 4)), rng.standard_normal((2, 4))
    got = cr.log10_norms(W, v)
    for member in range(2):
        x = mpmath.matrix([v[member].tolist()])
        for k in range(200):
            x = x * mpmath.matrix(W[member, k].tolist())
            if k % 40 == 39:
                assert got[member, k] == pytest.approx(float(mpmath.log10(mpmath.norm(x))), abs=1e-10)


@pytest.mark.filterwarnings("error")
def test_log10_norms_of_extremes():
    """Zero gives -inf in silence; entries near the end of the range do not overflow in the norm."""
    assert np.all(cr.log10_norms(np.zeros((3, 2, 2)), np.ones(2)) == -np.inf)
    np.testing.assert_allclose(
        cr.log10_norms(np.full((2, 2, 2), 1e300), np.ones(2)), np.log10(2) * np.array([1.5, 2.5]) + [300, 600]
    )
    big = cr.log10_norms(np.full((2, 2, 2), 1e30, np.float32), np.ones(2, np.float32))
    np.testing.assert_allclose(big, np.log10(2) * np.array([1.5, 2.5]) + [30, 60], rtol=1e-6)


# Networks


def torch_flow(net, x, dy, activation):
    weights = [torch.tensor(p) for k, p in net.parameters.items() if k.endswith("W")]
    biases = [torch.tensor(p) for k, p in net.parameters.items() if k.endswith("b")]
    h = torch.tensor(x, requires_grad=True)
    states = [h]
    for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
        h = h @ W + b[..., None, :]
        h = activation(h) if i + 1 < len(weights) else h
        h.retain_grad()
        states.append(h)
    h.backward(torch.tensor(dy))
    rms = [torch.log10((t**2).mean(dim=(-2, -1)).sqrt()).detach().numpy() for h in states for t in (h, h.grad)]
    return np.stack(rms[::2], axis=-1), np.stack(rms[1::2], axis=-1)


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
@repeat
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=6), st.sampled_from([(), (3,)]), st.sampled_from([0.01, 1, 1000])
)
def test_gradient_flow_agrees_with_torch(activation, widths, size, gain):
    """At every block, with biases, with an ensemble; gains that do and do not trigger rescaling."""
    rng = np.random.default_rng(len(widths))
    net = bp.mlp(widths, activation=activation, init="lecun_uniform", gain=gain, rng=rng, size=size)
    for key, p in net.parameters.items():
        p += 0.1 * key.endswith("b") * rng.standard_normal(p.shape)
    x, dy = rng.standard_normal((*size, 4, widths[0])), rng.standard_normal((*size, 4, widths[-1]))
    f = {"tanh": torch.tanh, "relu": torch.relu, "softplus": torch.nn.functional.softplus}[activation]
    flow, (activations, gradients) = cr.gradient_flow(net, x, dy=dy), torch_flow(net, x, dy, f)
    # torch's tanh' is 0 beyond 19: compare what torch can represent
    seen = gradients > -12
    np.testing.assert_allclose(flow.log10_activation, activations, rtol=1e-10, atol=1e-9)
    if activation != "tanh" or gain < 1000:
        np.testing.assert_allclose(flow.log10_gradient[seen], gradients[seen], rtol=1e-10, atol=1e-9)
    assert np.array_equal(np.isinf(flow.log10_gradient), np.isinf(gradients)) or activation == "tanh"


def test_gradient_vanishes_far_below_float64():
    """Sigmoid at depth 2,000 (below 1e-1200), against arbitrary precision from the same slopes."""
    rng = np.random.default_rng(0)
    net = bp.mlp([3] * 2001, activation="sigmoid", init="glorot_normal", rng=rng)
    x, dy = rng.standard_normal((1, 3)), rng.standard_normal((1, 3))
    flow = cr.gradient_flow(net, x, dy=dy)
    net.forward(x)
    g = mpmath.matrix(dy[0].tolist())
    for block in reversed(net.layers):
        J = block.jacobian()
        g = mpmath.matrix(J[0].tolist()) * g
    exact = float(mpmath.log10(mpmath.norm(g) / mpmath.sqrt(3)))
    assert exact < -1200
    assert flow.log10_gradient[0] == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-8), (np.float32, 1e-2)])
@pytest.mark.parametrize("gain, bias", [(1e3, 0), (1e3, 1.0), (1e-3, 0)])
@pytest.mark.filterwarnings("error")
def test_relu_activations_leave_the_range_of_floats(gain, bias, dtype, tolerance):
    """Both overflow and underflow, forward and backward, with and without biases."""
    rng = np.random.default_rng(2)
    net = bp.mlp([6] * 201, activation="leaky_relu", init="he_normal", gain=gain, rng=rng, dtype=dtype)
    for key, p in net.parameters.items():
        p += dtype(bias) * key.endswith("b")
    x, dy = rng.standard_normal((1, 6)).astype(dtype), rng.standard_normal((1, 6)).astype(dtype)
    flow = cr.gradient_flow(net, x, dy=dy)
    h, slopes, weights = mpmath.matrix(x.tolist()), [], []
    for i, block in enumerate(net.layers):
        W, b = (block.layers[0] if i < 199 else block).parameters.values()
        h = h * mpmath.matrix(W.tolist()) + mpmath.matrix([b.tolist()])
        slopes.append([1 if i == 199 or v > 0 else 0.01 for v in h])
        weights.append(mpmath.matrix(W.tolist()))
        h = mpmath.matrix([[v * s for v, s in zip(h, slopes[-1], strict=True)]])
    g = mpmath.matrix(dy[0].tolist())
    for W, s in zip(reversed(weights), reversed(slopes), strict=True):
        g = W * mpmath.matrix([v * k for v, k in zip(g, s, strict=True)])
    assert abs(flow.log10_activation[-1]) > 400
    for got, exact in ((flow.log10_activation[-1], h), (flow.log10_gradient[0], g)):
        assert got == pytest.approx(float(mpmath.log10(mpmath.norm(exact) / mpmath.sqrt(6))), abs=tolerance)


def test_one_late_bias_and_extreme_inputs():
    """Activations that underflow before a bias appears; squares beyond the range of float32."""
    net = bp.mlp([3] * 300, activation="leaky_relu", init="he_normal", rng=np.random.default_rng(0), gain=1e-3)
    net.parameters["298.b"][...] = 1
    assert cr.gradient_flow(net, np.ones((1, 3)), dy=np.ones((1, 3))).log10_activation[-1] == 0
    one = bp.Sequential([bp.Dense(np.eye(2, dtype=np.float32))])
    x, dy = np.full((1, 2), 1e30, np.float32), np.full((1, 2), 1e-30, np.float32)
    flow = cr.gradient_flow(one, x, dy=dy)
    np.testing.assert_allclose([flow.log10_activation, flow.log10_gradient], [[30, 30], [-30, -30]], rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradient_flow_leaves_the_network_alone(activation):
    """Parameters and gradients unchanged; the same rng gives the same flow; output starts near 1."""
    net = bp.mlp([5, 7, 7, 3], activation=activation, init="he_normal", rng=np.random.default_rng(0), gain=1e6)
    before = {k: p.copy() for k, p in net.parameters.items()}
    x = np.random.default_rng(1).standard_normal((50, 5))
    first, second = (cr.gradient_flow(net, x, rng=np.random.default_rng(2)) for _ in range(2))
    assert net.gradients == {} and all(np.array_equal(p, before[k]) for k, p in net.parameters.items())
    np.testing.assert_array_equal(first.log10_gradient, second.log10_gradient)
    assert first.log10_gradient.shape == first.log10_activation.shape == (4,)
    assert abs(first.log10_gradient[-1]) < 0.1


def test_dead_network_has_gradient_zero():
    """-inf where nothing arrives, and a finite value where something still does."""
    net = bp.mlp([2, 2, 2, 2], activation="relu", init="he_normal", rng=np.random.default_rng(0))
    net.parameters["1.0.b"][...] = -100
    flow = cr.gradient_flow(net, np.ones((1, 2)), dy=np.ones((1, 2)))
    assert np.array_equal(np.isinf(flow.log10_gradient), [True, True, False, False])
    assert flow.log10_activation[2] == -np.inf


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda net, rng: cr.gradient_flow(net, np.ones((1, 2))), TypeError, "rng: got NoneType"),
        (lambda net, rng: cr.gradient_flow(net, np.ones(2), rng=rng), ValueError, r"x: got shape \(2,\)"),
        (
            lambda net, rng: cr.log10_norms(np.ones((2, 3, 3)), np.ones(2)),
            ValueError,
            r"matrices: got shape \(2, 3, 3\)",
        ),
        (lambda net, rng: cr.lognormal_factors(0, 1, 3, rng=rng), ValueError, "mean: got 0"),
        (lambda net, rng: cr.lognormal_rates(1, -1), ValueError, "spread: got -1"),
        (lambda net, rng: cr.gaussian_growth_rate(0), ValueError, "n: got 0, expected integers of at least 1"),
        (lambda net, rng: cr.relu_growth_rate([2.5]), ValueError, r"n: got \[2.5\]"),
    ],
)
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    rng = np.random.default_rng(0)
    with pytest.raises(error, match=message):
        call(bp.mlp([2, 2], activation="relu", init="zeros", rng=rng), rng)


@in_browser
def test_the_explorable_of_products_moves_and_is_right(tab, server):
    """Each slider, moved by keyboard; the curve drawn is the one that the library computes for those values."""
    figure = open_explorable(tab, server, "chapters/chain-rule/lesson.html", "products")
    grid = cr.product_grid(rng=np.random.default_rng(1))
    sliders = figure.locator("input[type=range]")
    assert sliders.count() == 3
    for presses in (("ArrowRight", 2), ("ArrowLeft", 5), ("ArrowRight", 4)):
        mean, spread, depth = (move(sliders.nth(i), *presses) for i in range(3))
        seen = {row["factors"]: row["median_log10"] for row in drawn(tab, "products", "factors", "median_log10")}
        row = min(grid, key=lambda r: abs(r["spread"] - spread))
        assert abs(row["spread"] - spread) < 1e-9
        for factors, median in zip(row["factors"], row["median"]):
            assert seen[factors] == pytest.approx(factors * np.log10(mean) + median, abs=1e-9)
        assert figure.locator("text", has_text=f"after {depth:.0f} factors").count() == 1
    assert tab.errors == [] and tab.outside == []
