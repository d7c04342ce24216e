"""Skip connections against gradcheck and torch autograd, and gradients through very deep ones."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishing as vg
from browser import choose, drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp
from vanishing import chain_rule as cr
from vanishing import normalization as nm
from vanishing import residuals as rs
from vanishing import spectrum

repeat = settings(derandomize=True, max_examples=20, deadline=None)
shapes = st.tuples(
    st.sampled_from([(), (3,), (2, 2)]), st.integers(1, 4), st.integers(2, 5), st.integers(1, 4)
)  # size, batch, n, k


def dense(rng, n_in, n_out, size=()):
    return bp.Dense(rng.standard_normal((*size, n_in, n_out)), rng.standard_normal((*size, n_out)))


def two_layers(rng, n, k, size):
    return bp.Sequential([dense(rng, n, k, size), bp.Activate("tanh"), dense(rng, k, n, size)])


BUILD = {
    "residual": lambda rng, n, k, size: rs.Residual(two_layers(rng, n, k, size)),
    "scaled": lambda rng, n, k, size: rs.Residual(two_layers(rng, n, k, size), scale=rng.standard_normal(size)),
    "learned": lambda rng, n, k, size: rs.Residual(two_layers(rng, n, k, size), scale=rng.standard_normal(size), learn_scale=True),
    "pre": lambda rng, n, k, size: rs.PreNorm(nm.LayerNorm(n, size=size), two_layers(rng, n, k, size), scale=0.7),
    "post": lambda rng, n, k, size: rs.PostNorm(nm.LayerNorm(n, size=size), two_layers(rng, n, k, size), scale=0.7),
    "highway": lambda rng, n, k, size: rs.Highway(two_layers(rng, n, k, size), *dense(rng, n, n, size).parameters.values()),
    "dense": lambda rng, n, k, size: rs.DenseSkip(bp.Sequential([dense(rng, n, k, size), bp.Activate("tanh")])),
    "nested": lambda rng, n, k, size: bp.Sequential([
        rs.Residual(bp.Sequential([
            rs.Residual(two_layers(rng, n, k, size), scale=0.5, learn_scale=True),
            rs.DenseSkip(dense(rng, n, k, size)), bp.Activate("tanh"), dense(rng, n + k, n, size),
        ]), scale=2.0, learn_scale=True),
        rs.Highway(two_layers(rng, n, k, size), *dense(rng, n, n, size).parameters.values()),
    ]),
}  # fmt: skip


def torch_two_layers(p, x):
    """The block of `two_layers`, taking its parameters from the front of the list p."""
    W, b, V, c = (p.pop(0) for _ in range(4))
    return torch.tanh(x @ W + b[..., None, :]) @ V + c[..., None, :]


def torch_forward(kind, p, x, scale):
    p = list(p)
    n = x.shape[-1]

    def gate(x, W, b):
        return torch.sigmoid(x @ W + b[..., None, :])

    def norm(x, gamma, beta):
        x = torch.nn.functional.layer_norm(x, (n,), eps=1e-5)
        return x * gamma[..., None, :] + beta[..., None, :]

    if kind == "pre":
        gamma, beta = p.pop(0), p.pop(0)
        return x + 0.7 * torch_two_layers(p, norm(x, gamma, beta))
    if kind == "post":
        return norm(x + 0.7 * torch_two_layers(p, x), *p)
    if kind == "highway":
        h = torch_two_layers(p, x)
        t = gate(x, *p)
        return t * h + (1 - t) * x
    if kind == "dense":
        return torch.cat([x, torch.tanh(x @ p[0] + p[1][..., None, :])], dim=-1)
    if kind == "nested":
        h = torch_two_layers(p, x)
        h = x + p.pop(0)[..., None, None] * h
        W, b = p.pop(0), p.pop(0)
        h = torch.tanh(torch.cat([h, h @ W + b[..., None, :]], dim=-1))
        W, b = p.pop(0), p.pop(0)
        x = x + p.pop(0)[..., None, None] * (h @ W + b[..., None, :])
        return torch_forward("highway", p, x, None)
    h = torch_two_layers(p, x)
    return x + (p[0] if p else torch.tensor(scale, dtype=torch.float64))[..., None, None] * h


@pytest.mark.parametrize("kind", BUILD)
@repeat
@given(shapes)
def test_layers_agree_with_torch(kind, shape):
    """Values, all gradients (learned scales, gates) and Jacobians, nested too, with ensembles."""
    size, batch, n, k = shape
    rng = np.random.default_rng(n)
    layer = BUILD[kind](rng, n, k, size)
    x = rng.standard_normal((*size, batch, n))
    y = layer.forward(x)
    dy = rng.standard_normal(y.shape)
    dx = layer.backward(dy)

    parameters = {key: torch.tensor(p, requires_grad=True) for key, p in layer.parameters.items()}
    tx = torch.tensor(x, requires_grad=True)
    ty = torch_forward(kind, parameters.values(), tx, getattr(layer, "fixed", None))
    ty.backward(torch.tensor(dy), retain_graph=True)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-10, atol=1e-11)
    assert layer.gradients.keys() == parameters.keys()
    for key, g in layer.gradients.items():
        assert isinstance(g, np.ndarray) and g.shape == layer.parameters[key].shape
        np.testing.assert_allclose(g, parameters[key].grad.numpy(), rtol=1e-10, atol=1e-11)

    columns = [torch.autograd.grad(ty[..., j].sum(), tx, retain_graph=True)[0].numpy() for j in range(y.shape[-1])]
    J, before = np.stack(columns, axis=-1), rng.standard_normal((*size, batch, 2, n))
    np.testing.assert_allclose(layer.jacobian() + 0 * J, J, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(layer.jacobian(before), before @ J, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("kind", BUILD)
def test_layers_agree_with_finite_differences(kind, method):
    """The second oracle: the input by both methods, every parameter by central differences."""
    rng = np.random.default_rng(0)
    layer = BUILD[kind](rng, 3, 2, (2,))
    x = rng.standard_normal((2, 4, 3))
    dy = rng.standard_normal(layer.forward(x).shape)
    dx = layer.backward(dy)
    assert bp.gradcheck(lambda x: (layer.forward(x) * dy).sum(), dx, x, method=method).ok
    for key, p in layer.parameters.items() if method == "central" else ():

        def loss(value, p=p):
            kept = p.copy()
            p[...] = value
            result = (layer.forward(x) * dy).sum()
            p[...] = kept
            return result

        report = bp.gradcheck(loss, layer.gradients[key], p)
        assert report.ok, f"{key}\n{report}"


def test_jacobian_around_a_constant_one():
    """The Jacobian of Dense has a batch axis of 1; before it may stand nothing or a batch."""
    rng = np.random.default_rng(0)
    block, x = dense(rng, 3, 3, (2,)), rng.standard_normal((2, 4, 3))
    W, before = block.parameters["W"][:, None], rng.standard_normal((2, 4, 5, 3))
    for layer, J in (
        (rs.Residual(block, scale=[2.0, 3.0]), np.eye(3) + np.reshape([2, 3], (2, 1, 1, 1)) * W),
        (rs.DenseSkip(block), np.concatenate([np.broadcast_to(np.eye(3), W.shape), W], axis=-1)),
    ):
        layer.forward(x)
        np.testing.assert_allclose(layer.jacobian(), J, rtol=1e-13)
        np.testing.assert_allclose(layer.jacobian(before), before @ J, rtol=1e-12)


@pytest.mark.parametrize("kind", BUILD)
def test_shared_input_of_an_ensemble(kind):
    """One input for all networks: the same as a copy for each."""
    rng = np.random.default_rng(0)
    layer, x = BUILD[kind](rng, 3, 2, (2,)), rng.standard_normal((4, 3))
    y = layer.forward(x)
    dy = rng.standard_normal(y.shape)
    dx, got = layer.backward(dy), {k: g.copy() for k, g in layer.gradients.items()}
    np.testing.assert_allclose(layer.forward(np.stack([x, x])), y, rtol=1e-13)
    np.testing.assert_allclose(layer.backward(dy), dx, rtol=1e-12)
    for key, g in layer.gradients.items():
        np.testing.assert_allclose(got[key], g, rtol=1e-12)


def test_shared_learned_scale():
    """One learned scale for an ensemble of inputs gets the sum of their gradients."""
    rng = np.random.default_rng(0)
    layer = rs.Residual(dense(rng, 3, 3), scale=0.5, learn_scale=True)
    x, dy = rng.standard_normal((2, 4, 5, 3))
    layer.forward(x)
    layer.backward(dy)
    np.testing.assert_allclose(layer.gradients["scale"], (dy * layer.block.forward(x)).sum(), rtol=1e-12)
    assert layer.gradients["scale"].shape == ()


@pytest.mark.parametrize("kind", BUILD)
def test_dtype_and_weights_false(kind):
    """float32 in, float32 out, whatever the scale was given as; weights=False leaves gradients alone."""
    rng = np.random.default_rng(0)

    class Single:  # draws in float32
        standard_normal = staticmethod(lambda size: np.asarray(rng.standard_normal(size), np.float32))

    layer = BUILD[kind](Single, 4, 3, (2,))
    if kind == "scaled":
        layer = rs.Residual(layer.block, scale=np.array([0.5, 2.0]))  # float64
    if kind in ("pre", "post"):
        norm = nm.LayerNorm(4, dtype=np.float32)
        layer = (rs.PreNorm if kind == "pre" else rs.PostNorm)(norm, two_layers(Single, 4, 3, (2,)))
    x = Single.standard_normal((2, 5, 4))
    y = layer.forward(x)
    dx = layer.backward(np.ones_like(y), weights=False)
    assert layer.gradients == {}
    layer.backward(np.ones_like(y))
    arrays = [y, dx, layer.jacobian(), *layer.parameters.values(), *layer.gradients.values()]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    around_nothing = rs.Residual(bp.Activate("tanh"), scale=0.5).forward(x)
    assert around_nothing.dtype == np.float32


def test_learned_scale_starts_as_the_identity_and_trains():
    """SkipInit at depth 51: the output is the input, only the scales have gradients, and it learns in place."""
    rng = np.random.default_rng(0)
    net = bp.mlp([2, *[16] * 50, 2], activation="relu", init="he_normal", rng=rng, residual="learn", size=(2,))
    x = rng.standard_normal((64, 2))
    labels = (x[:, 0] > x[:, 1]).astype(int)
    first = vg.cross_entropy(net.forward(x), labels)
    hidden = bp.Sequential(net.layers[1:-1])
    np.testing.assert_array_equal(hidden.forward(np.ones((2, 3, 16))), np.ones((2, 3, 16)))
    scales = [key for key in net.parameters if key.endswith("scale")]
    assert len(scales) == 49 and all(net.parameters[key].shape == (2,) for key in scales)
    for step in range(100):
        net.backward(vg.d_cross_entropy(net.forward(x), labels))
        gradients = net.gradients
        if step == 0:
            assert not gradients["25.block.0.W"].any() and gradients["25.scale"].all()
        for key, p in net.parameters.items():
            p -= 0.05 * gradients[key]
    assert np.all(vg.cross_entropy(net.forward(x), labels) < first / 5)


def test_mlp_with_residual():
    """Only hidden blocks of equal widths become residual; norm stands inside the branch."""
    arguments = dict(activation="tanh", init="he_normal", rng=np.random.default_rng(0))
    net = bp.mlp([3, 5, 5, 4, 4, 4], **arguments, residual=0.5, norm="layer")
    kinds = [bp.Sequential, rs.Residual, bp.Sequential, rs.Residual, bp.Dense]
    assert [type(block) for block in net.layers] == kinds
    assert [type(part) for part in net.layers[1].block.layers] == [bp.Dense, nm.LayerNorm, bp.Activate]
    assert net.layers[1].fixed == 0.5 and "1.block.1.gamma" in net.parameters
    x = np.random.default_rng(1).standard_normal((6, 5))
    branch = net.layers[1].block.forward(x)
    np.testing.assert_allclose(net.layers[1].forward(x), x + 0.5 * branch)
    ensemble = bp.mlp([3, 3, 3], **arguments, size=(2, 3), residual=np.array([[1.0], [2.0]]))
    assert ensemble.forward(np.ones((4, 3))).shape == (2, 3, 4, 3)


# Gradients through very deep networks


def test_doubling_is_exact_at_any_depth():
    """x + x at each block: 2^2000 forward and backward, where floats overflow at 2^1024."""
    depth, x = 2000, np.array([[1.0, -2.0]])
    net = bp.Sequential([rs.Residual(bp.Dense(np.eye(2))) for _ in range(depth)])
    flow = cr.gradient_flow(net, x, dy=x)
    expected = np.arange(depth + 1) * np.log10(2) + np.log10(2.5) / 2
    np.testing.assert_allclose(flow.log10_activation, expected, rtol=1e-12)
    np.testing.assert_allclose(flow.log10_gradient, expected[::-1], rtol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-8), (np.float32, 2e-2)])
@pytest.mark.parametrize("scale, bias, learn", [(1.0, 0, False), (3.0, 1.0, True), (-0.5, 1.0, False)])
@pytest.mark.filterwarnings("error")
def test_deep_relu_residual_networks_agree_with_arbitrary_precision(scale, bias, learn, dtype, tolerance):
    """Depth 1,000, beyond 1e+308 both ways, with biases and learned scales."""
    n, depth, rng = 3, 1000, np.random.default_rng(3)
    net = bp.mlp([n] * (depth + 1), activation="relu", init="he_normal", gain=2.0, rng=rng, dtype=dtype, residual=scale)
    for block in net.layers[:-1]:
        block.block.layers[0].parameters["b"][...] = bias * rng.standard_normal(n)
    if learn:
        net.layers[:-1] = [rs.Residual(block.block, scale=scale, learn_scale=True) for block in net.layers[:-1]]
    x, dy = rng.standard_normal((1, n)).astype(dtype), rng.standard_normal((1, n)).astype(dtype)
    flow = cr.gradient_flow(net, x, dy=dy)
    assert net.gradients == {}

    h, slopes = mpmath.matrix(x.tolist()), []
    weights = [
        [mpmath.matrix(np.atleast_2d(p).tolist()) for p in block.block.layers[0].parameters.values()]
        for block in net.layers[:-1]
    ]
    for W, b in weights:
        z = h * W + b
        slopes.append([int(v > 0) for v in z])
        h = h + scale * mpmath.matrix([[v * s for v, s in zip(z, slopes[-1])]])
    W = mpmath.matrix(net.layers[-1].parameters["W"].tolist())
    g = W * mpmath.matrix(dy[0].tolist())
    for (W, _), s in zip(reversed(weights), reversed(slopes)):
        g = g + scale * (W * mpmath.matrix([v * k for v, k in zip(g, s)]))
    for got, exact in ((flow.log10_activation[-2], h), (flow.log10_gradient[0], g)):
        exact = float(mpmath.log10(mpmath.norm(exact) / mpmath.sqrt(n)))
        assert scale < 0 or exact > 310
        assert got == pytest.approx(exact, abs=tolerance)


def test_ensemble_flow_is_a_stack_of_flows():
    """A scale and an exponent for each network: one that explodes beside one that does not."""
    scale, x = np.array([0.01, 8.0]), np.ones((1, 4))
    build = dict(activation="relu", init="he_normal")
    net = bp.mlp([4] * 501, **build, rng=np.random.default_rng(1), size=(2,), residual=scale)
    flow = cr.gradient_flow(net, x, dy=np.ones((1, 4)))
    for i in range(2):
        one = bp.mlp([4] * 501, **build, rng=np.random.default_rng(1), residual=scale[i])
        for p, stacked in zip(one.parameters.values(), net.parameters.values()):
            p[...] = stacked[i]
        alone = cr.gradient_flow(one, x, dy=np.ones((1, 4)))
        np.testing.assert_allclose(flow.log10_gradient[i], alone.log10_gradient, atol=1e-9)
        np.testing.assert_allclose(flow.log10_activation[i], alone.log10_activation, atol=1e-9)
    assert flow.log10_activation[1, -1] > 310 > 10 > flow.log10_activation[0, -1]


@pytest.mark.parametrize("norm", nm.NORMALIZATIONS)
@pytest.mark.parametrize("residual", [None, 0.5, "learn"])
def test_gradient_flow_of_normalized_networks(norm, residual):
    """They must not be rescaled: the flow is that of plain forward and backward passes."""
    rng = np.random.default_rng(0)
    net = bp.mlp([8] * 13, activation="relu", init="he_normal", gain=1e3, rng=rng, norm=norm, residual=residual)
    x, dy = 1e9 * rng.standard_normal((16, 8)), rng.standard_normal((16, 8))
    flow = cr.gradient_flow(net, x, dy=dy)
    assert net.gradients == {}
    activations, gradients = [x], [dy]
    for block in net.layers:
        activations.append(block.forward(activations[-1]))
    for block in reversed(net.layers):
        gradients.append(block.backward(gradients[-1]))
    for got, arrays in ((flow.log10_activation, activations), (flow.log10_gradient, gradients[::-1])):
        np.testing.assert_allclose(got, [np.log10((a**2).mean()) / 2 for a in arrays], atol=1e-10)


def test_flow_through_dense_skips():
    """A homogeneous DenseSkip is rescaled with its biases: 1e400 and more, exactly."""
    first = rs.DenseSkip(bp.Dense(np.eye(2), np.ones(2)))
    merge = bp.Dense(np.vstack([np.eye(2), np.eye(2)]))  # (x, x + 1) -> 2 x + 1
    net = bp.Sequential([bp.Sequential([first, merge]) for _ in range(1500)])
    flow = cr.gradient_flow(net, np.ones((1, 2)), dy=np.ones((1, 2)))
    k = np.arange(1501)
    exact = [float(mpmath.log10(mpmath.mpf(2) ** (int(i) + 1) - 1)) for i in k]  # x = 2^(k + 1) - 1
    np.testing.assert_allclose(flow.log10_activation, exact, atol=1e-9)
    np.testing.assert_allclose(flow.log10_gradient, k[::-1] * np.log10(2), atol=1e-9)


def test_singular_values_through_residual_blocks():
    """The Jacobians that the spectrum is made of are those of the blocks."""
    net = bp.mlp([4] * 9, activation="tanh", init="glorot_normal", rng=np.random.default_rng(0), residual=0.5)
    x = np.random.default_rng(1).standard_normal((2, 4))
    net.forward(x)
    plain = np.log10(np.linalg.svd(net.jacobian(), compute_uv=False))
    np.testing.assert_allclose(spectrum.log10_singular_values(net, x), plain, atol=1e-10)


def widths_error(widths, residual, size=()):
    return lambda: bp.mlp(
        widths, activation="relu", init="zeros", rng=np.random.default_rng(0), residual=residual, size=size
    )


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: rs.Residual(bp.Dense(np.ones((3, 1)))).forward(np.ones((2, 3))), ValueError,
         r"block: got an output of shape \(2, 1\), expected \(..., 2, 3\)"),
        (lambda: rs.Residual(bp.Dense(np.eye(2)), scale="1"), TypeError, "scale: got an array of <U1"),
        (lambda: rs.Highway(bp.Dense(np.eye(2)), np.ones((2, 1))).forward(np.ones((3, 2))), ValueError, r"expected \(..., 3, 2\)"),
        (widths_error([2, 3, 4, 4], 1.0), ValueError, r"residual: got widths \[2, 3, 4, 4\], expected a hidden block"),
        (widths_error([2, 2], "learn"), ValueError, r"residual: got widths \[2, 2\]"),
        (widths_error([2, 2, 2], "lern"), ValueError, "residual: got 'lern', expected one of learn. Did you mean 'learn'"),
        (widths_error([2, 2, 2], False), TypeError, "residual: got False, expected a number"),
        (widths_error([2, 2, 2], np.ones(3)), ValueError, r"residual: got shape \(3,\), expected one that broadcasts to size \(\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


# Stacks, paths, shattered gradients


def test_residual_stack_is_what_its_docstring_says():
    """Without a skip, with one, with the norm in the branch and after the sum; the same weights each time."""
    x = np.random.default_rng(1).standard_normal((5, 4))
    make = dict(width=4, depth=1, activation="tanh")
    nets = {
        kind: rs.residual_stack(rng=np.random.default_rng(0), **make, **arguments)
        for kind, arguments in {
            "plain": dict(scale=None), "scaled": dict(scale=0.5), "pre": dict(scale=0.5, norm="layer"),
            "post": dict(scale=0.5, norm="layer", post=True),
        }.items()
    }  # fmt: skip
    W = nets["plain"].layers[0].layers[1].parameters["W"]
    norm = nm.LayerNorm(4)
    np.testing.assert_allclose(nets["plain"].forward(x), np.tanh(x) @ W)
    np.testing.assert_allclose(nets["scaled"].forward(x), x + 0.5 * np.tanh(x) @ W)
    np.testing.assert_allclose(nets["pre"].forward(x), x + 0.5 * np.tanh(norm.forward(x)) @ W)
    np.testing.assert_allclose(nets["post"].forward(x), norm.forward(x + 0.5 * np.tanh(x) @ W))
    big = rs.residual_stack(200, 1, rng=np.random.default_rng(0), size=(3,))
    assert big.layers[0].block.layers[1].parameters["W"].var() == pytest.approx(2 / 200, rel=0.02)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_path_gradients_are_all_paths(activation):
    """Against each of the 2^L paths one by one, and their sum against backward."""
    L, rng = 4, np.random.default_rng(0)
    net = rs.residual_stack(3, L, rng=rng, scale=0.7, activation=activation, size=(2,))
    x, dy = rng.standard_normal((2, 2, 5, 3))
    net.forward(x)
    G = rs.path_gradients(net.layers, dy)
    expected = np.zeros_like(G)
    for path in range(2**L):
        g = dy
        for l in reversed(range(L)):
            if path >> l & 1:
                g = 0.7 * net.layers[l].block.backward(g, weights=False)
        expected[path.bit_count()] += g
    np.testing.assert_allclose(G, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(G.sum(axis=0), net.backward(dy), rtol=1e-12)


def test_the_mean_square_follows_the_law_of_paths():
    """C(L, j) scale^(2j) for the paths through j branches, (1 + scale^2)^L for all; pre-norm L + 1."""
    L, rng = 12, np.random.default_rng(1)
    net = rs.residual_stack(64, L, rng=rng, scale=0.5, size=(20,))
    x, dy = rng.standard_normal((2, 20, 8, 64))
    net.forward(x)
    square = (rs.path_gradients(net.layers, dy) ** 2).mean(axis=(1, 2, 3))
    law = [math.comb(L, j) * 0.25**j for j in range(L + 1)]
    np.testing.assert_allclose(square[:6], law[:6], rtol=0.15)
    assert (net.backward(dy) ** 2).mean() == pytest.approx(1.25**L, rel=0.15)
    pre = rs.residual_stack(64, L, rng=rng, norm="rms", size=(60,))
    x, dy = rng.standard_normal((2, 60, 8, 64))
    pre.forward(x)
    assert (pre.backward(dy, weights=False) ** 2).mean() == pytest.approx(L + 1, rel=0.25)


def test_autocorrelation():
    """A random walk near 1, white noise near 0, a period of two at -1; numpy's corrcoef for long series."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((2, 20_000))
    assert np.all(np.abs(rs.autocorrelation(white, 3)) < 0.03)
    assert np.all(rs.autocorrelation(np.cumsum(white, axis=-1)) > 0.99)
    assert rs.autocorrelation(np.tile([1.0, -1.0], 500)) == pytest.approx(-1, abs=0.002)
    smooth = white[0, 1:] + white[0, :-1]
    assert rs.autocorrelation(smooth) == pytest.approx(np.corrcoef(smooth[1:], smooth[:-1])[0, 1], abs=1e-3)


