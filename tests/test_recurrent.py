"""Recurrent cells against torch, differences and arbitrary precision."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from browser import choose, drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp
from vanishing import recurrent as rc

CELLS = {"RNN": rc.RNN, "LSTM": rc.LSTM, "GRU": rc.GRU}
cells = pytest.mark.parametrize("name", CELLS)
repeat = settings(derandomize=True, max_examples=15, deadline=None)
shapes = st.tuples(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 12), st.lists(st.integers(1, 3), max_size=2)
)


def make(name, n_in, n, size=(), seed=0, **kwargs):
    """A cell with biases, and the generator that drew it."""
    rng = np.random.default_rng(seed)
    cell = CELLS[name](n_in, n, rng=rng, size=size, init="lecun_normal", recurrent_init="gaussian", **kwargs)
    for key in cell.biases:
        cell.parameters[key] += 0.5 * rng.standard_normal(cell.parameters[key].shape)
    return cell, rng


def states(name, shape, rng):
    """Initial states: h, and c in an LSTM."""
    return [rng.standard_normal(shape) for _ in range(2 if name == "LSTM" else 1)]


def torch_twin(name, cell, index, kind=""):
    """torch.nn.RNN, LSTM or GRU (or its Cell) in float64, with the weights of one member."""
    W, U, b, *c = (torch.tensor(p[index]) for p in cell.parameters.values())
    options = {} if kind else {"batch_first": True}
    if name == "RNN":
        options["nonlinearity"] = cell.activation.name
    twin = getattr(torch.nn, name + kind)(W.shape[0], cell.n_hidden, dtype=torch.float64, **options)
    with torch.no_grad():
        for p, value in zip(twin.parameters(), (W.T, U.T, b, c[0] if c else torch.zeros_like(b)), strict=True):
            p.copy_(value)
    return twin


def close(ours, theirs):
    """Relative 1e-10, entry by entry; entries that cancel are held to 1e-12 of the largest."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * np.abs(theirs).max(initial=0))


def compare_with_torch(name, shape, activation="tanh", gain=0.8):
    n_in, n, batch, T, size = shape
    cell, rng = make(name, n_in, n, size, gain=gain / n**0.5, **({"activation": activation} if name == "RNN" else {}))
    x, dy = rng.standard_normal((*size, batch, T, n_in)), rng.standard_normal((*size, batch, T, n))
    initial = states(name, (*size, batch, n), rng)
    y = cell.forward(x, *initial)
    dx = cell.backward(dy)
    assert y.shape == (*size, batch, T, n) and dx.shape == x.shape
    assert cell.gradients.keys() == cell.parameters.keys()
    for index in np.ndindex(*size):
        twin = torch_twin(name, cell, index)
        tx, *ts = (torch.tensor(v[index], requires_grad=True) for v in (x, *initial))
        ty, _ = twin(tx, tuple(s[None] for s in ts) if name == "LSTM" else ts[0][None])
        ty.backward(torch.tensor(dy[index]))
        close(y[index], ty)
        close(dx[index], tx.grad)
        for d, s in zip(cell.d_initial, ts, strict=True):
            close(d[index], s.grad)
        W, U, b, c = (p.grad for p in twin.parameters())
        for key, g in {"W": W.T, "U": U.T, "b": b, "c": c}.items():
            if key in cell.gradients:
                close(cell.gradients[key][index], g)


@cells
@repeat
@given(shapes)
@example((3, 4, 2, 1, [2]))
@example((3, 4, 2, 200, [2]))
def test_cells_agree_with_torch(name, shape):
    """Values and every gradient, of the input, the parameters and the initial states."""
    compare_with_torch(name, shape)


@pytest.mark.parametrize("name, gain", [("LSTM", 4.0), ("GRU", 4.0)])
def test_open_and_closed_gates_agree_with_torch(name, gain):
    """Gates far from 1/2 and candidates near saturation, where a wrong slope shows most."""
    compare_with_torch(name, (3, 6, 4, 40, []), gain=gain)


