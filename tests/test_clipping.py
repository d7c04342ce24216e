"""Gradient clipping against torch and against its definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import drawn, in_browser, move, open_explorable
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


# The cliff


def autograd_cliff(w, b, steps):
    w, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (w, b))
    z = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(steps):
        z = w * torch.sigmoid(z) + b
    loss = (torch.sigmoid(z) - 0.7) ** 2
    loss.backward()
    return loss.item(), w.grad.item(), b.grad.item()


@pytest.mark.parametrize("w, b, steps", [(3.0, -1.0, 5), (5.0, -2.0, 50), (6.0, -4.0, 50), (-2.0, 1.0, 3)])
def test_the_gradient_of_the_cliff_is_autograds(w, b, steps):
    got = clipping.cliff(np.array([w, 1.0]), np.array([b, 1.0]), steps=steps)
    np.testing.assert_allclose([v[0] for v in got], autograd_cliff(w, b, steps), rtol=1e-8, atol=1e-300)


def test_the_gradient_on_the_cliff_is_a_geometric_sum():
    """Where the start is a fixed point, dz_T/db = (rho^M - 1) / (rho - 1)."""
    h = 1 / (1 + np.exp(-0.5))
    slope = h * (1 - h)
    for w in (3.0, 4.5, 6.0):
        rho = w * slope
        _, dw, db = clipping.cliff(w, 0.5 - w * h)
        assert db == pytest.approx(2 * (h - 0.7) * slope * (rho**50 - 1) / (rho - 1), rel=1e-5)
        assert dw == pytest.approx(h * db, rel=1e-6)


def test_the_cliff_does_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        values = clipping.cliff(np.array([1e5, -1e5, 40.0]), np.array([1e6, -1e6, -20.0]), steps=5)
    assert np.isfinite(values).all()


def test_a_step_over_the_cliff_is_no_longer_than_rate_times_limit():
    rng = np.random.default_rng(0)
    w, b = rng.uniform(4.5, 6.5, 30), rng.uniform(-3.5, -1.5, 30)
    places = clipping.descend_cliff(w, b, rate=0.3, limit=0.5, steps=60)
    assert places.shape == (61, 30, 2)
    np.testing.assert_array_equal(places[0], np.stack([w, b], axis=-1))
    assert np.linalg.norm(np.diff(places, axis=0), axis=-1).max() <= 0.15 * (1 + 1e-12)
    free = clipping.descend_cliff(w, b, rate=0.3, steps=1)
    _, dw, db = clipping.cliff(w, b)
    np.testing.assert_allclose(free[1], np.stack([w - 0.3 * dw, b - 0.3 * db], axis=-1), rtol=1e-12)


def test_the_grid_of_the_cliff_is_the_cliff():
    cells, paths = clipping.cliff_grid(log10_limits=(-1, 0), rates=(0.3,), starts=((5.5, -1.8),))
    row = cells[7]
    middle = (np.array(row["w"]) + row["w2"]) / 2, (row["b"] + row["b2"]) / 2
    np.testing.assert_allclose(row["C"], clipping.cliff(*middle)[0], atol=6e-4)
    for path in paths:
        places = clipping.descend_cliff(5.5, -1.8, rate=path["rate"], limit=10.0 ** path["log10_limit"])
        assert (path["w"][0], path["b"][0]) == (5.5, -1.8)
        assert (path["w"][-1], path["b"][-1]) == pytest.approx(tuple(places[-1]), abs=6e-4)
        assert path["longest"] == pytest.approx(np.linalg.norm(np.diff(places, axis=0), axis=-1).max(), abs=6e-4)


# Floating-point formats


@repeat
@given(seeds)
def test_rounding_is_torchs(seed):
    """Over the whole range of float32, with ties, zeros, subnormals and infinities."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(300) * 10.0 ** rng.uniform(-46, 37, 300)).astype(np.float32)
    x[:40] = rng.integers(0, 2**32, 40, dtype=np.uint32).view(np.float32)  # any bits
    x[40:80] = (
        ((rng.integers(0, 2**16, 40).astype(np.uint32) << 16) | 0x8000).astype(np.uint32).view(np.float32)
    )  # ties
    x[80:84] = [0, -0.0, np.inf, -np.inf]
    x[np.isnan(x)] = np.nan  # no signalling ones, of which a cast warns
    for name in ("bfloat16", "float16", "float32"):
        theirs = torch.tensor(x).to(getattr(torch, name)).float().numpy()
        np.testing.assert_array_equal(clipping.rounded(x, name), theirs)
    np.testing.assert_array_equal(clipping.rounded(x.astype(float), "float64"), x.astype(float))


def small_network(rng, depth=4, n=6):
    return [rng.standard_normal((n, n)) / np.sqrt(n) for _ in range(depth)], *rng.standard_normal((2, 5, n))


