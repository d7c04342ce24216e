"""Softmax and sparsemax against torch, finite differences and arbitrary precision."""

import importlib

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import drawn, in_browser, move, open_explorable
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
    np.testing.assert_allclose(sm.cross_entropy(z[None], np.array([0])), loss, rtol=1e-14)
    np.testing.assert_allclose(sm.d_cross_entropy(z[None], np.array([0]))[0], d_loss, rtol=1e-14)


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
    np.testing.assert_allclose(sm.cross_entropy(logits, labels), np.log1p(np.exp(-1)), rtol=1e-14)
    assert sm.d_cross_entropy(logits, labels)[0, 1] == 0


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


# Stacks of layers, remedies, attention


def test_softmax_vjp_is_the_jacobian():
    """From probabilities alone, along any axis."""
    rng = np.random.default_rng(0)
    z, dy = rng.standard_normal((2, 3, 4))
    expected = np.einsum("bij,bj->bi", sm.softmax_jacobian(z), dy)
    np.testing.assert_allclose(sm.softmax_vjp(sm.softmax(z), dy), expected, atol=1e-15)
    np.testing.assert_allclose(sm.softmax_vjp(sm.softmax(z).T, dy.T, 0), expected.T, atol=1e-15)


def torch_stack(remedy, x, Ws):
    """The table in the docstring of softmax_stack, once more; all h_0 ... h_L."""
    h = [x]
    for i, W in enumerate(Ws):
        z = h[-1] @ W
        if remedy == "batch norm":
            z = (z - z.mean(-2, keepdim=True)) / (z.var(-2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        elif remedy == "layer norm":
            z = torch.nn.functional.layer_norm(z, z.shape[-1:])
        elif remedy.endswith("relu"):
            z = torch.nn.functional.leaky_relu(z, 0.01 if remedy.startswith("leaky") else 0.0)
        y = torch_sparsemax(z) if remedy == "sparsemax" else torch.softmax(z, -1)
        h.append(y + h[-1] if remedy == "residual" else y + h[-2] if remedy == "skip" and i > 1 else y)
    return h


@pytest.mark.parametrize("remedy", sm.REMEDIES)
def test_a_stack_of_layers_with_a_remedy_agrees_with_torch(remedy):
    """Output, every weight's gradient, and the decay that is measured, for an ensemble of two."""
    depth, size = 6, (2,)
    net = sm.softmax_stack(remedy, 4, depth, rng=np.random.default_rng(1), gain=[1.0, 3.0], size=size)
    weights = {k: p for k, p in net.parameters.items() if k.endswith("W")}
    assert len(weights) == depth
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((*size, 5, 4)), np.random.default_rng(3).standard_normal((*size, 5, 4))
    Ws = [torch.tensor(W, requires_grad=True) for W in weights.values()]
    h = torch_stack(remedy, torch.tensor(x, requires_grad=True), Ws)
    for state in h:
        state.retain_grad()
    h[-1].backward(torch.tensor(dy))
    np.testing.assert_allclose(net.forward(x), h[-1].detach(), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(net.backward(dy), h[0].grad, rtol=1e-6, atol=1e-12)
    for key, W in zip(weights, Ws):
        np.testing.assert_allclose(net.gradients[key], W.grad, rtol=1e-6, atol=1e-12)
    with np.errstate(divide="ignore"):
        sizes = np.stack([np.log10(np.sqrt((t.grad.numpy() ** 2).mean(axis=(-2, -1)))) for t in reversed(h)], axis=-1)
    decay = sm.gradient_decay(net, x, rng=np.random.default_rng(3))
    np.testing.assert_allclose(decay, sizes - sizes[..., :1], atol=1e-6)  # -inf where sparsemax passes nothing


def test_the_jacobian_of_skips_is_what_backward_multiplies_by():
    """Sequential's own product, which Skips would inherit, leaves the skips out."""
    rng = np.random.default_rng(0)
    net = sm.softmax_stack("skip", 4, 5, rng=rng, gain=3.0, size=(2,))
    x, dy = rng.standard_normal((2, 2, 3, 4))
    net.forward(x)
    dx = net.backward(dy)
    np.testing.assert_allclose(np.einsum("ebij,ebj->ebi", net.jacobian(), dy), dx, rtol=1e-12)
    before = rng.standard_normal((2, 3, 2, 4))
    np.testing.assert_allclose(net.jacobian(before), before @ net.jacobian(), rtol=1e-12)


def test_the_decay_of_a_stack_follows_the_law():
    """-ln n + (ln 2 + psi((n - 1) / 2)) / 2 + ln(gain / sqrt n) per layer, at a small gain, where output is even."""
    from vanishing import chain_rule as cr

    n, depth, networks = 6, 60, 50
    rng = np.random.default_rng(0)
    net = sm.softmax_stack("none", n, depth, rng=rng, gain=0.1, size=(networks,))
    decay = sm.gradient_decay(net, rng.standard_normal((networks, 1, n)), rng=rng)
    steps = np.diff(decay[:, 1:-1], axis=-1) * np.log(10)
    law = cr.gaussian_growth_rate(n - 1, 0.1 / np.sqrt(n)) - np.log(n)
    assert abs(steps.mean() - law) < 5 * steps.std() / np.sqrt(steps.size)


def test_the_grid_of_remedies():
    """A row for each remedy, size and gain; a row is what its networks give one by one; no infinity."""
    grid = sm.remedy_grid(rng=np.random.default_rng(1), sizes=(3,), networks=3)
    assert len(grid) == 7 * 10 and {r["remedy"] for r in grid} == set(sm.REMEDIES) - {"leaky relu"}
    for row in grid:
        low, median, high = (np.array(row[k]) for k in ("low", "median", "high"))
        assert row["layers"] == list(range(33)) and np.all((low <= median) & (median <= high)) and low.min() >= -400
        assert low[0] == median[0] == high[0] == 0
    first = [r for r in grid if r["remedy"] == "none" and r["gain"] == 1][0]
    seed = np.random.default_rng(1).integers(2**32)
    rng = np.random.default_rng(seed)
    gains = np.unique([r["gain"] for r in grid])
    net = sm.softmax_stack("none", 3, 32, rng=rng, gain=gains[:, None], size=(10, 3))
    decay = sm.gradient_decay(net, rng.standard_normal((10, 3, 6, 3)), rng=rng)
    np.testing.assert_allclose(first["median"], np.median(decay[0], axis=0), atol=0.006)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("shared", [True, False])
def test_attention_agrees_with_torch(causal, scale, shared):
    """Output, and the gradients of input and weights, for sequences that share weights and networks that do not."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 4, 5, 6))  # networks, sequences, tokens, units
    Ws = [rng.standard_normal((6, 2) if shared else (3, 1, 6, 2)) for _ in range(2)]
    Ws.append(rng.standard_normal((6, 6) if shared else (3, 1, 6, 6)))
    layer = sm.Attention(*Ws, scale=scale, causal=causal)
    tx, tW = torch.tensor(x, requires_grad=True), [torch.tensor(W, requires_grad=True) for W in Ws]
    q, k, v = (tx @ W for W in tW)
    ty = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(layer.forward(x), ty.detach(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.backward(dy), tx.grad, rtol=1e-9, atol=1e-11)
    assert layer.gradients.keys() == layer.parameters.keys()
    for got, W in zip(layer.gradients.values(), tW):
        np.testing.assert_allclose(got, W.grad, rtol=1e-9, atol=1e-11)
    before = layer.gradients["value"]
    layer.backward(2 * dy, weights=False)
    assert layer.gradients["value"] is before


def test_an_unknown_remedy_is_named():
    with pytest.raises(ValueError, match="remedy: got 'batchnorm', .*Did you mean 'batch norm'"):
        sm.softmax_stack("batchnorm", 3, 2, rng=np.random.default_rng(0))


@in_browser
def test_the_explorable_of_three_scores_moves_and_is_right(tab, server):
    """Each slider by keyboard; probabilities, Jacobian and norm are the library's."""
    figure = open_explorable(tab, server, "chapters/softmax/lesson.html", "scores")
    sliders = figure.locator("input[type=range]")
    assert sliders.count() == 4
    for key, times in (("ArrowRight", 7), ("ArrowLeft", 11), ("ArrowRight", 3)):
        *z, T = (move(sliders.nth(i), key, times + i) for i in range(4))
        p, J = sm.softmax(np.array(z), temperature=T), sm.softmax_jacobian(np.array(z), temperature=T)
        for row in drawn(tab, "scores", "i", "j", "p", "entry"):
            assert row["p"] == pytest.approx(p[row["i"]], abs=1e-9)
            assert row["entry"] == pytest.approx(J[row["i"], row["j"]], abs=1e-9)
        (norm,) = {row["norm"] for row in drawn(tab, "scores", "norm")}
        assert norm == pytest.approx(np.linalg.norm(J, 2), abs=1e-9)
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_remedies_moves_and_is_right(tab, server):
    """Each menu and the slider by keyboard; the curve drawn is the grid's row for these settings."""
    figure = open_explorable(tab, server, "chapters/softmax/lesson.html", "remedies")
    grid = sm.remedy_grid(rng=np.random.default_rng(1))
    menus, slider = figure.locator("select"), figure.locator("input[type=range]")
    assert menus.count() == 3 and slider.count() == 1
    for menu, key, times in (
        (0, "ArrowDown", 3),
        (1, "ArrowDown", 1),
        (2, "ArrowDown", 5),
        (0, "ArrowDown", 2),
        (1, "ArrowUp", 2),
    ):
        move(menus.nth(menu), key, times)
        move(slider, "ArrowLeft", times)
        remedy, n, gain = (menus.nth(i).input_value() for i in range(3))
        depth, want = int(slider.input_value()), (remedy, int(n), float(gain))
        (row,) = [r for r in grid if (r["remedy"], r["n"], r["gain"]) == want]
        seen = {r["layers"]: r["size"] for r in drawn(tab, "remedies", "layers", "size")}
        assert [seen[k] for k in row["layers"]] == row["median"]
        assert figure.locator("text", has_text=f"after {depth} layers").count() == 1
    assert tab.errors == [] and tab.outside == []