def test_relu_agrees_with_torch():
    """The other activation that torch has."""
    compare_with_torch("RNN", (3, 5, 2, 50, [2]), activation="relu")


@cells
@pytest.mark.parametrize("method", ["central", "complex"])
def test_cells_agree_with_differences(name, method):
    """The second oracle: input, every parameter, and the initial states."""
    cell, rng = make(name, 2, 3)
    x, dy = rng.standard_normal((2, 4, 2)), rng.standard_normal((2, 4, 3))
    initial = states(name, (2, 3), rng)
    cell.forward(x, *initial)
    dx = cell.backward(dy)

    def check(gradient, value, run):
        report = bp.gradcheck(lambda v: (run(v) * dy).sum(), gradient, value, method=method)
        assert report.ok, report

    check(dx, x, lambda v: cell.forward(v, *initial))
    for k, (d, s) in enumerate(zip(cell.d_initial, initial, strict=True)):
        check(d, s, lambda v, k=k: cell.forward(x, *initial[:k], v, *initial[k + 1 :]))
    for key, p in cell.parameters.items():

        def run(v, key=key):
            cell.parameters[key] = v
            return cell.forward(x, *initial)

        check(cell.gradients[key], p, run)
        cell.parameters[key] = p


@cells
def test_ensembles_share_inputs_or_parameters(name):
    """One x for all members gives a gradient each; one parameter for all gets the sum."""
    cell, rng = make(name, 2, 3, size=(2,))
    x, dy = rng.standard_normal((4, 5, 2)), rng.standard_normal((2, 4, 5, 3))
    y, dx = cell.forward(x), cell.backward(dy)
    one, _ = make(name, 2, 3)
    for i in range(2):
        one.parameters = {key: p[i] for key, p in cell.parameters.items()}
        np.testing.assert_allclose(one.forward(x), y[i], rtol=1e-12)
        np.testing.assert_allclose(one.backward(dy[i]), dx[i], rtol=1e-11, atol=1e-14)
        for key, g in one.gradients.items():
            np.testing.assert_allclose(g, cell.gradients[key][i], rtol=1e-11, atol=1e-14)
    xs = rng.standard_normal((2, 4, 5, 2))
    one.forward(xs)
    one.backward(dy)
    total = {key: np.copy(g) for key, g in one.gradients.items()}
    for key in total:
        assert total[key].shape == one.parameters[key].shape
    for i in range(2):
        one.forward(xs[i])
        one.backward(dy[i])
        for key, g in one.gradients.items():
            total[key] -= g
    for g in total.values():
        np.testing.assert_allclose(g, 0, atol=1e-12)


@cells
def test_states_carry_a_sequence_on(name):
    """Two halves, the second from the last states of the first, are the whole; h[0] is given back."""
    cell, rng = make(name, 2, 3)
    x = rng.standard_normal((4, 7, 2))
    whole = cell.forward(x).copy()
    first = cell.forward(x[:, :3]).copy()
    last = [cell.h[-1], cell.c[-1]] if name == "LSTM" else [cell.h[-1]]
    second = cell.forward(x[:, 3:], *last)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-12)
    np.testing.assert_array_equal(cell.h[0], last[0])


@cells
def test_dtype_and_flags(name):
    """float32 in, float32 out; weights=False leaves gradients alone; the output is read-only."""
    cell = CELLS[name](2, 3, rng=np.random.default_rng(0), dtype=np.float32)
    y = cell.forward(np.ones((4, 5, 2), np.float32))
    dx = cell.backward(np.ones_like(y), weights=False)
    assert cell.gradients == {}
    cell.backward(np.ones_like(y))
    arrays = [y, dx, *cell.parameters.values(), *cell.gradients.values(), *cell.d_initial]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match="read-only"):
        y += 1


@cells
@pytest.mark.filterwarnings("error")
def test_extreme_inputs_saturate_in_silence(name):
    """exp overflows inside the gates of float32; the values must not notice."""
    cell, _ = make(name, 2, 3, dtype=np.float32)
    for scale in (1e4, -1e4):
        y = cell.forward(np.full((1, 4, 2), scale, np.float32))
        assert np.all(np.abs(y) <= 1) and np.all(np.isfinite(cell.backward(np.ones_like(y))))


