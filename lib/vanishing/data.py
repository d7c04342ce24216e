"""Data that comes with scikit-learn, so that no page needs a network."""

from typing import NamedTuple

import numpy as np

from ._validate import generator

__all__ = ["Digits", "digits"]


class Digits(NamedTuple):
    """Images as rows, (n, 64), and their labels 0-9, (n,), for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(*, rng=None, test_fraction=0.2, dtype=float):
    """The 1,797 handwritten digits of 8 x 8 pixels, standardized: x -> (x - mean) / std.

    Mean and standard deviation are those of each pixel over the training images alone (the test
    images must not leak into them). A pixel that is constant in training is 0 everywhere.

    Args:
        rng: numpy Generator that shuffles before the split. Without it the order of the file is
            kept: the first images are for training, the last for testing. They were written by
            other people, which makes that test harder.
        test_fraction: share of the images kept for testing, between 0 and 1.
        dtype: floating dtype of the images.

    Returns:
        Digits(x_train, y_train, x_test, y_test).

    Raises:
        ValueError: `test_fraction` leaves no image for training or for testing.

    Source: Alpaydin & Kaynak (1998), UCI Optical Recognition of Handwritten Digits (test part).
    """
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    x, y = load_digits(return_X_y=True)
    n = len(x)
    n_train = n - round(test_fraction * n)
    if not 0 < n_train < n:
        raise ValueError(f"test_fraction: got {test_fraction}, expected a number between 0 and 1")
    order = np.arange(n) if rng is None else generator(rng).permutation(n)
    x, y = x[order], y[order]

    mean, std = x[:n_train].mean(axis=0), x[:n_train].std(axis=0)
    x = (x - mean) * np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    x = x.astype(dtype)
    return Digits(x[:n_train], y[:n_train], x[n_train:], y[n_train:])
