"""Initial weights have the variance that the table promises."""

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import choose, drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp
from vanishing.activations import ACTIVATIONS
from vanishing.initialization import (
    GAINS,
    SCHEMES,
    gain,
    gain_grid,
    initialize,
    lsuv,
    phase_grid,
    variance_factors,
)
from vanishing.mean_field import critical_weight_variance, mean_field
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


# The lesson's functions ------------------------------------------------------------------------


@pytest.mark.parametrize("name, square, slope", [("identity", 1, 1), ("relu", 0.5, 0.5)])
def test_variance_factors_are_those_of_random_layers(name, square, slope):
    """Both directions of a layer of 30 inputs and 50 outputs, over 4,000 draws."""
    rng, f, variance = np.random.default_rng(0), ACTIVATIONS[name], 0.02
    W = variance**0.5 * rng.standard_normal((4000, 30, 50))
    z0, g = rng.standard_normal((4000, 1, 30)), rng.standard_normal((4000, 1, 50))
    z = f.f(z0) @ W
    back = (g * f.df(z)) @ np.swapaxes(W, -1, -2)
    forward, backward = variance_factors(30, 50, variance, square, slope)
    assert np.mean(z**2) / np.mean(z0**2) == pytest.approx(forward, rel=0.02)
    assert np.mean(back**2) / np.mean(g**2) == pytest.approx(backward, rel=0.02)


def test_gain_grid_is_that_of_networks():
    """The same draws give the same grid; relu at gain sqrt(2) c is c^l times that at sqrt(2); tanh against autograd."""
    grid = gain_grid(rng=np.random.default_rng(0), names=("relu", "tanh"), width=16, depth=8, networks=2, every=2)
    assert len(grid) == 2 * 26 * 2
    rows = {(r["activation"], r["gain"], r["network"]): r for r in grid}
    one, two = rows["relu", 1.0, 1], rows["relu", 2.0, 1]
    assert one["layer"] == [0, 2, 4, 6, 8] and one["backward"][-1] == 0
    np.testing.assert_allclose(
        np.subtract(two["forward"], one["forward"]), np.log10(2) * np.arange(0, 9, 2), atol=0.011
    )
    np.testing.assert_allclose(
        np.subtract(two["backward"], one["backward"]), np.log10(2) * np.arange(8, -1, -2), atol=0.011
    )
    rng = np.random.default_rng(0)
    W = torch.tensor(initialize("lecun_normal", 16, 16, rng=rng, size=(8, 2), dtype=np.float32))
    x, dy = torch.tensor(rng.standard_normal((2, 2, 4, 16)).astype(np.float32))
    h = x.requires_grad_()
    for w in W:
        h = torch.tanh(h @ (1.5 * w))
    h.backward(dy)
    for k in range(2):
        row = rows["tanh", 1.5, k]
        assert row["forward"][-1] == pytest.approx(np.log10(h[k].square().mean().item()) / 2, abs=0.006)
        size = np.log10(x.grad[k].square().mean().item() / dy[k].square().mean().item()) / 2
        assert row["backward"][0] == pytest.approx(size, abs=0.006)


def test_phase_grid_follows_the_theory():
    """Theory columns are mean_field's; in the ordered phase both profiles have its slope; in the chaotic one
    differences end and gradients do not; the measured gradient is autograd's."""
    grid = {(r["weight"], r["bias"]): r for r in phase_grid(rng=np.random.default_rng(0), width=100, depth=24, every=8)}
    assert len(grid) == 31 * 9 and all(r["layer"] == [0, 8, 16, 24] for r in grid.values())
    for place in [(1.0, 0.25), (3.5, 0.0625)]:
        row, theory = grid[place], mean_field("tanh", *place)
        assert row["q"] == pytest.approx(theory.q, abs=1e-3) and row["chi"] == pytest.approx(theory.chi, abs=1e-4)
        assert row["scale"] == pytest.approx(theory.depth_scale, abs=0.01)
    ordered, chaotic = grid[1.0, 0.25], grid[4.0, 0.0]
    slope = np.log10(ordered["chi"]) / 2
    assert (ordered["difference"][3] - ordered["difference"][1]) / 16 == pytest.approx(slope, abs=0.02)
    assert (ordered["gradient"][0] - ordered["gradient"][2]) / 16 == pytest.approx(slope, abs=0.02)
    assert chaotic["gradient"][0] > 1 and abs(chaotic["difference"][3] - chaotic["difference"][2]) < 0.3
    assert all(r["difference"][0] == r["gradient"][-1] == 0 for r in grid.values())
    critical = critical_weight_variance("tanh", 0.25)
    assert all((r["chi"] > 1) == (w > critical) for (w, b), r in grid.items() if b == 0.25)


