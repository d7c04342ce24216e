"""Optimizers step by step against torch.optim."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import choose, drawn, in_browser, move, open_explorable
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


# What the page's explorables and derivations use


def test_adam_step_is_the_optimizers():
    """The function and the class make the same steps."""
    rng = np.random.default_rng(0)
    p, optimizer, m, v = {"x": np.zeros(4)}, adam.Adam(1.0, 0.8, 0.95, 0.1), 0.0, 0.0
    for t in range(1, 30):
        g, before = rng.standard_normal(4), p["x"].copy()
        optimizer.step(p, {"x": g})
        step, m, v = adam.adam_step(g, m, v, t, 0.8, 0.95, 0.1)
        np.testing.assert_allclose(before - p["x"], step, rtol=1e-10)


@repeat
@given(st.floats(0, 0.95), st.floats(0.01, 0.999), st.integers(1, 60), st.integers(0, 99))
def test_step_bound_holds_and_is_reached(fraction, beta2, t, seed):
    """No random gradients exceed it; those that grow by beta2 / beta1 reach it."""
    beta1 = fraction * beta2**0.5
    bound = adam.step_bound(beta1, beta2, t)

    def last(g):
        m, v = adam.ema(g, beta1)[-1], adam.ema(g**2, beta2)[-1]
        return abs(m) / np.sqrt(v)

    rng = np.random.default_rng(seed)
    assert last(rng.standard_normal(t) * np.exp(rng.standard_normal(t))) <= bound * (1 + 1e-9)
    assert last(np.maximum((beta1 / beta2) ** np.arange(t - 1, -1, -1.0), 1e-120)) == pytest.approx(bound, rel=1e-6)
    assert bound <= adam.step_bound(beta1, beta2, np.inf) * (1 + 1e-9)


def test_step_bound_values():
    """7.27 for the defaults, far above the 3.16 of a single spike; 1 where the two fractions are equal."""
    assert adam.step_bound(0.9, 0.999, np.inf) == pytest.approx(7.27, abs=0.005)
    np.testing.assert_allclose(adam.step_bound(0.9, 0.9, [1, 5, np.inf]), 1)


@pytest.mark.parametrize("ratio", [1, 10, 100])
def test_optimal_momentum_is_optimal(ratio):
    """The spectral radius on both ends is sqrt(momentum), and no neighbor is better."""

    def radius(rate, momentum):
        worst = 0
        for c in np.linspace(2, 2 * ratio, 50):
            worst = max(worst, np.abs(np.roots([1, rate * c - 1 - momentum, momentum])).max())
        return worst

    rate, momentum = adam.optimal_momentum(2, 2 * ratio)
    best = radius(rate, momentum)
    assert best == pytest.approx((ratio**0.5 - 1) / (ratio**0.5 + 1), abs=1e-4)
    for a, b in ((1.02, 1), (0.98, 1), (1, 1.02), (1, 0.98)):
        assert radius(rate * a, momentum * b) >= best - 1e-4


@pytest.mark.parametrize("name", adam.SURFACES)
def test_surfaces_have_their_gradients_and_curvatures(name):
    """Against central differences; at the minimum the curvatures are 1 and the condition number."""
    rng, h = np.random.default_rng(1), 1e-5
    x, y = rng.uniform(-1, 1, (2, 20))
    _, dx, dy = adam.surface(name, x, y, 3.0)
    np.testing.assert_allclose(dx, (adam.surface(name, x + h, y, 3.0)[0] - adam.surface(name, x - h, y, 3.0)[0]) / 2 / h, atol=1e-8)  # fmt: skip
    np.testing.assert_allclose(dy, (adam.surface(name, x, y + h, 3.0)[0] - adam.surface(name, x, y - h, 3.0)[0]) / 2 / h, atol=1e-8)  # fmt: skip
    columns = [[(adam.surface(name, *(h * e), 3.0)[k] - adam.surface(name, *(-h * e), 3.0)[k]) / 2 / h for k in (1, 2)] for e in np.eye(2)]  # fmt: skip
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(columns)), [-1 if name == "saddle" else 1, 3], atol=1e-6)


def test_surface_paths():
    """Rows of plain lists; gradient descent's path is its formula; a path that leaves ends there."""
    rows = adam.surface_paths(steps=10)
    assert len(rows) == 4 * 5 * 3 * 7
    for r in rows:
        assert len(r["t"]) == len(r["x"]) == len(r["y"]) <= 11
        *inside, last = np.maximum(np.abs(r["x"]), np.abs(r["y"]))
        assert max(inside) <= 10 and (last >= 10 if r["loss"] is None else last <= 10)
    (row,) = [r for r in rows if (r["surface"], r["optimizer"], r["condition"], r["rate"]) == ("ravine", "gradient descent", 10, -1)]  # fmt: skip
    np.testing.assert_allclose(row["x"], -2 * 0.9 ** np.arange(11), atol=6e-4)
    np.testing.assert_allclose(row["y"], [0.8] + 10 * [0], atol=6e-4)


