"""Batches cover an epoch, noise estimates are unbiased, schedules agree with torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vanishing as vg
from browser import drawn, in_browser, move, open_explorable
from vanishing import backpropagation as bp
from vanishing import data
from vanishing import mini_batch as mb

repeat = settings(derandomize=True, max_examples=30, deadline=None)


@repeat
@given(st.integers(1, 40), st.integers(1, 45), st.booleans())
def test_an_epoch_visits_each_example_once(n, size, shuffle):
    """No index twice, none left out, all batches full but the last."""
    parts = list(mb.batches(n, size, rng=np.random.default_rng(0), shuffle=shuffle))
    assert [len(p) for p in parts[:-1]] == [size] * (len(parts) - 1) and 1 <= len(parts[-1]) <= size
    together = np.concatenate(parts)
    np.testing.assert_array_equal(np.sort(together) if shuffle else together, np.arange(n))
    if size <= n:
        full = list(mb.batches(n, size, rng=np.random.default_rng(0), shuffle=shuffle, drop_last=True))
        assert {len(p) for p in full} == {size} and len(full) == n // size
        np.testing.assert_array_equal(np.concatenate(full), together[: len(full) * size])


def test_shuffle_is_uniform_and_from_rng():
    """Each example is first equally often (5 standard errors); the next epoch has another order."""
    rng = np.random.default_rng(0)
    first = [next(mb.batches(5, 2, rng=rng))[0] for _ in range(4000)]
    assert np.all(np.abs(np.bincount(first, minlength=5) / 4000 - 0.2) < 5 * (0.16 / 4000) ** 0.5)
    again = [next(mb.batches(5, 2, rng=np.random.default_rng(0)))[0] for _ in range(2)]
    assert again[0] == again[1] == first[0]


def network(size=()):
    rng = np.random.default_rng(1)
    net = bp.mlp([3, 4, 2], activation="tanh", init="lecun_normal", rng=rng, size=size)
    return net, rng.standard_normal((12, 3)), rng.integers(2, size=12)


@pytest.mark.parametrize("size", [(), (2,)])
def test_per_example_gradients_agree_with_torch(size):
    """Each row is the gradient of one example's loss; with and without an ensemble."""
    net, x, labels = network(size)

    def d_loss(y, i):
        return vg.d_cross_entropy(y, labels[i])

    each = mb.batch_gradients(net, x, d_loss, mb.batches(12, 1, shuffle=False))
    parameters = {k: torch.tensor(p, requires_grad=True) for k, p in net.parameters.items()}
    W0, b0, W1, b1 = parameters.values()
    y = torch.tanh(torch.tensor(x) @ W0 + b0[..., None, :]) @ W1 + b1[..., None, :]
    log_p = torch.log_softmax(y, -1)
    for i in range(12):
        expected = torch.autograd.grad(-log_p[..., i, labels[i]].sum(), list(parameters.values()), retain_graph=True)
        for key, t in zip(parameters, expected):
            np.testing.assert_allclose(each[key][i], t, rtol=1e-10, atol=1e-14)


def test_the_batch_gradient_is_the_mean_of_its_parts():
    """Batches of 4 against single examples, in a random order."""
    net, x, labels = network()

    def d_loss(y, i):
        return vg.d_cross_entropy(y, labels[i])

    order = list(mb.batches(12, 4, rng=np.random.default_rng(2)))
    each = mb.batch_gradients(net, x, d_loss, mb.batches(12, 1, shuffle=False))
    for key, g in mb.batch_gradients(net, x, d_loss, order).items():
        np.testing.assert_allclose(g, [each[key][i].mean(axis=0) for i in order], atol=1e-14)
    dense = net.layers[-1]  # a single layer reuses its dict of gradients
    two = mb.batch_gradients(dense, np.eye(4), lambda y, i: np.ones_like(y), [[0], [1]])
    np.testing.assert_array_equal(two["W"][:, :, 0], np.eye(4)[:2])


