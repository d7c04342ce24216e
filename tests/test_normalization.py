"""Normalization layers against gradcheck and against torch.nn.functional."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishing as vg
from browser import choose, drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp
from vanishing import normalization as nm

repeat = settings(derandomize=True, max_examples=25, deadline=None)
sizes = st.sampled_from([(), (3,), (2, 2)])
shapes = st.tuples(sizes, st.integers(2, 6), st.integers(1, 3), st.integers(2, 4))  # size, batch, groups, n / groups
EPS = 1e-3  # large enough for a misplaced eps to show


def make(name, n, groups=1, size=(), seed=0, dtype=float):
    """A layer with random gamma and beta, and the generator."""
    rng = np.random.default_rng(seed)
    layer = {
        "batch": lambda: nm.BatchNorm(n, eps=EPS, momentum=0.3, size=size, dtype=dtype),
        "layer": lambda: nm.LayerNorm(n, eps=EPS, size=size, dtype=dtype),
        "group": lambda: nm.GroupNorm(n, groups, eps=EPS, size=size, dtype=dtype),
        "rms": lambda: nm.RMSNorm(n, eps=EPS, size=size, dtype=dtype),
    }[name]()
    for p in layer.parameters.values():
        p[...] = rng.standard_normal(p.shape)
    return layer, rng


def torch_norm(name, n, groups, x, p, running=None, training=True):
    """The torch function for one network; `running` is (mean, variance), updated in place."""
    if name == "batch":
        mean, variance = running
        return F.batch_norm(x, mean, variance, p["gamma"], p["beta"], training=training, momentum=0.3, eps=EPS)
    if name == "layer":
        return F.layer_norm(x, (n,), p["gamma"], p["beta"], eps=EPS)
    if name == "group":
        return F.group_norm(x, groups, p["gamma"], p["beta"], eps=EPS)
    return F.rms_norm(x, (n,), p["gamma"], eps=EPS)


def agree(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.shape(ours) == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", nm.NORMALIZATIONS)
@repeat
@given(shapes, st.sampled_from([1.0, 1e-2, 100.0]))
def test_layers_agree_with_torch(name, shape, scale):
    """Values, every gradient and the running statistics of three training steps, then evaluation;
    an ensemble is a stack of networks, each with its own statistics."""
    size, batch, groups, per_group = shape
    n = groups * per_group
    layer, rng = make(name, n, groups, size)
    running = {i: (torch.zeros(n).double(), torch.ones(n).double()) for i in np.ndindex(*size)}
    for training in (True, True, True, False):
        nm.set_training(layer, training)
        x, dy = scale * rng.standard_normal((*size, batch, n)) + 1, rng.standard_normal((*size, batch, n))
        y, dx = layer.forward(x), layer.backward(dy)
        assert layer.gradients.keys() == layer.parameters.keys()
        for i in np.ndindex(*size):
            tx = torch.tensor(x[i], requires_grad=True)
            p = {k: torch.tensor(v[i], requires_grad=True) for k, v in layer.parameters.items()}
            ty = torch_norm(name, n, groups, tx, p, running[i], training)
            ty.backward(torch.tensor(dy[i]))
            agree(y[i], ty)
            agree(dx[i], tx.grad)
            for key, g in layer.gradients.items():
                agree(g[i], p[key].grad)
            if name == "batch":
                agree(layer.running_mean[i], running[i][0])
                agree(layer.running_variance[i], running[i][1])


@pytest.mark.parametrize("method, bar", [("central", 1e-6), ("complex", 1e-12)])
@pytest.mark.parametrize("name", [*nm.NORMALIZATIONS, "evaluation"])
def test_layers_agree_with_finite_differences(name, method, bar):
    """The second oracle, for the input, gamma and beta; a complex step leaves no trace."""
    layer, rng = make("batch" if name == "evaluation" else name, 6, groups=2, size=(2,))
    x, dy = rng.standard_normal((2, 2, 5, 6))
    if name == "evaluation":
        layer.forward(3 * x)
        layer.training = False
    layer.forward(x)
    dx = layer.backward(dy)
    assert bp.gradcheck(lambda x: (layer.forward(x) * dy).sum(), dx, x, method=method, rtol=bar).ok
    for key, p in layer.parameters.items():

        def loss(value, key=key):
            layer.parameters[key] = value
            return (layer.forward(x) * dy).sum()

        report = bp.gradcheck(loss, layer.gradients[key], p, method=method, rtol=bar)
        layer.parameters[key] = p
        assert report.ok, report
    if hasattr(layer, "running_mean"):
        assert layer.running_mean.dtype == layer.running_variance.dtype == np.float64


@pytest.mark.parametrize("name", nm.NORMALIZATIONS)
def test_what_the_backward_pass_removes(name):
    """No mean and no component along the activations survive; rms keeps the mean."""
    layer, rng = make(name, 8, groups=2)
    layer.eps, axis = 0.0, -2 if name == "batch" else -1
    x, dy = rng.standard_normal((2, 5, 8))
    layer.forward(x)
    dx = layer.backward(dy)
    if name == "group":
        x, dx = x.reshape(5, 2, 4), dx.reshape(5, 2, 4)
    np.testing.assert_allclose((dx * x).sum(axis=axis), 0, atol=1e-13)
    means = np.abs(dx.mean(axis=axis))
    assert means.min() > 1e-3 if name == "rms" else means.max() < 1e-14


@pytest.mark.parametrize("name", ["layer", "group", "rms"])
@repeat
@given(shapes)
def test_jacobian_agrees_with_torch(name, shape):
    """For each example: rows are inputs; with `before` it is the product, also with a shared factor."""
    size, batch, groups, per_group = shape
    n = groups * per_group
    layer, rng = make(name, n, groups, size)
    x = rng.standard_normal((*size, batch, n))
    layer.forward(x)
    J = layer.jacobian()
    for i in np.ndindex(*size):
        p = {k: torch.tensor(v[i]) for k, v in layer.parameters.items()}
        exact = torch.func.vmap(torch.func.jacrev(lambda x, p=p: torch_norm(name, n, groups, x[None], p)[0]))(
            torch.tensor(x[i])
        )
        agree(J[i], exact.transpose(-1, -2))
    for before in (rng.standard_normal((*size, batch, 3, n)), rng.standard_normal((1, 3, n))):
        np.testing.assert_allclose(layer.jacobian(before), before @ J, rtol=1e-10, atol=1e-12)


def test_jacobian_of_batch_norm():
    """Diagonal in evaluation; in training an error, decided by the last forward."""
    layer, rng = make("batch", 3, size=(2,))
    x, before = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 5, 3))
    layer.forward(x)
    layer.training = False
    with pytest.raises(ValueError, match="training: got True, expected False for a Jacobian"):
        layer.jacobian()
    with pytest.raises(ValueError, match="the examples of a batch are coupled"):
        bp.Sequential([bp.Dense(np.eye(3)), layer]).jacobian()
    layer.forward(x)
    J, dy = layer.jacobian(), rng.standard_normal((2, 4, 3))
    assert J.shape == (2, 1, 3, 3)
    np.testing.assert_allclose((J @ dy[..., None])[..., 0], layer.backward(dy), rtol=1e-12)
    np.testing.assert_allclose(layer.jacobian(before), before @ J, rtol=1e-12)


def test_backward_undoes_the_forward_that_was():
    """Switching to evaluation between forward and backward must not drop the two projections."""
    layer, rng = make("batch", 3)
    x, dy = rng.standard_normal((2, 5, 3))
    layer.forward(x)
    dx = layer.backward(dy)
    layer.training = False
    np.testing.assert_array_equal(layer.backward(dy), dx)


@pytest.mark.parametrize("name", nm.NORMALIZATIONS)
def test_shared_inputs_and_shared_parameters(name):
    """One input for an ensemble; one gamma for an ensemble of inputs: its gradient is the sum."""
    layer, rng = make(name, 4, groups=2, size=(3,))
    x, dy = rng.standard_normal((5, 4)), rng.standard_normal((3, 5, 4))
    y, dx = layer.forward(x), layer.backward(dy)
    layer.forward(np.broadcast_to(x, dy.shape))
    np.testing.assert_allclose(dx, layer.backward(dy), rtol=1e-12)
    assert y.shape == dx.shape == (3, 5, 4)
    one, _ = make(name, 4, groups=2)
    stack = rng.standard_normal((3, 5, 4))
    y = one.forward(stack)
    one.backward(dy)
    got = {k: g.copy() for k, g in one.gradients.items()}
    if name == "batch":
        np.testing.assert_allclose(one.running_mean, 0.3 * stack.mean(axis=-2), rtol=1e-12)
    total = dict.fromkeys(got, 0)
    for i in range(3):
        np.testing.assert_allclose(one.forward(stack[i]), y[i], rtol=1e-12)
        one.backward(dy[i])
        total = {k: g + one.gradients[k] for k, g in total.items()}
    for key, g in got.items():
        assert g.shape == one.parameters[key].shape
        np.testing.assert_allclose(g, total[key], rtol=1e-12)


@pytest.mark.parametrize("name", [*nm.NORMALIZATIONS, "weight"])
def test_dtype_and_weights_false(name):
    """float32 in, float32 out, statistics included; weights=False computes no gradients."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 5, 8)).astype(np.float32)
    if name == "weight":
        layer = nm.WeightNormDense(rng.standard_normal((8, 8)).astype(np.float32))
    else:
        layer = nm.normalization(name, 8, dtype=np.float32)
    y, dx = layer.forward(x), layer.backward(dy, weights=False)
    assert layer.gradients == {}
    np.testing.assert_array_equal(layer.backward(dy), dx)
    arrays = [y, dx, *layer.parameters.values(), *layer.gradients.values()]
    if name == "batch":
        arrays += [layer.running_mean, layer.running_variance]
        nm.set_training(layer, False)
        arrays += [layer.forward(x), layer.backward(dy)]
    arrays.append(layer.jacobian())
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    assert layer.gradients.keys() == layer.parameters.keys()


