"""The CUDA kernels of activations, executed on the CPU from the same source, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import special
from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import DTYPES, close, cpp, define, launch, random, wide_of  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

ACTIVATIONS = {
    "Erf": ("erf", None),
    "Sigmoid": ("sigmoid", "y"),
    "Tanh": (None, "y"),
    "Relu": (None, "y"),
    "LeakyRelu": ("leaky_relu", "x"),
    "Elu": ("elu", "x"),
    "Gelu": ("gelu", "x"),
    "GeluTanh": ("gelu_tanh", "x"),
    "Silu": ("silu", "x"),
    "Softplus": ("softplus", None),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes(launch, name, dtype):  # noqa: F811
    value, slope = ACTIVATIONS[name]
    x = np.concatenate(
        [random(601, dtype, 2, scale=3), np.array([0, -0.0, np.nan, np.inf, -20, 20], dtype)]
    )
    dy, out = random(x.shape, dtype, 3), np.empty_like(x)
    wide = wide_of(dtype)
    up, parameter = x.astype(wide), 0.7 if name in ("LeakyRelu", "Elu") else None
    options = () if parameter is None else (parameter,)
    shape = geometry.over_packs(x.size, x.itemsize)
    with np.errstate(all="ignore"):
        if value:
            template = (cpp(dtype), name)
            launch("activation", template, shape, x, out, x.size, parameter or 0.0)
            expected = special.erf(up) if name == "Erf" else define(value, up, *options)
            close(out, expected, dtype, 4)
        if slope:
            launch(
                "activation_backward",
                (cpp(dtype), name),
                shape,
                dy,
                x,
                out,
                x.size,
                parameter or 0.0,
            )
            rule = {"Tanh": "tanh", "Relu": "relu"}.get(name, value)
            expected = define(f"{rule}_backward", dy.astype(wide), up, *options)
            close(out, expected, dtype, 40)