@pytest.mark.parametrize("B", [1, 4])
def test_noise_estimates_are_unbiased(B):
    """The mean of 4,000 estimates is within 5 standard errors of the truth, for batches too."""
    G, std = np.array([0.3, -0.2, 0.1]), np.array([1.0, 0.5, 2.0])
    g = G + std / B**0.5 * np.random.default_rng(0).standard_normal((6, 4000, 3))
    noise = mb.gradient_noise(g, batch_size=B, ensemble_axes=1)
    for estimate, truth in ((noise.squared_norm, G @ G), (noise.trace, std @ std)):
        assert abs(estimate.mean() - truth) < 5 * estimate.std() / 4000**0.5


@repeat
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_noise_is_the_estimator_from_two_batch_sizes(k, B, seed):
    """McCandlish et al., A.1: the k batches as the small ones, all together as the big one."""
    g = 1 + np.random.default_rng(seed).standard_normal((k, 4))
    small, big = (g**2).sum(axis=1).mean(), (g.mean(axis=0) ** 2).sum()
    noise = mb.gradient_noise(g, batch_size=B)
    squared_norm, trace = (k * B * big - B * small) / (k * B - B), (small - big) / (1 / B - 1 / (k * B))
    np.testing.assert_allclose(noise[:2], [squared_norm, trace], rtol=1e-9, atol=1e-12)
    if squared_norm > 1e-6:
        np.testing.assert_allclose(noise.scale, trace / squared_norm, rtol=1e-6)


def test_noise_of_a_network_and_of_an_ensemble():
    """A dict is one long vector; each network has its own estimate; no signal means an infinite scale."""
    rng = np.random.default_rng(3)
    gradients = {"W": 1 + rng.standard_normal((5, 2, 3, 4)), "b": 1 + rng.standard_normal((5, 2, 4))}
    both = mb.gradient_noise(gradients, ensemble_axes=1)
    for i in range(2):
        flat = np.concatenate([g[:, i].reshape(5, -1) for g in gradients.values()], axis=1)
        np.testing.assert_allclose([part[i] for part in both], mb.gradient_noise(flat), rtol=1e-12)
    opposite = mb.gradient_noise(np.array([[1.0, 0], [-1, 0]]))
    assert opposite.squared_norm < 0 and opposite.scale == np.inf


STEPS = np.arange(60)
torch_schedules = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (mb.constant_rate(STEPS, 0.3), lambda o: torch_schedules.ConstantLR(o, factor=1.0)),
        (mb.step_decay(STEPS, 0.3, every=7, factor=0.5), lambda o: torch_schedules.StepLR(o, 7, 0.5)),
        (mb.step_decay(STEPS, 0.3, every=20), lambda o: torch_schedules.StepLR(o, 20)),
        (mb.cosine_decay(STEPS, 0.3, steps=60, final=0.01), lambda o: torch_schedules.CosineAnnealingLR(o, 60, 0.01)),
        (mb.warm_up(STEPS, 0.3, steps=10), lambda o: torch_schedules.LinearLR(o, 0.1, 1.0, 9)),
    ],
    ids=["constant", "step", "step-default", "cosine", "warm_up"],
)
def test_schedules_agree_with_torch(ours, theirs):
    """Off by one step is the usual fault."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, rates = theirs(optimizer), []
    for _ in STEPS:
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(ours, rates, rtol=1e-12)


def test_schedules_compose_and_end():
    """Warm-up times cosine; cosine stays at its end; numbers go in and out."""
    assert mb.cosine_decay(500, 0.3, steps=60, final=0.01) == pytest.approx(0.01)
    assert mb.warm_up(4, mb.cosine_decay(4, 0.2, steps=8), steps=10) == pytest.approx(0.05)
    assert np.ndim(mb.constant_rate(3, 0.1)) == 0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: mb.batches(0, 2, shuffle=False), ValueError, "n: got 0, expected at least 1"),
        (lambda: mb.batches(4, 2), TypeError, "rng: got NoneType"),
        (lambda: mb.batches(4, 5, shuffle=False, drop_last=True), ValueError, "size: got 5, expected at most n = 4"),
        (lambda: mb.batch_gradients(None, np.ones((2, 2)), None, []), ValueError, "batches: got none"),
        (lambda: mb.gradient_noise(np.ones((1, 3))), ValueError, r"gradients: got shapes \[\(1, 3\)\], expected .* at least 2"),
        (lambda: mb.gradient_noise([np.ones((2, 3)), np.ones((3, 3))]), ValueError, r"gradients: got shapes \[\(2, 3\), \(3, 3\)\]"),
        (lambda: mb.gradient_noise(np.ones((2, 3)), batch_size=0.5), TypeError, "batch_size: got 0.5"),
        (lambda: mb.warm_up(0, 0.1, steps=0), ValueError, "steps: got 0"),
        (lambda: mb.step_decay(0, 0.1, every=0), ValueError, "every: got 0"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size", [(), (2,)])
def test_noise_by_layer_is_that_of_the_examples(size):
    """From one backward pass, and from each example's own gradient."""
    net, x, labels = network(size)
    each = mb.batch_gradients(net, x, lambda y, i: vg.d_cross_entropy(y, labels[i]), mb.batches(12, 1, shuffle=False))
    squared_norm, trace = mb.layer_noise(net, vg.d_cross_entropy(net.forward(x), labels))
    for k, key in enumerate(("0.0.W", "1.W")):
        g = each[key]
        np.testing.assert_allclose(squared_norm[k], np.square(g.mean(axis=0)).sum(axis=(-2, -1)), rtol=1e-10)
        np.testing.assert_allclose(trace[k], g.var(axis=0).sum(axis=(-2, -1)), rtol=1e-10)


