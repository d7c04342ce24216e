"""Each derivative has two oracles: finite differences and torch autograd; the tails have mpmath."""

import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from browser import drawn, in_browser, move, open_explorable
from vanishing import activations
from vanishing.activations import ACTIVATIONS
from vanishing.initialization import gain
from vanishing.mean_field import _mean_square, mean_field

TORCH = {
    "identity": lambda z: z * 1,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": torch.nn.functional.softsign,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "elu": torch.nn.functional.elu,
    "selu": torch.selu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "softplus": lambda z: torch.nn.functional.softplus(z, threshold=1e9),
}
MPMATH = {
    "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "softsign": lambda z: z / (1 + abs(z)),
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: z if z > 0 else mpmath.mpf(0.01) * z,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "selu": lambda z: activations.SELU_SCALE * (z if z > 0 else activations.SELU_ALPHA * mpmath.expm1(z)),
    "gelu": lambda z: z * mpmath.ncdf(z),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
}
SMOOTH = [name for name in ACTIVATIONS if name not in ("relu", "leaky_relu", "elu", "selu", "softsign")]
SECOND = [name for name, a in ACTIVATIONS.items() if a.d2f is not None]
each = pytest.mark.parametrize("name", ACTIVATIONS)
# Away from the kink at 0, where one-sided derivatives differ.
points = hnp.arrays(
    float,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
    elements=st.floats(1e-3, 6).flatmap(lambda a: st.sampled_from([a, -a])),
)
repeat = settings(derandomize=True, max_examples=25, deadline=None)


