"""Gradient clipping against torch and against its definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishing import clipping

repeat = settings(derandomize=True, max_examples=30, deadline=None)
shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4)
seeds = st.integers(0, 10**6)
EACH = {
    "value": clipping.clip_by_value,
    "norm": clipping.clip_by_norm,
    "adaptive": lambda g, limit, **kwargs: clipping.clip_adaptive(g, g, limit, **kwargs),
}
each = pytest.mark.parametrize("clip", EACH.values(), ids=EACH)


def draw(shapes, seed, scale=1.0, size=()):
    rng = np.random.default_rng(seed)
    return {f"{i}.W": scale * rng.standard_normal((*size, *shape)) for i, shape in enumerate(shapes)}


def in_torch(gradients, clip):
    """Call torch's in-place `clip` on parameters with these gradients; return gradients and result."""
    parameters = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in gradients]
    for p, g in zip(parameters, gradients):
        p.grad = torch.tensor(g)
    result = clip(parameters)
    return [p.grad.numpy() for p in parameters], result


@repeat
@given(shapes, st.floats(0.01, 10), seeds)
def test_by_norm_agrees_with_torch(shapes, limit, seed):
    """Norm and gradients, for a list and for a dict; torch's 1e-6 in the denominator is put back."""
    gradients = draw(shapes, seed)
    theirs, norm = in_torch(gradients.values(), lambda p: torch.nn.utils.clip_grad_norm_(p, limit))
    clipped, ours = clipping.clip_by_norm(gradients, limit)
    np.testing.assert_allclose(ours, norm.item(), rtol=1e-12)
    slack = ours / (ours + 1e-6) if ours + 1e-6 > limit else 1
    assert clipped.keys() == gradients.keys()
    for key, t in zip(gradients, theirs):
        np.testing.assert_allclose(slack * clipped[key], t, rtol=1e-10)
    listed, _ = clipping.clip_by_norm(list(gradients.values()), limit)
    assert isinstance(listed, list)
    for a, b in zip(listed, clipped.values()):
        np.testing.assert_array_equal(a, b)


@repeat
@given(shapes, st.floats(0.01, 3), seeds)
def test_by_value_agrees_with_torch(shapes, limit, seed):
    """Entry by entry; the norm is the one before."""
    gradients = draw(shapes, seed)
    theirs, _ = in_torch(gradients.values(), lambda p: torch.nn.utils.clip_grad_value_(p, limit))
    clipped, norm = clipping.clip_by_value(gradients, limit)
    for key, t in zip(gradients, theirs):
        np.testing.assert_array_equal(clipped[key], t)
    np.testing.assert_allclose(norm, np.sqrt(sum((g**2).sum() for g in gradients.values())), rtol=1e-12)


def test_by_norm_keeps_the_direction_and_ends_at_the_limit():
    """All arrays share one factor; within the limit nothing changes, not a bit."""
    gradients = draw([(3, 4), (4,)], 0)
    clipped, norm = clipping.clip_by_norm(gradients, 0.5)
    np.testing.assert_allclose(clipping.global_norm(clipped), 0.5, rtol=1e-14)
    ratios = np.concatenate([(clipped[k] / g).ravel() for k, g in gradients.items()])
    np.testing.assert_allclose(ratios, 0.5 / norm, rtol=1e-13)
    for key, same in clipping.clip_by_norm(gradients, norm)[0].items():
        np.testing.assert_array_equal(same, gradients[key])


def test_adaptive_by_hand():
    """Columns of W one by one, |W| at least eps, and a bias as one unit."""
    W = np.array([[3.0, 0.0, 0.0], [4.0, 0.0, 2.0]])  # columns of norm 5, 0 (so eps), 2
    G = np.array([[0.0, 0.0, 0.0], [10.0, 10.0, 0.1]])
    b, d = np.array([3.0, 0.0, 4.0]), np.array([0.0, 50.0, 0.0])
    clipped, norm = clipping.clip_adaptive({"W": G, "b": d}, {"W": W, "b": b}, 0.1, eps=0.5)
    np.testing.assert_allclose(clipped["W"], [[0, 0, 0], [0.5, 0.05, 0.1]], rtol=1e-14)
    np.testing.assert_allclose(clipped["b"], [0, 0.5, 0], rtol=1e-14)
    np.testing.assert_allclose(norm, np.sqrt(2700.01), rtol=1e-14)
    scalar, _ = clipping.clip_adaptive([np.array(9.0)], [np.array(-2.0)], 0.1)
    np.testing.assert_allclose(scalar[0], 0.2)


@repeat
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.001, 1), seeds)
def test_adaptive_bounds_every_unit(n_in, n_out, limit, seed):
    """After it |G| <= limit max(|W|, eps) for each column, with equality where it acted."""
    W, G = draw([(n_in, n_out)] * 2, seed).values()
    clipped = clipping.clip_adaptive([G], [W], limit)[0][0]
    bound = limit * np.maximum(np.linalg.norm(W, axis=0), 1e-3)
    expected = np.minimum(np.linalg.norm(G, axis=0), bound)
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=0), expected, rtol=1e-12)
    np.testing.assert_allclose(clipped / np.linalg.norm(clipped, axis=0), G / np.linalg.norm(G, axis=0), rtol=1e-12)


