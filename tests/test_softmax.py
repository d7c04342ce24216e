"""Softmax and sparsemax against torch, finite differences and arbitrary precision."""

import importlib

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishing import backpropagation as bp

sm = importlib.import_module("vanishing.softmax")  # vg.softmax is the function

repeat = settings(derandomize=True, max_examples=25, deadline=None)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4)
temperatures = st.sampled_from([0.3, 1.0, 2.5])
seeds = st.integers(0, 10**6)


def torch_sparsemax(z, axis=-1):
    """By bisection for the support, then tau from it, through which autograd goes."""
    low, high = z.detach().amax(axis, keepdim=True) - 1, z.detach().amax(axis, keepdim=True)
    for _ in range(60):
        tau = (low + high) / 2
        enough = (z.detach() - tau).clamp(min=0).sum(axis, keepdim=True) > 1
        low, high = torch.where(enough, tau, low), torch.where(enough, high, tau)
    s = (z.detach() > high).double()
    return s * (z - ((s * z).sum(axis, keepdim=True) - 1) / s.sum(axis, keepdim=True))


PAIRS = {
    "softmax": (sm.softmax, sm.d_softmax, torch.softmax),
    "log_softmax": (sm.log_softmax, sm.d_log_softmax, torch.log_softmax),
    "sparsemax": (sm.sparsemax, sm.d_sparsemax, torch_sparsemax),
}
each = pytest.mark.parametrize("name", PAIRS)