@in_browser
def test_the_explorable_of_gains_moves_and_is_right(tab, server):
    """The menu and both sliders, by keyboard; the curves drawn are the library's."""
    figure = open_explorable(tab, server, "chapters/initialization/lesson.html", "gains")
    rows = {(r["activation"], r["gain"], r["network"]): r for r in gain_grid(rng=np.random.default_rng(0))}
    sliders, menu = figure.locator("input[type=range]"), figure.locator("select")
    assert sliders.count() == 2 and menu.count() == 1
    for name, key, presses in (("tanh", "ArrowRight", 4), ("gelu", "ArrowLeft", 2), ("sigmoid", "ArrowRight", 1)):
        choose(menu, name)
        at_the_end = float(sliders.nth(1).input_value()) == 40
        gain_now = move(sliders.nth(0), key, presses)
        depth = move(sliders.nth(1), "ArrowLeft" if at_the_end else key, presses)
        seen = drawn(tab, "gains", "network", "layer", "forward", "relative")
        assert {r["layer"] for r in seen} == set(np.arange(0, depth + 1, 4))
        for r in seen:
            row = rows[name, round(gain_now, 1), r["network"]]
            k = row["layer"].index(r["layer"])
            assert r["forward"] == pytest.approx(row["forward"][k], abs=1e-9)
            assert r["relative"] == pytest.approx(row["backward"][k] - row["backward"][int(depth) // 4], abs=1e-9)
        assert figure.locator("text", has_text=f"signal after {depth:.0f} layers").count() == 1
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_phases_moves_and_is_right(tab, server):
    """Both sliders by keyboard, and pointing at the map; the profile drawn is the library's at that place."""
    figure = open_explorable(tab, server, "chapters/initialization/lesson.html", "phases")
    rows = {(r["weight"], r["bias"]): r for r in phase_grid(rng=np.random.default_rng(1))}
    sliders = figure.locator("input[type=range]")
    assert sliders.count() == 2

    def right(place):
        row = rows[place]
        seen = {r["layer"]: r for r in drawn(tab, "phases", "layer", "difference", "gradient", "up")}
        assert sorted(seen) == row["layer"]
        for k, layer in enumerate(row["layer"]):
            assert seen[layer]["difference"] == pytest.approx(row["difference"][k], abs=1e-9)
            assert seen[layer]["gradient"] == pytest.approx(row["gradient"][k], abs=1e-9)
            assert seen[layer]["up"] == pytest.approx(layer * np.log10(row["chi"]) / 2, abs=1e-6)
        scale = "infinite" if row["scale"] > 900 else f"{row['scale']:.1f}"
        assert figure.locator("text", has_text=f"depth scale {scale}").count() == 1

    right((1.0, 0.0625))
    for key, presses in (("ArrowRight", 4), ("ArrowRight", 3), ("ArrowLeft", 2)):
        weight, bias = (move(sliders.nth(i), key, presses) for i in range(2))
        right((bias, weight))
    before = [sliders.nth(i).input_value() for i in range(2)]
    cells = figure.locator(".mark-rect path")
    cells.nth(8 * 31 - 3).click(force=True)
    place = tuple(float(sliders.nth(i).input_value()) for i in (1, 0))
    assert [sliders.nth(i).input_value() for i in range(2)] != before
    right(place)
    assert tab.errors == [] and tab.outside == []
