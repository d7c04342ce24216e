"""Optimizers step by step against torch.optim."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishing import adam

repeat = settings(derandomize=True, max_examples=40, deadline=None)
optim = torch.optim
CASES = {
    "sgd": (lambda: adam.SGD(0.1), lambda p: optim.SGD(p, 0.1)),
    "decay": (lambda: adam.SGD(0.1, weight_decay=0.2), lambda p: optim.SGD(p, 0.1, weight_decay=0.2)),
    "momentum": (lambda: adam.SGD(0.1, 0.9, weight_decay=0.2), lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.2)),
    "nesterov": (lambda: adam.SGD(0.1, 0.8, nesterov=True), lambda p: optim.SGD(p, 0.1, 0.8, nesterov=True)),
    "adagrad": (adam.AdaGrad, optim.Adagrad),
    "adagrad-all": (lambda: adam.AdaGrad(0.3, 0.1, 0.2), lambda p: optim.Adagrad(p, 0.3, eps=0.1, weight_decay=0.2)),
    "rmsprop": (adam.RMSProp, optim.RMSprop),
    "rmsprop-all": (lambda: adam.RMSProp(0.3, 0.8, 0.1, 0.2), lambda p: optim.RMSprop(p, 0.3, 0.8, 0.1, 0.2)),
    "adam": (adam.Adam, optim.Adam),
    "adam-all": (lambda: adam.Adam(0.3, 0.8, 0.95, 0.1, 0.2), lambda p: optim.Adam(p, 0.3, (0.8, 0.95), 0.1, 0.2)),
    "adamw": (adam.AdamW, optim.AdamW),
    "adamw-all": (lambda: adam.AdamW(0.3, 0.8, 0.95, 0.1, 0.2), lambda p: optim.AdamW(p, 0.3, (0.8, 0.95), 0.1, 0.2)),
    "amsgrad": (adam.AMSGrad, lambda p: optim.Adam(p, amsgrad=True)),
    "amsgrad-all": (
        lambda: adam.AMSGrad(0.3, 0.8, 0.95, 0.1, 0.2), lambda p: optim.Adam(p, 0.3, (0.8, 0.95), 0.1, 0.2, amsgrad=True)
    ),
}  # fmt: skip
each = pytest.mark.parametrize("ours, theirs", CASES.values(), ids=CASES)
KINDS = {"SGD": lambda rate: adam.SGD(rate, 0.9), **{k: getattr(adam, k) for k in ("AdaGrad", "RMSProp", "Adam", "AdamW", "AMSGrad")}}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def draw(size=(), dtype=float, seed=0):
    """Parameters, and 100 gradients of changing sizes, so that AMSGrad's maximum matters."""
    rng = np.random.default_rng(seed)
    shapes = {"0.W": (*size, 3, 2), "0.b": (*size, 2), "scale": size}
    parameters = {key: np.asarray(rng.standard_normal(shape), dtype) for key, shape in shapes.items()}
    sizes = np.exp(rng.standard_normal(100) - np.arange(100) / 30)
    return parameters, [{k: np.asarray(s * rng.standard_normal(p.shape), dtype) for k, p in parameters.items()} for s in sizes]  # fmt: skip


@each
@pytest.mark.parametrize("size", [(), (4,)])
def test_agrees_with_torch(ours, theirs, size):
    """100 steps, each compared, with the defaults and with every option changed."""
    parameters, gradients = draw(size)
    tensors = {key: torch.nn.Parameter(torch.tensor(p)) for key, p in parameters.items()}
    optimizer, reference = ours(), theirs(tensors.values())
    for g in gradients:
        optimizer.step(parameters, g)
        for key, t in tensors.items():
            t.grad = torch.tensor(g[key])
        reference.step()
        for key, t in tensors.items():
            np.testing.assert_allclose(parameters[key], t.detach(), rtol=1e-10, atol=1e-14)


