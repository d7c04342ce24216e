"""Each derivative has two oracles: finite differences and torch autograd; the tails have mpmath."""

import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vanishing import activations
from vanishing.activations import ACTIVATIONS

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
