"""The CPU's own ways through a recurrent layer that the cases of test_composites.py are too small
for."""

import numpy as np
import pytest

from gpubackprop import testing
from gpubackprop.backends.cpu import recurrent as numpy_recurrent
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.recurrent import RecurrentKernels
from tests.backends.support.recurrent_cases import GATES, arguments

NUMPY = NumPyBackend()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, np.array([4, 2, 3])])
@pytest.mark.parametrize("rest", ["", "_backward"])
@pytest.mark.parametrize("kind", GATES)
def test_products_in_panels(monkeypatch, kind, rest, lengths, reverse):
    options = {"lengths": lengths, "reverse": reverse}
    arrays = arguments(kind, rest, (4, 3, 8), 0, options)
    seen = []
    panels = numpy_recurrent._panels

    def spy(*arguments):
        found = panels(*arguments)
        seen.append(len(found[0]))
        return found

    monkeypatch.setattr(numpy_recurrent, "_panels", spy)
    monkeypatch.setattr(numpy_recurrent, "FEW_STEPS", 2)
    monkeypatch.setattr(numpy_recurrent, "PANEL", 3 * 8 * 8 * GATES[kind] // 4)
    found = getattr(NUMPY, f"{kind}_steps{rest}")(*arrays, **options)
    want = getattr(RecurrentKernels, f"{kind}_steps{rest}")(NUMPY, *arrays, **options)
    assert seen == [4]
    found, want = (v if isinstance(v, tuple) else (v,) for v in (found, want))
    for f, w in zip(found, want, strict=True):
        testing.require_close(kind, f, w, testing.tolerance("float64", 100), 10.0)


@pytest.mark.parametrize(
    ("batch", "size", "steps", "parts"),
    [(32, 32, 64, 1), (32, 128, 64, 4), (32, 128, 2, 1), (1, 512, 64, 1), (32, 256, 64, 1)],
)
def test_panels_are_for_products_of_a_certain_size(batch, size, steps, parts):
    weight = np.ones((4 * size, size), np.float32)
    result = np.zeros((batch, 4 * size), np.float32)
    panels, view = numpy_recurrent._panels(weight.T, result, steps)
    assert panels.shape == (parts, size, 4 * size // parts)
    assert np.shares_memory(panels, weight) == (batch == 1 or steps == 2)
    np.matmul(np.ones((batch, size), np.float32), panels, view)
    assert (result == size).all()
