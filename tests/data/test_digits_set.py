"""The digits inside the package."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from gpubackprop.data import load_digits


def test_shape_levels_and_counts() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
    assert labels.shape == (1797,) and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 16
    # The counts of the repository's description for its test part.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.peers
def test_equals_the_copy_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs = datasets.load_digits()
    images, labels = load_digits()
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_attribution_is_beside_the_file() -> None:
    folder = resources.files("gpubackprop.data") / "files"
    text = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for word in ("E. Alpaydin, C. Kaynak (1998)", "UCI Machine Learning Repository", "CC BY 4.0"):
        assert word in text
    assert (folder / "digits.npz").is_file()
