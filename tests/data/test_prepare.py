"""Scaling and one-hot coding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop.data import fit_scaling, one_hot
from gpubackprop.data.prepare import SCALES
from gpubackprop.errors import ConfigError, DataError


@pytest.fixture
def samples() -> np.ndarray[Any, Any]:
    # More rows than one block of the statistics, a feature that never varies, and a large offset
    # that a one-pass formula would lose in rounding.
    values = np.random.default_rng(0).normal(size=(9000, 4)) * [1, 5, 0, 1e-3] + [0, 2, 7, 1e6]
    return values.reshape(9000, 2, 2)


def test_standard_is_by_feature(samples: Any) -> None:
    out = fit_scaling("standard", samples, dtype=np.float64)(samples).reshape(9000, 4)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=0), [1, 1, 0, 1], atol=1e-5)


def test_a_small_spread_around_a_large_offset_survives_float32(samples: Any) -> None:
    wide = fit_scaling("standard", samples, dtype=np.float64)(samples)
    narrow = fit_scaling("standard", samples, dtype=np.float32)(samples)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


def test_standard_global_has_one_mean_and_deviation(samples: Any) -> None:
    scaling = fit_scaling("standard-global", samples, dtype=np.float64)
    assert scaling.offset.shape == () and scaling.scale.shape == ()
    out = scaling(samples)
    assert abs(out.mean()) < 1e-9 and abs(out.std() - 1) < 1e-9


def test_unit_without_levels_is_by_feature(samples: Any) -> None:
    out = fit_scaling("unit", samples, dtype=np.float64)(samples).reshape(9000, 4)
    assert out.min(axis=0).tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(out.max(axis=0), [1, 1, 0, 1], atol=1e-9)


def test_unit_with_levels_divides_by_them() -> None:
    images = np.array([[[0, 51, 255]]], dtype=np.uint8)
    scaling = fit_scaling("unit", images, levels=255)
    out = scaling(images)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, (np.array([[[0, 51, 255]]]) / 255).astype(np.float32))


def test_none_only_changes_the_dtype(samples: Any) -> None:
    out = fit_scaling("none", samples)(samples)
    np.testing.assert_array_equal(out, samples.astype(np.float32))


@pytest.mark.parametrize("kind", SCALES)
def test_a_batch_is_scaled_as_the_whole_is(kind: str, samples: Any) -> None:
    scaling = fit_scaling(kind, samples)
    np.testing.assert_array_equal(scaling(samples)[10:13], scaling(samples[10:13]))
    before = samples.copy()
    scaling(samples)
    np.testing.assert_array_equal(samples, before)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="unknown scale 'standart'; did you mean 'standard'"):
        fit_scaling("standart", np.zeros((2, 2)))
    with pytest.raises(DataError, match="at least one training sample"):
        fit_scaling("standard", np.zeros((0, 2)))
    with pytest.raises(DataError, match="labels must be 0 to 2, found 0 to 3"):
        one_hot(np.array([0, 3]), 3)
    with pytest.raises(DataError, match="found -1 to 0"):
        one_hot(np.array([0, -1]), 3)


def test_one_hot() -> None:
    out = one_hot(np.array([2, 0]), 3)
    assert out.tolist() == [[0, 0, 1], [1, 0, 0]] and out.dtype == np.float32
    assert one_hot(np.array([], dtype=np.int64), 3).shape == (0, 3)


def test_standard_channel_has_one_mean_and_deviation_a_channel() -> None:
    images = np.random.default_rng(0).normal(size=(5000, 2, 3, 2)) * [1, 9] + [4, -2]
    scaling = fit_scaling("standard-channel", images, dtype=np.float64)
    assert scaling.offset.shape == scaling.scale.shape == (2,)
    out = scaling(images)
    np.testing.assert_allclose(out.mean(axis=(0, 1, 2)), 0, atol=1e-9)
    np.testing.assert_allclose(out.std(axis=(0, 1, 2)), 1, atol=1e-9)