def test_quadratic_loss_is_the_mean_of_runs():
    """Each step within 5 standard errors of 4,000 runs; schedules of rate and size; a grid of both."""
    curvature, start, variance = np.array([1.0, 0.2]), np.array([-1.5, 4.0]), 8.0
    path = mb.noisy_paths([2, 32], [0.1, 0.7], rng=np.random.default_rng(0), runs=4000, steps=30)
    loss = (curvature * path**2).sum(axis=-1) / 2  # (sizes, rates, runs, steps + 1)
    for i, B in enumerate((2, 32)):
        for j, eta in enumerate((0.1, 0.7)):
            want = mb.quadratic_loss(np.full(30, eta), B, curvature=curvature, start=start, variance=variance)
            error = loss[i, j].std(axis=0) / 4000**0.5
            assert np.all(np.abs(loss[i, j].mean(axis=0) - want) < 5 * error + 1e-12)
    rates = np.array([0.5, 0.1, 0.1])
    one = [
        mb.quadratic_loss(rates[:, None] * [1, 2], B, curvature=curvature, start=start, variance=variance)
        for B in ([[1], [2], [4]], 3)
    ]
    for k in range(2):
        alone = mb.quadratic_loss(rates * (k + 1), [1, 2, 4], curvature=curvature, start=start, variance=variance)
        np.testing.assert_allclose(one[0][:, k], alone, rtol=1e-14)
    assert one[1].shape == (4, 2)
    noiseless = mb.quadratic_loss(np.full(3, 0.5), 1, curvature=1.0, start=2.0, variance=0.0)
    np.testing.assert_allclose(noiseless, 2 * 0.25 ** np.arange(4))


