"""The contenders of the pooling benchmark compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import pooling

SHAPES = [s._replace(images=2, channels=3) for s in pooling.WORKLOADS.values()]


@pytest.mark.parametrize("shape", SHAPES, ids=list(pooling.WORKLOADS))
def test_contenders_compute_the_same(shape):
    pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")
    ours, theirs = pooling.gb_steps(shape), pooling.torch_steps(shape)
    assert tuple(ours) == tuple(theirs) == pooling.DIRECTIONS
    for name in ours:
        found, expected = ours[name](), theirs[name]()
        if name == "max":
            found, expected = found[0], expected[0]
        expected = np.moveaxis(expected.numpy(), 1, -1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