@each
def test_float32_stays_and_gradients_stay(ours, theirs):
    """In place, in the parameter's precision, near the float64 path; gradients are not written to."""
    (double, gradients), (single, singles) = draw(), draw(dtype=np.float32)
    arrays, copies = dict(single), [{k: g.copy() for k, g in gs.items()} for gs in singles]
    a, b = ours(), ours()
    for g, s in zip(gradients, singles):
        a.step(double, g)
        b.step(single, s)
    for key, p in single.items():
        assert p is arrays[key] and p.dtype == np.float32
        assert all(s.dtype == np.float32 for s in b.state[key])
        np.testing.assert_allclose(p, double[key], rtol=1e-3, atol=1e-4)
        assert all(np.array_equal(c[key], s[key]) for c, s in zip(copies, singles))


@each_kind
def test_a_rate_for_each_network_and_for_each_step(kind):
    """An array of rates over the ensemble is a stack of optimizers; `rate` may change between steps."""
    many, gradients = draw((3,))
    ones = [{k: p[i].copy() for k, p in many.items()} for i in range(3)]
    rates = np.array([0.01, 0.1, 0.3])
    optimizer, singles = kind(rates), [kind(float(r)) for r in rates]
    for t, g in enumerate(gradients[:20]):
        optimizer.rate = rates / (1 + t)
        optimizer.step(many, g)
        for i, single in enumerate(singles):
            single.rate = rates[i] / (1 + t)
            ones[i] = {k: np.asarray(p) for k, p in ones[i].items()}
            single.step(ones[i], {k: v[i] for k, v in g.items()})
    for i, one in enumerate(ones):
        for key, p in one.items():
            np.testing.assert_allclose(many[key][i], p, rtol=1e-12)


def test_plain_gradient_descent_forgets_nan():
    """Without momentum a nan in one step's gradient is no state."""
    p, optimizer = {"x": np.zeros(1)}, adam.SGD(0.1)
    optimizer.step(p, {"x": np.array([np.nan])})
    p["x"][:] = 0
    optimizer.step(p, {"x": np.ones(1)})
    np.testing.assert_allclose(p["x"], -0.1)


def test_adam_ignores_the_scale_of_the_gradient():
    """Until eps matters: with 1e-6 times the gradient the same path, with 1e-12 times hardly a step."""
    paths = {}
    for scale in (1.0, 1e-6, 1e-12):
        p, optimizer = {"x": np.zeros(())}, adam.Adam(0.01)
        for t in range(50):
            optimizer.step(p, {"x": np.asarray(scale * (1 + np.sin(t)))})
        paths[scale] = float(p["x"])
    assert paths[1e-6] == pytest.approx(paths[1.0], rel=0.05) and abs(paths[1e-12]) < 1e-3 * abs(paths[1.0])


def test_bias_correction():
    """Without it Adam's steps are too large by exactly the excess: 3.162 at first, 6.57 at step 12."""
    corrected, plain = adam.Adam(1.0, eps=0), adam.Adam(1.0, eps=0, bias_correction=False)
    a, b = {"x": np.ones(2)}, {"x": np.ones(2)}
    for t in range(1, 30):
        g = {"x": np.array([1.0 + t % 3, -0.1])}
        before = a["x"].copy(), b["x"].copy()
        corrected.step(a, g)
        plain.step(b, g)
        excess = (b["x"] - before[1]) / (a["x"] - before[0])
        # Ours multiplies the step without correction: m / sqrt(v) = (1 - b1^t) / sqrt(1 - b2^t) times the corrected one.
        np.testing.assert_allclose(excess, adam.bias_correction_excess(0.9, 0.999, t), rtol=1e-9)
    excess = adam.bias_correction_excess(0.9, 0.999, np.arange(1, 1001))
    np.testing.assert_allclose(excess[[0, 11, 999]], [3.162, 6.569, 1.258], atol=5e-4)
    assert excess.argmax() == 11


def test_reddi_example():
    """Gradient 1010 once in 101 steps, else -10: Adam walks to +1, AMSGrad to the optimum, -1."""
    ends = []
    for kind in (adam.Adam, adam.AMSGrad):
        p, optimizer = {"x": np.zeros(())}, kind(beta1=0.9, beta2=0.99)
        for t in range(1, 12001):
            optimizer.rate = 0.5 / t**0.5
            optimizer.step(p, {"x": np.asarray(1010.0 if t % 101 == 1 else -10.0)})
            np.clip(p["x"], -1, 1, out=p["x"])
        ends.append(float(p["x"]))
    assert ends[0] > 0.8 and ends[1] < -0.8


