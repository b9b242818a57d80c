"""Chains of elementwise calls as kernels of their own, written, compiled and kept at first use.

A compiled step takes neighbouring elementwise calls, and the sums of what they give, into chains
(``compile/fusion.py``); :meth:`CudaChains.chain` binds one to its arrays. Live numbers are given at
each run, as Python numbers or as 0-d arrays of the device, which the kernel then reads when it
runs, so that a captured graph replays with whatever they hold.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.chains.chain import Chain, live_numbers, result_dtype, traced
from gpubackprop.backends.chains.expressions import UnfitError
from gpubackprop.backends.chains.layouts import COLUMNS, FLAT, ROWS, SCALAR
from gpubackprop.backends.cuda import chain_source, geometry
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.cuda.chain_source import ChainSource, Number, Written
from gpubackprop.backends.cuda.geometry import Launch
from gpubackprop.backends.cuda.kernels import Function
from gpubackprop.backends.primitives import Array

_KINDS = frozenset({FLAT, COLUMNS, ROWS, SCALAR})


class ChainRun:
    """The launches of one chain over its arrays.

    Parameters
    ----------
    launches : kernels with their shapes and arguments.
    live : for each launch, where a live number's two arguments stand, its place among the numbers
        that a run is given, and its dtype.
    is_array : whether something is an array of the device.
    """

    def __init__(
        self,
        launches: list[tuple[Function, Launch, list[Any]]],
        live: list[list[tuple[int, int, type]]],
        is_array: Callable[[Any], bool],
    ) -> None:
        self._live, self._is_array = live, is_array
        self._ready = [
            (f.launch, (shape.grid,), (shape.block,), list(f.wrapped(arguments)))
            for f, shape, arguments in launches
        ]
        self._null = np.uint64(0)

    def __call__(self, numbers: Sequence[Any] = ()) -> None:
        """Run it.

        Parameters
        ----------
        numbers : values of the chain's live numbers: Python numbers, or 0-d arrays of the device,
            float64 for floats and int64 for integers.
        """
        for (launch, grid, block, arguments), live in zip(self._ready, self._live, strict=True):
            for at, place, wrap in live:
                value = numbers[place]
                if self._is_array(value):
                    arguments[at], arguments[at + 1] = value, wrap(0)
                else:
                    arguments[at], arguments[at + 1] = self._null, wrap(value)
            launch(grid, block, tuple(arguments))


class CudaChains(DeviceArrays):
    """What a compiled step asks of a device that fuses.

    Notes
    -----
    Halves are computed with in float from one end of a chain to the other. Sums over rows or
    columns are kept in float (doubles in double), those over everything in double.
    """

    @property
    def chain_floats(self) -> tuple[np.dtype, ...]:
        return floats()

    def chain(
        self, inputs: Sequence[Array], chain: Chain, outs: Sequence[Array]
    ) -> Callable[..., None] | None:
        try:
            nodes, constants = traced(chain.steps, [x.dtype for x in inputs], self.chain_floats)
        except UnfitError:
            return None
        if not set(chain.table.kinds) <= _KINDS:
            return None
        for result, out in zip(chain.results, outs, strict=True):
            wanted = result_dtype(result, nodes[result.step])
            if wanted is None or out.dtype != wanted:
                return None
        launches: list[tuple[Function, Launch, list[Any]]] = []
        live: list[list[tuple[int, int, type]]] = []
        for part in _parts(chain):
            written = [
                Written(
                    nodes[chain.results[j].step],
                    chain.results[j].how,
                    chain.results[j].op,
                    outs[j].dtype,
                )
                for j in part
            ]
            self._add(chain, inputs, written, [outs[j] for j in part], constants, launches, live)
        return ChainRun(launches, live, self._is_array)

    def _add(
        self,
        chain: Chain,
        inputs: Sequence[Array],
        written: list[Written],
        outs: list[Array],
        constants: list[tuple[Any, np.dtype]],
        launches: list[tuple[Function, Launch, list[Any]]],
        live: list[list[tuple[int, int, type]]],
    ) -> None:
        """The launches of results that one kernel can give."""
        rows, columns, kinds = chain.table.rows, chain.table.columns, chain.table.kinds
        hows = {w.how for w in written}
        if not {ROWS, COLUMNS} & (hows | set(kinds)):
            rows, columns = 1, rows * columns
        scheme = next((how for how in (COLUMNS, ROWS) if how in hows), FLAT)
        moved = [x for x, kind in zip(inputs, kinds, strict=True) if kind in (FLAT, COLUMNS)]
        moved += [out for w, out in zip(written, outs, strict=True) if w.how == FLAT]
        lanes = chain_source.lanes_of([x.dtype.itemsize for x in moved])
        places = {(v.live, type(v)): k for k, v in enumerate(live_numbers(chain).values())}
        numbers = tuple(
            Number(dtype, isinstance(value, float), hasattr(value, "live"))
            for value, dtype in constants
        )
        given = tuple((kind, x.dtype) for kind, x in zip(kinds, inputs, strict=True))
        single = rows == 1 and ROWS not in kinds
        source = ChainSource(scheme, given, tuple(written), numbers, lanes, single)
        whole = (rows == 1 or columns % lanes == 0) and all(
            self.layout(x)[0] % (lanes * x.dtype.itemsize) == 0 for x in moved
        )
        packs = -(-columns // lanes)
        template: tuple[Any, ...] = ()
        spans, height = 1, rows
        if scheme == COLUMNS:
            width, spans, height, shape = geometry.over_columns(rows, packs)
            template = (width,)
        elif scheme == ROWS:
            team, shape = geometry.over_rows(rows, packs)
            template = (team,)
        else:
            shape = geometry.over(rows * packs)
        text, code = chain_source.text_of(source), chain_source.code_of(source)
        targets, last = self._targets(written, outs, spans, columns, shape)
        arguments: list[Any] = [*inputs, *targets]
        alive: list[tuple[int, int, type]] = []
        for (value, _), number in zip(constants, numbers, strict=True):
            if number.live:
                wrap = np.float64 if number.real else np.int64
                alive.append((len(arguments), places[value.live, type(value)], wrap))
                arguments.append(None)
            arguments.append(value)
        arguments += [rows, columns, spans, height, whole]
        launches.append((self.kernels.written(text, code, "chain", template), shape, arguments))
        live.append(alive)
        if last:
            finish = self.kernels.written(text, code, "finish")
            tail = [*last, spans, columns, shape.grid]
            tiles = columns if scheme == COLUMNS else 1
            launches.append((finish, geometry.over_tiles(tiles), tail))
            live.append([])

    def _targets(
        self,
        written: list[Written],
        outs: list[Array],
        spans: int,
        columns: int,
        shape: Launch,
    ) -> tuple[list[Array], list[Array]]:
        """Where the first kernel writes, and what the second one reads and writes."""
        targets: list[Array] = []
        last: list[Array] = []
        for result, out in zip(written, outs, strict=True):
            target = out
            if result.how in (COLUMNS, "all"):
                size = spans * columns if result.how == COLUMNS else shape.grid
                target = self.empty((size,), chain_source.summed(result)[1])
                last += [target, out]
            targets.append(target)
        return targets, last


@functools.cache
def floats() -> tuple[np.dtype, ...]:
    """Dtypes of floats that chains are written for; bfloat16 where its package is installed."""
    found = [np.dtype(name) for name in ("float32", "float64", "float16")]
    try:
        found.append(np.dtype(importlib.import_module("ml_dtypes").bfloat16))
    except ImportError:  # then there are no arrays of it
        pass
    return tuple(found)


def _parts(chain: Chain) -> list[list[int]]:
    """Results that one kernel gives. A thread that keeps to its columns cannot sum rows: where a
    chain has both, the columns are summed first, since what else it writes may lie over its
    inputs."""
    hows = [r.how for r in chain.results]
    everything = list(range(len(hows)))
    if not {ROWS, COLUMNS} <= set(hows):
        return [everything]
    columns = [j for j in everything if hows[j] == COLUMNS]
    return [columns, [j for j in everything if hows[j] != COLUMNS]]
