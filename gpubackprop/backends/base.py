"""The kernel contract: everything that the layers above may ask of a device.

``Backend`` = primitives (each backend supplies them) + composites (``composites.py``, and by
subject ``products.py``, ``joined.py``, ``convolution.py``, ``images.py``, ``norms.py``,
``recurrent.py``, ``attention.py``) and updates (both defined once, overridden where a fused kernel
pays). Derivative rules, layers and optimizers speak to a backend and to nothing else; which array
library answers is the backend's business.

To add a backend: subclass ``Backend``, supply the primitives, register it in ``device.py``. The
reflection test compares its signatures with the contract and the parity suite runs it over every
operation's samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from gpubackprop.backends.attention import AttentionKernels
from gpubackprop.backends.chains.chain import Chain
from gpubackprop.backends.convolution import ConvolutionKernels
from gpubackprop.backends.images import ImageKernels
from gpubackprop.backends.joined import JoinedKernels
from gpubackprop.backends.launching import Arriving, Calls, Here, Launchable, Numbers, Staging
from gpubackprop.backends.memory import HostMemory, MemoryMeter, MemoryState, host_memory
from gpubackprop.backends.norms import NormKernels
from gpubackprop.backends.offers import offered, settled
from gpubackprop.backends.precision import ProductPrecision
from gpubackprop.backends.primitives import Array, Primitives, Shape
from gpubackprop.backends.recurrent import RecurrentKernels
from gpubackprop.backends.timing import Clock, HostClock
from gpubackprop.backends.updates import Updates
from gpubackprop.errors import DeviceError

Numerics = Literal["native", "deterministic"]


class Backend(
    Updates,
    ConvolutionKernels,
    ImageKernels,
    NormKernels,
    RecurrentKernels,
    AttentionKernels,
    JoinedKernels,
):
    """Kernels on the arrays of one device.

    Attributes
    ----------
    name : the array library's name, ``"numpy"`` or ``"cupy"``.
    device : the device's name, ``"cpu"``, ``"cuda:0"``, ...
    numerics : ``"deterministic"`` (same device, same bits, every run) or ``"native"`` (fastest).
    array_type : the class of this backend's arrays.
    has_tf32 : whether products of float32 arrays can be made in TF32.
    adds_products : whether ``addmm`` and ``wide_matmul`` are one kernel each: products are added,
        and those of halves made float32, before they are anywhere in memory.
    rounds_norms : whether normalisation of float32 rows over their last axes can write a result of
        half precision, and take such a cotangent, at no cost.
    leaves_gaps : kernels whose results may have gaps between their rows at no cost.
    run_ahead : how many steps of a training the host may ask for before it hears what came of the
        first of them; 0 where it does the work itself.
    precision : ``"float32"`` or ``"tf32"``, as it holds now for the thread that asks.
    """

    name: str
    device: str
    numerics: Numerics
    array_type: type
    has_tf32: bool = False
    adds_products: bool = False
    rounds_norms: bool = False
    leaves_gaps: frozenset[str] = frozenset()
    run_ahead: int = 0
    precision = ProductPrecision()

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked."""

    def memory_meter(self) -> MemoryMeter:
        """Counts the bytes in use on the device while a ``with`` block runs."""
        return HostMemory()

    def undetermined(self) -> frozenset[str]:
        """Kernels that under ``"native"`` numerics may take a faster way, whose bits can change
        from run to run."""
        return frozenset()

    def with_numerics(self, numerics: Numerics) -> Backend:
        """A backend of the same device with these numerics; tensors of two backends do not mix."""
        raise NotImplementedError

    def memory_state(self) -> MemoryState:
        """The device's memory as it is now."""
        return host_memory()

    def limit_memory(self, nbytes: int | None) -> None:
        """The most bytes that arrays of this device may take from now on; None lifts the limit.

        Raises
        ------
        DeviceError
            The device has no memory pool that could be limited.
        """
        raise DeviceError(
            f"the memory of {self.device} cannot be limited to {nbytes} bytes: only a GPU has a "
            "pool with a limit; leave the limit out, or choose a CUDA device"
        )

    def lacks_memory(self, error: BaseException) -> bool:
        """Whether this error says that the device has no room for what was asked for."""
        return isinstance(error, MemoryError)

    def clock(self) -> Clock:
        """Measures how long work on this device takes."""
        return HostClock()

    def owns(self, x: Array) -> bool:
        """Whether `x` is an array of this backend's device."""
        return isinstance(x, self.array_type)

    def owner(self, x: Array) -> object:
        """What holds the memory of `x`: the array itself, or the array that it is a view of."""
        raise NotImplementedError

    def layout(self, x: Array) -> tuple[int, tuple[int, ...]]:
        """Address of the element at index 0, and the strides in bytes."""
        raise NotImplementedError

    def extent(self, owner: Any) -> tuple[int, int]:
        """Addresses of the first byte and of the byte after the last of what :meth:`owner` gave, or
        of any array."""
        raise NotImplementedError

    def view_at(self, owner: Any, offset: int, shape: Shape, strides: Shape, dtype: Any) -> Array:
        """A view of memory that :meth:`owner` gave: the element at index 0 lies `offset` bytes
        after the first byte of its extent; strides in bytes, of any sign."""
        raise NotImplementedError

    def written_to(
        self, outs: Sequence[Array], kernel: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> None:
        """Call a kernel so that its results end in `outs`.

        Parameters
        ----------
        outs : one array for each result that is not None, none of which shares memory with an
            argument.
        kernel : of this backend.
        """
        with offered(outs):
            found = kernel(*args, **kwargs)
        settled(self, outs, found)

    def overlap(self, x: Array, y: Array) -> bool:
        """Whether two arrays with one owner may have elements in common: the bounds of their
        memory overlap."""
        raise NotImplementedError

    def first_outside(
        self, x: Array, low: float, high: float
    ) -> tuple[tuple[int, ...], float] | None:
        """Where the first element outside [low, high] is (a NaN is outside), and its value; None
        where there is none.

        For errors that name an element. A device that would have to be waited for does not look,
        and gives None.
        """
        return None

    # For steps that are repeated; see ``joined.py``, ``chains/`` and ``launching.py``.
    def joins(self, kernel: str, *args: Any) -> bool:
        """Whether a kernel that joins a product with others (``joined.py``) saves passes over
        memory here, loses no time and gives what its definition gives.

        Parameters
        ----------
        kernel : its name.
        args : its arguments; of an array, the shape, dtype and strides are looked at.
        """
        return False

    @property
    def chain_floats(self) -> tuple[np.dtype, ...]:
        """Dtypes of floats for which :meth:`chain` makes kernels; none where it makes none."""
        return ()

    def chain(
        self, inputs: Sequence[Array], chain: Chain, outs: Sequence[Array]
    ) -> Callable[..., None] | None:
        """A chain of elementwise calls over its arrays, ready to be run again and again.

        Parameters
        ----------
        inputs : the arrays that ``Operand("input", k)`` stands for, as ``chain.table`` describes
            them.
        chain : what to compute.
        outs : one array for each result, filled at each run.

        Returns
        -------
        callable or None
            Takes the values of :func:`~gpubackprop.backends.chains.chain.live_numbers`, in order,
            where there are any: Python numbers, or 0-d arrays of the device (float64 or int64),
            which are then read when the kernel runs. None where the dtypes are not served.
        """
        return None

    def capture_trouble(self) -> str | None:
        """Why calls can never be captured here; None where they can be."""
        return f"the kernels of {self.device} are plain functions: there is nothing to capture"

    def capture(self, calls: Calls) -> Launchable | str:
        """Kernel calls as one launch, or why that is not possible.

        Parameters
        ----------
        calls : each has run before, so that its kernel is compiled and what it keeps is made.

        Notes
        -----
        No call is carried out. What the calls read and write must stay alive as long as the result;
        what they make on the way, the result keeps.
        """
        return self.capture_trouble() or "this backend does not capture"

    def device_numbers(self, dtypes: Sequence[str]) -> Numbers:
        """A place for numbers of these dtypes (``"float64"``, ``"uint64"``) on the device.

        Only where calls can be captured.
        """
        raise NotImplementedError(self.capture_trouble())

    def follow(self, last: object | None) -> object | None:
        """Where the work that is asked for now is done, in order. What was asked for at `last`, an
        earlier answer, is done before it."""
        return None

    def staging(self) -> Staging | None:
        """Copies to the device beside its work; None where nothing has to be copied."""
        return None

    def fetch(self, x: Array) -> Arriving:
        """Begin to bring `x` to the host; the result waits for the numbers, and for nothing that
        was asked for later.

        Parameters
        ----------
        x : without gaps. Nothing that is asked for later may write to it before the numbers are
            there: a device copies it beside its other work. It is kept alive for so long.
        """
        return Here(self.to_numpy(x))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.device}>"


def kernel_names() -> tuple[str, ...]:
    """Names of every kernel in the contract, primitives first."""
    names = [n for n in Primitives.__annotations__]
    for cls in reversed([c for c in Backend.__mro__[1:] if issubclass(c, Primitives)]):
        for name, member in vars(cls).items():
            if inspect.isfunction(member) and not name.startswith("_") and name not in names:
                names.append(name)
    return tuple(names)
