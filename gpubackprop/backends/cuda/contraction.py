"""Einstein summation as matrix products."""

from __future__ import annotations

import math

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.cuda import matrices
from gpubackprop.backends.primitives import Array


def as_product(K: ArrayBackend, subscripts: str, x1: Array, x2: Array) -> Array | None:
    """A sum over two operands as a batch of matrix products; None where it is none.

    A letter of both operands and the result counts the batch, one of both operands alone is summed
    over by the product, one of a single operand counts rows or columns, or is summed out before.
    """
    left, _, result = subscripts.partition("->")
    terms = left.split(",")
    if any(len(set(term)) != len(term) for term in (*terms, result)):
        return None  # a diagonal
    if not all(isinstance(x, K.array_type) for x in (x1, x2)):
        return None
    sizes: dict[str, int] = {}
    for term, x in zip(terms, (x1, x2), strict=True):
        if x.dtype.name not in matrices.TYPES or len(term) != x.ndim:
            return None
        for letter, n in zip(term, x.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                return None  # a size of one that is repeated
    first, second = terms
    batch = [c for c in first if c in second and c in result]
    inner = [c for c in first if c in second and c not in result]
    rows = [c for c in first if c not in second and c in result]
    columns = [c for c in second if c not in first and c in result]

    def table(x: Array, term: str, *groups: list[str]) -> Array:
        """The operand with the batch's axes and one axis for each group of letters."""
        kept = {c for group in (batch, *groups) for c in group}
        alone = tuple(i for i, c in enumerate(term) if c not in kept)
        x, term = (K.sum(x, axis=alone) if alone else x), "".join(c for c in term if c in kept)
        axes = [term.index(c) for group in (batch, *groups) for c in group]
        joined = (math.prod(sizes[c] for c in group) for group in groups)
        return K.reshape(K.transpose(x, axes), (*(sizes[c] for c in batch), *joined))

    y = K.matmul(table(x1, first, rows, inner), table(x2, second, inner, columns))
    order = [*batch, *rows, *columns]
    y = K.reshape(y, tuple(sizes[c] for c in order))
    return K.transpose(y, [order.index(c) for c in result])