# Initial weights


@cells
def test_recurrent_weights_of_each_gate(name):
    """Each gate of each member has its own matrix, with the gain of the member."""
    gain = np.array([0.5, 2.0])

    def gates(scheme):
        cell = CELLS[name](2, 6, rng=np.random.default_rng(0), recurrent_init=scheme, gain=gain, size=(2,))
        return np.stack(np.split(cell.parameters["U"], cell.gates, axis=-1))

    U = gates("orthogonal")
    np.testing.assert_allclose(U @ np.swapaxes(U, -1, -2) / gain[:, None, None] ** 2, np.eye(6) + 0 * U, atol=1e-12)
    np.testing.assert_array_equal(gates("identity"), gain[:, None, None] * np.eye(6) + 0 * U)
    U = gates("spectral_radius")
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(U)).max(axis=-1), gain + 0 * U[..., 0, 0], rtol=1e-12)
    assert len(np.unique(U)) == U.size
    assert np.all(np.abs(gates("lecun_normal")).mean(axis=(0, 2, 3)) / gain > 0.2)


def test_input_weights_and_biases():
    """fan_out is one gate, not all of them; biases are 0 but for the forget gate of each member."""
    cell = rc.LSTM(200, 100, rng=np.random.default_rng(0), size=(2,), forget_bias=np.array([1.0, 5.0]))
    assert cell.parameters["W"].std() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    np.testing.assert_array_equal(cell.parameters["b"].reshape(2, 4, 100)[..., 0], [[0, 1, 0, 0], [0, 5, 0, 0]])
    assert not any(rc.GRU(2, 3, rng=np.random.default_rng(0)).parameters[key].any() for key in "bc")


def test_identity_relu_keeps_its_state():
    """The IRNN without input is a perfect memory, and so is its gradient."""
    cell = rc.RNN(1, 4, rng=np.random.default_rng(0), activation="relu", recurrent_init="identity")
    h0, x = np.random.default_rng(1).random((3, 4)), np.zeros((3, 50, 1))
    np.testing.assert_array_equal(cell.forward(x, h0)[:, -1], h0)
    dy = np.zeros((3, 50, 4))
    dy[:, -1] = 1
    cell.backward(dy)
    np.testing.assert_array_equal(cell.d_initial[0], np.ones((3, 4)))


@repeat
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.integers(0, 100))
def test_spectral_radius_of_known_eigenvalues(values, seed):
    """Complex pairs count by modulus, and the basis does not matter."""
    n, rng = len(values), np.random.default_rng(seed)
    D = np.diag(values)
    D[:2, :2] = [[values[0], -values[1]], [values[1], values[0]]]  # values[0] +- i values[1]
    Q = np.linalg.qr(rng.standard_normal((3, n, n)))[0]
    expected = max([np.hypot(*values[:2]), *np.abs(values[2:])])
    np.testing.assert_allclose(rc.spectral_radius(Q @ D @ np.swapaxes(Q, -1, -2)), [expected] * 3, rtol=1e-7, atol=1e-7)


# Gradients through time


