"""The contenders of the recurrent benchmark compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import recurrent


@pytest.mark.parametrize(
    "shape",
    [recurrent.Shape(kind, 8, layers) for kind in ("LSTM", "GRU", "RNN") for layers in (1, 2)],
)
def test_contenders_compute_the_same(shape):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")
    threads = torch.get_num_threads()
    try:
        cost, gradients = recurrent.gb_step(shape)()
        their_cost, their_gradients = recurrent.torch_step(shape, threads)()
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(cost.numpy(), their_cost.numpy(), rtol=1e-5)
    for found, want in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(found.numpy(), want.numpy(), rtol=1e-3, atol=1e-5)
