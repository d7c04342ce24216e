"""Initial weights have the variance that the table promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vanishing.initialization import SCHEMES, initialize

VARIANCE = {
    "zeros": lambda i, o: 0,
    "gaussian": lambda i, o: 1,
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
    assert abs(w.mean()) <= 5 * (variance / n) ** 0.5
    assert abs(w.var() - variance) <= 5 * variance * (2 / n) ** 0.5


@pytest.mark.parametrize("scheme, a", [("lecun_uniform", 0.5), ("glorot_uniform", 0.5), ("he_uniform", 0.5**0.5)])
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
