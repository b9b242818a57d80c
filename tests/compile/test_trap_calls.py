"""The shortest programs in which arguments, results or callers of a compiled function could be
trouble. Each gives what the plain function gives.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.compile.api import compile
from tests.compile.support.steps import agree, replayed, x_of


def test_results_do_not_alias_the_next_call(fast) -> None:
    compiled = compile(lambda x: (x * 2.0, x.T), fast=fast)
    results, given = [], []
    for _ in range(6):
        x = x_of()
        given.append(x.numpy().copy())
        results.append(compiled(x))
    for a, (double, transposed) in zip(given, results, strict=True):
        np.testing.assert_array_equal(double.numpy(), 2 * a)
        np.testing.assert_array_equal(transposed.numpy(), a.T)


def test_argument_that_is_changed_by_the_caller_later(fast) -> None:
    compiled = compile(lambda x: x, fast=fast)
    for _ in range(6):
        x = x_of()
        assert compiled(x) is x


def test_results_in_containers_and_arguments_by_name(fast) -> None:
    compiled = compile(lambda x, *, y: {"sum": x + y, "both": [x * y, None, 7]}, fast=fast)
    for _ in range(6):
        x, y = x_of(), x_of()
        found = compiled(x, y=y)
        agree(found["sum"], x + y)
        agree(found["both"][0], x * y)
        assert found["both"][1:] == [None, 7]


def test_views_and_broadcast_arguments(fast) -> None:
    compiled = compile(lambda x, y: (x + y).sum(axis=0), fast=fast)
    base = x_of(12, 8)
    for i in range(6):
        x = base[i : i + 6, ::2]
        y = x_of(1, 4)
        agree(compiled(x.detach(), y), (x + y).sum(axis=0))


def test_not_a_number_is_not_hidden(fast) -> None:
    compiled = compile(lambda x: gb.maximum(x, 0.0).sum(), fast=fast)
    for _ in range(5):
        compiled(x_of())
    x = x_of()
    x.array[2, 1] = np.nan
    assert np.isnan(compiled(x).item())


def test_compiled_within_compiled(fast) -> None:
    inner = compile(lambda x: x * 2.0, fast=fast)
    outer = compile(lambda x: inner(x) + 1.0, fast=fast)
    for _ in range(6):
        x = x_of()
        agree(outer(x), x * 2.0 + 1.0)
    assert replayed(inner) == 0


def test_two_threads(fast) -> None:
    compiled = compile(lambda x: (x * x).sum(axis=1), fast=fast)
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            a = rng.standard_normal((6, 4)).astype(np.float32)
            y = compiled(gb.tensor(a))
            if not np.allclose(y.numpy(), (a * a).sum(1), rtol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert replayed(compiled) > 700


def test_exception_while_recording(fast) -> None:
    calls = []

    def step(x):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a hiccup")
        return x * 2.0

    compiled = compile(step, fast=fast)
    x = x_of()
    compiled(x)
    with pytest.raises(RuntimeError, match="hiccup"):
        compiled(x)
    for _ in range(5):
        agree(compiled(x), x * 2.0)
    agree(gb.exp(x), gb.exp(x))  # the kernels are in their places again
    assert replayed(compiled) >= 2


def test_decorator() -> None:
    @compile(check=False)
    def double(x):
        """Twice."""
        return x * 2.0

    assert double.__doc__ == "Twice."
    for _ in range(4):
        x = x_of()
        agree(double(x), x * 2.0)
    assert "recorded" in double.explain(calls=True)