@pytest.mark.parametrize("kind", ["plain", "centered", "residual"])
def test_shattering_is_the_limit_of_wide_networks(kind):
    """The correlation of two gradients through the library's own layers, statistics of many inputs held."""
    L, width, rng = 4, 512, np.random.default_rng(0)
    residual = kind == "residual"
    signal, gradient = rs.shattering(0.8, L, centered=kind != "plain", scale=0.7 if residual else None)
    a, b = rng.standard_normal((2, 200, width))
    h = np.concatenate([a, 0.8 * a + 0.6 * b])
    net = rs.residual_stack(
        width, L, rng=rng, scale=0.7 if residual else None, norm=None if kind == "plain" else "batch"
    )
    for block in net.layers:
        for layer in getattr(block, "block", block).layers:
            layer.momentum = 1.0
        block.forward(h)
        nm.set_training(block, False)
        h = block.forward(h)
    z = h if kind == "plain" else h - h.mean(axis=0)
    g = net.backward(np.broadcast_to(rng.standard_normal(width), h.shape), weights=False)
    for got, want in ((z, signal[-1]), (g, gradient[-1])):
        one, two = got[:200], got[200:]
        assert (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()) == pytest.approx(want, abs=0.03)
    assert signal[0] == 0.8 and gradient[0] == 1 and len(signal) == len(gradient) == L + 1