@cells
@repeat
@given(shapes)
def test_gradient_through_time_agrees_with_torch(name, shape):
    """dL/dh_t at every step, t = 0 included, from autograd through unrolled cells."""
    n_in, n, batch, T, size = shape
    cell, rng = make(name, n_in, n, size)
    x, dy = rng.standard_normal((*size, batch, T, n_in)), rng.standard_normal((*size, batch, n))
    got = rc.gradient_through_time(cell, x, dy_last=dy)
    assert got.shape == (*size, T + 1)
    for index in np.ndindex(*size):
        step, tx = torch_twin(name, cell, index, "Cell"), torch.tensor(x[index])
        state = [torch.zeros((batch, n), dtype=torch.float64) for _ in range(2 if name == "LSTM" else 1)]
        state[0].requires_grad_()
        hidden = [state[0]]
        for t in range(T):
            out = step(tx[:, t], tuple(state) if name == "LSTM" else state[0])
            state = list(out) if name == "LSTM" else [out]
            state[0].retain_grad()
            hidden.append(state[0])
        hidden[-1].backward(torch.tensor(dy[index]))
        rms = [h.grad.pow(2).mean().sqrt().log10().item() for h in hidden]
        np.testing.assert_allclose(got[index], rms, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name, gain, beyond", [("RNN", 0.05, -2000), ("RNN", 6, 308), ("LSTM", 0.05, -500), ("LSTM", 16, 400),
                           ("GRU", 0.05, -500), ("GRU", 10, 150)],
)  # fmt: skip
def test_gradient_over_2000_steps(name, gain, beyond):
    """Far outside float64, both ways; the Jacobian of each step is torch's, at the same states."""
    T, n = 2000, 24
    cell, rng = make(name, 2, n, gain=gain / n**0.5)
    if name != "RNN":
        cell.parameters["b"][n : 2 * n] -= 2  # more forgetting
    x, dy = 0.3 * rng.standard_normal((1, T, 2)), rng.standard_normal((1, n))
    got = rc.gradient_through_time(cell, x, dy_last=dy)
    cell.forward(x)
    twin = torch_twin(name, cell, (), "Cell")
    trajectory = np.concatenate([cell.h[:-1, 0], cell.c[:-1, 0]] if name == "LSTM" else [cell.h[:-1, 0]], axis=-1)

    def step(s, x):
        return torch.cat(twin(x, (s[:n], s[n:]))) if name == "LSTM" else twin(x, s)

    J = torch.func.vmap(torch.func.jacrev(step))(torch.tensor(trajectory), torch.tensor(x[0])).detach().numpy()
    v, log10 = np.zeros(J.shape[-1]), 0.0
    v[:n] = dy[0]
    expected = [np.log10(np.linalg.norm(v[:n]) / n**0.5)]
    for M in reversed(J):
        v = v @ M
        scale = np.linalg.norm(v)
        v, log10 = v / scale, log10 + np.log10(scale)
        expected.append(log10 + np.log10(np.linalg.norm(v[:n]) / n**0.5))
    assert got[0] < beyond if beyond < 0 else got[0] > beyond
    np.testing.assert_allclose(got, expected[::-1], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-8), (np.float32, 1e-2)])
@pytest.mark.parametrize("gain, silent", [(8.0, False), (0.05, True), (0.05, False)])
@pytest.mark.filterwarnings("error")
def test_relu_states_leave_the_range_of_floats(gain, silent, dtype, tolerance):
    """2,000 steps of a homogeneous network, with input or none after the first step: exact signs."""
    T, n = 2000, 3
    rng = np.random.default_rng(1)
    cell = rc.RNN(2, n, rng=rng, activation="leaky_relu", recurrent_init="spectral_radius", gain=gain, dtype=dtype)
    x, dy = rng.standard_normal((1, T, 2)).astype(dtype), rng.standard_normal((1, n)).astype(dtype)
    if silent:
        x[:, 1:] = 0
    got = rc.gradient_through_time(cell, x, dy_last=dy)
    W, U = (mpmath.matrix(cell.parameters[key].tolist()) for key in "WU")
    h, slopes = mpmath.zeros(1, n), []
    for row in x[0].tolist():
        z = mpmath.matrix([row]) * W + h * U
        slopes.append([1 if v > 0 else mpmath.mpf(0.01) for v in z])
        h = mpmath.matrix([[v * s for v, s in zip(z, slopes[-1], strict=True)]])
    g, exact = mpmath.matrix(dy[0].tolist()), []
    for s in reversed(slopes):
        g = U * mpmath.matrix([v * k for v, k in zip(g, s, strict=True)])
        exact.append(float(mpmath.log10(mpmath.norm(g) / mpmath.sqrt(n))))
    assert abs(exact[-1]) > 350
    np.testing.assert_allclose(got[:-1], exact[::-1], rtol=tolerance * 1e-2, atol=tolerance)