@each
@repeat
@given(z=points)
def test_value_and_derivative_agree_with_torch(name, z):
    """A wrong formula, in value or derivative, at any shape."""
    t = torch.tensor(z, requires_grad=True)
    y = TORCH[name](t)
    y.sum().backward()
    a = ACTIVATIONS[name]
    # torch loses digits to cancellation in 1 - tanh^2 and in gelu's tail: hence atol
    np.testing.assert_allclose(a.f(z), y.detach().numpy(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(a.df(z), t.grad.numpy(), rtol=1e-10, atol=1e-14)


@each
@repeat
@given(z=points)
def test_derivative_agrees_with_central_differences(name, z):
    """The second oracle: a derivative that does not belong to the library's own function."""
    a, h = ACTIVATIONS[name], 1e-5
    np.testing.assert_allclose(a.df(z), (a.f(z + h) - a.f(z - h)) / (2 * h), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
@repeat
@given(z=points)
def test_derivative_agrees_with_complex_step(name, z):
    """Analytic functions accept complex arrays, and the step is exact to rounding."""
    a = ACTIVATIONS[name]
    np.testing.assert_allclose(a.df(z), a.f(z + 1e-20j).imag / 1e-20, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", SECOND)
@repeat
@given(z=points)
def test_second_derivative_agrees_with_complex_step(name, z):
    """d2f is the derivative of df."""
    a = ACTIVATIONS[name]
    np.testing.assert_allclose(a.d2f(z), a.df(z + 1e-20j).imag / 1e-20, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", SECOND)
def test_second_derivative_agrees_with_torch(name):
    """The other oracle for d2f."""
    t = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    (d,) = torch.autograd.grad(TORCH[name](t).sum(), t, create_graph=True)
    (d2,) = torch.autograd.grad(d.sum(), t)
    np.testing.assert_allclose(ACTIVATIONS[name].d2f(t.detach().numpy()), d2.numpy(), rtol=1e-10, atol=1e-14)


@each
def test_tails_agree_with_arbitrary_precision(name):
    """Saturated units have tiny derivatives, not zero ones, up to where float64 itself ends."""
    z = np.array([-1000.0, -300, -50, -37, -20, -8, 8, 20, 37, 50, 300, 1000])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f, df = ACTIVATIONS[name].f(z), ACTIVATIONS[name].df(z)
    with mpmath.workdps(1000):  # exp(-1000) must show beside 1
        exact_f = [MPMATH[name](mpmath.mpf(v)) for v in z]
        exact_df = [mpmath.diff(MPMATH[name], mpmath.mpf(v)) for v in z]
        tiny = mpmath.mpf(10) ** -300
        for got, exact in zip([*f, *df], [*exact_f, *exact_df], strict=True):
            assert abs(got - exact) <= 1e-12 * abs(exact) + tiny, (got, exact)


def test_sigmoid_slope_at_50():
    """s (1 - s) rounds to 0 here; a vanishing gradient must not vanish by rounding."""
    assert activations.d_sigmoid(50.0) == pytest.approx(1.928749847963918e-22, rel=1e-12)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(name, dtype):
    """float32 networks stay float32; integers become float64."""
    a, z = ACTIVATIONS[name], np.linspace(-100, 100, 8)
    for g in filter(None, (a.f, a.df, a.d2f)):
        assert g(z.astype(dtype)).dtype == dtype
        assert g(z.astype(int)).dtype == np.float64
        np.testing.assert_allclose(
            g(z.astype(np.float32)), g(z.astype(np.float32).astype(float)), rtol=1e-5, atol=1e-30
        )


@each
def test_homogeneous_is_said_of_the_right_ones(name):
    """gradient_flow rescales activations on the strength of this flag."""
    a, z = ACTIVATIONS[name], np.linspace(-3, 3, 7)
    assert a.homogeneous == np.allclose(a.f(4 * z), 4 * a.f(z))


def test_kinks_take_the_left_branch_at_zero():
    """The convention that the docstring states, and torch's."""
    assert [activations.d_relu(0.0), activations.d_leaky_relu(0.0), activations.d_elu(0.0)] == [0, 0.01, 1]


def test_lookup():
    """By name, by object, and with an error that helps."""
    assert activations.activation("relu") is activations.activation(ACTIVATIONS["relu"]) is ACTIVATIONS["relu"]
    with pytest.raises(ValueError, match=r"got 'sigmiod', expected one of identity, sigmoid.*Did you mean 'sigmoid'"):
        activations.activation("sigmiod")
    with pytest.raises(TypeError, match="activation: got int"):
        activations.activation(3)
    with pytest.raises(TypeError, match="z: got an array of"):
        activations.relu("three")


# What a layer does with them


@each
def test_gaussian_mean_against_finer_quadrature(name):
    """The error that the docstring promises; the oracle resolves steep functions and ends a panel at 0."""
    a, spread = ACTIVATIONS[name], np.array([0.05, 0.3, 1.0, 5.0, 20.0])
    value = activations.gaussian_mean(lambda z: a.f(z) ** 2, spread)
    np.testing.assert_allclose(value, _mean_square(a.f, spread**2)[0], rtol=1e-5)
    slope = activations.gaussian_mean(lambda z: a.df(z) ** 2, spread)
    error = np.abs(slope - _mean_square(a.df, spread**2)[0])
    assert np.all(error < [2e-5, 2e-5, 2e-5, 2e-5, 1e-4])


def test_gaussian_mean_of_known_functions():
    """Moments, a step, and the shape of the spread."""
    assert activations.gaussian_mean(lambda z: z**4, 2.0) == pytest.approx(3 * 16, rel=1e-6)
    assert activations.gaussian_mean(activations.d_relu, 1.0) == pytest.approx(0.5, abs=1e-12)
    assert activations.gaussian_mean(np.cos, np.ones((2, 3))).shape == (2, 3)
    assert activations.gaussian_mean(np.cos, 1.5) == pytest.approx(np.exp(-(1.5**2) / 2), abs=1e-6)


@each
def test_kept_factor_is_the_mean_degree(name):
    """Two ways to the same number; the Hermite series of kinked functions converges slowly, hence the bounds."""
    a, k = ACTIVATIONS[name], np.arange(40)
    for spread in (0.3, 1.0, 2.0):
        shares = activations.hermite_shares(a, spread, 40)
        chi = activations.kept_factor(a, spread)
        assert np.all(shares >= 0) and shares.sum() <= 1 + 1e-5
        assert chi >= shares @ k - 1e-5  # what is left out has a positive degree
        assert chi == pytest.approx(shares @ k, abs=0.01 if name in SMOOTH else 0.1)
        assert chi >= 1 - shares[0] - 1e-6  # Poincare: a function of mean 0 has a factor of at least 1


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
def test_kept_factor_of_homogeneous_functions_is_1(name):
    np.testing.assert_allclose(activations.kept_factor(ACTIVATIONS[name], np.array([0.01, 1, 100])), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["tanh", "selu", "elu", "sigmoid"])
def test_kept_factor_against_mean_field(name):
    """Weights that keep spread 1 have it as their fixed point, and chi there is the kept factor."""
    a = ACTIVATIONS[name]
    weight = 1 / activations.gaussian_mean(lambda z: a.f(z) ** 2, 1.0)
    q, chi, _ = mean_field(name, weight)
    assert q == pytest.approx(1, rel=1e-4) and chi == pytest.approx(activations.kept_factor(a, 1.0), rel=1e-4)


def test_hermite_shares_of_relu():
    """a_0^2 = 1 / 2 pi, a_1^2 = 1 / 4, E[relu^2] = 1 / 2."""
    np.testing.assert_allclose(activations.hermite_shares(ACTIVATIONS["relu"], 3.0, 2), [1 / np.pi, 0.5], rtol=1e-5)


def test_flat_share():
    """Half of the ReLUs at every spread; of tanh those beyond the z where the slope is a tenth."""
    relu, tanh = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]
    np.testing.assert_allclose(activations.flat_share(relu, np.array([0.1, 5])), 0.5, atol=1e-12)
    edge = np.arctanh(np.sqrt(0.9))
    want = 2 * float(mpmath.ncdf(-edge / 2))
    assert activations.flat_share(tanh, 2.0) == pytest.approx(want, abs=2e-3)


def test_born_dead_against_enumeration():
    """One input: a layer dies when all its signs are negative; the wide end does not round to 0."""
    assert activations.born_dead(2, 9) == pytest.approx(1 - 0.75**9, rel=1e-12)
    assert activations.born_dead(1, np.array([1, 2, 3])).tolist() == [0.5, 0.75, 0.875]
    assert activations.born_dead(64, 1000) == pytest.approx(1000 * 2.0**-64, rel=1e-12)
    rng = np.random.default_rng(0)
    h = np.ones((20_000, 1, 3))
    for _ in range(4):
        h = np.maximum(h @ rng.uniform(-1, 1, (20_000, 3, 3)), 0)
    dead = np.mean(h.max(axis=(1, 2)) == 0)
    assert dead == pytest.approx(activations.born_dead(3, 4), abs=4 * np.sqrt(0.25 / 20_000))
    with pytest.raises(ValueError, match="width: got 0, expected integers of at least 1"):
        activations.born_dead(0, 3)
    with pytest.raises(ValueError, match="layers: got 1.5"):
        activations.born_dead(3, 1.5)


SHOWN = ACTIVATIONS | {a.name: a for a in [activations.CENTERED_SIGMOID]}


def test_activation_grid():
    """What the explorable draws: its columns fit together and agree with the functions."""
    grid = activations.activation_grid(spreads=(0.5, 1.0))
    assert len(grid) == 11 and {len(row["spread"]) for row in grid} == {2}
    for row in grid:
        a = SHOWN[row["name"]]
        np.testing.assert_allclose(row["df"], a.df(np.array(row["z"])), atol=1e-3)
        assert row["decades"][1] == pytest.approx(np.log10(activations.kept_factor(a, 1.0)) / 2, abs=1e-4)
        assert row["gain"][1] == pytest.approx(gain(a), abs=1e-3)
        assert row["flat"][0] == pytest.approx(100 * activations.flat_share(a, 0.5), abs=1e-3)


@in_browser
def test_the_explorable_of_activations_moves_and_is_right(tab, server):
    """The menu and each slider, moved by keyboard; curve and gradient drawn are those that the library computes."""
    figure = open_explorable(tab, server, "chapters/activations/lesson.html", "activation")
    menu, sliders = figure.locator("select"), figure.locator("input[type=range]")
    assert (menu.count(), sliders.count()) == (1, 2)
    seen = set()
    for presses in (("ArrowDown", "ArrowRight", 3), ("ArrowDown", "ArrowLeft", 7), ("ArrowDown", "ArrowRight", 12)):
        a = SHOWN[move(menu, presses[0])]
        spread, depth = (move(sliders.nth(i), *presses[1:]) for i in range(2))
        seen.add((a.name, spread, depth))
        for row in drawn(tab, "activation", "z", "value", "slope"):
            assert row["value"] == pytest.approx(a.f(row["z"]), abs=1e-3)
            assert row["slope"] == pytest.approx(a.df(row["z"]), abs=1e-3)
        decades = np.log10(activations.kept_factor(a, spread)) / 2
        path = {row["layer"]: row["log10_gradient"] for row in drawn(tab, "activation", "layer", "log10_gradient")}
        assert len(path) == 51
        assert path[50] == pytest.approx(50 * decades, abs=0.01)
        assert figure.locator("text", has_text=f"after {depth:.0f} layers").count() == 1
        boxes = drawn(tab, "activation", "left", "right")
        assert max(row["right"] for row in boxes) == pytest.approx(3.25 * spread)
    assert len({name for name, _, _ in seen}) == 3
    assert tab.errors == [] and tab.outside == []