def test_a_race_is_gradient_descent():
    """The full batch against a plain loop; the same starts for each rate; divergence is inf; steps to a target."""
    d = data.digits()
    x, y = d.x_train[:50], d.y_train[:50]
    t, losses = mb.race(x, y, 50, [0.1, 1.0], rng=np.random.default_rng(0), steps=5, starts=2, hidden=4)
    np.testing.assert_array_equal(t, np.arange(6))
    net = bp.mlp([64, 4, 10], activation="tanh", init="lecun_normal", rng=np.random.default_rng(0), size=(2,))
    for k in range(6):
        logits = net.forward(x)
        np.testing.assert_allclose(losses[k, 1], vg.cross_entropy(logits, y), rtol=1e-9)
        net.backward(vg.d_cross_entropy(logits, y))
        gradients = net.gradients
        for key, p in net.parameters.items():
            p -= gradients[key]
    assert np.array_equal(losses[0, 0], losses[0, 1])
    _, small = mb.race(x, y, 2, [0.01, 1e200], rng=np.random.default_rng(0), steps=40, starts=2, hidden=4)
    assert np.all(small[-1, 0] < small[0, 0]) and not np.any(small[-1, 1] < small[0, 1])
    at = mb.steps_to(t, losses, 2.0)
    assert at.shape == (2, 2) and np.all(at[1] <= at[0])
    np.testing.assert_allclose(mb.steps_to([0, 1, 2, 4], [3.0, np.inf, 2.0, 1.0], [1.5]), 3.0)
    assert mb.steps_to([0, 1], [3.0, 2.0], 1.5) == np.inf


@in_browser
def test_the_explorable_of_the_race_moves_and_is_right(tab, server):
    """Batch size, rate and count, moved by keyboard; the curve drawn is the library's."""
    figure = open_explorable(tab, server, "chapters/mini-batch/lesson.html", "race")
    d = data.digits(rng=np.random.default_rng(0))
    x, y = d.x_train.astype(np.float32), d.y_train
    rates = 0.04 * 2.0 ** np.arange(9)
    size, count, slider = figure.locator("select").nth(0), figure.locator("select").nth(1), figure.locator("input")
    for B, steps, presses, axis in ((16, 90, ("ArrowRight", 1), "examples"), (64, 40, ("ArrowRight", 2), "steps")):
        size.select_option(str(B))
        count.select_option(axis)
        power = int(move(slider, *presses))
        t, losses = mb.race(x, y, B, rates, rng=np.random.default_rng([0, B]), steps=steps, starts=3, points=15)
        fields = ("size", "power", "t", "at", "middle")
        seen = {r["t"]: r for r in drawn(tab, "race", *fields) if r["size"] == B and r["power"] == power}
        assert set(t[1:]) <= set(seen)
        for step, loss in zip(t[1:], np.median(losses[1:, power], axis=1)):
            assert seen[step]["middle"] == pytest.approx(min(loss, 9), abs=0.02)
            assert seen[step]["at"] == step * (B if axis == "examples" else 1)
        assert figure.locator("text", has_text=f"batch {B}, rate {rates[power]:.2f} = 0.04 · 2^{power}").count() == 1
    assert tab.errors == [] and tab.outside == []


@in_browser
def test_the_explorable_of_the_path_moves_and_is_right(tab, server):
    """Batch size and rate, moved by keyboard; path and expected loss are the library's."""
    figure = open_explorable(tab, server, "chapters/mini-batch/lesson.html", "path")
    sizes, rates = [1, 4, 16, 64, 256], np.arange(1, 22) / 10
    bowl = {"curvature": np.array([1.0, 0.2]), "start": np.array([-1.5, 4.0]), "variance": 8.0}
    paths = mb.noisy_paths(sizes, rates, rng=np.random.default_rng(3), **bowl)[:, :, 0]
    size, slider = figure.locator("select"), figure.locator("input")
    for B, key in ((64, "ArrowRight"), (1, "ArrowLeft")):
        size.select_option(str(B))
        j = round(move(slider, key, 3) * 10) - 1
        (row,) = {str(r): r for r in drawn(tab, "path", "shown", "size", "u", "v") if r["size"] == B}.values()
        np.testing.assert_allclose(
            np.transpose([row["u"], row["v"]]), np.clip(paths[sizes.index(B), j], -99, 99), atol=0.006
        )
        end = mb.quadratic_loss(np.full(40, rates[j]), B, **bowl)[-1]
        assert figure.locator("text", has_text=f"expected loss at the end: {float(f'{end:.3g}'):g}").count() == 1
        assert figure.locator("text", has_text=f"{40 * B:,} examples").count() == 1
    assert tab.errors == [] and tab.outside == []