def test_shattering_far_down():
    """A power without centering, 2^-L with it; the slope of the centered map at 1 is pi / (pi - 1)."""
    plain, centered = rs.shattering(0.5, 4000)[1], rs.shattering(0.5, 60, centered=True)[1]
    assert plain[4000] / plain[2000] == pytest.approx(2**-3, rel=0.02)
    assert centered[60] / centered[59] == pytest.approx(0.5, rel=1e-3)
    near = 1 - 1e-8
    signal = rs.shattering(near, 1, centered=True)[0]
    assert (1 - signal[1]) / (1 - near) == pytest.approx(np.pi / (np.pi - 1), rel=1e-3)


def test_grids():
    """Plain lists; at scale 0 nothing changes, at scale 1 relu follows the law; centered slopes become noise."""
    grid = rs.residual_grid(rng=np.random.default_rng(0), names=("relu",), depths=(10, 30), width=64)
    assert len(grid) == len(rs.SCALES) * 2 * 2
    for row in grid:
        assert len(row["layer"]) == len(row["forward"]) == len(row["backward"]) == (11 if row["depth"] == 10 else 21)
        assert row["layer"][-1] == row["depth"] and row["backward"][-1] == row["forward"][0] == 0
        if row["scale"] == "0":
            assert not any(row["forward"]) and not any(row["backward"])
        if row["scale"] == "1":
            assert row["backward"][0] == pytest.approx(row["depth"] * np.log10(2) / 2, rel=0.15)
    rows = rs.shatter_grid(rng=np.random.default_rng(0), depths=(1, 25), width=64)
    assert len(rows) == 6 and all(len(r["x"]) == len(r["gradient"]) == 128 for r in rows)
    correlation = {(r["kind"], r["depth"]): r["correlation"] for r in rows}
    assert min(correlation[kind, 1] for kind in ("plain", "centered", "residual")) > 0.9
    assert abs(correlation["centered", 25]) < 0.3 < 0.5 < correlation["residual", 25]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: rs.residual_stack(4, 0, rng=np.random.default_rng(0)), ValueError, "depth: got 0"),
        (lambda: rs.residual_stack(4, 2, rng=np.random.default_rng(0), post=True), ValueError, "post: got True without a norm"),
        (lambda: rs.residual_stack(4, 2, rng=np.random.default_rng(0), norm="bach"), ValueError, "Did you mean 'batch'"),
        (lambda: rs.shattering(0.5, 3, scale=1.0), ValueError, "scale: got a number without centered=True"),
        (lambda: rs.autocorrelation(np.ones(4), 0), ValueError, "lag: got 0"),
    ],
)  # fmt: skip
def test_bad_input_of_the_stacks(call, error, message):
    with pytest.raises(error, match=message):
        call()


