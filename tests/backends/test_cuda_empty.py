"""Arrays without elements through the CUDA backend: a launch of no blocks would be an error."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.support import shim
from tests.backends.test_cuda_backend import BACKEND, NUMPY

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


def f(*shape):
    return np.zeros(shape, np.float32)


def i(*shape):
    return np.zeros(shape, np.int64)


PLACE = (1, 2, 3)
WINDOW = ((2, 2), (2, 2), (0, 0))
AROUND = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
CALLS = [
    ("dropout", (f(0, 3), 0.5, *PLACE)),
    ("dropout_backward", (f(0), np.zeros(0, bool), 0.5)),
    ("bernoulli", ((0,), 0.5, *PLACE)),
    ("uniform", ((0,), *PLACE)),
    ("random_bits", (*PLACE, 0)),
    ("take", (f(4, 3), i(0))),
    ("take", (f(4, 0), i(2))),
    ("scatter_take", (f(0, 3), i(0), 0, 4)),
    ("scatter_take", (f(0, 3), i(0), 0, 0)),
    ("scatter_take", (f(2, 0), i(2), 0, 4)),
    ("take_along_axis", (f(0, 3), i(0, 3), 0)),
    ("scatter_along_axis", (f(0, 3), i(0, 3), 0, 4)),
    ("square_norm", (f(0),)),
    ("scale_shift", (f(0, 3), f(3), f(3))),
    ("max_pool", (f(0, 4, 4, 3), *WINDOW, (1, 1))),
    ("max_pool", (f(1, 4, 4, 0), *WINDOW, (1, 1))),
    ("avg_pool", (f(0, 4, 4, 3), *WINDOW)),
    ("conv", (f(0, 4, 4, 3), f(5, 3, 3, 3), None, *AROUND)),
    ("conv_weight", (f(0, 4, 4, 3), f(0, 4, 4, 5), (3, 3), *AROUND)),
    ("conv_transpose", (f(0, 4, 4, 5), f(5, 3, 3, 3), (4, 4), *AROUND)),
    ("attention", (f(0, 2, 4, 8), f(0, 2, 4, 8), f(0, 2, 4, 8))),
    ("attention", (f(1, 2, 0, 8), f(1, 2, 4, 8), f(1, 2, 4, 8))),
    ("attention", (f(1, 2, 4, 8), f(1, 2, 0, 8), f(1, 2, 0, 8))),
    ("rnn_steps", (f(1, 0, 4), f(0, 4), f(4, 4))),
    ("rnn_steps", (f(0, 2, 4), f(2, 4), f(4, 4))),
    ("gelu", (f(0),)),
    ("erf", (f(0, 2),)),
    ("gelu_backward", (f(0), f(0))),
]


@pytest.mark.parametrize(
    ("kernel", "arguments"), CALLS, ids=[f"{name}-{k}" for k, (name, _) in enumerate(CALLS)]
)
def test_no_elements_give_what_they_give_on_a_cpu(kernel, arguments):
    expected = getattr(NUMPY, kernel)(*arguments)
    given = [BACKEND.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
    found = getattr(BACKEND, kernel)(*given)
    both = (found, expected) if isinstance(expected, tuple) else ((found,), (expected,))
    for got, want in zip(*both, strict=True):
        got = BACKEND.to_numpy(got)
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_updates_of_nothing():
    empty = [BACKEND.asarray(f(0)) for _ in range(5)]
    BACKEND.sgd_update(*empty[:3], lr=0.1, momentum=0.9)
    BACKEND.adagrad_update(*empty[:3], lr=0.1)
    BACKEND.rmsprop_update(*empty, lr=0.1)
    BACKEND.adam_update(*empty[:4], lr=0.1, step=1)
