"""Every operation beside PyTorch's: values and gradients, over the operation's own samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpubackprop  # noqa: F401 - registers the operations
from gpubackprop import testing
from gpubackprop.autograd import REGISTRY
from gpubackprop.backends import get_backend
from gpubackprop.testing import calls
from gpubackprop.testing.closeness import longest, magnitude, require_close, tolerance

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")
# These import PyTorch at their head, so only where it is there.
from tests.peers.support import (  # noqa: E402
    attention_torch,
    convolution_torch,
    images_torch,
    norms_torch,
    recurrent_torch,
)

functional = torch.nn.functional

pytestmark = pytest.mark.peers

# Ours against theirs, in doubles: more than rounding, less than a mistake in a formula could hide.
DOUBLE = 1e-10


def both(name):
    """Functions of two arguments, one of which may be a number."""
    function = getattr(torch, name)
    return lambda a, b: function(torch.as_tensor(a), torch.as_tensor(b))


def axes_of(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis


def over_axes(function):
    """A reduction that names its axes as PyTorch does."""

    def call(x, axis=None, keepdims=False):
        return (
            function(x, dim=axes_of(x, axis), keepdim=keepdims) if x.ndim else function(x, dim=())
        )

    return call


def extreme(name):
    """`max` and `min`: PyTorch's share the derivative among equal elements too."""

    def call(x, axis=None, keepdims=False):
        return getattr(torch, name)(x, dim=axes_of(x, axis), keepdim=keepdims)

    return call


def arg_extreme(name):
    def call(x, axis=None, keepdims=False):
        return getattr(torch, name)(x, dim=axis, keepdim=keepdims and axis is not None)

    return call


def product(x, axis=None, keepdims=False):
    axes = axes_of(x, axis)
    for a in sorted(
        (a % x.ndim for a in ((axes,) if isinstance(axes, int) else axes)), reverse=True
    ):
        x = x.prod(dim=a, keepdim=keepdims)
    return x


def spread(x, axis=None, keepdims=False, ddof=0):
    if not x.ndim:
        return (x - x) ** 2
    return torch.var(x, dim=axes_of(x, axis), correction=ddof, keepdim=keepdims)


def truth(function):
    """`any` and `all`, one axis after the other."""

    def call(x, axis=None, keepdims=False):
        axes = axes_of(x, axis)
        x = x.bool()
        for a in sorted(
            (a % x.ndim for a in ((axes,) if isinstance(axes, int) else axes)), reverse=True
        ):
            x = function(x, dim=a, keepdim=keepdims)
        return x

    return call


def indexed(x, key):
    keys = key if isinstance(key, tuple) else (key,)
    if not any(isinstance(k, slice) and (k.step or 1) < 0 for k in keys):
        return x[key]
    # PyTorch has no negative steps: NumPy says which elements these are.
    places = np.arange(x.numel()).reshape(tuple(x.shape))[key]
    return x.reshape(-1)[torch.tensor(places.copy())]


def scattered(dy, key, shape):
    flat = torch.arange(int(np.prod(shape))).reshape(shape)
    places = indexed(flat, key).reshape(-1)
    zeros = torch.zeros(flat.numel(), dtype=dy.dtype)
    return zeros.index_add(0, places, dy.reshape(-1)).reshape(shape)


def take(x, indices, axis=0):
    flat = torch.index_select(x, axis, indices.reshape(-1) % max(x.shape[axis], 1))
    axis %= x.ndim
    return flat.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def scatter_take(dy, indices, axis, size):
    axis %= dy.ndim - indices.ndim + 1
    rows = dy.reshape(
        dy.shape[:axis] + (-1 if dy.numel() else indices.numel(),) + dy.shape[axis + indices.ndim :]
    )
    zeros = torch.zeros(rows.shape[:axis] + (size,) + rows.shape[axis + 1 :], dtype=dy.dtype)
    return zeros.index_add(axis, indices.reshape(-1) % size, rows)


def take_along_axis(x, indices, axis):
    return torch.take_along_dim(x, indices % x.shape[axis], axis)


def scatter_along_axis(dy, indices, axis, size):
    shape = list(dy.shape)
    shape[axis] = size
    places = torch.broadcast_to(indices % max(size, 1), dy.shape)
    return torch.zeros(shape, dtype=dy.dtype).scatter_add(axis, places, dy)


def pad(x, pad_width, value=0.0):
    flat = [w for pair in reversed(pad_width) for w in pair]
    return functional.pad(x, flat, value=value)