@in_browser
def test_the_explorable_of_scales_moves_and_is_right(tab, server):
    """Each menu and the slider by keyboard; the curves drawn are the library's for that choice."""
    figure = open_explorable(tab, server, "chapters/residuals/lesson.html", "scales")
    grid = rs.residual_grid(rng=np.random.default_rng(0))
    rows = {(r["scale"], r["activation"], r["depth"], r["network"]): r for r in grid}
    menus, slider = figure.locator("select"), figure.locator("input[type=range]")
    assert menus.count() == 3 and slider.count() == 1
    for scale, activation, depth in (
        ("1/sqrt(L)", "tanh", "40"),
        ("pre-norm", "identity", "10"),
        ("plain", "tanh", "160"),
    ):
        for i, wanted in enumerate((scale, activation, depth)):
            choose(menus.nth(i), wanted)
        move(slider, "ArrowLeft")
        seen = drawn(tab, "scales", "network", "layer", "part", "forward", "backward")
        row = rows[scale, activation, int(depth), 0]
        assert {r["layer"] for r in seen} == set(row["layer"]) and {r["network"] for r in seen} == {0, 1}
        for r in seen:
            row = rows[scale, activation, int(depth), r["network"]]
            k = row["layer"].index(r["layer"])
            assert (r["forward"], r["backward"]) == (row["forward"][k], row["backward"][k])
            assert r["part"] == pytest.approx(r["layer"] / int(depth))
        assert figure.locator("text", has_text=f"signal after {depth} blocks").count() == 1
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_shattered_gradients_moves_and_is_right(tab, server):
    """Menu and slider by keyboard; the curve drawn is the library's, and so is the correlation written."""
    figure = open_explorable(tab, server, "chapters/residuals/lesson.html", "shatter")
    rows = {(r["kind"], r["depth"]): r for r in rs.shatter_grid(rng=np.random.default_rng(0))}
    menu, slider = figure.locator("select"), figure.locator("input[type=range]")
    assert menu.count() == slider.count() == 1
    for kind, key in (("residual", "ArrowRight"), ("plain", "ArrowRight"), ("centered", "ArrowLeft")):
        choose(menu, kind)
        row = rows[kind, int(move(slider, key))]
        seen = drawn(tab, "shatter", "place", "slope")
        assert [(r["place"], r["slope"]) for r in seen] == list(zip(row["x"], row["gradient"]))
        says = f"correlation of neighbors: {row['correlation']:.2f}".replace("-", "−")
        assert figure.locator("text", has_text=says).count() == 1
    assert tab.errors == [] and tab.outside == []