@pytest.mark.filterwarnings("error")
def test_members_are_rescaled_each_by_its_own():
    """One member at 1e-600, one at 1, one exploding, one dead: none disturbs another."""
    cell = rc.RNN(1, 4, rng=np.random.default_rng(0), activation="identity", gain=np.array([0.5, 1, 2, 0]), size=(4,))
    dy = np.random.default_rng(1).standard_normal((4, 3, 4))
    got = rc.gradient_through_time(cell, np.ones((3, 2000, 1)), dy_last=dy)
    start = np.log10((dy**2).mean(axis=(-2, -1))) / 2
    slope = np.log10([0.5, 1, 2])
    np.testing.assert_allclose(got[:3], start[:3, None] + slope[:, None] * np.arange(2000, -1, -1), atol=1e-9)
    assert np.all(got[3, :-1] == -np.inf) and got[3, -1] == pytest.approx(start[3])


@cells
def test_gradient_through_time_leaves_the_cell_alone(name):
    """What backward returns is the same before and after; the same rng gives the same flow."""
    cell, rng = make(name, 2, 3)
    x = rng.standard_normal((50, 6, 2))
    cell.forward(x[:, :4])
    dy = np.ones((50, 4, 3))
    dx, gradients = cell.backward(dy), {key: g.copy() for key, g in cell.gradients.items()}
    first, second = (rc.gradient_through_time(cell, x, rng=np.random.default_rng(2)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert abs(first[-1]) < 0.2 and first.dtype == np.float64
    for key, g in cell.gradients.items():
        np.testing.assert_array_equal(g, gradients[key])
    np.testing.assert_array_equal(cell.backward(dy), dx)


@repeat
@given(st.sampled_from(["tanh", "gelu"]), shapes)
def test_state_jacobians_agree_with_backward(activation, shape):
    """Their product, in order, is dh_T/dh_0 as backward has it; every leading axis is there."""
    n_in, n, batch, T, size = shape
    cell, rng = make("RNN", n_in, n, size, activation=activation)
    cell.forward(rng.standard_normal((*size, batch, T, n_in)), rng.standard_normal((*size, batch, n)))
    J = cell.state_jacobians()
    assert J.shape == (T, *size, batch, n, n)
    product = J[0]
    for M in J[1:]:
        product = product @ M
    for k in range(n):
        dy = np.zeros((*size, batch, T, n))
        dy[..., -1, k] = 1
        cell.backward(dy, weights=False)
        np.testing.assert_allclose(cell.d_initial[0], product[..., k], rtol=1e-9, atol=1e-12)


def rnn(**kwargs):
    return rc.RNN(2, 3, **({"rng": np.random.default_rng(0)} | kwargs))


def after_forward(**kwargs):
    cell = rnn(**kwargs)
    cell.forward(np.ones((4, 5, 2)))
    return cell


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: rnn(rng=0), TypeError, "rng: got int"),
        (lambda: rc.RNN(2, 0, rng=np.random.default_rng(0)), ValueError, "n_hidden: got 0, expected at least 1"),
        (lambda: rnn(activation="tahn"), ValueError, "Did you mean 'tanh'"),
        (lambda: rnn(init="glorot"), ValueError, "scheme: got 'glorot'"),
        (lambda: rnn(recurrent_init="identiti"), ValueError, "recurrent_init: .*orthogonal.* Did you mean 'identity'"),
        (lambda: rnn(gain=np.ones(2), size=(3,)), ValueError, r"gain: got shape \(2,\)"),
        (lambda: rnn(recurrent_init="identity", gain=np.ones(2)), ValueError, r"gain: got shape \(2,\)"),
        (lambda: rc.LSTM(2, 3, rng=np.random.default_rng(0), forget_bias=np.ones(2)), ValueError,
         r"forget_bias: got shape \(2,\)"),
        (lambda: rnn().forward(np.ones((4, 5))), ValueError, r"x: got shape \(4, 5\), expected \(..., batch, T, 2\)"),
        (lambda: rnn().forward(np.ones((4, 5, 3))), ValueError, r"x: got shape \(4, 5, 3\)"),
        (lambda: rnn().forward(np.ones((4, 0, 2))), ValueError, "T of at least 1"),
        (lambda: rnn().forward(np.ones((4, 5, 2)), np.ones((5, 3))), ValueError, r"h0: got shape \(5, 3\), expected one that broadcasts to \(4, 3\)"),
        (lambda: rc.LSTM(2, 3, rng=np.random.default_rng(0)).forward(np.ones((4, 5, 2)), c0=np.ones(2)), ValueError, "c0: got"),
        (lambda: after_forward().backward(np.ones((4, 3))), ValueError, r"dy: got shape \(4, 3\), expected \(4, 5, 3\)"),
        (lambda: rc.gradient_through_time(rnn(), np.ones((4, 5, 2))), TypeError, "rng: got NoneType"),
        (lambda: rc.gradient_through_time(bp.Dense(np.eye(2)), np.ones((4, 5, 2))), TypeError, "cell: got Dense"),
        (lambda: rc.gradient_through_time(rnn(), np.ones((4, 5, 2)), dy_last=np.ones(2)), ValueError, r"dy_last: got shape \(2,\)"),
        (lambda: rc.spectral_radius(np.ones((2, 3))), ValueError, r"W: got shape \(2, 3\)"),
        (lambda: rc.spectral_radius(np.full((2, 2), np.nan)), ValueError, "expected finite square"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


@repeat
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 100))
def test_back_through_time_is_the_cells_backward(n, T, seed):
    """The few lines of the lesson and the class: dC/dh_0, and each step is the next one times its Jacobian."""
    rng = np.random.default_rng(seed)
    net = rc.RNN(2, n, rng=rng, recurrent_init="gaussian")
    h = net.forward(rng.standard_normal((3, T, 2)))
    g = rng.standard_normal((3, n))
    gs = rc.back_through_time(g, np.moveaxis(1 - h**2, -2, 0), net.parameters["U"])
    dy = np.zeros(h.shape)
    dy[:, -1] = g
    net.backward(dy)
    assert gs.shape == (T + 1, 3, n) and np.array_equal(gs[-1], g)
    np.testing.assert_allclose(gs[0], net.d_initial[0], rtol=1e-10, atol=1e-14)
    J = net.state_jacobians()
    for t in range(T):
        np.testing.assert_allclose(gs[t], (J[t] @ gs[t + 1][..., None])[..., 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("radius", [0.3, 1.0, 1.7])
def test_gate_multiplier_is_the_measured_one(bias, radius):
    """Where U_c is a multiple of the identity, without input, each step has exactly this factor."""
    x, rng = np.zeros((1, 12, 1)), np.random.default_rng(0)
    lstm = rc.LSTM(1, 3, rng=rng, forget_bias=bias, recurrent_init="identity", gain=radius)
    gru = rc.GRU(1, 3, rng=rng, recurrent_init="identity", gain=radius)
    gru.parameters["b"][3:6] = bias
    for name, cell in (("LSTM", lstm), ("GRU", gru)):
        g = rc.gradient_through_time(cell, x, rng=rng)[1:11]
        np.testing.assert_allclose(10 ** (g[:-1] - g[1:]), rc.gate_multiplier(bias, radius, name), rtol=1e-9)
    with pytest.raises(ValueError, match="cell"):
        rc.gate_multiplier(bias, radius, "LSTN")


def test_memory_grid():
    """Rows of plain lists; without recurrent weights a GRU falls by the gate, and the two cells alike."""
    grid = rc.memory_grid(rng=np.random.default_rng(1), biases=(0, 2), radii=(0.0, 1.0), width=8, T=40, networks=3)
    assert len(grid) == 2 * 2 * 2
    rows = {(r["cell"], r["bias"], r["radius"]): r for r in grid}
    for row in grid:
        assert row["back"] == list(range(1, 41, 5)) and len(row["log10"]) == 8 and row["log10"][0] == 0
    for bias in (0, 2):
        for cell in ("LSTM", "GRU"):
            law = 35 * np.log10(rc.gate_multiplier(bias, 0, cell))
            assert rows[cell, bias, 0.0]["log10"][-1] == pytest.approx(law, abs=0.8)
            assert rows[cell, bias, 1.0]["log10"][-1] > law


def test_radius_grid():
    """An orthogonal matrix without slopes keeps its power exactly; no gradient exceeds the bound by the norm."""
    grid = rc.radius_grid(rng=np.random.default_rng(1), radii=(0.5, 1.2), width=8, T=20, networks=3)
    assert len(grid) == 3 * 4 * 2
    for row in grid:
        back, log10 = np.array(row["back"]), np.array(row["log10"])
        slope = 0.25 if row["activation"] == "sigmoid" else 1
        if row["matrix"] != "Gaussian":  # there the norm is a median
            assert np.all(log10 <= back * np.log10(row["norm"] * slope) + 0.02)
        if row["matrix"] == "orthogonal":
            assert row["norm"] == pytest.approx(row["radius"])
            if row["activation"] == "identity":
                np.testing.assert_allclose(log10, back * np.log10(row["radius"]), atol=0.01)


@in_browser
def test_the_explorable_of_radius_moves_and_is_right(tab, server):
    """Each menu and the slider by keyboard; the curves drawn are the library's for that choice."""
    figure = open_explorable(tab, server, "chapters/recurrent/lesson.html", "radius")
    rows = {(r["activation"], r["matrix"], r["radius"]): r for r in rc.radius_grid(rng=np.random.default_rng(0))}
    menus, slider = figure.locator("select"), figure.locator("input[type=range]")
    assert menus.count() == 3 and slider.count() == 1
    for activation, matrix, radius, presses in (("identity", "one-way", "0.7", 5), ("sigmoid", "orthogonal", "1.5", 2)):
        for i, wanted in enumerate((activation, matrix, radius)):
            choose(menus.nth(i), wanted)
        steps = int(move(slider, "ArrowLeft", presses))
        row, seen = rows[activation, matrix, float(radius)], drawn(tab, "radius", "back", "log10", "bound", "power")
        assert {r["back"] for r in seen} == set(range(0, steps + 1, 2))
        slope = 0.25 if activation == "sigmoid" else 1
        for r in seen:
            assert r["log10"] == row["log10"][row["back"].index(r["back"])]
            assert r["bound"] == pytest.approx(r["back"] * np.log10(row["norm"] * slope), abs=1e-9)
            assert r["power"] == pytest.approx(r["back"] * np.log10(row["radius"]), abs=1e-9)
        assert figure.locator("text", has_text=f"after {steps} steps").count() == 1
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_memory_moves_and_is_right(tab, server):
    """Both menus and both sliders by keyboard; the curves drawn are the library's for that choice."""
    figure = open_explorable(tab, server, "chapters/recurrent/lesson.html", "memory")
    rows = {(r["cell"], r["bias"], r["radius"]): r for r in rc.memory_grid(rng=np.random.default_rng(0))}
    menus, sliders = figure.locator("select"), figure.locator("input[type=range]")
    assert menus.count() == 2 and sliders.count() == 2
    for cell, radius, key, presses in (("GRU", "0.5", "ArrowRight", 2), ("LSTM", "0", "ArrowLeft", 3)):
        choose(menus.nth(0), cell)
        choose(menus.nth(1), radius)
        bias, length = (int(move(sliders.nth(i), key, presses)) for i in range(2))
        row, seen = rows[cell, bias, float(radius)], drawn(tab, "memory", "gone", "log10", "gate", "law")
        assert {r["gone"] for r in seen} == set(range(0, length + 1, 5))
        for r in seen:
            assert r["log10"] == row["log10"][row["back"].index(r["gone"] + 1)]
            assert r["gate"] == pytest.approx(r["gone"] * np.log10(rc.gate_multiplier(bias, 0)), abs=1e-9)
            law = rc.gate_multiplier(bias, float(radius), cell)
            assert r["law"] == pytest.approx(r["gone"] * np.log10(law), abs=1e-9)
        assert figure.locator("text", has_text=f"gate alone after {length} steps").count() == 1
    assert tab.errors == [] and tab.outside == []
