"""What cuDNN is asked for: each operation as a graph of its front end.

An :class:`Operation` says everything that a plan depends on, so it is also what plans are kept by.
Shapes are cuDNN's, (N, C, *spatial) whatever lies in memory; the strides say that channels are last
there. A graph's tensors are numbered from 1 in the order of ``Operation.tensors``, results last.

Every result is given its shape, strides and dtype: what versions of the front end would infer
differs (1.18 infers channels last, 1.28 channels first).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.primitives import Shape

# Names of cuDNN's types, by NumPy's.
TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}
AXES = 2, 3  # spatial axes that cuDNN has convolutions for; fewer get axes of length 1 in front


class Tensor(NamedTuple):
    """An array as cuDNN sees it; strides count elements."""

    shape: Shape
    strides: Shape
    dtype: str


class Operation(NamedTuple):
    """A graph to build.

    Attributes
    ----------
    kind : a key of ``GRAPHS``.
    tensors : given ones, then results.
    options : what else the graph's function takes.
    """

    kind: str
    tensors: tuple[Tensor, ...]
    options: tuple[Any, ...] = ()


Built = list[Any]
"""The results of a graph, in the order of its tensors."""


def build(cudnn: Any, operation: Operation, deterministic: bool, **settings: Any) -> Any:
    """The graph of an operation, described and not yet validated.

    Parameters
    ----------
    cudnn : the front end.
    deterministic : whether an operation that has the choice adds in a fixed order.
    settings : further arguments of ``pygraph``, such as ``handle``.
    """
    types = {name: getattr(cudnn.data_type, kind) for name, kind in TYPES.items()}
    graph = cudnn.pygraph(
        io_data_type=types[operation.tensors[0].dtype],
        intermediate_data_type=types["float32"],
        compute_data_type=types["float32"],
        **settings,
    )
    function, results = GRAPHS[operation.kind]
    first = len(operation.tensors) - results
    given = [
        graph.tensor(
            dim=list(t.shape), stride=list(t.strides), data_type=types[t.dtype], uid=i, name=f"t{i}"
        )
        for i, t in enumerate(operation.tensors[:first], 1)
    ]
    found = function(cudnn, graph, given, deterministic, *operation.options)
    for i, (t, made) in enumerate(zip(operation.tensors[first:], found, strict=True), first + 1):
        made.set_output(True).set_uid(i)
        made.set_dim(list(t.shape)).set_stride(list(t.strides)).set_data_type(types[t.dtype])
    return graph


# Convolutions.


class Geometry(NamedTuple):
    """How a convolution's windows lie, with as many axes as cuDNN needs."""

    stride: Shape
    padding: Padding
    dilation: Shape

    def arguments(self) -> dict[str, list[int]]:
        """As the front end takes them."""
        return {
            "pre_padding": [before for before, _ in self.padding],
            "post_padding": [after for _, after in self.padding],
            "stride": list(self.stride),
            "dilation": list(self.dilation),
        }


def geometry_of(stride: Shape, padding: Padding, dilation: Shape) -> Geometry:
    """The geometry of a convolution of the contract."""
    return Geometry(_axes(stride, 1), _axes(padding, (0, 0)), _axes(dilation, 1))


