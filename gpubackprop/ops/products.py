"""Products: matrix product, the linear layer, Einstein summation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from string import ascii_letters
from typing import Any

import numpy as np

from gpubackprop.autograd import ALL_INPUTS, Operation, Sample, Spec
from gpubackprop.errors import ShapeError


def _linear_forward(K: Any, x: Any, weight: Any, bias: Any) -> Any:
    # NumPy would repeat a bias of another shape, and take a vector for a matrix of one column.
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError("weight and bias must be (out, in) and (out,)")
    return K.linear(x, weight, bias)


def _linear_backward(K: Any, call: Any, dy: Any, x: Any, weight: Any) -> Any:
    # y = x W^T + b, one row per sample: the chain rule gives dx = dy W, and sums over the samples
    # dW = dy^T x, db = sum(dy).
    dx, dw, db = call.needs
    if dx:
        dx = K.matmul(dy, weight)
    if dw or db:
        rows = _rows(K, dy) if dy.ndim != 2 else dy
        if dw:
            flat = _rows(K, x) if x.ndim != 2 else x
            dw = K.matmul(K.transpose(rows), flat)
        if db:
            db = K.sum(rows, axis=0)
    return [g if g is not False else None for g in (dx, dw, db)]


def _linear_infer(x: Spec, weight: Spec, bias: Spec | None) -> Spec:
    if len(weight.shape) != 2:
        raise ShapeError(f"linear: weight must have shape (out, in), not {weight}")
    if not x.shape or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear: the last axis of x ({x}) must have the {weight.shape[1]} features that "
            f"weight ({weight}) takes"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear: bias must have shape ({weight.shape[0]},), not {bias}")
    dtypes = [s.dtype for s in (x, weight, bias) if s is not None]
    return Spec((*x.shape[:-1], weight.shape[0]), np.result_type(*dtypes))


def _linear_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for lead, n_in, n_out in (
        ((3,), 5, 4),
        ((1,), 1, 1),
        ((0,), 3, 2),
        ((2, 3), 4, 5),
        ((), 3, 2),
        ((2, 2), 3, 0),
        ((2, 2), 0, 3),
    ):
        x, w, b = (rng.standard_normal(s) for s in ((*lead, n_in), (n_out, n_in), (n_out,)))
        yield Sample((x, w, b))
        yield Sample((x, w, None), note="no bias")


LINEAR = Operation(
    "linear",
    _linear_forward,
    _linear_backward,
    _linear_infer,
    _linear_samples,
    saves=("x", "weight"),
).register()


# Matrix product.


def _swap(K: Any, x: Any) -> Any:
    """Last two axes exchanged."""
    return K.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def _rows(K: Any, x: Any) -> Any:
    """All leading axes joined into one."""
    return K.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _matmul_forward(K: Any, x1: Any, x2: Any) -> Any:
    return K.matmul(x1, x2)


def _matmul_backward(K: Any, call: Any, dy: Any, x1: Any, x2: Any) -> Any:
    # Y = A B has dA = dY B^T and dB = A^T dY. A 1-d x1 is a row and a 1-d x2 a column, whose
    # missing axis is put back first.
    row, column = x1.ndim == 1, x2.ndim == 1
    a = K.reshape(x1, (1, x1.shape[0])) if row else x1
    b = K.reshape(x2, (x2.shape[0], 1)) if column else x2
    if row or column:
        batch = dy.shape[: dy.ndim - (not row) - (not column)]
        dy = K.reshape(dy, (*batch, a.shape[-2], b.shape[-1]))
    d1 = d2 = None
    if call.needs[0]:
        d1 = K.matmul(dy, _swap(K, b))
    if call.needs[1]:
        if b.ndim == 2 and a.ndim > 2:
            # One product over the rows of all batches instead of a product for each and a sum.
            d2 = K.matmul(K.transpose(_rows(K, a)), _rows(K, dy))
        else:
            d2 = K.matmul(_swap(K, a), dy)
        if column:
            d2 = K.reshape(d2, d2.shape[:-1])
    return d1, d2


def _matmul_infer(x1: Any, x2: Any) -> Spec:
    for name, x in (("x1", x1), ("x2", x2)):
        if not isinstance(x, Spec) or not x.shape:
            raise ShapeError(
                f"matmul: {name} ({x}) needs at least one axis; use * for a product with a number"
            )
    a = x1.shape if len(x1.shape) > 1 else (1, *x1.shape)
    b = x2.shape if len(x2.shape) > 1 else (*x2.shape, 1)
    if a[-1] != b[-2]:
        raise ShapeError(
            f"matmul: the last axis of x1 ({x1}) has {a[-1]} elements and must have as many as "
            f"{'the axis' if len(x2.shape) == 1 else 'the second last axis'} of x2 ({x2}), {b[-2]}"
        )
    try:
        batch = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise ShapeError(
            f"matmul: the leading axes of x1 ({x1}) and x2 ({x2}) do not broadcast; sizes must "
            "be equal or 1"
        ) from None
    rows = a[-2:-1] if len(x1.shape) > 1 else ()
    columns = b[-1:] if len(x2.shape) > 1 else ()
    return Spec((*batch, *rows, *columns), np.result_type(x1.dtype, x2.dtype))


def _matmul_samples(rng: np.random.Generator) -> Iterable[Sample]:
    pairs = (
        ((3, 5), (5, 4)),
        ((1, 1), (1, 1)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
        ((5,), (5,)),
        ((5,), (5, 3)),
        ((3, 5), (5,)),
        ((2, 3, 5), (5,)),
        ((5,), (2, 5, 3)),
        ((7, 3, 5), (5, 2)),
        ((3, 5), (2, 5, 4)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((2, 3, 4), (1, 4, 5)),
    )
    for s1, s2 in pairs:
        yield Sample((rng.standard_normal(s1), rng.standard_normal(s2)))
    yield Sample(
        (rng.standard_normal((4, 3)).T, rng.standard_normal((5, 4)).T), note="not contiguous"
    )


MATMUL = Operation(
    "matmul",
    _matmul_forward,
    _matmul_backward,
    _matmul_infer,
    _matmul_samples,
    saves=("x1", "x2"),
    broadcasts=True,
).register()


# Einstein summation.


def _einsum_forward(K: Any, *operands: Any, subscripts: str) -> Any:
    return K.einsum(subscripts, *operands)


def _einsum_backward(K: Any, call: Any, dy: Any, *operands: Any, subscripts: str) -> Any:
    # The sum is linear in each operand, so an operand's cotangent is again a sum: that of dy and
    # the other operands.
    terms, result = split_subscripts(subscripts)
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for letter, n in zip(term, x.shape, strict=True):
            if sizes.setdefault(letter, n) == 1:  # a size of one is repeated
                sizes[letter] = n
    return [
        _einsum_cotangent(K, dy, terms, result, operands, i, sizes) if needed else None
        for i, needed in enumerate(call.needs)
    ]


def _einsum_cotangent(
    K: Any,
    dy: Any,
    terms: Sequence[str],
    result: str,
    operands: Sequence[Any],
    place: int,
    sizes: dict[str, int],
) -> Any:
    """The cotangent of one operand of ``einsum``."""
    others = [(t, x) for i, (t, x) in enumerate(zip(terms, operands, strict=True)) if i != place]
    wanted = ""
    for letter in terms[place]:
        if letter in wanted:
            # A letter that occurs twice reads a diagonal. Its second occurrence gets a letter of
            # its own, tied to the first by a unit matrix.
            twin = next(c for c in ascii_letters if c not in sizes and c not in wanted)
            n = sizes[letter]
            steps = K.arange(0, n, 1, "int64")
            unit = K.astype(K.equal(K.reshape(steps, (n, 1)), steps), dy.dtype)
            others.append((letter + twin, unit))
            wanted += twin
        else:
            wanted += letter
    have = set(result).union(*[set(t) for t, _ in others])
    reached = "".join(c for c in wanted if c in have)
    dx = K.einsum(
        f"{','.join([result, *[t for t, _ in others]])}->{reached}", dy, *[x for _, x in others]
    )
    if reached == wanted:
        return dx
    # Letters that only this operand has were summed out: the cotangent is the same all along them.
    widths = iter(dx.shape)
    spread = tuple(next(widths) if c in have else 1 for c in wanted)
    full = tuple(n if c in have else sizes[c] for c, n in zip(wanted, spread, strict=True))
    return K.broadcast_to(K.reshape(dx, spread), full)


def split_subscripts(subscripts: str) -> tuple[list[str], str]:
    """``"ij,jk->ik"`` as ``(["ij", "jk"], "ik")``."""
    left, arrow, result = subscripts.partition("->")
    if not arrow:
        raise ShapeError(f"einsum: subscripts {subscripts!r} name no result; write them with '->'")
    return left.split(","), result


def explicit_subscripts(subscripts: str, ndims: Sequence[int]) -> str:
    """Subscripts as the kernel wants them: the result named and every ellipsis spelled out.

    Parameters
    ----------
    subscripts : as in ``numpy.einsum``: ``"ij,jk"``, ``"...ij,...jk->...ik"``. Without ``->`` the
        result has the letters that occur once, in alphabetical order, after the axes of the
        ellipsis.
    ndims : number of axes of each operand.

    Raises
    ------
    ShapeError
        If the subscripts are not well formed or do not fit the operands.
    """
    text = subscripts.replace(" ", "")
    left, arrow, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ShapeError(
            f"einsum: subscripts {subscripts!r} name {len(terms)} operand(s), but {len(ndims)} "
            "were given"
        )
    for part in (*terms, result):
        if not all(c in ascii_letters for c in part.replace("...", "", 1)):
            raise ShapeError(
                f"einsum: subscripts {subscripts!r} may hold only letters, ',', '->' and '...'"
            )
    spare = [c for c in reversed(ascii_letters) if c not in text]
    longest = 0
    for i, (term, ndim) in enumerate(zip(terms, ndims, strict=True)):
        extra = ndim - len(term.replace("...", ""))
        if extra < 0 or (extra and "..." not in term):
            raise ShapeError(
                f"einsum: operand {i} has {ndim} axes, but subscripts {subscripts!r} name "
                f"{term!r} for it"
            )
        if "..." in term:
            longest = max(longest, extra)
    shared = "".join(spare[:longest])
    for i, (term, ndim) in enumerate(zip(terms, ndims, strict=True)):
        extra = ndim - len(term.replace("...", ""))
        terms[i] = term.replace("...", shared[longest - extra :])
    if not arrow:
        letters = "".join(terms)
        once = sorted(c for c in set(letters) if letters.count(c) == 1 and c not in shared)
        result = shared + "".join(once)
    elif "..." in result:
        result = result.replace("...", shared)
    for c in result:
        if result.count(c) > 1 or not any(c in term for term in terms):
            raise ShapeError(
                f"einsum: letter {c!r} of the result of {subscripts!r} must occur in an operand, "
                "and once in the result"
            )
    return f"{','.join(terms)}->{result}"


def _einsum_infer(*operands: Spec, subscripts: str) -> Spec:
    terms, result = split_subscripts(
        explicit_subscripts(subscripts, [len(x.shape) for x in operands])
    )
    sizes: dict[str, int] = {}
    for i, (term, x) in enumerate(zip(terms, operands, strict=True)):
        for letter, n in zip(term, x.shape, strict=True):
            known = sizes.setdefault(letter, n)
            if known == 1:
                sizes[letter] = n
            elif n not in (1, known):
                raise ShapeError(
                    f"einsum: letter {letter!r} of {subscripts!r} has size {n} in operand {i} "
                    f"({x}) and {known} before"
                )
    return Spec(tuple(sizes[c] for c in result), np.result_type(*[x.dtype for x in operands]))


def _einsum_samples(rng: np.random.Generator) -> Iterable[Sample]:
    calls: tuple[tuple[str, tuple[tuple[int, ...], ...], str], ...] = (
        ("ij,jk->ik", ((3, 5), (5, 4)), "matrix product"),
        ("bij,bjk->bik", ((2, 3, 1), (2, 1, 4)), "batched"),
        ("bij,kj->bki", ((2, 3, 5), (4, 5)), "transposed result"),
        ("i,j->ij", ((3,), (4,)), "outer product"),
        ("i,i->", ((5,), (5,)), "inner product"),
        ("ij->ji", ((3, 5),), "transpose"),
        ("ijk->j", ((2, 3, 4),), "a sum over letters of one operand"),
        ("ij,k->k", ((2, 3), (4,)), "letters of one operand summed out"),
        ("ijk,kl->il", ((2, 3, 4), (4, 5)), "a letter of one operand between shared ones"),
        ("ii->i", ((4, 4),), "diagonal"),
        ("ii->", ((4, 4),), "trace"),
        ("iij,jk->ik", ((3, 3, 2), (2, 4)), "diagonal inside a product"),
        ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 5)), "three operands"),
        ("ij,ij->ij", ((2, 1), (2, 3)), "a size of one is repeated"),
        ("ij,jk->ik", ((0, 3), (3, 2)), "empty"),
        ("ij,jk->ik", ((2, 0), (0, 3)), "empty sum"),
        (",i->i", ((), (3,)), "no axes"),
    )
    for subscripts, shapes, note in calls:
        yield Sample(
            tuple(rng.standard_normal(s) for s in shapes), {"subscripts": subscripts}, note=note
        )


EINSUM = Operation(
    "einsum",
    _einsum_forward,
    _einsum_backward,
    _einsum_infer,
    _einsum_samples,
    saves=ALL_INPUTS,
    broadcasts=True,
).register()