@each
@repeat
@given(shapes, st.data(), temperatures, seeds)
def test_value_and_gradient_agree_with_torch(name, shape, data, temperature, seed):
    """Any number of axes, along any of them, at any temperature."""
    f, df, theirs = PAIRS[name]
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    z, dy = 2 * np.random.default_rng(seed).standard_normal((2, *shape))
    t = torch.tensor(z, requires_grad=True)
    y = theirs(t / temperature, axis)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(f(z, axis, temperature=temperature), y.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(df(z, dy, axis, temperature=temperature), t.grad, rtol=1e-10, atol=1e-13)


@each
@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradient_agrees_with_finite_differences(name, method):
    """The second oracle, which needs complex scores to go through."""
    f, df, _ = PAIRS[name]
    z, dy = np.random.default_rng(3).standard_normal((2, 4, 5))
    report = bp.gradcheck(
        lambda z: (dy * f(z, temperature=0.7)).sum(), df(z, dy, temperature=0.7), z, method=method, rtol=1e-7
    )
    assert report.ok, report


@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
@repeat
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 6), temperatures, seeds)
def test_jacobian_agrees_with_torch(name, size, n, temperature, seed):
    """Every entry, with and without an ensemble; d_... is its product with dy."""
    f, df, theirs = PAIRS[name]
    z, dy = np.random.default_rng(seed).standard_normal((2, *size, n))
    J = {"softmax": sm.softmax_jacobian, "sparsemax": sm.sparsemax_jacobian}[name](z, temperature=temperature)
    assert J.shape == (*size, n, n)
    for i in np.ndindex(*size):
        expected = torch.autograd.functional.jacobian(lambda t: theirs(t / temperature, -1), torch.tensor(z[i]))
        np.testing.assert_allclose(J[i], expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose((J @ dy[..., None])[..., 0], df(z, dy, temperature=temperature), atol=1e-13)


@repeat
@given(st.integers(1, 8), st.floats(0.01, 30), seeds)
def test_sparsemax_is_the_projection_onto_the_simplex(n, scale, seed):
    """Against bisection for tau in 40 digits, ties included."""
    z = np.round(scale * np.random.default_rng(seed).standard_normal(n), 1)
    with mp.workdps(40):
        exact = [mp.mpf(float(v)) for v in z]
        low, high = max(exact) - 1, max(exact)
        for _ in range(130):
            tau = (low + high) / 2
            low, high = (tau, high) if sum(max(v - tau, 0) for v in exact) > 1 else (low, tau)
        expected = [float(max(v - tau, 0)) for v in exact]
    np.testing.assert_allclose(sm.sparsemax(z), expected, atol=4e-15)


def test_saturation_keeps_its_digits():
    """Where p rounds to 1 the plain formulas give 0: p, ln p, the Jacobian, both gradients and the loss."""
    z, dy = np.array([50.0, 0.0, -3.0]), np.array([1.0, 0.3, -2.0])
    with mp.workdps(60):
        e = [mp.exp(mp.mpf(v)) for v in z]
        p = [v / sum(e) for v in e]
        J = [[p[i] * (i == j) - p[i] * p[j] for j in range(3)] for i in range(3)]
        dz = [float(sum(J[i][j] * mp.mpf(dy[j]) for j in range(3))) for i in range(3)]
        log_p, loss = [float(mp.log(v)) for v in p], float(-mp.log(p[0]))
        d_loss = [float(p[i] - (i == 0)) for i in range(3)]
        p, J = [float(v) for v in p], [[float(v) for v in row] for row in J]
    np.testing.assert_allclose(sm.softmax(z), p, rtol=1e-14)
    np.testing.assert_allclose(sm.log_softmax(z), log_p, rtol=1e-14)
    np.testing.assert_allclose(sm.softmax_jacobian(z), J, rtol=1e-14)
    np.testing.assert_allclose(sm.d_softmax(z, dy), dz, rtol=1e-14)
    np.testing.assert_allclose(bp.cross_entropy(z[None], np.array([0])), loss, rtol=1e-14)
    np.testing.assert_allclose(bp.d_cross_entropy(z[None], np.array([0]))[0], d_loss, rtol=1e-14)


@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
def test_masked_and_huge_scores(name):
    """A mask of -inf gives exactly 0, for the gradient too; scores near the end of the range are fine."""
    f, df, _ = PAIRS[name]
    z = np.array([1.0, -np.inf, 0.8, -np.inf])
    np.testing.assert_allclose(f(z)[[0, 2]], f(z[[0, 2]]), rtol=1e-14)
    np.testing.assert_allclose(df(z, np.arange(4.0))[[0, 2]], df(z[[0, 2]], np.array([0.0, 2.0])), rtol=1e-14)
    assert not f(z)[[1, 3]].any() and not df(z, np.ones(4))[[1, 3]].any()
    np.testing.assert_array_equal(f(np.array([1e308, 1e308, 0, 0], float)), [0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(f(np.float32([0, 0, -3e38, -3e38])), [0.5, 0.5, 0, 0])


def test_masked_class_in_the_loss():
    """A logit of -inf for another class: 0 times -inf is nan in the plain formula."""
    logits, labels = np.array([[1.0, -np.inf, 0.0]]), np.array([0])
    np.testing.assert_allclose(bp.cross_entropy(logits, labels), np.log1p(np.exp(-1)), rtol=1e-14)
    assert bp.d_cross_entropy(logits, labels)[0, 1] == 0


def test_uniform_output_divides_the_gradient_by_n():
    """J = (I - 1 1^T / n) / n, so that n scores shrink the gradient n times, per layer."""
    n = 10
    np.testing.assert_allclose(sm.softmax_jacobian(np.zeros(n)), (np.eye(n) - 1 / n) / n, atol=1e-16)


@repeat
@given(st.integers(2, 6), st.floats(0.1, 50), seeds)
def test_spectra(n, scale, seed):
    """softmax: operator norm at most 1/2. sparsemax: a projection of rank (support - 1)."""
    z = scale * np.random.default_rng(seed).standard_normal(n)
    assert np.linalg.norm(sm.softmax_jacobian(z), 2) <= 0.5 + 1e-15
    J, support = sm.sparsemax_jacobian(z), np.count_nonzero(sm.sparsemax(z))
    np.testing.assert_allclose(J @ J, J, atol=1e-14)
    np.testing.assert_allclose(np.trace(J), support - 1, atol=1e-13)


@pytest.mark.parametrize("kind, theirs", [("softmax", torch.softmax), ("sparsemax", torch_sparsemax)])
@pytest.mark.parametrize("size", [(), (3,)])
def test_stacked_layers_agree_with_torch(kind, theirs, size):
    """Sequential([Dense, Softmax, ...]): output, every gradient, and the Jacobian, with a shared x."""
    rng = np.random.default_rng(0)
    Ws = [2 * rng.standard_normal((*size, a, b)) for a, b in ((4, 5), (5, 3))]
    net = bp.Sequential([part for W in Ws for part in (bp.Dense(W), sm.Softmax(kind, temperature=0.5))])
    x, dy = rng.standard_normal((6, 4)), rng.standard_normal((*size, 6, 3))
    tx = y = torch.tensor(np.broadcast_to(x, (*size, 6, 4)).copy(), requires_grad=True)
    tWs = [torch.tensor(W, requires_grad=True) for W in Ws]
    for W in tWs:
        y = theirs(y @ W / 0.5, -1)
    columns = [torch.autograd.grad(y[..., j].sum(), tx, retain_graph=True)[0].numpy() for j in range(3)]
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(net.forward(x), y.detach(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(net.backward(dy), tx.grad, rtol=1e-10, atol=1e-14)
    for key, W in zip(("0.W", "2.W"), tWs):
        np.testing.assert_allclose(net.gradients[key], W.grad, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(net.jacobian(), np.stack(columns, axis=-1), rtol=1e-10, atol=1e-14)
    layer = net.layers[1]
    np.testing.assert_allclose(layer.jacobian(np.eye(5)), layer.jacobian(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["softmax", "sparsemax"])
def test_temperature_for_each_network(kind):
    """An array of temperatures is the stack of the single ones, in every method of the layer."""
    x, dy = np.random.default_rng(1).standard_normal((2, 5, 4))
    before = np.random.default_rng(2).standard_normal((5, 2, 4))
    temperatures = np.array([0.2, 1.0, 4.0])
    many = sm.Softmax(kind, temperatures[:, None, None])
    results = many.forward(x), many.backward(dy), many.jacobian(), many.jacobian(before)
    for i, temperature in enumerate(temperatures):
        one = sm.Softmax(kind, temperature)
        for ours, alone in zip(results, (one.forward(x), one.backward(dy), one.jacobian(), one.jacobian(before))):
            np.testing.assert_allclose(ours[i], alone, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(one.jacobian(before), before @ one.jacobian(), rtol=1e-12, atol=1e-14)
    z, expected = x.T[None] + np.zeros((3, 1, 1)), np.swapaxes(results[0], -1, -2)
    np.testing.assert_allclose(PAIRS[kind][0](z, 1, temperature=many.temperature), expected, atol=1e-15)


@each
def test_float32_stays(name):
    """Even with a temperature in float64."""
    f, df, _ = PAIRS[name]
    z, dy = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    T = np.full((3, 1), 2.0)
    assert f(z, temperature=T).dtype == df(z, dy, temperature=T).dtype == np.float32
    for jacobian in (sm.softmax_jacobian, sm.sparsemax_jacobian):
        assert jacobian(z, temperature=T).dtype == np.float32
    np.testing.assert_allclose(f(z, temperature=T), f(z.astype(float), temperature=T), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: sm.softmax(np.ones(3), temperature=0), ValueError, "temperature: got 0, expected numbers above 0"),
        (lambda: sm.Softmax(temperature="hot"), ValueError, "temperature: got hot"),
        (lambda: sm.softmax(np.ones((2, 3)), temperature=np.ones(3)), ValueError, r"temperature: got shape \(3,\), expected size 1"),
        (lambda: sm.sparsemax(np.ones((2, 0))), ValueError, r"z: got shape \(2, 0\), expected at least one score"),
        (lambda: sm.softmax(3.0), ValueError, r"z: got shape \(\)"),
        (lambda: sm.softmax(["a"]), TypeError, "z: got an array of"),
        (lambda: sm.Softmax("sparsmax"), ValueError, "kind: got 'sparsmax', .*Did you mean 'sparsemax'"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()