def channels_last(first: int, channels: int, spatial: Shape, dtype: str) -> Tensor:
    """Images (first, *spatial, channels) or weights (first, *kernel, channels), without gaps."""
    spatial = _axes(spatial, 1)
    steps = [channels * math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
    size = channels * math.prod(spatial)
    return Tensor((first, channels, *spatial), (size, 1, *steps), dtype)


def per_channel(channels: int, axes: int, dtype: str) -> Tensor:
    """(channels,), to be added to images with `axes` spatial axes."""
    ones = (1,) * max(axes, AXES[0])
    return Tensor((1, channels, *ones), (channels, 1, *(channels * n for n in ones)), dtype)


def _axes(values: tuple[Any, ...], fill: Any) -> tuple[Any, ...]:
    return (*(fill,) * (AXES[0] - len(values)), *values)


def _conv(cudnn: Any, graph: Any, given: Built, deterministic: bool, geometry: Geometry) -> Built:
    y = graph.conv_fprop(given[0], given[1], **geometry.arguments())
    return [graph.bias(y, bias) for bias in given[2:]] or [y]


def _conv_transpose(
    cudnn: Any, graph: Any, given: Built, deterministic: bool, geometry: Geometry
) -> Built:
    return [graph.conv_dgrad(given[0], given[1], **geometry.arguments())]


def _conv_weight(
    cudnn: Any, graph: Any, given: Built, deterministic: bool, geometry: Geometry
) -> Built:
    return [graph.conv_wgrad(given[0], given[1], **geometry.arguments())]


# Attention.


class Band(NamedTuple):
    """Query i attends to the keys j <= i + right, counted from the first query and key
    (``TOP_LEFT``) or from the last ones (``BOTTOM_RIGHT``)."""

    alignment: str
    right: int


def band_of(causal: bool, past: int, queries: int, keys: int) -> Band | None:
    """What a causal query attends to; None where that is every key."""
    if not causal or past + 1 >= keys:
        return None
    if past and past == keys - queries:
        return Band("BOTTOM_RIGHT", 0)
    return Band("TOP_LEFT", past)


def heads(shape: Shape, strides: Shape, dtype: str) -> Tensor:
    """(B, H, T, D) with strides in bytes, as arrays have them."""
    size = 2 if dtype != "float32" else 4
    return Tensor(tuple(shape), tuple(s // size for s in strides), dtype)


def rows(shape: Shape) -> Tensor:
    """(B, H, T) numbers of float32, one for each row of the scores, without gaps."""
    b, h, t = shape
    return Tensor((b, h, t, 1), (h * t, t, 1, 1), "float32")


def in_order(shape: Shape, order: Sequence[int], dtype: str) -> Tensor:
    """(B, H, T, D) without gaps, whose first three axes follow each other in memory by `order`."""
    steps, step = [1] * 4, shape[3]
    for axis in reversed(order):
        steps[axis] = step
        step *= shape[axis]
    return Tensor(tuple(shape), tuple(steps), dtype)


class Scores(NamedTuple):
    """How queries and keys become weights."""

    scale: float
    band: Band | None

    def arguments(self, cudnn: Any) -> dict[str, Any]:
        """As the front end takes them."""
        if self.band is None:
            return {"attn_scale": self.scale}
        return {
            "attn_scale": self.scale,
            "diagonal_alignment": getattr(cudnn.diagonal_alignment, self.band.alignment),
            "diagonal_band_right_bound": self.band.right,
        }


def _attention(cudnn: Any, graph: Any, given: Built, deterministic: bool, scores: Scores) -> Built:
    q, k, v = given
    return list(graph.sdpa(q=q, k=k, v=v, generate_stats=True, **scores.arguments(cudnn)))


def _attention_backward(
    cudnn: Any, graph: Any, given: Built, deterministic: bool, scores: Scores
) -> Built:
    names = ("q", "k", "v", "o", "dO", "stats")
    arrays = dict(zip(names, given, strict=True))
    fixed = {"use_deterministic_algorithm": deterministic}
    return list(graph.sdpa_backward(**arrays, **fixed, **scores.arguments(cudnn)))


GRAPHS: dict[str, tuple[Callable[..., Built], int]] = {
    "conv": (_conv, 1),
    "conv_transpose": (_conv_transpose, 1),
    "conv_weight": (_conv_weight, 1),
    "attention": (_attention, 2),
    "attention_backward": (_attention_backward, 3),
}
"""The function that describes each kind of graph, and how many results it has."""


def dtype_name(dtype: np.dtype) -> str | None:
    """The name of a dtype that cuDNN's graphs here know."""
    return dtype.name if dtype.name in TYPES else None
