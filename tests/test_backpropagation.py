"""Backward passes against gradcheck and against torch autograd."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishing as vg
from browser import drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp

ACTS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}
repeat = settings(derandomize=True, max_examples=25, deadline=None)
shapes = st.tuples(
    st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=2)
)


def make(widths, size=(), activation="tanh", seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    net = bp.mlp(widths, activation=activation, init="lecun_normal", rng=rng, gain=1.5, size=size, **kwargs)
    for key, p in net.parameters.items():
        if key.endswith("b"):
            p[...] = rng.standard_normal(p.shape)
    return net, rng


def torch_net(net, x, act):
    parameters = {k: torch.tensor(p, requires_grad=True) for k, p in net.parameters.items()}
    x = y = torch.tensor(x, requires_grad=True)
    pairs = list(parameters.values())
    for i in range(0, len(pairs), 2):
        y = y @ pairs[i] + pairs[i + 1][..., None, :]
        y = ACTS[act](y) if i + 2 < len(pairs) else y
    return parameters, x, y


@pytest.mark.parametrize("activation", ACTS)
@repeat
@given(shapes)
def test_network_agrees_with_torch(activation, shape):
    """Every gradient of a network of any shape, with and without ensemble axes."""
    widths, batch, size = shape
    net, rng = make(widths, size, activation)
    x = rng.standard_normal((*size, batch, widths[0]))
    parameters, tx, ty = torch_net(net, x, activation)
    y = net.forward(x)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-10, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    ty.backward(torch.tensor(dy))
    dx = net.backward(dy)
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-10, atol=1e-12)
    assert net.gradients.keys() == net.parameters.keys()
    for key, g in net.gradients.items():
        np.testing.assert_allclose(g, parameters[key].grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["central", "complex"])
def test_network_agrees_with_finite_differences(method):
    """The second oracle, through a loss, for the input and for a weight."""
    net, rng = make([3, 4, 2])
    x, labels = rng.standard_normal((5, 3)), np.array([0, 1, 1, 0, 1])

    def d_loss(x):
        return net.backward(vg.d_cross_entropy(net.forward(x), labels))

    assert bp.gradcheck(lambda x: vg.cross_entropy(net.forward(x), labels), d_loss, x, method=method).ok
    d_loss(x)
    for key in ("0.0.W", "0.0.b", "1.W"):
        dense = net.layers[0].layers[0] if key.startswith("0") else net.layers[1]
        name, p = key[-1], net.parameters[key]

        def loss(value, dense=dense, name=name):
            dense.parameters[name] = value
            return vg.cross_entropy(net.forward(x), labels)

        report = bp.gradcheck(loss, net.gradients[key], p, method=method)
        dense.parameters[name] = p
        assert report.ok, report


def test_ensemble_is_a_stack_of_networks():
    """Members with a shared input do not mix."""
    net, rng = make([3, 4, 2], size=(3,))
    x, dy = rng.standard_normal((5, 3)), rng.standard_normal((3, 5, 2))
    y, dx = net.forward(x), net.backward(dy)
    for i in range(3):
        one, _ = make([3, 4, 2])
        for key, p in one.parameters.items():
            p[...] = net.parameters[key][i]
        np.testing.assert_allclose(one.forward(x), y[i], rtol=1e-13)
        np.testing.assert_allclose(one.backward(dy[i]), dx[i], rtol=1e-13)
        for key, g in one.gradients.items():
            np.testing.assert_allclose(g, net.gradients[key][i], rtol=1e-12)


def test_shared_parameters_sum_over_the_ensemble():
    """One W under an ensemble of inputs gets a gradient of its own shape: the sum."""
    rng = np.random.default_rng(0)
    layer, x, dy = (
        bp.Dense(rng.standard_normal((1, 3, 2)), np.zeros(2)),
        rng.standard_normal((4, 5, 3)),
        np.ones((4, 5, 2)),
    )
    layer.forward(x)
    layer.backward(dy)
    np.testing.assert_allclose(layer.gradients["W"], (np.swapaxes(x, 1, 2) @ dy).sum(axis=0, keepdims=True))
    np.testing.assert_allclose(layer.gradients["b"], [20, 20])


def test_weights_false_leaves_gradients_alone():
    """gradient_flow relies on it for its cost and its promise."""
    net, rng = make([3, 4, 2])
    net.forward(rng.standard_normal((5, 3)))
    net.backward(np.ones((5, 2)), weights=False)
    assert net.gradients == {}


@repeat
@given(shapes)
def test_jacobian_agrees_with_torch(shape):
    """Rows are inputs; the product goes from input to output."""
    widths, batch, size = shape
    net, rng = make(widths, size, output_activation="tanh")
    x = rng.standard_normal((*size, batch, widths[0]))
    y = net.forward(x)
    _, tx, ty = torch_net(net, x, "tanh")
    ty = torch.tanh(ty)
    columns = [torch.autograd.grad(ty[..., j].sum(), tx, retain_graph=True)[0].numpy() for j in range(y.shape[-1])]
    np.testing.assert_allclose(net.jacobian(), np.stack(columns, axis=-1), rtol=1e-10, atol=1e-12)


def test_jacobian_of_single_layers():
    """Dense is W, Activate is diagonal."""
    net, rng = make([3, 3, 2])
    z = net.layers[0].layers[0].forward(rng.standard_normal((2, 3)))
    act = net.layers[0].layers[1]
    act.forward(z)
    np.testing.assert_array_equal(net.layers[1].jacobian(), net.layers[1].parameters["W"][None])
    np.testing.assert_allclose(act.jacobian()[1], np.diag(1 - np.tanh(z[1]) ** 2), rtol=1e-12)


def test_mlp_structure():
    """Depth counts weight matrices; the last block gives logits; the loop updates in place."""
    net, _ = make([4, 5, 5, 3], dtype=np.float32)
    assert len(net.layers) == 3 and isinstance(net.layers[-1], bp.Dense)
    assert list(net.parameters) == ["0.0.W", "0.0.b", "1.0.W", "1.0.b", "2.W", "2.b"]
    assert {p.dtype for p in net.parameters.values()} == {np.dtype(np.float32)}
    net.forward(np.ones((2, 4), np.float32))
    dx = net.backward(np.ones((2, 3), np.float32))
    assert {dx.dtype, *(g.dtype for g in net.gradients.values())} == {np.dtype(np.float32)}
    before = net.forward(np.ones((2, 4), np.float32))
    for key, p in net.parameters.items():
        p -= 0.1 * net.gradients[key]
    assert not np.allclose(net.forward(np.ones((2, 4), np.float32)), before)


def test_a_training_loop_learns():
    """The documented loop lowers the loss of every member of an ensemble at least tenfold."""
    net, rng = make([2, 16, 2], size=(3,))
    x = rng.standard_normal((64, 2))
    labels = (x[:, 0] > x[:, 1]).astype(int)
    first = vg.cross_entropy(net.forward(x), labels)
    for _ in range(300):
        net.backward(vg.d_cross_entropy(net.forward(x), labels))
        for key, p in net.parameters.items():
            p -= 0.5 * net.gradients[key]
    assert first.shape == (3,) and np.all(vg.cross_entropy(net.forward(x), labels) < first / 10)


@repeat
@given(st.integers(1, 5), st.integers(2, 5), st.lists(st.integers(1, 3), max_size=2))
def test_losses_agree_with_torch(batch, n, size):
    """Value and gradient of both losses; each member of an ensemble has its own mean."""
    rng = np.random.default_rng(batch * 10 + n)
    y, target = rng.standard_normal((2, *size, batch, n))
    labels = rng.integers(n, size=batch)
    for ours, ours_d, theirs in (
        (vg.cross_entropy(y, labels), vg.d_cross_entropy(y, labels),
         lambda t: torch.nn.functional.cross_entropy(t, torch.tensor(labels))),
        (bp.mean_squared_error(y, target), bp.d_mean_squared_error(y, target), None),
    ):  # fmt: skip
        assert ours.shape == tuple(size)
        for index in np.ndindex(*size):
            t = torch.tensor(y[index], requires_grad=True)
            loss = theirs(t) if theirs else torch.nn.functional.mse_loss(t, torch.tensor(target[index]))
            loss.backward()
            np.testing.assert_allclose(ours[index], loss.item(), rtol=1e-10)
            np.testing.assert_allclose(ours_d[index], t.grad.numpy(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("method", ["central", "complex"])
def test_losses_agree_with_finite_differences(method):
    """The second oracle for both losses."""
    rng = np.random.default_rng(0)
    y, target, labels = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), np.array([0, 2, 1, 1])
    for f, df, name, t in (
        (vg.cross_entropy, vg.d_cross_entropy, "labels", labels),
        (bp.mean_squared_error, bp.d_mean_squared_error, "target", target),
    ):
        assert bp.gradcheck(partial(f, **{name: t}), partial(df, **{name: t}), y, method=method).ok


def test_cross_entropy_of_huge_logits():
    """A naive softmax overflows here."""
    logits = np.array([[1e4, 0], [0, 1e4]])
    assert vg.cross_entropy(logits, np.array([0, 0])) == 5e3
    np.testing.assert_array_equal(vg.d_cross_entropy(logits, np.array([0, 0])), [[0, 0], [-0.5, 0.5]])


@pytest.mark.parametrize("method, bar", [("central", 1e-7), ("complex", 1e-12)])
def test_gradcheck_finds_the_wrong_entry(method, bar):
    """A relative error of 1e-5 in one entry fails and heads the table; the right gradient passes."""
    x = np.linspace(0.3, 2, 6).reshape(2, 3)
    right = bp.gradcheck(lambda x: np.sin(x).sum(), np.cos, x, method=method)
    assert right.ok and right.max_error < bar and "gradcheck ok: 6 entries" in str(right)
    gradient = np.cos(x)
    gradient[1, 1] *= 1 + 1e-5
    wrong = bp.gradcheck(lambda x: np.sin(x).sum(), gradient, x, method=method)
    assert not wrong.ok and wrong.max_error == pytest.approx(1e-5, rel=0.02)
    header, _, columns, first, *_ = str(wrong).splitlines()
    assert "WRONG" in header and columns.split() == ["entry", "analytic", "numeric", "error"]
    assert first.split()[:2] == ["(1,", "1)"]


def test_gradcheck_sees_zero_entries_and_nan():
    """An entry that should be 0, a missing one, and nan: the usual ways for a check to be fooled."""
    x = np.array([1.0, 2.0])
    assert bp.gradcheck(lambda x: x[0] ** 2, np.array([2.0, 0.0]), x).ok
    assert not bp.gradcheck(lambda x: x[0] ** 2, np.array([2.0, 1e-4]), x).ok
    flat = np.zeros(2)  # differences give 6e-12 here, within their rounding
    assert bp.gradcheck(lambda x: (np.exp(x) - x).sum(), lambda x: np.exp(x) - 1, flat).ok
    assert not bp.gradcheck(lambda x: (x**2).sum(), np.array([2.0, 0.0]), x).ok
    assert not bp.gradcheck(lambda x: (x**2).sum(), np.array([2.0, np.nan]), x).ok


def test_central_difference_agrees_with_the_derivative():
    """Any shape, the input left alone, second order in h."""
    x = np.linspace(0.3, 2, 6).reshape(2, 3)
    before = x.copy()
    errors = [np.abs(bp.central_difference(lambda v: np.sin(v).sum(), x, h) - np.cos(x)).max() for h in (1e-2, 1e-3)]
    np.testing.assert_array_equal(x, before)
    assert errors[1] < 1e-6 and errors[0] / errors[1] == pytest.approx(100, rel=0.01)


def test_difference_bench_has_the_errors_of_the_textbook():
    """Slopes of both arms of the V, the best steps within a decade of theirs, and what a kink does."""
    rows = {(r["formula"], r["precision"], r["distance"]): r for r in bp.difference_bench()}
    step = np.array(rows["central", "float64", 0]["steps"])
    assert len(rows) == 3 * 2 * 7 and all(len(r["errors"]) == len(step) == 65 for r in rows.values())
    for precision in ("float32", "float64"):
        eps = np.log10(np.finfo(precision).eps)
        for formula, order in (("forward", 1), ("central", 2)):
            error = np.array(rows[formula, precision, 0]["errors"])
            best = error.argmin()
            assert abs(step[best] - eps / (order + 1)) < 1
            assert abs(error[best] - eps * order / (order + 1)) < 1
            wide = (step > -2 if precision == "float32" else step > -3) & (step < -0.5)
            assert np.polyfit(step[wide], error[wide], 1)[0] == pytest.approx(order, abs=0.1)
            small = (step > step[best] - 3) & (step < step[best] - 1)
            assert np.polyfit(step[small], error[small], 1)[0] == pytest.approx(-1, abs=0.2)
        assert np.max(np.array(rows["complex", precision, 0]["errors"])[step <= -9]) < eps + 0.7
    error = {d: np.array(rows["central", "float64", d]["errors"]) for d in (-4, 0)}
    np.testing.assert_array_equal(error[-4][step < -4], error[0][step < -4])  # not crossed
    assert np.all(error[-4][(step > -3.9) & (step < -1)] > -2.5)
    assert np.all(np.array(rows["complex", "float64", -4]["errors"]) == rows["complex", "float64", 0]["errors"])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: bp.gradcheck(np.sum, np.ones(3), np.ones(2)), ValueError, r"gradient: got shape \(3,\), expected \(2,\)"),
        (lambda: bp.gradcheck(np.sin, np.cos, np.ones(2)), TypeError, r"f: got a result of shape \(2,\)"),
        (lambda: bp.gradcheck(lambda x: np.abs(x).sum(), np.ones(2), np.ones(2), method="complex"), TypeError,
         "f: got a real result for a complex argument"),
        (lambda: bp.gradcheck(np.sum, np.ones(2), np.ones(2), method="centrl"), ValueError, "Did you mean 'central'"),
        (lambda: bp.Dense(np.ones((3, 2)), np.ones(3)), ValueError, r"b: got shape \(3,\)"),
        (lambda: bp.Dense(np.ones((3, 2))).forward(np.ones((4, 2))), ValueError, r"x: got shape \(4, 2\), expected \(..., batch, 3\)"),
        (lambda: bp.Dense(np.ones((3, 2))).forward(np.ones(3)), ValueError, r"x: got shape \(3,\)"),
        (lambda: bp.Activate("tahn"), ValueError, "Did you mean 'tanh'"),
        (lambda: bp.mlp([3], activation="tanh", init="zeros", rng=np.random.default_rng(0)), ValueError, r"widths: got \[3\]"),
        (lambda: vg.cross_entropy(np.ones((2, 3)), np.array([0, 3])), ValueError, "labels: got 0 ... 3, expected 0 ... 2"),
        (lambda: vg.cross_entropy(np.ones((2, 3)), np.array([0.0, 1.0])), TypeError, "labels: got an array of float64"),
        (lambda: vg.cross_entropy(np.ones((2, 3)), np.array([0])), ValueError, r"labels: got shape \(1,\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


@in_browser
def test_the_bench_moves_and_is_right(tab, server):
    """Each menu and slider, moved by keyboard; the curve drawn is the one that the library computes for those values."""
    figure = open_explorable(tab, server, "chapters/backpropagation/lesson.html", "bench")
    grid = {(row["formula"], row["precision"], row["distance"]): row for row in bp.difference_bench()}
    menus, sliders = figure.locator("select"), figure.locator("input[type=range]")
    assert (menus.count(), sliders.count()) == (2, 2)
    visited = set()
    for first, second, side in (
        ("ArrowUp", "ArrowUp", "ArrowLeft"),
        ("ArrowDown", "ArrowDown", "ArrowLeft"),
        ("ArrowDown", "ArrowUp", "ArrowRight"),
    ):
        formula, precision = move(menus.nth(0), first), move(menus.nth(1), second)
        step, distance = (move(sliders.nth(i), side) for i in range(2))
        visited.add((formula, precision, distance))
        seen = {row["step"]: row["error"] for row in drawn(tab, "bench", "step", "error")}
        row = grid[formula, precision, distance]
        assert seen == dict(zip(row["steps"], row["errors"]))
        said = figure.locator("text", has_text=f"{formula} difference in {precision}")
        assert said.count() == 1 and f"error 10^{seen[step]:.1f}".replace("-", "−") in said.text_content().replace(
            "-", "−"
        )
    assert len(visited) == 3 and {v[1] for v in visited} == {"float32", "float64"}
    assert tab.errors == [] and tab.outside == []
