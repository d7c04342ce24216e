"""Data that comes with scikit-learn and Python or is made on the spot: no page needs a network."""

import io
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._validate import generator, lookup, positive_integer

__all__ = ["Digits", "adding_problem", "characters", "copy_task", "digits", "digits_sequence"]


class Digits(NamedTuple):
    """Images as rows, (n, 64), and their labels 0-9, (n,), for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(*, rng=None, test_fraction=0.2, dtype=float, standardize=True):
    """The 1,797 handwritten digits of 8 x 8 pixels, standardized: x -> (x - mean) / std.

    Mean and standard deviation are those of each pixel over the training images alone (the test
    images must not leak into them). A pixel that is constant in training is 0 everywhere.

    Args:
        rng: numpy Generator that shuffles before the split. Without it the order of the file is
            kept: the first images are for training, the last for testing. They were written by
            other people, which makes that test harder.
        test_fraction: share of the images kept for testing, between 0 and 1.
        dtype: floating dtype of the images.
        standardize: False keeps the pixels as they are in the file, 0 (white) to 16.

    Returns:
        Digits(x_train, y_train, x_test, y_test).

    Raises:
        ValueError: `test_fraction` leaves no image for training or for testing.

    Source: Alpaydin & Kaynak (1998), UCI Optical Recognition of Handwritten Digits (test part).
    """
    # The file of scikit-learn's load_digits, read without its import, which takes a hundred times as long.
    file = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    x, y = table[:, :-1], table[:, -1].astype(int)
    n = len(x)
    n_train = n - round(test_fraction * n)
    if not 0 < n_train < n:
        raise ValueError(f"test_fraction: got {test_fraction}, expected a number between 0 and 1")
    order = np.arange(n) if rng is None else generator(rng).permutation(n)
    x, y = x[order], y[order]

    if standardize:
        mean, std = x[:n_train].mean(axis=0), x[:n_train].std(axis=0)
        x = (x - mean) * np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    x = x.astype(dtype)
    return Digits(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


def digits_sequence(*, rng=None, test_fraction=0.2, dtype=float):
    """The digits read pixel by pixel, row after row: images of shape (n, 64, 1), 64 time steps.

    A small form of the sequential MNIST of Le et al. (2015). Args, Returns and Raises: as `digits`; always
    standardized.
    """
    d = digits(rng=rng, test_fraction=test_fraction, dtype=dtype)
    return d._replace(x_train=d.x_train[..., None], x_test=d.x_test[..., None])


def adding_problem(n, T, *, rng, dtype=float):
    """The adding problem: the sum of the two numbers that are marked in a sequence of T.

    Each number is uniform in [0, 1). One mark is in the first half (the first T // 2 steps), the
    other in the second. Always answering 1 gives a mean squared error of 1/6, the variance of the
    sum; to do well the network must remember the first number for at least T / 2 steps.

    Args:
        n: number of sequences.
        T: length of each, at least 2.
        rng: numpy Generator.
        dtype: floating dtype of both arrays.

    Returns:
        (x, target): x (n, T, 2), the numbers in x[..., 0] and the marks, 0 or 1, in x[..., 1];
        target (n, 1).

    Source: Hochreiter & Schmidhuber (1997), in a form in common use.
    """
    n, T, rng = positive_integer(n, "n"), positive_integer(T, "T"), generator(rng)
    if T < 2:
        raise ValueError(f"T: got {T}, expected at least 2")
    x = np.zeros((n, T, 2))
    x[..., 0] = rng.random((n, T))
    row = np.arange(n)
    x[row, rng.integers(0, T // 2, n), 1] = 1
    x[row, rng.integers(T // 2, T, n), 1] = 1
    x = x.astype(dtype)
    return x, (x[..., 0] * x[..., 1]).sum(axis=-1)[:, None]


def copy_task(n, T, *, rng, symbols=8, length=10, dtype=float):
    """The copying memory task: read a string, wait for T steps, and write it down.

        read    s_1 ... s_length   blank (T - 1 times)   go      blank (length times)
        write   blank (T + length times)                         s_1 ... s_length

    The symbols s are uniform in 0 ... symbols - 1; blank is `symbols`, go is `symbols + 1`.
    Without memory the best mean cross-entropy is length ln(symbols) / (T + 2 length).

    Args:
        n: number of sequences.
        T: delay, at least 1.
        rng: numpy Generator.
        symbols, length: number of symbols to choose from, and in a string.
        dtype: floating dtype of the input.

    Returns:
        (x, target): x one-hot, (n, T + 2 length, symbols + 2); target integers 0 ... symbols,
        (n, T + 2 length).

    Source: Arjovsky et al. (2016); the task is from Hochreiter & Schmidhuber (1997).
    """
    n, T, rng = positive_integer(n, "n"), positive_integer(T, "T"), generator(rng)
    symbols, length = positive_integer(symbols, "symbols"), positive_integer(length, "length")
    string = rng.integers(symbols, size=(n, length))
    read = np.full((n, T + 2 * length), symbols)
    target = read.copy()
    read[:, :length] = target[:, -length:] = string
    read[:, length + T - 1] = symbols + 1
    return np.eye(symbols + 2, dtype=dtype)[read], target


def characters(text="prose"):
    """A text that ships with Python, as one integer for each character.

    ======  ==========  ======================================================================
    text    characters  what it is
    ======  ==========  ======================================================================
    prose        5,576  the Zen of Python (`this`), then an essay on heaps (`heapq.__about__`)
    names       75,413  the names of the first characters of Unicode 3.2, a line each
    ======  ==========  ======================================================================

    No file and no docstring is read, so python -OO changes nothing. Names are fixed by the
    stability policy of Unicode; the prose was the same from Python 3.7 to 3.13. A test holds both.

    Args:
        text: "prose" or "names".

    Returns:
        (ids, alphabet): ids (number of characters,), integers; alphabet, a str of the distinct
        characters in order of their code. The text is `"".join(alphabet[i] for i in ids)`.

    Raises:
        ValueError: unknown name of a text.
    """
    text = lookup("text", text, {"prose": _prose, "names": _names})()
    alphabet, ids = np.unique(list(text), return_inverse=True)
    return ids, "".join(alphabet)


def _prose():
    import heapq

    with redirect_stdout(io.StringIO()):  # the Zen prints itself when it is imported first
        import this
    zen = "".join(this.d.get(c, c) for c in this.s)
    return zen + "\n\n" + heapq.__about__


def _names():
    from unicodedata import ucd_3_2_0

    return "\n".join(filter(None, (ucd_3_2_0.name(chr(i), "") for i in range(0x1100))))