@each
@repeat
@given(st.lists(st.integers(1, 3), min_size=1, max_size=2), seeds)
def test_ensemble_is_a_stack_of_networks(clip, size, seed):
    """Each network by its own norm, with one limit for all or one for each."""
    gradients = draw([(3, 2), (2,), ()], seed, size=size)
    limits = np.random.default_rng(seed).uniform(0.1, 3, size)
    for limit in (np.full(size, 0.7), limits):
        clipped, norm = clip(gradients, 0.7 if limit is not limits else limits, ensemble_axes=len(size))
        assert norm.shape == tuple(size)
        for i in np.ndindex(*size):
            one = {key: np.asarray(g[i]) for key, g in gradients.items()}
            alone, norm_alone = clip(one, limit[i])
            np.testing.assert_allclose(norm[i], norm_alone, rtol=1e-13)
            for key in one:
                np.testing.assert_allclose(clipped[key][i], alone[key], rtol=1e-13)


@each
def test_inputs_stay_and_float32_stays(clip):
    """New arrays, also where nothing is clipped; the dtype of each array."""
    for limit in (1e-3, 1e3):
        gradients = {"a": np.float32([[3, 4]]), "b": np.array([1.0, 2.0])}
        clipped, norm = clip(gradients, limit)
        assert clipped["a"].dtype == np.float32 and clipped["b"].dtype == norm.dtype == np.float64
        assert not any(np.shares_memory(clipped[k], g) for k, g in gradients.items())
        np.testing.assert_array_equal(gradients["a"], [[3, 4]])


@pytest.mark.parametrize(
    "dtype, size", [(np.float64, 3e200), (np.float64, 3e-200), (np.float32, 3e30), (np.float32, 3e-30)]
)
def test_extreme_gradients(dtype, size):
    """The squares overflow or underflow; the norm and the clipped gradient do not."""
    gradients = [np.array([size, 0], dtype), np.array([size * 4 / 3], dtype)]
    np.testing.assert_allclose(clipping.global_norm(gradients), size * 5 / 3, rtol=1e-6)
    clipped, _ = clipping.clip_by_norm(gradients, size / 3 * 1e-3)
    np.testing.assert_allclose(clipped[0], [size * 2e-4, 0], rtol=1e-6)
    assert clipping.global_norm([np.zeros(3)]) == 0 and not clipping.clip_by_norm([np.zeros(3)], 1)[0][0].any()


@each
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_nonfinite_raises(clip, bad):
    """By default a gradient without a direction stops the loop, and the error says where it is."""
    gradients = {"0.W": np.ones((2, 2)), "1.b": np.array([1.0, bad])}
    with pytest.raises(ValueError, match=r"inf or nan, from \['1.b'\]"):
        clip(gradients, 1.0)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_nonfinite_as_in_torch(bad):
    """Without the error: torch's result for that network, and the usual one for its neighbor."""
    gradients = draw([(2, 3), (3,)], 0, size=(2,))
    gradients["0.W"][1, 0, 0] = bad
    theirs, norm = in_torch([g[1] for g in gradients.values()], lambda p: torch.nn.utils.clip_grad_norm_(p, 0.1))
    clipped, ours = clipping.clip_by_norm(gradients, 0.1, ensemble_axes=1, error_if_nonfinite=False)
    np.testing.assert_array_equal(ours[1], norm.item())
    alone, _ = clipping.clip_by_norm({k: g[0] for k, g in gradients.items()}, 0.1)
    for (key, c), t in zip(clipped.items(), theirs):
        np.testing.assert_array_equal(c[1], t)
        np.testing.assert_allclose(c[0], alone[key], rtol=1e-14)
    by_value, _ = clipping.clip_by_value(gradients, 0.1, ensemble_axes=1, error_if_nonfinite=False)
    np.testing.assert_array_equal(by_value["0.W"][1, 0, 0], np.clip(bad, -0.1, 0.1))


ONE = {"W": np.ones((2, 2))}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: clipping.clip_by_norm(ONE, 0), ValueError, "limit: got 0.0, expected numbers above 0"),
        (lambda: clipping.clip_by_value(ONE, np.nan), ValueError, "limit: got nan"),
        (lambda: clipping.clip_by_norm(ONE, np.ones(2)), ValueError, r"limit: got shape \(2,\), expected a number"),
        (lambda: clipping.clip_by_norm({}, 1), ValueError, "gradients: got none.*call backward first"),
        (lambda: clipping.clip_by_norm({"W": np.ones(2, int)}, 1), TypeError, r"gradients\['W'\]: got int64, expected an array of floats"),
        (lambda: clipping.clip_by_norm([2.0], 1), TypeError, r"gradients\[0\]: got float"),
        (lambda: clipping.clip_by_norm(ONE, 1, ensemble_axes=3), ValueError, r"gradients\['W'\]: got shape \(2, 2\), expected at least 3"),
        (lambda: clipping.clip_adaptive(ONE, {"V": np.ones((2, 2))}), ValueError, r"parameters: got keys \['V'\]"),
        (lambda: clipping.clip_adaptive(ONE, {"W": np.ones(2)}), ValueError, r"parameters\['W'\]: got shape \(2,\), expected \(2, 2\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()