weight_shapes = st.tuples(sizes, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


@repeat
@given(weight_shapes)
def test_weight_norm_agrees_with_torch(shape):
    """Values and the gradients of v, g, b and x against torch's weight_norm; no gradient along v."""
    size, batch, n_in, n_out = shape
    rng = np.random.default_rng(batch)
    v, g, b = (rng.standard_normal((*size, *s)) for s in ((n_in, n_out), (n_out,), (n_out,)))
    x, dy = rng.standard_normal((*size, batch, n_in)), rng.standard_normal((*size, batch, n_out))
    layer = nm.WeightNormDense(v, g, b)
    y, dx = layer.forward(x), layer.backward(dy)
    for i in np.ndindex(*size):
        tv, tg, tb, tx = (torch.tensor(a[i], requires_grad=True) for a in (v, g, b, x))
        ty = tx @ torch._weight_norm(tv, tg[None], dim=1) + tb
        ty.backward(torch.tensor(dy[i]))
        agree(y[i], ty)
        for ours, t in zip((dx, *layer.gradients.values()), (tx, tv, tg, tb)):
            agree(ours[i], t.grad)
    assert list(layer.gradients) == list(layer.parameters) == ["v", "g", "b"]
    np.testing.assert_allclose((layer.gradients["v"] * v).sum(axis=-2), 0, atol=1e-11)
    np.testing.assert_allclose((layer.jacobian() @ dy[..., None])[..., 0], dx, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["central", "complex"])
def test_weight_norm_agrees_with_finite_differences(method):
    """The second oracle, for v and g; without g the weights are v; one v for an ensemble of inputs."""
    rng = np.random.default_rng(0)
    v, x, dy = rng.standard_normal((3, 4)), rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 4))
    layer = nm.WeightNormDense(v)
    np.testing.assert_allclose(layer.forward(x), x @ v, rtol=1e-12)
    layer.parameters["g"] += rng.standard_normal(4)
    layer.forward(x)
    layer.backward(dy)
    for key, p in layer.parameters.items():

        def loss(value, key=key):
            layer.parameters[key] = value
            return (layer.forward(x) * dy).sum()

        report = bp.gradcheck(loss, layer.gradients[key], p, method=method)
        layer.parameters[key] = p
        assert report.ok, report


