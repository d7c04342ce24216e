"""The digits are split and standardized as the docstring says."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from vanishing.data import digits


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