@repeat
@given(st.integers(1, 12), st.floats(0, 0.99), st.lists(st.integers(1, 3), max_size=2), st.data())
def test_ema_is_a_weighted_average(n, beta, shape, data):
    """Against its definition as a sum, along any axis, with and without bias correction."""
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    x = np.random.default_rng(n).standard_normal((n, *shape))
    t = np.arange(n)
    weights = np.where(t <= t[:, None], (1 - beta) * beta ** np.maximum(t[:, None] - t, 0), 0)
    moved = np.moveaxis(x, 0, axis)
    for correction, w in ((False, weights), (True, weights / weights.sum(axis=1, keepdims=True))):
        expected = np.moveaxis(np.tensordot(w, x, 1), 0, axis)
        np.testing.assert_allclose(adam.ema(moved, beta, correction, axis), expected, rtol=1e-10, atol=1e-13)


def test_ema_keeps_float32_and_a_constant():
    """Bias correction makes the average of a constant that constant from the first step."""
    average = adam.ema(np.full(5, 3, np.float32), 0.9)
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, 3, rtol=1e-6)
    np.testing.assert_allclose(adam.ema(np.full(2, 3.0), 0.9, False), [0.3, 0.57], rtol=1e-14)


def step(parameters=None, gradients=None, optimizer=None, before=None):
    optimizer = optimizer or adam.Adam()
    if before is not None:
        optimizer.step(before, {k: np.zeros_like(p) for k, p in before.items()})
    optimizer.step(parameters, gradients)


ONE = {"W": np.ones((2, 3))}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: step(ONE, {}), ValueError, r"gradients: got keys \[\], expected those of parameters, \['W'\]"),
        (lambda: step(ONE, {"W": np.ones(3)}), ValueError, r"gradients\['W'\]: got shape \(3,\), expected \(2, 3\)"),
        (lambda: step(ONE, ONE, before={"V": np.ones((2, 3))}), ValueError, r"parameters: got keys \['W'\], expected those of the last step, \['V'\]"),
        (lambda: step(ONE, ONE, before={"W": np.ones((1, 3))}), ValueError, r"parameters\['W'\]: got shape \(2, 3\), expected that of the last step, \(1, 3\)"),
        (lambda: step({"W": np.ones(2, int)}, {"W": np.ones(2)}), TypeError, r"parameters\['W'\]: got int64, expected an array of floats"),
        (lambda: step({"W": 2.0}, {"W": 2.0}), TypeError, r"parameters\['W'\]: got float,"),
        (lambda: step(ONE, ONE, adam.SGD(np.ones(3))), ValueError, r"rate: got shape \(3,\), expected the leading axes of \(2, 3\)"),
        (lambda: adam.SGD(-0.1), ValueError, "rate: got -0.1, expected at least 0"),
        (lambda: adam.SGD(0.1, 1.0), ValueError, "momentum: got 1.0, expected at least 0 and below 1"),
        (lambda: adam.SGD(0.1, nesterov=True), ValueError, "nesterov: got momentum 0"),
        (lambda: adam.Adam(beta2=1.5), ValueError, "beta2: got 1.5"),
        (lambda: adam.RMSProp(beta=-0.5), ValueError, "beta: got -0.5"),
        (lambda: adam.AdaGrad(eps=-1), ValueError, "eps: got -1"),
        (lambda: adam.AdamW(weight_decay=-1), ValueError, "weight_decay: got -1"),
        (lambda: adam.ema(np.ones(3), 1), ValueError, "beta: got 1, expected"),
        (lambda: adam.bias_correction_excess(0.9, 0.999, 0), ValueError, "t: got 0.0, expected steps of at least 1"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


def test_a_refused_step_changes_nothing():
    """The last of two gradients is wrong: the first parameter must not have moved."""
    p, optimizer = {"a": np.ones(2), "b": np.ones(2)}, adam.Adam()
    with pytest.raises(ValueError, match=r"gradients\['b'\]"):
        optimizer.step(p, {"a": np.ones(2), "b": np.ones(3)})
    assert np.all(p["a"] == 1) and optimizer.t == 0
