"""The CUDA backend: the kernel contract on the arrays of one GPU.

Elementwise kernels and reductions are CuPy's, through the code shared with the NumPy backend;
matrix products are cuBLASLt's (``products.py``). The coarse kernels have ``.cu`` sources of their
own (``fused.py``, ``updates.py``), and so do random bits and indexing, where CuPy offers other
bits, other errors or sums in an order that changes from run to run.

A kernel here never waits for the GPU, except ``to_numpy``, ``synchronize`` and boolean masks. So it
cannot raise for an index that is out of range: what is taken with one is NaN, and the check for
non-finite numbers names the operation.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import is_basic_key, sole_index_axis
from gpubackprop.backends.base import Numerics, kernel_names
from gpubackprop.backends.chains.chain import Chain
from gpubackprop.backends.composites import normalize_axes
from gpubackprop.backends.cuda import geometry, sources
from gpubackprop.backends.cuda.arrays import threshold_of
from gpubackprop.backends.cuda.attention import CudaAttention
from gpubackprop.backends.cuda.chains import CudaChains
from gpubackprop.backends.cuda.choices import mode_of
from gpubackprop.backends.cuda.choosing import Chooser
from gpubackprop.backends.cuda.convolution import CudaConvolution
from gpubackprop.backends.cuda.fused import FusedKernels
from gpubackprop.backends.cuda.graphs import CudaGraphs
from gpubackprop.backends.cuda.images import CudaImage
from gpubackprop.backends.cuda.joined import JoinedProducts
from gpubackprop.backends.cuda.kernels import Kernels
from gpubackprop.backends.cuda.memory import PoolMemory, lacks_memory, limit_pool, pool_state
from gpubackprop.backends.cuda.norms import CudaNorm
from gpubackprop.backends.cuda.order import KeyOrder
from gpubackprop.backends.cuda.overrides import CudnnKernels
from gpubackprop.backends.cuda.recurrent import CudaRecurrent
from gpubackprop.backends.cuda.timing import EventClock
from gpubackprop.backends.cuda.updates import FusedUpdates
from gpubackprop.backends.memory import MemoryMeter, MemoryState
from gpubackprop.backends.philox import WORDS_PER_BLOCK
from gpubackprop.backends.precision import ProductPrecision
from gpubackprop.backends.primitives import Array, DType, Shape

# Kernels of the contract that touch no memory of the device.
_HOST_ONLY = {"count", "detach"}


class CUDABackend(
    CudnnKernels,
    FusedKernels,
    FusedUpdates,
    CudaConvolution,
    CudaImage,
    CudaNorm,
    CudaRecurrent,
    CudaAttention,
    JoinedProducts,
    CudaChains,
    CudaGraphs,
    KeyOrder,
):
    """Kernels on ``cupy.ndarray``.

    Parameters
    ----------
    index : number of the GPU, N of ``cuda:N``.
    numerics : see :class:`~gpubackprop.backends.base.Backend`.
    cudnn : ``"auto"`` (where it is installed, each call's shapes are run by cuDNN or by the plain
        kernel, whichever was measured to be faster), ``"always"`` or ``"never"``; None looks at
        ``GPUBACKPROP_CUDNN`` and then takes ``"auto"``.
    joined : ``"auto"`` (products take activations and sums along in a compiled step where that was
        measured to be no slower than kernels by themselves), ``"always"`` (wherever it is right) or
        ``"never"``; None looks at ``GPUBACKPROP_JOINED`` and then takes ``"auto"``.

    Notes
    -----
    Where the machine has several GPUs, every kernel makes this backend's one the current device
    while it runs.
    """

    has_tf32 = True
    precision = ProductPrecision()

    def __init__(
        self,
        index: int = 0,
        numerics: Numerics = "deterministic",
        cudnn: str | None = None,
        joined: str | None = None,
    ) -> None:
        cupy = importlib.import_module("cupy")
        super().__init__(cupy, "cupy", f"cuda:{index}", numerics)
        self.index = index
        cudnn_mode = mode_of("cudnn", cudnn)
        self.cudnn = Chooser(cupy, index, cudnn_mode, self.clock, self.lacks_memory)
        self.joining = mode_of("joined", joined)
        self.kernels = Kernels(cupy)
        self._gpu = cupy.cuda.Device(index)
        self._several = cupy.cuda.runtime.getDeviceCount() > 1
        if self._several:
            for kernel in kernel_names():
                if kernel not in _HOST_ONLY:
                    setattr(self, kernel, self._on_its_gpu(getattr(self, kernel)))

    def _on_its_gpu(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        current = self.xp.cuda.runtime.getDevice

        @functools.wraps(kernel)
        def run(*arguments: Any, **options: Any) -> Any:
            if current() == self.index:
                return kernel(*arguments, **options)
            with self._gpu:
                return kernel(*arguments, **options)

        return run

    def chain(
        self, inputs: Sequence[Array], chain: Chain, outs: Sequence[Array]
    ) -> Callable[..., None] | None:
        if not self._several:
            return super().chain(inputs, chain, outs)
        with self._gpu:
            run = super().chain(inputs, chain, outs)
        return None if run is None else self._on_its_gpu(run)

    def undetermined(self) -> frozenset[str]:
        of_cudnn = ("conv", "conv_transpose", "conv_weight", "attention_backward")
        return frozenset({"scatter_take", "matmul", *(of_cudnn if self.cudnn.active else ())})

    def with_numerics(self, numerics: Numerics) -> CUDABackend:
        if numerics == self.numerics:
            return self
        return CUDABackend(self.index, numerics, self.cudnn.mode, self.joining)

    def synchronize(self) -> None:
        self._gpu.synchronize()

    def memory_meter(self) -> MemoryMeter:
        return PoolMemory(self.xp, self.index)

    def memory_state(self) -> MemoryState:
        return pool_state(self.xp, self.index)

    def limit_memory(self, nbytes: int | None) -> None:
        limit_pool(self.xp, self.index, nbytes)

    def lacks_memory(self, error: BaseException) -> bool:
        return lacks_memory(error)

    def clock(self) -> EventClock:
        return EventClock(self.xp, self.index)

    def owns(self, x: Array) -> bool:
        return self._is_array(x) and x.device.id == self.index

    # Making and moving.
    def asarray(self, data: Any, dtype: DType = None) -> Array:
        if not self._is_array(data) and not hasattr(data, "__cuda_array_interface__"):
            data = np.asarray(data, dtype)
        return self.xp.asarray(data, dtype=dtype)

    def layout(self, x: Array) -> tuple[int, tuple[int, ...]]:
        return int(x.data.ptr), x.strides

    def extent(self, owner: Any) -> tuple[int, int]:
        first = int(owner.data.ptr)
        low = sum(min(0, (n - 1) * s) for n, s in zip(owner.shape, owner.strides, strict=True))
        high = sum(max(0, (n - 1) * s) for n, s in zip(owner.shape, owner.strides, strict=True))
        return first + low, first + high + (owner.itemsize if owner.size else 0)

    def view_at(self, owner: Any, offset: int, shape: Shape, strides: Shape, dtype: Any) -> Array:
        low, _ = self.extent(owner)
        memory = owner.data + (low - int(owner.data.ptr) + offset)
        return self.xp.ndarray(shape, dtype, memory, strides)

    def to_numpy(self, x: Array) -> np.ndarray:
        return self.xp.asnumpy(x)

    # Random bits.
    def random_bits(self, seed: int, stream: int, offset: Any, n: int) -> Array:
        out = self.empty((n,), np.uint32)
        if n:
            self.kernels.launch(
                "random_bits", (), self._words(n), out, n, *self._place(seed, stream, offset)
            )
        return out

    def bernoulli(self, shape: Shape, p: float, seed: int, stream: int, offset: Any) -> Array:
        out = self.empty(shape, np.bool_)
        if p >= 1.0:
            out.fill(True)
        elif out.size:
            place = self._place(seed, stream, offset)
            threshold = threshold_of(p)
            self.kernels.launch(
                "bernoulli", (), self._words(out.size), out, out.size, threshold, *place
            )
        return out

    def uniform(self, shape: Shape, seed: int, stream: int, offset: Any) -> Array:
        out = self.empty(shape, np.float32)
        if out.size:
            place = self._place(seed, stream, offset)
            self.kernels.launch("uniform", (), self._words(out.size), out, out.size, *place)
        return out

    def dropout(
        self, x: Array, p: float, seed: int, stream: int, offset: Any
    ) -> tuple[Array, Array]:
        element = self._element(x)
        if element is None or p <= 0.0:
            return super().dropout(x, p, seed, stream, offset)
        x = self._packed(x)
        y, keep = self.empty(x.shape, x.dtype), self.empty(x.shape, np.bool_)
        if x.size:
            scale = 0.0 if p >= 1.0 else 1.0 / (1.0 - p)
            place = self._place(seed, stream, offset)
            threshold = threshold_of(1.0 - p)
            self.kernels.launch(
                "dropout",
                (element,),
                self._words(x.size),
                x,
                y,
                keep,
                x.size,
                threshold,
                scale,
                *place,
            )
        return y, keep

    def _words(self, n: int) -> geometry.Launch:
        return geometry.over(-(-n // WORDS_PER_BLOCK))

    # Functions that CuPy lacks.
    def erf(self, x: Array, out: Array | None = None) -> Array:
        if self._element(x) is None:
            x = self.astype(x, np.float64)
        result = self._activate("Erf", x)
        return result if out is None else self._fill(out, result)

    # Indexing.
    def getitem(self, x: Array, key: Any) -> Array:
        axis = sole_index_axis(key)
        if axis is None or axis >= x.ndim:
            return x[key]
        return self.take(x, key[axis] if isinstance(key, tuple) else key, axis)

    def scatter_getitem(self, dy: Array, key: Any, shape: Shape) -> Array:
        masked = any(_is_mask(k) for k in (key if isinstance(key, tuple) else (key,)))
        if is_basic_key(key) or not masked:
            return super().scatter_getitem(dy, key, shape)
        size = math.prod(shape)
        positions = self.arange(0, size, 1, np.int64).reshape(shape)[key].reshape(-1)
        return self.scatter_take(dy.reshape(-1), positions, 0, size).reshape(shape)

    def take(self, x: Array, indices: Array, axis: int = 0) -> Array:
        (axis,) = normalize_axes(axis, x.ndim)
        indices = self._indices(indices)
        self._check_not_empty("take", x, indices, axis)
        element = self._element(x)
        if element is None:
            return self.xp.take(x, indices, axis=axis)
        outer, tail = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        out = self.empty(x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype)
        if out.size:
            x = self._packed(x)
            template = (element, sources.INDICES[indices.dtype.name])
            sizes = (outer, x.shape[axis], indices.size, tail)
            each = geometry.over(out.size // geometry.lanes_of(tail, x.dtype.itemsize))
            self.kernels.launch("take", template, each, x, indices, out, *sizes)
        return out

    def take_along_axis(self, x: Array, indices: Array, axis: int) -> Array:
        (axis,) = normalize_axes(axis, x.ndim)
        indices = self._indices(indices)
        self._check_not_empty("take_along_axis", x, indices, axis)
        element = self._element(x)
        if element is None:
            return self.xp.take_along_axis(x, indices, axis)
        around = np.broadcast_shapes(_without(x.shape, axis), _without(indices.shape, axis))
        lead, trail = around[:axis], around[axis + 1 :]
        out = self.empty(lead + (indices.shape[axis],) + trail, x.dtype)
        if out.size:
            x = self._packed(self.broadcast_to(x, lead + (x.shape[axis],) + trail))
            indices = self._packed(self.broadcast_to(indices, out.shape))
            template = (element, sources.INDICES[indices.dtype.name])
            sizes = (math.prod(lead), x.shape[axis], indices.shape[axis], math.prod(trail))
            self.kernels.launch(
                "take_along", template, geometry.over(out.size), x, indices, out, *sizes
            )
        return out

    def scatter_take(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        (axis,) = normalize_axes(axis, dy.ndim - indices.ndim + 1)
        lead, trail = dy.shape[:axis], dy.shape[axis + indices.ndim :]
        indices = self._indices(indices)
        count = indices.size
        if self.numerics == "native" and not lead and dy.dtype.name in ("float32", "float64"):
            out = self.zeros((size, *trail), dy.dtype)
            self.xp.add.at(out, indices, dy)  # atomics: the terms come in any order
            return out
        keys = self.empty((count,), np.int64)
        if count:
            template = (sources.INDICES[indices.dtype.name],)
            self.kernels.launch(
                "take_keys", template, geometry.over(count), indices, keys, size, count
            )
        return self._segment_sum(dy, keys, lead, size, trail)

    def scatter_along_axis(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        (axis,) = normalize_axes(axis, dy.ndim)
        lead, trail = dy.shape[:axis], dy.shape[axis + 1 :]
        shape = lead + (size,) + trail
        indices = self._packed(self.broadcast_to(self._indices(indices), dy.shape))
        keys = self.empty((dy.size,), np.int64)
        if dy.size:
            template = (sources.INDICES[indices.dtype.name],)
            sizes = (math.prod(lead), size, dy.shape[axis], math.prod(trail))
            self.kernels.launch(
                "along_keys", template, geometry.over(dy.size), indices, keys, *sizes
            )
        return self._segment_sum(dy, keys, (), math.prod(shape), ()).reshape(shape)

    def _segment_sum(self, dy: Array, keys: Array, lead: Shape, size: int, trail: Shape) -> Array:
        """Sums of the slices of `dy` with equal keys, (*lead, size, *trail); the slices with key -1
        go nowhere."""
        element = self._element(dy)
        if element is None:  # integers below 2**53 are exact in float64
            return self.astype(
                self._segment_sum(self.astype(dy, np.float64), keys, lead, size, trail), dy.dtype
            )
        out = self.empty(lead + (size,) + trail, dy.dtype)
        if not out.size or not keys.size:
            return self.zeros(out.shape, dy.dtype)
        # Sorting brings equal keys together and, being stable, keeps the order of the terms of each
        # sum.
        order = self._order_of(keys, size)
        bounds = self.empty((size + 1,), np.int64)
        self.kernels.launch(
            "segment_bounds", (), geometry.over(size + 1), keys, order, bounds, keys.size, size
        )
        sizes = (math.prod(lead), keys.size, size, math.prod(trail))
        width, depth, shape = geometry.over_segments(sizes[0], size, keys.size, sizes[3])
        template = (element, geometry.BLOCK)
        arguments = (self._packed(dy), order, bounds, out, *sizes, width, depth)
        self.kernels.launch("segment_sum", template, shape, *arguments)
        return out

    def _indices(self, indices: Array) -> Array:
        """Indices as the kernels read them: on the device, packed, int32 or int64."""
        if not self._is_array(indices):
            indices = self.asarray(indices)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers, not {indices.dtype}")
        if indices.dtype.name not in sources.INDICES:
            indices = self.astype(indices, np.int64)
        return self._packed(indices)

    @staticmethod
    def _check_not_empty(kernel: str, x: Array, indices: Array, axis: int) -> None:
        if x.shape[axis] == 0 and indices.size:
            raise IndexError(f"{kernel}: axis {axis} of {x.shape} has no elements to take")


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + (1,) + shape[axis + 1 :]


def _is_mask(key: Any) -> bool:
    return getattr(key, "dtype", None) == np.bool_ or isinstance(key, bool)