def test_mlp_with_norm():
    """Dense -> norm -> activation in each hidden block, not in the last; the network learns."""
    rng = np.random.default_rng(0)
    arguments = dict(activation="relu", init="he_normal", norm="batch", size=(2,))
    net = bp.mlp([3, 8, 8, 2], rng=rng, **arguments)
    kinds = [bp.Dense, nm.BatchNorm, bp.Activate]
    assert [[type(part) for part in block.layers] for block in net.layers[:-1]] == [kinds, kinds]
    assert isinstance(net.layers[-1], bp.Dense) and net.parameters["0.1.gamma"].shape == (2, 8)
    plain = bp.mlp([3, 8, 8, 2], rng=np.random.default_rng(0), **(arguments | {"norm": None}))
    assert all(np.array_equal(p, net.parameters[key]) for key, p in plain.parameters.items() if key.endswith("W"))

    x = rng.standard_normal((64, 3))
    labels = (x[:, 0] > x[:, 1]).astype(int)
    first = vg.cross_entropy(net.forward(x), labels)
    for _ in range(200):
        net.backward(vg.d_cross_entropy(net.forward(x), labels))
        for key, p in net.parameters.items():
            p -= 0.5 * net.gradients[key]
    assert np.all(vg.cross_entropy(net.forward(x), labels) < first / 10)
    nm.set_training(net, False)
    alone = np.concatenate([net.forward(x[i : i + 1]) for i in range(4)], axis=-2)
    np.testing.assert_allclose(alone, net.forward(x)[:, :4], rtol=1e-10)
    nm.set_training(net, True)
    assert all(block.layers[1].training for block in net.layers[:-1])


