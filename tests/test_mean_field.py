"""Mean-field theory against adaptive quadrature, closed forms, published points and real networks."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import erf

from vanishing.activations import ACTIVATIONS, Activation
from vanishing.backpropagation import mlp
from vanishing.chain_rule import gradient_flow
from vanishing.mean_field import c_map, critical_weight_variance, mean_field, q_map

repeat = settings(derandomize=True, max_examples=25, deadline=None)
variance = st.floats(0, 6)

# All expectations of erf are elementary (Williams, 1997): the exact answer in both phases.
ERF = Activation("erf", erf, lambda z: 2 / np.pi**0.5 * np.exp(-(z**2)))


def erf_product(q, c):
    return 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q))


def erf_slopes(q, c):
    return 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)


def erf_correlation(weight, bias, q):
    """The root c < 1 of the fixed point's equation, by bracketing."""
    return brentq(lambda c: weight * erf_product(q, c) + bias - q * c, 0, 1 - 1e-6, xtol=1e-15)


def mean_square(f, q):
    """E[f(sqrt(q) xi)^2] by adaptive quadrature on both sides of 0, cut where f bends and where it is flat."""
    s = q**0.5

    def integrand(x):
        return float((f(np.array([s * x, -s * x])) ** 2).sum() * np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5)

    cuts = sorted({0.0, 1.0, 4.0, 12.0, min(1 / s, 12), min(5 / s, 12), min(40 / s, 12)})
    return sum(quad(integrand, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in zip(cuts[:-1], cuts[1:]))


# Quadrature


@pytest.mark.parametrize("q", [1e-4, 0.3, 20.0, 1e4])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_length_map_agrees_with_adaptive_quadrature(name, q):
    """Smooth, kinked, and steep (q = 10,000) functions, to 1e-11; weight and bias where they belong."""
    exact = mean_square(ACTIVATIONS[name].f, q)
    assert q_map(name, q, 3.0, 0.2) == pytest.approx(3 * exact + 0.2, rel=1e-11)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softsign", "elu", "gelu"])
@pytest.mark.parametrize("weight, bias", [(0.7, 0.1), (1.5, 0.3), (500.0, 0.05)])
def test_fixed_point_and_chi_agree_with_adaptive_quadrature(name, weight, bias):
    """q satisfies its equation and chi its formula, to 1e-10, up to weight variance 500 where q is finite."""
    q, chi, _ = mean_field(name, weight, bias)
    if name in ("elu", "gelu") and weight > 2:
        assert np.isinf(q) and chi == pytest.approx(weight / 2, rel=1e-10)
        return
    assert q == pytest.approx(weight * mean_square(ACTIVATIONS[name].f, q) + bias, rel=1e-10)
    assert chi == pytest.approx(weight * mean_square(ACTIVATIONS[name].df, q), rel=1e-10)


# Closed forms


@repeat
@given(st.floats(0.05, 300), st.floats(0, 20))
def test_erf_has_the_closed_forms(weight, bias):
    """q, chi, c and depth_scale in both phases, for any variances away from the critical line."""
    field = mean_field(ERF, weight, bias)
    (q, chi, scale), c = field, field.c
    if q == 0:
        assert bias == 0 and weight * 4 / np.pi <= 1
        return
    assert q == pytest.approx(weight * erf_product(q, 1) + bias, rel=1e-12)
    assert chi == pytest.approx(weight * erf_slopes(q, 1), rel=1e-10)
    if chi < 1:
        assert c == 1 and scale == pytest.approx(-1 / np.log(chi), rel=1e-8)
    elif chi > 1.05:
        exact = 0 if bias == 0 else erf_correlation(weight, bias, q)
        assert c == pytest.approx(exact, abs=2e-5)
        assert scale == pytest.approx(-1 / np.log(weight * erf_slopes(q, exact)), rel=2e-3)


@pytest.mark.parametrize("weight, bias", [(4.0, 0.05), (20.0, 1.0), (1.9, 0.05), (500.0, 50.0)])
def test_correlations_in_the_chaotic_phase_are_exact(weight, bias):
    """c and depth_scale to 1e-11; the gradient's scale is another number there, 1 / ln chi."""
    field = mean_field(ERF, weight, bias)
    exact = erf_correlation(weight, bias, field.q)
    assert field.c == pytest.approx(exact, abs=1e-12)
    assert field.depth_scale == pytest.approx(-1 / np.log(weight * erf_slopes(field.q, exact)), rel=1e-11)
    assert field.gradient_scale == pytest.approx(1 / np.log(weight * erf_slopes(field.q, 1)), rel=1e-10)
    assert abs(field.gradient_scale - field.depth_scale) > 0.02


@repeat
@given(st.floats(-1, 1), st.floats(0.1, 50), variance)
def test_c_map_of_relu_identity_and_erf(c, q, bias):
    """The arc-cosine kernel of order 1 (Cho & Saul, 2009), a line, and the arcsine, with biases."""
    arccos = ((1 - c * c) ** 0.5 + (np.pi - np.arccos(c)) * c) / np.pi
    assert c_map("relu", c, q, 2.0, bias) == pytest.approx((q * arccos + bias) / (q + bias), abs=1e-4)
    assert c_map("identity", c, q, 3.0, bias) == pytest.approx((3 * q * c + bias) / (3 * q + bias), abs=1e-12)
    exact = (2 * erf_product(q, c) + bias) / (2 * erf_product(q, 1) + bias)
    assert c_map(ERF, c, q, 2.0, bias) == pytest.approx(exact, abs=1e-10 if abs(c) < 0.75 else 2e-2)


def test_truncated_series_at_their_worst():
    """Next to c = -1 and 1, and next to the critical line at large q: the errors that the docstrings state."""
    c = np.array([-1, -0.999, -0.97, 0.97, 0.99, 0.999, 1])
    arccos = (np.sqrt(1 - c * c) + (np.pi - np.arccos(c)) * c) / np.pi
    np.testing.assert_allclose(c_map("relu", c, 1.0, 2.0), arccos, atol=1e-4)
    np.testing.assert_allclose(c_map(ERF, c, 10.0, 2.0), erf_product(10, c) / erf_product(10, 1), atol=1e-4)
    for bias, ratio, tolerance in ((3.0, 1.02, 3e-6), (30.0, 1.02, 1.5e-2)):
        weight = ratio * critical_weight_variance(ERF, bias)
        field = mean_field(ERF, weight, bias)
        exact = erf_correlation(weight, bias, field.q)
        assert field.depth_scale * -np.log(weight * erf_slopes(field.q, exact)) == pytest.approx(1, rel=tolerance)


def test_relu_and_the_linear_network():
    """chi = weight_variance / 2 and weight_variance; q = bias / (1 - chi); 0, q0 or inf without one."""
    weight = np.array([0.5, 1.0, 1.5])
    for name, factor in (("relu", 0.5), ("identity", 1.0), ("leaky_relu", (1 + 1e-4) / 2)):
        field = mean_field(name, weight * 0.6, 0.3)
        np.testing.assert_allclose(field.chi, 0.6 * weight * factor, rtol=1e-15)
        np.testing.assert_allclose(field.q, 0.3 / (1 - 0.6 * weight * factor), rtol=1e-14)
        np.testing.assert_allclose(field.depth_scale, -1 / np.log(field.chi), rtol=1e-14)
        at_1 = mean_field(name, 1 / factor, q0=0.7)
        assert at_1.q == 0.7 and at_1.depth_scale == np.inf and at_1.c == 1
        assert mean_field(name, 1 / factor, 0.1).q == np.inf
        assert mean_field(name, 0.9 / factor).q == 0


@pytest.mark.parametrize("name", ["relu", "identity", "elu", "selu", "gelu", "silu", "softplus"])
def test_lengths_that_diverge(name):
    """q = inf in silence; chi is the limit; correlations approach 1 without a scale."""
    with np.errstate(all="raise", under="ignore"):
        field = mean_field(name, [2.3, 3.0], 0.3)
        (q, chi, scale), c = field, field.c
    limit = {"identity": 1.0, "selu": 1.0507009873554805**2 / 2}.get(name, 0.5)
    assert np.all(np.isinf(q)) and np.all(np.isinf(scale)) and np.all(c == 1)
    np.testing.assert_allclose(chi, limit * np.array([2.3, 3.0]), rtol=1e-10)


def test_which_fixed_point_is_reached():
    """gelu at weight variance 2.1 has two: a short start stays short, a long one grows without end."""
    short, long = mean_field("gelu", 2.1, 0.05), mean_field("gelu", 2.1, 0.05, q0=100.0)
    q = 1.0
    for _ in range(500):
        q = q_map("gelu", q, 2.1, 0.05)
    assert short.q == pytest.approx(q, rel=1e-10) and short.chi < 1
    assert long.q == np.inf and long.chi == pytest.approx(1.05)


@repeat
@given(
    st.sampled_from(["tanh", "sigmoid", "softsign", "elu"]), st.floats(0.1, 1.7), st.floats(0.1, 3), st.floats(0.01, 50)
)
def test_the_map_itself_ends_there(name, weight, bias, q0):
    """Iterating the length map from q0, and the c map after it, ends at q and c."""
    field = mean_field(name, weight, bias, q0=q0)
    q, c = q0, 0.2
    for _ in range(300):
        q = q_map(name, q, weight, bias)
    assert field.q == pytest.approx(q, rel=1e-6)
    for _ in range(100):
        c = min(c_map(name, c, field.q, weight, bias), 1)
    if abs(field.chi - 1) > 0.1:
        assert field.c == pytest.approx(c, abs=1e-3)


# The critical line


def test_published_critical_points():
    """tanh: 1.761 with q = 0.570 at bias variance 0.05 (Schoenholz et al., 2017), 1 without; relu: 2 (He)."""
    weight = critical_weight_variance("tanh", 0.05)
    assert round(weight, 3) == 1.761 and round(mean_field("tanh", weight, 0.05).q, 3) == 0.570
    assert critical_weight_variance("tanh") == pytest.approx(1, abs=1e-15)
    np.testing.assert_array_equal(critical_weight_variance("relu", [0.0, 0.5]), [2, 2])
    assert critical_weight_variance("softplus", 0.1) == pytest.approx(2, rel=1e-12)  # in the limit only


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softsign", "elu", "selu", "gelu", "silu"])
def test_chi_is_1_on_the_critical_line(name):
    """Below it gradients vanish, above it they explode, and mean_field agrees to 1e-9."""
    bias = np.array([1.0, 4.0])
    weight = critical_weight_variance(name, bias)
    np.testing.assert_allclose(mean_field(name, weight, bias).chi, 1, atol=1e-9)
    if name not in ("gelu", "silu"):
        assert np.all(np.log(mean_field(name, 0.97 * weight, bias).chi) < 0)
        assert np.all(np.log(mean_field(name, 1.03 * weight, bias).chi) > 0)


def test_no_critical_point_where_chi_jumps():
    """gelu without biases: chi steps from 0.59 to 1.18 as q steps from 0 to inf."""
    assert np.isnan(critical_weight_variance("gelu"))
    assert np.array_equal(np.isnan(critical_weight_variance("gelu", [0.05, 1.0])), [True, False])
    q, chi, _ = mean_field("gelu", [2.34, 2.36])
    np.testing.assert_array_equal(q, [0, np.inf])
    assert chi[0] < 0.6 and chi[1] > 1.17


def test_depth_scale_diverges_at_the_critical_point_from_both_sides():
    """xi grows as 1 / distance; c leaves 1 on the chaotic side only; both scales agree there."""
    critical = critical_weight_variance("tanh", 0.05)
    for side in (-1, 1):
        field = mean_field("tanh", critical * (1 + side * np.array([1e-2, 1e-3, 1e-4])), 0.05)
        ratio = field.depth_scale[1:] / field.depth_scale[:-1]
        assert np.all(field.depth_scale > 0) and np.all((ratio > 8) & (ratio < 12))
        assert np.all(np.sign(np.log(field.chi)) == side)
        assert np.all((field.c < 1) == (side > 0))
    np.testing.assert_allclose(field.gradient_scale[-1] / field.depth_scale[-1], 1, rtol=1e-2)


def test_sigmoid_at_glorot():
    """Weight variance 1: each layer leaves 1 / 18 of the squared gradient."""
    field = mean_field("sigmoid", 1.0)
    assert round(field.q, 4) == 0.2647 and round(field.chi, 4) == 0.0557


# Real networks


def network(name, weight, bias, n, depth, size, rng):
    net = mlp([n] * (depth + 1), activation=name, init="lecun_normal", gain=weight**0.5, rng=rng, size=size)
    for key, p in net.parameters.items():
        if key.endswith("b"):
            p[...] = bias**0.5 * rng.standard_normal(p.shape)
    return net


@pytest.mark.parametrize("name, weight, bias", [("tanh", 1.3, 0.05), ("tanh", 2.5, 0.05), ("relu", 1.6, 0.1)])
def test_lengths_and_correlations_of_wide_networks(name, weight, bias):
    """q and c in 6 networks of width 800 after 12 layers: within 5 standard errors plus 2 / width."""
    n, rng = 800, np.random.default_rng(0)
    field = mean_field(name, weight, bias)
    z = np.sqrt(field.q) * rng.standard_normal((6, 2, n))
    lengths, products = [], []
    for _ in range(12):
        W = rng.standard_normal((6, n, n), dtype=np.float32) * (weight / n) ** 0.5
        z = ACTIVATIONS[name].f(z) @ W + bias**0.5 * rng.standard_normal((6, 1, n))
        lengths.append((z**2).mean(axis=(-2, -1)))
        products.append(z.prod(axis=-2).mean(axis=-1))
    lengths = np.mean(lengths, axis=0)
    assert abs(lengths.mean() / field.q - 1) < 5 * lengths.std(ddof=1) / 6**0.5 / field.q + 2 / n
    c = 0.0
    for _ in range(12):
        c = c_map(name, c, field.q, weight, bias)
    measured = products[-1] / field.q
    assert abs(measured.mean() - c) < 5 * measured.std(ddof=1) / 6**0.5 + 2 / n


@pytest.mark.parametrize(
    "name, weight, bias",
    [("tanh", 1.0, 0.05), ("tanh", 2.5, 0.05), ("sigmoid", 1.0, 0.0), ("relu", 1.5, 0.1), ("elu", 1.3, 0.1)],
)
def test_chi_is_the_slope_of_the_gradient_flow(name, weight, bias):
    """Depth 24, width 300, 8 networks: log10 of the squared gradient per layer within 5 standard errors,
    plus 2 / width for what a finite width adds to a mean logarithm.
    """
    rng = np.random.default_rng(1)
    net, field = network(name, weight, bias, 300, 24, (8,), rng), mean_field(name, weight, bias)
    x = np.sqrt(mean_square(ACTIVATIONS[name].f, field.q)) * rng.standard_normal((8, 4, 300))
    flow = gradient_flow(net, x, rng=rng)
    slope = 2 * (flow.log10_gradient[:, 4] - flow.log10_gradient[:, 22]) / 18
    assert abs(slope.mean() - np.log10(field.chi)) < 5 * slope.std(ddof=1) / 8**0.5 + 2 / 300


# Interface


def test_broadcasting_dtype_and_single_numbers():
    """Each entry is what its numbers give alone; float32 stays float32; numbers give numbers."""
    weight, bias = np.array([[0.8], [1.5], [4.0]]), np.array([0.0, 0.05, 1.0, 2.0])
    grid = mean_field("tanh", weight, bias)
    for i, j in np.ndindex(3, 4):
        alone = mean_field("tanh", float(weight[i, 0]), bias[j])
        np.testing.assert_allclose([g[i, j] for g in grid], [*alone], rtol=1e-9, atol=1e-12)
        assert np.ndim(alone.q) == 0
    single = mean_field("tanh", weight.astype(np.float32), bias)
    assert all(g.dtype == np.float32 and g.shape == (3, 4) for g in single)
    np.testing.assert_allclose(single.chi, grid.chi, rtol=1e-5)
    assert q_map("tanh", np.ones(3, np.float32), 1.0).dtype == c_map("tanh", np.float32(0.1), 1.0, 1.0).dtype == "f4"
    assert critical_weight_variance("tanh", np.float32(0.05)).dtype == np.float32
    assert c_map("tanh", 0.5, [1.0, 2.0], weight).shape == (3, 2) and critical_weight_variance("elu", bias).shape == (
        4,
    )


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: mean_field("tan", 1.0), ValueError, "Did you mean 'tanh'"),
        (lambda: mean_field("tanh", -1.0), ValueError, "weight_variance: got -1.0, expected finite numbers"),
        (lambda: mean_field("tanh", 1.0, np.nan), ValueError, "bias_variance: got nan"),
        (lambda: mean_field("tanh", "a"), TypeError, "weight_variance: got an array of <U1"),
        (lambda: mean_field("tanh", 1.0, q0=0), ValueError, "q0: got 0, expected a number above 0"),
        (lambda: critical_weight_variance("relu", np.inf), ValueError, "bias_variance: got inf"),
        (lambda: q_map("tanh", -0.1, 1.0), ValueError, "q: got -0.1"),
        (lambda: c_map("tanh", 1.1, 1.0, 1.0), ValueError, "c: got 1.1, expected numbers in -1 ... 1"),
    ],
)
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


def test_public_names():
    """The module and its main function share a name: what it exports is listed."""
    module = importlib.import_module("vanishing.mean_field")
    assert set(module.__all__) == {"MeanField", "c_map", "critical_weight_variance", "mean_field", "q_map"}