def test_rounded_gradients_in_float64_are_autograds():
    weights, x, dy = small_network(np.random.default_rng(0))
    parameters = [torch.tensor(W, requires_grad=True) for W in weights]
    h = torch.tensor(x)
    for W in parameters:
        h = torch.sigmoid(h @ W)
    (h * torch.tensor(dy)).sum().backward()
    for scale in (1.0, 8.0):
        got = clipping.rounded_gradients(weights, x, dy, activation="sigmoid", precision="float64", scale=scale)
        for g, p in zip(got, parameters, strict=True):
            np.testing.assert_allclose(g, scale * p.grad.numpy(), rtol=1e-12)


def test_a_loss_scale_moves_a_gradient_into_float16():
    """Tiny: zero without a scale, right to three digits with one, infinite with too large a one."""
    weights, x, dy = small_network(np.random.default_rng(1))
    exact = clipping.rounded_gradients(weights, x, 1e-9 * dy, activation="tanh", precision="float64")
    scales = 2.0 ** np.array([0, 20, 60])
    got = clipping.rounded_gradients(weights, x, 1e-9 * dy, activation="tanh", precision="float16", scale=scales)
    for g, e in zip(got, exact, strict=True):
        assert g.shape == (3, 6, 6)
        assert not g[0].any() and not np.isfinite(g[2]).any()
        np.testing.assert_allclose(g[1] / scales[1], e, atol=0.02 * np.abs(e).max())


def test_the_grid_of_formats_is_the_rounded_gradients():
    rows = clipping.precision_grid(
        rng=np.random.default_rng(0), depths=(3, 12), log2_scales=(0, 8, 24), width=8, batch=8
    )
    assert len(rows) == 2 * 3 * 2 * 3
    assert all(len(r["zero"]) == len(r["infinite"]) == r["depth"] for r in rows)
    wide = [r for r in rows if r["precision"] != "float16"]
    assert max(max(r["zero"] + r["infinite"]) for r in wide) == 0
    deep = next(
        r
        for r in rows
        if (r["activation"], r["precision"], r["depth"], r["log2_scale"]) == ("sigmoid", "float16", 12, 0)
    )
    assert deep["zero"][0] == 100 and deep["zero"][-1] == 0
    with pytest.raises(ValueError, match="precision: got 'float8'"):
        clipping.rounded(np.ones(2), "float8")


# The explorables


@in_browser
def test_the_explorable_of_the_cliff_moves_and_is_right(tab, server):
    """Each control by keyboard; the path drawn and the numbers beside it are the library's."""
    figure = open_explorable(tab, server, "chapters/clipping/lesson.html", "cliff")
    paths = {(p["start"], p["rate"], p["log10_limit"]): p for p in clipping.cliff_grid()[1]}
    slider, selects = figure.locator("input[type=range]").first, figure.locator("select")
    assert selects.count() == 2
    for presses, rate, start in (("ArrowLeft", "0.1", "2"), ("ArrowLeft", "1", "3"), ("ArrowRight", "0.3", "1")):
        move(slider, presses)
        for i, wanted in enumerate((rate, start)):
            options = selects.nth(i).locator("option").all_inner_texts()
            selects.nth(i).select_option(label=wanted if wanted in options else f"{float(wanted):.1f}")
        path = paths[int(start), float(rate), float(slider.input_value())]
        seen = drawn(tab, "cliff", "w", "b", "number")
        assert [row["w"] for row in seen] == path["w"] and [row["b"] for row in seen] == path["b"]
        assert figure.locator("text", has_text="longest step").count() == 1
        assert figure.locator("text", has_text="at the end: loss").count() == 1
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_formats_moves_and_is_right(tab, server):
    """Each control by keyboard; the bars and their mean are the library's."""
    figure = open_explorable(tab, server, "chapters/clipping/lesson.html", "formats")
    rows = {
        (r["precision"], r["activation"], r["depth"], r["log2_scale"]): r
        for r in clipping.precision_grid(rng=np.random.default_rng(0))
    }
    sliders, selects = figure.locator("input[type=range]"), figure.locator("select")
    assert sliders.count() == selects.count() == 2
    for precision, activation, key in (
        ("float16", "sigmoid", "ArrowRight"),
        ("bfloat16", "tanh", "ArrowRight"),
        ("float16", "tanh", "ArrowLeft"),
    ):
        selects.nth(0).select_option(label=precision)
        selects.nth(1).select_option(label=activation)
        row = rows[precision, activation, *(int(move(sliders.nth(i), key)) for i in range(2))]
        seen = drawn(tab, "formats", "layer", "zero", "infinite")
        assert [r["layer"] for r in seen] == list(range(1, row["depth"] + 1))
        assert [r["zero"] for r in seen] == row["zero"] and [r["infinite"] for r in seen] == row["infinite"]
        assert figure.locator("text", has_text=f"zero: {np.mean(row['zero']):.0f} %").count() == 1
    assert tab.errors == [] and tab.outside == []