def test_signal_grid():
    """The averages are ema's, of the same gradient in each row, whose mean jumps halfway."""
    rows = adam.signal_grid(rng=np.random.default_rng(0), steps=2000)
    assert len(rows) == 18
    g = np.array(rows[0]["g"])
    assert abs(g[:1000].mean() - 1) < 0.15 and abs(g[1000:].mean() + 1) < 0.15
    for r in rows:
        assert r["g"] == rows[0]["g"]
        np.testing.assert_allclose(r["m"], adam.ema(g, r["beta1"], False), atol=1e-5)
        np.testing.assert_allclose(r["v"], adam.ema(g**2, r["beta2"], False), atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: adam.step_bound(0.9, 0.5, 3), "beta1: got 0.9, expected beta1\\^2 below beta2 = 0.5"),
        (lambda: adam.step_bound(0.9, 0.99, 0), "t: got 0.0, expected steps of at least 1"),
        (lambda: adam.step_bound(0.9, 1, 1), "beta2: got 1, expected"),
        (lambda: adam.optimal_momentum(2, 1), "smallest, largest: got 2 and 1"),
        (lambda: adam.surface("hill", 0, 0, 1), "name: got 'hill', expected one of ravine"),
    ],
)
def test_more_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@in_browser
def test_the_explorable_of_averages_moves_and_is_right(tab, server):
    """Each menu by keyboard; the average and the step drawn are the library's for that choice."""
    figure = open_explorable(tab, server, "chapters/adam/lesson.html", "averages")
    menus = figure.locator("select")
    assert menus.count() == 3
    grid = adam.signal_grid(rng=np.random.default_rng(2))
    for beta1, beta2, correction in (("0.5", "0.99", "yes"), ("0.98", "0.9", "no"), ("0.8", "0.999", "yes")):
        for i, wanted in enumerate((beta1, beta2, correction)):
            choose(menus.nth(i), wanted)
        seen = sorted(drawn(tab, "averages", "t", "g", "average", "move"), key=lambda r: r["t"])
        g = np.array(grid[0]["g"])
        m = adam.ema(g, float(beta1), correction == "yes")
        step = m / np.sqrt(adam.ema(g**2, float(beta2), correction == "yes"))
        np.testing.assert_allclose([r["average"] for r in seen], m, atol=2e-3)
        np.testing.assert_allclose([r["move"] for r in seen], step, atol=2e-2)
        assert figure.locator("text", has_text=f"{max(r['move'] for r in seen):.2f}").count() == 1
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_surfaces_moves_and_is_right(tab, server):
    """Each menu and the slider by keyboard; path, end and background are the library's for that choice."""
    figure = open_explorable(tab, server, "chapters/adam/lesson.html", "surfaces")
    rows = {(r["surface"], r["optimizer"], r["condition"], r["rate"]): r for r in adam.surface_paths()}
    menus, slider = figure.locator("select"), figure.locator("input[type=range]")
    assert menus.count() == 3 and slider.count() == 1
    for name, optimizer, condition, press in (
        ("saddle", "momentum 0.9", "10", "ArrowLeft"),
        ("plateau", "AdaGrad", "100", "ArrowRight"),
        ("ravine, turned", "gradient descent", "1", "ArrowRight"),
        ("ravine", "RMSProp", "100", "ArrowLeft"),
    ):
        for i, wanted in enumerate((name, optimizer, condition)):
            choose(menus.nth(i), wanted)
        row = rows[name, optimizer, int(condition), move(slider, press)]
        seen = sorted(drawn(tab, "surfaces", "step", "x", "y"), key=lambda r: r["step"])
        assert [r["x"] for r in seen] == row["x"] and [r["y"] for r in seen] == row["y"]
        text = "loss at the end" if row["loss"] is not None else "the path has left"
        assert figure.locator("text", has_text=text).count() == 1
        tiles = drawn(tab, "surfaces", "a", "b", "value")
        assert len(tiles) == 486
        a, b, value = (np.array([r[k] for r in tiles]) for k in ("a", "b", "value"))
        np.testing.assert_allclose(value, adam.surface(name, a, b, float(condition))[0], atol=1e-9)
    assert tab.errors == [] and tab.outside == []
