"""The digits are split and standardized, and the sequence tasks built, as the docstrings say."""

import codecs
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import vanishing as vg
from vanishing.data import adding_problem, characters, copy_task, digits, digits_sequence

repeat = settings(derandomize=True, max_examples=25, deadline=None)


def test_standardized_with_training_statistics_only():
    """Test images must not leak into the mean and standard deviation."""
    d = digits(rng=np.random.default_rng(0))
    constant = np.all(d.x_train == d.x_train[0], axis=0)
    assert 0 < constant.sum() < 10
    assert not d.x_train[:, constant].any() and not d.x_test[:, constant].any()
    np.testing.assert_allclose(d.x_train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(d.x_train[:, ~constant].std(axis=0), 1, rtol=1e-12)
    assert np.abs(d.x_test.mean(axis=0)).max() > 1e-3


def test_order_of_the_file_without_rng():
    """The first images train, the last test, each with its own label."""
    x, y = load_digits(return_X_y=True)
    d = digits(test_fraction=0.25)
    assert (len(d.x_train), len(d.x_test)) == (1348, 449)
    np.testing.assert_array_equal(np.concatenate([d.y_train, d.y_test]), y)
    pixel = 20
    assert np.corrcoef(x[:1348, pixel], d.x_train[:, pixel])[0, 1] == pytest.approx(1)


def test_pixels_as_they_are():
    """`standardize=False`: those of scikit-learn's load_digits, whose file it reads."""
    x, y = load_digits(return_X_y=True)
    d = digits(standardize=False)
    np.testing.assert_array_equal(np.concatenate([d.x_train, d.x_test]), x)
    np.testing.assert_array_equal(np.concatenate([d.y_train, d.y_test]), y)
    assert digits(standardize=False, dtype=np.float32).x_test.dtype == np.float32


def test_shuffle_keeps_images_with_their_labels():
    """The same set of labels in another order, and nearest neighbors still tell the digit."""
    d, fixed = digits(rng=np.random.default_rng(1)), digits()
    assert not np.array_equal(d.y_train, fixed.y_train)
    np.testing.assert_array_equal(
        np.bincount(np.r_[d.y_train, d.y_test]), np.bincount(np.r_[fixed.y_train, fixed.y_test])
    )
    nearest = ((d.x_test[:, None] - d.x_train[None, :500]) ** 2).sum(axis=-1).argmin(axis=1)
    assert (d.y_train[nearest] == d.y_test).mean() > 0.9


def test_dtype():
    """float32 on request."""
    assert digits(dtype=np.float32).x_test.dtype == np.float32


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_bad_fraction(fraction):
    """An empty part would surface much later, as a nan."""
    with pytest.raises(ValueError, match=f"test_fraction: got {fraction}"):
        digits(test_fraction=fraction)


def test_digits_as_sequences():
    """The same split and values, one pixel at each of 64 steps, in the order of the rows."""
    d, flat = (f(rng=np.random.default_rng(3), test_fraction=0.3, dtype=np.float32) for f in (digits_sequence, digits))
    assert d.x_train.shape == (1258, 64, 1) and d.x_test.shape == (539, 64, 1) and d.x_test.dtype == np.float32
    for sequence, image in zip(d, flat, strict=True):
        np.testing.assert_array_equal(np.squeeze(sequence), image)


@repeat
@given(st.integers(1, 50), st.integers(2, 30), st.sampled_from([np.float32, np.float64]))
@example(4, 2, float)
@example(4, 3, float)
def test_adding_problem(n, T, dtype):
    """One mark in each half, and the target is the sum of what they mark."""
    x, target = adding_problem(n, T, rng=np.random.default_rng(n), dtype=dtype)
    assert x.shape == (n, T, 2) and target.shape == (n, 1) and x.dtype == target.dtype == dtype
    assert set(np.unique(x[..., 1])) <= {0, 1}
    assert np.all(x[:, : T // 2, 1].sum(axis=1) == 1) and np.all(x[:, T // 2 :, 1].sum(axis=1) == 1)
    for numbers, mark, total in zip(x[..., 0], x[..., 1], target[:, 0], strict=True):
        assert sum(numbers[mark == 1]) == pytest.approx(total, rel=1e-6)


def test_adding_problem_statistics():
    """Answering 1 costs 1/6 within 5 standard errors; every step is marked about equally often."""
    n, T = 100_000, 5
    x, target = adding_problem(n, T, rng=np.random.default_rng(0))
    error = (target - 1) ** 2
    assert abs(error.mean() - 1 / 6) < 5 * error.std() / n**0.5
    np.testing.assert_allclose(x[..., 1].mean(axis=0), [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3], atol=0.01)
    assert 0 <= x.min() and x[..., 0].max() < 1
    np.testing.assert_allclose(x[..., 0].mean(axis=0), 0.5, atol=0.01)


@repeat
@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 9), st.integers(1, 12))
def test_copy_task(n, T, symbols, length):
    """String, blanks, go, blanks; T steps between a symbol's last sight and the go; the string last."""
    x, target = copy_task(n, T, rng=np.random.default_rng(n), symbols=symbols, length=length)
    assert x.shape == (n, T + 2 * length, symbols + 2) and target.shape == (n, T + 2 * length)
    assert np.all(x.sum(axis=-1) == 1) and set(np.unique(x)) == {0, 1}
    assert np.issubdtype(target.dtype, np.integer)
    read, blank, go = x.argmax(axis=-1), symbols, symbols + 1
    for row, answer in zip(read.tolist(), target.tolist(), strict=True):
        string = row[:length]
        assert max(string) < symbols
        assert row == string + [blank] * (T - 1) + [go] + [blank] * length
        assert answer == [blank] * (T + length) + string


def test_copy_task_statistics():
    """All symbols equally often; the cross-entropy without memory is the one in the docstring."""
    T, symbols, length = 30, 8, 10
    x, target = copy_task(2000, T, rng=np.random.default_rng(0), dtype=np.float32)
    assert x.dtype == np.float32 and x.shape[-1] == symbols + 2
    share = np.bincount(target[:, -length:].ravel(), minlength=symbols) / (2000 * length)
    np.testing.assert_allclose(share, 1 / symbols, atol=0.02)
    logits = np.full((target.size, symbols + 1), -1e3)
    write = np.arange(T + 2 * length) >= T + length
    logits = logits.reshape(*target.shape, -1)
    logits[:, ~write, symbols] = logits[:, write, :symbols] = 0
    loss = vg.cross_entropy(logits.reshape(target.size, -1), target.ravel())
    assert loss == pytest.approx(length * np.log(symbols) / (T + 2 * length))


@pytest.mark.parametrize(
    "name, size, checksum", [("prose", 5576, "4fbd4d61c36eef11"), ("names", 75413, "84eb13ef3ae5ec81")]
)
def test_characters_are_the_same_in_every_python(name, size, checksum):
    """A Python that ships another text must fail here, not in the numbers of a chapter."""
    ids, alphabet = characters(name)
    text = "".join(alphabet[i] for i in ids)
    assert len(ids) == size and hashlib.sha256(text.encode()).hexdigest()[:16] == checksum
    assert list(alphabet) == sorted(set(text)) and np.issubdtype(ids.dtype, np.integer)


def test_characters_begin_as_they_should():
    """The Zen as it decodes itself, then the essay, complete."""
    import heapq
    import this

    ids, alphabet = characters()
    text = "".join(alphabet[i] for i in ids)
    assert text == codecs.decode(this.s, "rot13") + "\n\n" + heapq.__about__
    ids, alphabet = characters("names")
    assert "".join(alphabet[i] for i in ids[:23]) == "SPACE\nEXCLAMATION MARK\n"


def test_characters_print_nothing_and_need_no_docstrings():
    """The first import of `this` prints the Zen, and -OO drops docstrings: in a fresh Python."""
    code = "from vanishing.data import characters; print(len(characters()[0]))"
    run = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("5576\n", "")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda rng: adding_problem(0, 5, rng=rng), ValueError, "n: got 0, expected at least 1"),
        (lambda rng: adding_problem(3, 1, rng=rng), ValueError, "T: got 1, expected at least 2"),
        (lambda rng: adding_problem(3, 2.5, rng=rng), TypeError, "T: got 2.5, expected an integer"),
        (lambda rng: adding_problem(3, 5, rng=0), TypeError, "rng: got int"),
        (lambda rng: copy_task(3, 0, rng=rng), ValueError, "T: got 0"),
        (lambda rng: copy_task(3, 5, rng=rng, symbols=0), ValueError, "symbols: got 0"),
        (lambda rng: copy_task(3, 5, rng=rng, length=-1), ValueError, "length: got -1"),
        (lambda rng: copy_task(3, 5, rng=None), TypeError, "rng: got NoneType"),
        (lambda rng: characters("pros"), ValueError, "text: got 'pros', expected one of prose, names. Did you mean 'prose'"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    """Errors name the argument, what came and what was expected."""
    with pytest.raises(error, match=message):
        call(np.random.default_rng(0))