def cross_entropy(x, target, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    return functional.cross_entropy(
        x,
        target.long(),
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def loss(function):
    """A loss that is scaled, and summed or not."""

    def call(x, target, scale=1.0, reduce=True, **options):
        return scale * function(x, target, reduction="sum" if reduce else "none", **options)

    return call


def layer_norm(x, weight=None, bias=None, axes=1, eps=1e-5):
    return functional.layer_norm(x, x.shape[x.ndim - axes :], weight, bias, eps)


def dropout(x, p, seed, stream, offset):
    keep = get_backend("cpu").bernoulli(tuple(x.shape), 1.0 - p, seed, stream, offset)
    return torch.where(torch.as_tensor(keep), x / (1.0 - p) if p < 1.0 else 0.0 * x, 0.0)


def split(x, indices, axis=0):
    return torch.tensor_split(x, list(indices), dim=axis)


TORCH: dict[str, Any] = {
    # One argument, under one name or another.
    **{
        name: getattr(torch, name)
        for name in "negative absolute sign square sqrt reciprocal exp expm1 log log1p erf sin cos "
        "tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh sigmoid relu floor ceil "
        "isfinite isnan logical_not".split()
    },
    "rint": torch.round,
    "copy": torch.clone,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "leaky_relu": lambda x, negative_slope=0.01: functional.leaky_relu(x, negative_slope),
    "elu": lambda x, alpha=1.0: functional.elu(x, alpha),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    # Two arguments.
    **{
        name: both(name)
        for name in "add subtract multiply divide maximum minimum arctan2 not_equal less "
        "less_equal greater greater_equal logical_and logical_or".split()
    },
    "equal": both("eq"),
    "power": both("pow"),
    "where": lambda condition, a, b: torch.where(condition.bool(), a, b),
    "clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "astype": lambda x, dtype: x.to(getattr(torch, str(dtype))),
    # Reductions.
    "sum": over_axes(torch.sum),
    "mean": over_axes(torch.mean),
    "logsumexp": over_axes(torch.logsumexp),
    "prod": product,
    "var": spread,
    "max": extreme("amax"),
    "min": extreme("amin"),
    "any": truth(torch.any),
    "all": truth(torch.all),
    "argmax": arg_extreme("argmax"),
    "argmin": arg_extreme("argmin"),
    "cumsum": lambda x, axis: torch.cumsum(x, axis),
    # Shape.
    "reshape": lambda x, shape: torch.reshape(x, shape),
    "transpose": lambda x, axes=None: torch.permute(x, axes or tuple(range(x.ndim))[::-1]),
    "broadcast_to": lambda x, shape: torch.broadcast_to(x, shape),
    "sum_to": lambda x, shape: x.sum_to_size(shape),
    "concatenate": lambda *arrays, axis=0: torch.cat(arrays, axis),
    "split": split,
    "pad": pad,
    "flip": lambda x, axis=None: torch.flip(
        x, (axis,) if isinstance(axis, int) else axes_of(x, axis)
    ),
    # Choice of elements.
    "getitem": indexed,
    "scatter_getitem": scattered,
    "take": take,
    "scatter_take": scatter_take,
    "take_along_axis": take_along_axis,
    "scatter_along_axis": scatter_along_axis,
    # Products.
    "linear": functional.linear,
    "matmul": torch.matmul,
    "einsum": lambda *operands, subscripts: torch.einsum(subscripts, *operands),
    # Losses and layers.
    "mse_loss": loss(functional.mse_loss),
    "l1_loss": loss(functional.l1_loss),
    "huber_loss": loss(functional.huber_loss),
    "binary_cross_entropy": loss(functional.binary_cross_entropy),
    "binary_cross_entropy_with_logits": loss(functional.binary_cross_entropy_with_logits),
    "softmax_cross_entropy": cross_entropy,
    "layer_norm": layer_norm,
    "dropout": dropout,
    **convolution_torch.TORCH,
    **images_torch.TORCH,
    **norms_torch.TORCH,
    **recurrent_torch.TORCH,
    **attention_torch.TORCH,
}
# Inputs that PyTorch gives no derivative by.
CONSTANT = {"softmax_cross_entropy": ("weight",), "where": ("condition",)}


def test_every_operation_has_its_counterpart():
    assert [name for name in REGISTRY if name not in TORCH] == []
    assert [name for name in TORCH if name not in REGISTRY] == []


def to_torch(value: Any, wanted: bool = False) -> Any:
    if isinstance(value, np.ndarray):
        return torch.tensor(value.copy(), requires_grad=wanted)
    if isinstance(value, tuple):
        return tuple(to_torch(v) for v in value)
    return value


def theirs(op, sample, dtype, wanted):
    """Values and gradients by PyTorch."""
    inputs = [to_torch(calls.cast(x, dtype), i in wanted) for i, x in enumerate(sample.inputs)]
    result = TORCH[op.name](*inputs, **{n: to_torch(v) for n, v in sample.params.items()})
    results = result if isinstance(result, (tuple, list)) else (result,)
    values = [r.detach().numpy() for r in results]
    differentiable = [(k, r) for k, r in enumerate(results) if r.requires_grad]
    if not differentiable or not wanted:
        return values, [np.zeros(sample.inputs[i].shape) for i in wanted]
    cotangents = [
        torch.tensor(calls.cotangent(tuple(r.shape), values[k].dtype, k)) for k, r in differentiable
    ]
    found = torch.autograd.grad(
        [r for _, r in differentiable], [inputs[i] for i in wanted], cotangents, allow_unused=True
    )
    return values, [
        np.zeros(sample.inputs[i].shape) if g is None else g.numpy()
        for i, g in zip(wanted, found, strict=True)
    ]


SAMPLES = [
    pytest.param(op, sample, id=f"{op.name}-{i}")
    for op in REGISTRY.values()
    for i, sample in enumerate(testing.samples_of(op))
]


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_operation(op, sample, dtype):
    constant = [op.inputs.index(n) for n in CONSTANT.get(op.name, ())]
    wanted = [i for i in calls.differentiable_inputs(op, sample) if i not in constant]
    about = f"{calls.describe(op, sample)} in {dtype}"
    ours = calls.run(op, sample, get_backend("cpu"), dtype, wanted)
    values, gradients = theirs(op, sample, dtype, wanted)
    found = ours.values()
    relative = DOUBLE if dtype == "float64" else tolerance(dtype, longest(sample.inputs))
    scale = 0.01 if dtype == "float64" else magnitude([*sample.inputs, *found])
    for k, (got, want) in enumerate(zip(found, values, strict=True)):
        if want.dtype.kind == "f":
            assert got.dtype == want.dtype, about
        require_close(f"{about}: result {k}", got, want, relative, scale)
    for i, got, want in zip(wanted, calls.gradients(ours, wanted), gradients, strict=True):
        assert got.dtype == np.dtype(dtype)
        require_close(f"{about}: gradient by input {i}", got, want, relative, scale)
