"""The contenders of the normalisation benchmark compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import normalization

SHAPES = [(4, *shape[1:]) for shape in normalization.WORKLOADS.values()]


def arrays(result, gradient):
    """y, or the cotangents of input, weight and bias, images with the channels first."""
    found = result if isinstance(result, tuple) else (result,)
    found = [np.asarray(a.detach() if hasattr(a, "detach") else a) for a in found]
    return found if gradient else found[:1]


@pytest.mark.parametrize("shape", SHAPES, ids=list(normalization.WORKLOADS))
def test_both_compute_the_same(shape):
    pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")
    ours, theirs = normalization.gb_steps(shape), normalization.torch_steps(shape)
    assert tuple(ours) == tuple(theirs) == normalization.directions(shape)
    for name in ours:
        gradient = name.endswith("gradient")
        found, expected = (arrays(steps[name](), gradient) for steps in (ours, theirs))
        for got, want in zip(found, expected, strict=True):
            if want.ndim == 4:
                want = np.moveaxis(want, 1, -1)
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3, err_msg=name)
