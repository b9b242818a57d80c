"""Vectors of float32 as LLVM instructions, for the loops in which all sums stay in registers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.extending import register_jitable

_FEATURES = llvm.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx") else 4
"""Numbers in a vector of this machine."""
REGISTERS = 32 if LANES == 16 or platform.machine() in ("aarch64", "arm64") else 16
"""Vectors that a processor holds: 32 with AVX-512 and NEON, 16 with what was before."""

I64, REAL = ir.IntType(64), ir.FloatType()
VECTOR = ir.VectorType(REAL, LANES)
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
_I32 = ir.IntType(32)
_UNDEFINED = ir.Constant(VECTOR, ir.Undefined)
_SPREAD = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)


@register_jitable
def whole(n: int) -> int:
    """`n` rounded up to whole vectors. Kernels may call it too."""
    return (n + LANES - 1) // LANES * LANES


def number(k: int) -> Any:
    """An integer."""
    return ir.Constant(I64, k)


def pointer(builder: Any, address: Any, of: Any, plus: int = 0) -> Any:
    """A pointer to a value of a type, some bytes behind an address."""
    place = builder.add(address, number(plus)) if plus else address
    return builder.inttoptr(place, of.as_pointer())


def load(builder: Any, address: Any, of: Any) -> Any:
    """The value of a type at an address."""
    return builder.load(pointer(builder, address, of), align=8 if of is I64 else 4)


def load_vectors(builder: Any, address: Any, count: int) -> list[Any]:
    """Vectors that lie one behind the other."""
    places = [pointer(builder, address, VECTOR, 4 * LANES * v) for v in range(count)]
    return [builder.load(place, align=4) for place in places]


def store_vectors(builder: Any, vectors: Sequence[Any], address: Any) -> None:
    """Write vectors one behind the other."""
    for v, vector in enumerate(vectors):
        builder.store(vector, pointer(builder, address, VECTOR, 4 * LANES * v), align=4)


def add_products(
    builder: Any, addresses: Sequence[Any], factors: Sequence[Any], sums: Sequence[Any]
) -> list[Any]:
    """The number at each address times each of the vectors, added to a sum of its own; each
    product may be rounded with its sum."""
    name = f"llvm.fmuladd.v{LANES}f32"
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    fma = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    found = []
    for r, address in enumerate(addresses):
        alone = builder.insert_element(
            _UNDEFINED, load(builder, address, REAL), ir.Constant(_I32, 0)
        )
        many = builder.shuffle_vector(alone, _UNDEFINED, _SPREAD)
        for v, factor in enumerate(factors):
            found.append(builder.call(fma, [many, factor, sums[r * len(factors) + v]]))
    return found