def test_set_training_reaches_nested_layers():
    """Through Sequential and through the block of a wrapper."""
    net = bp.mlp(
        [4, 4, 4, 4], activation="relu", init="he_normal", rng=np.random.default_rng(0), norm="batch", residual=1
    )
    inner = net.layers[0].block.layers[1]
    nm.set_training(bp.Sequential([net]), False)
    assert inner.training is False


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nm.normalization("bacth", 3), ValueError, "norm: got 'bacth', expected one of batch, layer, group, rms. Did you mean 'batch'"),
        (lambda: nm.BatchNorm(0), ValueError, "n: got 0"),
        (lambda: nm.BatchNorm(3, momentum=2), ValueError, "momentum: got 2, expected 0 ... 1"),
        (lambda: nm.RMSNorm(3, eps=-1), ValueError, "eps: got -1, expected at least 0"),
        (lambda: nm.RMSNorm(3, size=(0,)), ValueError, "size: got 0"),
        (lambda: nm.BatchNorm(3).forward(np.ones((1, 3))), ValueError, "x: got a batch of 1, expected at least 2"),
        (lambda: nm.BatchNorm(3).forward(np.ones((4, 2))), ValueError, r"x: got shape \(4, 2\), expected \(..., batch, 3\)"),
        (lambda: nm.LayerNorm(3).forward(np.ones(3)), ValueError, r"x: got shape \(3,\)"),
        (lambda: nm.batch_norm_growth(3), ValueError, "batch: got 3, expected at least 4"),
        (lambda: nm.normalized_factor("relu", "bath"), ValueError, "Did you mean 'batch'"),
        (lambda: nm.GroupNorm(6), ValueError, "groups: got 4, expected a divisor of n = 6"),
        (lambda: nm.GroupNorm(4, 4), ValueError, "groups of 2 or more"),
        (lambda: nm.LayerNorm(1), ValueError, "n: got 1, expected at least 2"),
        (lambda: nm.WeightNormDense(np.zeros((2, 2))), ValueError, "v: got a column of zeros"),
        (lambda: nm.WeightNormDense(np.ones((2, 2)), np.ones(3)), ValueError, r"g: got shape \(3,\)"),
        (lambda: nm.WeightNormDense(np.ones((2, 2)), None, np.ones(3)), ValueError, r"b: got shape \(3,\)"),
        (lambda: bp.mlp([2, 2], activation="relu", init="zeros", rng=np.random.default_rng(0), norm="batch"), ValueError,
         r"norm: got 'batch' for widths \[2, 2\], expected a hidden block"),
        (lambda: bp.mlp([2, 2, 2], activation="relu", init="zeros", rng=np.random.default_rng(0), norm="bach"), ValueError,
         "Did you mean 'batch'"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


def test_normalized_factor_has_its_closed_forms_and_bound():
    """pi / (pi - 1) for relu, 1 for a line; never below 1 with batch norm; rms is layer."""
    assert nm.normalized_factor("relu", "batch") == pytest.approx(np.pi / (np.pi - 1), rel=1e-6)
    assert nm.normalized_factor("relu", "layer") == pytest.approx(1, rel=1e-6)
    for name in ("identity", "sigmoid", "tanh", "gelu", "silu", "selu", "elu", "softplus"):
        batch = nm.normalized_factor(name, "batch")
        assert batch >= nm.normalized_factor(name, "layer") - 1e-9
        assert batch == pytest.approx(1, abs=1e-9) if name == "identity" else batch > 1.01
        assert nm.normalized_factor(name, "rms") == nm.normalized_factor(name, "layer")


@pytest.mark.parametrize("batch", [6, 24])
def test_batch_norm_growth_is_the_mean_over_random_layers(batch):
    """The law's own assumptions, sampled: isotropic batches and gradients, through the library's layer."""
    rng, units, runs = np.random.default_rng(batch), 64, 400
    layer = nm.BatchNorm(units, eps=0.0)
    y = layer.forward(rng.standard_normal((runs, batch, units)))
    g = nm.remove_mean(rng.standard_normal(y.shape), axis=-2)
    d = g * (y > 0)
    centered = nm.remove_mean(np.maximum(y, 0), axis=-2)
    variance = (centered**2).sum(axis=-2).mean() / (batch - 1)  # of each direction of z, for weights of variance 1 / n
    z = np.sqrt(variance * batch / (batch - 1)) * nm.remove_mean(rng.standard_normal(y.shape), axis=-2)
    sigma2 = (z**2).mean(axis=-2) * (batch - 1) / batch
    left = nm.remove_along(nm.remove_mean(d, axis=-2), y, axis=-2)
    measured = (left**2).mean() / (g**2).mean() * (1 / sigma2).mean()
    assert nm.batch_norm_growth(batch) == pytest.approx(measured, rel=0.03)
    assert nm.batch_norm_growth(1e7) == pytest.approx(np.pi / (np.pi - 1), rel=1e-5)


def test_normalization_grid():
    """Rows of plain lists; without normalization it is gradient_flow of the same weights."""
    grid = nm.normalization_grid(rng=np.random.default_rng(0), batches=(4, 8), width=16, depth=10)
    assert len(grid) == 4 * 4 * 2 * 2
    for row in grid:
        assert row["layer"] == [0, 5, 10] and len(row["forward"]) == len(row["backward"]) == 3
        assert row["backward"][-1] == 0
        if row["norm"] != "none" and row["activation"] == "identity":
            assert abs(row["forward"][-1]) < 0.01


@in_browser
def test_the_explorable_of_norms_moves_and_is_right(tab, server):
    """Each menu and the slider by keyboard; the curves drawn are the library's for that choice."""
    figure = open_explorable(tab, server, "chapters/normalization/lesson.html", "norms")
    grid = nm.normalization_grid(rng=np.random.default_rng(0))
    rows = {(r["norm"], r["activation"], r["batch"], r["network"]): r for r in grid}
    menus, slider = figure.locator("select"), figure.locator("input[type=range]")
    assert menus.count() == 3 and slider.count() == 1
    for norm, activation, batch, presses in (
        ("layer", "tanh", "4", 3),
        ("none", "sigmoid", "16", 1),
        ("rms", "identity", "64", 2),
    ):
        for i, wanted in enumerate((norm, activation, batch)):
            choose(menus.nth(i), wanted)
        depth = int(move(slider, "ArrowLeft", presses))
        seen = drawn(tab, "norms", "network", "layer", "forward", "relative")
        assert {r["layer"] for r in seen} == set(range(0, depth + 1, 5))
        for r in seen:
            row = rows[norm, activation, int(batch), r["network"]]
            k = row["layer"].index(r["layer"])
            assert r["forward"] == pytest.approx(row["forward"][k], abs=1e-9)
            assert r["relative"] == pytest.approx(row["backward"][k] - row["backward"][depth // 5], abs=1e-9)
        assert figure.locator("text", has_text=f"signal after {depth} layers").count() == 1
    assert tab.errors == [] and tab.outside == []
