"""The shortest programs that cannot be compiled. Each ends in an error or a warning that says how
to write it instead.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.compile.api import compile
from gpubackprop.compile.compiled import Compiled
from gpubackprop.errors import CompileError
from tests.compile.support.steps import RNG, Net, agree, x_of


@pytest.mark.parametrize(
    "look",
    [
        lambda y: float(y.sum()),
        lambda y: y.sum().item(),
        lambda y: y.numpy(),
        lambda y: 1 if y.sum() > 0 else 2,
        lambda y: f"{y.sum():.3f}",
    ],
    ids=["float", "item", "numpy", "if", "format"],
)
def test_looking_at_a_number(look) -> None:
    def step(x):
        y = x * 2.0
        look(y)
        return y

    with pytest.raises(CompileError, match=r"gb\.where"):
        compile(step)(x_of())


def test_looking_at_a_number_without_strictness() -> None:
    compiled = compile(lambda x: x * float(x.sum()), strict=False)
    x = x_of()
    with pytest.warns(RuntimeWarning, match="not compiled"):
        agree(compiled(x), x * float(x.sum()))
    agree(compiled(x), x * float(x.sum()))


def test_random_numbers_of_numpy() -> None:
    rng = np.random.default_rng(0)
    compiled = compile(lambda x: x + gb.tensor(rng.standard_normal(4).astype(np.float32)))
    compiled(x_of())
    with pytest.raises(CompileError, match="argument"):
        compiled(x_of())


def test_batch_that_is_no_argument() -> None:
    batches = iter([x_of() for _ in range(5)])
    compiled = compile(lambda: next(batches) * 2.0)
    compiled()
    with pytest.raises(CompileError, match="argument"):
        compiled()


def test_python_number_that_changes() -> None:
    state = {"beta": 0.0}

    def step(x):
        state["beta"] += 0.1
        return x * state["beta"]

    compiled = compile(step)
    compiled(x_of())
    with pytest.raises(CompileError, match="tensor"):
        compiled(x_of())


def test_tensor_left_in_a_list() -> None:
    history = []

    def step(x):
        y = (x * x).sum()
        history.append(y)
        return y

    compiled = compile(step)
    compiled(x_of())
    with pytest.raises(CompileError, match="Return it"):
        compiled(x_of())


def test_argument_with_a_history() -> None:
    w = gb.tensor([1.0, 2.0], requires_grad=True)
    compiled = compile(lambda x: x * 2.0)
    with pytest.raises(CompileError, match="detach"):
        compiled(w * 3.0)


def test_backward_after_the_call() -> None:
    net = Net()
    compiled = compile(lambda x: net(x).sum())
    for _ in range(4):
        loss = compiled(x_of())
        with pytest.raises(RuntimeError, match="depend"):
            loss.backward()


def test_numpy_result() -> None:
    compiled = compile(lambda x: np.zeros(3))
    with pytest.raises(CompileError, match="NumPy array"):
        compiled(x_of())


def test_function_that_never_does_the_same_twice() -> None:
    count = [0]

    def step(x):
        count[0] += 1
        for _ in range(count[0] % 7):
            x = gb.tanh(x)
        return x

    compiled = compile(step)
    with pytest.warns(RuntimeWarning, match="no two agreed"):
        for _ in range(12):
            compiled(x_of())
    x = x_of()
    count[0] = 1
    agree(compiled(x), gb.tanh(gb.tanh(x)))
    assert "runs as it is" in compiled.explain()


def test_re_entrance() -> None:
    compiled: Compiled

    class Schedule:
        def __call__(self, step: int) -> float:
            if step > 4:
                compiled(x)
            return 1.0

    x = x_of()
    w = nn.Parameter(np.ones(4, np.float32))
    optimizer = optim.SGD([w], lr=0.1)
    scheduler = optim.Scheduler(optimizer, Schedule())

    def step(x):
        scheduler.step()
        return x * 2.0

    compiled = compile(step)
    with pytest.raises(CompileError, match="while it runs"):
        for _ in range(8):
            compiled(x)


def test_not_a_function() -> None:
    with pytest.raises(CompileError, match="function"):
        compile(3)


def test_a_number_that_is_looked_at_is_named_with_the_line() -> None:
    def step(x):
        y = gb.tanh(x).sum(axis=0)
        return y * y.numpy()[0]

    line = step.__code__.co_firstlineno + 2
    words = rf"float32 \[4\], made by sum, line {line} of test_trap_refusals\.py\) with float\(\)"
    with pytest.raises(CompileError, match=words):
        compile(step)(x_of())


def test_a_window_that_moves_over_an_outside_array() -> None:
    data = RNG.standard_normal((60, 4)).astype(np.float32)
    place = [0]

    def step(x):
        place[0] += 6
        return (x * gb.tensor(data[place[0] : place[0] + 6])).sum()

    compiled = compile(step)
    with pytest.raises(CompileError, match="another part of one.* as an argument"):
        for _ in range(4):
            compiled(x_of())


@pytest.mark.parametrize(
    "wrong",
    [{"graph": "yes"}, {"fast": 1}, {"check": None}, {"recompute": 2}, {"cache": 0}, {"strict": 1}],
)
def test_wrong_options_are_named(wrong) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(CompileError, match=rf"compile: {name} must be .*, not {value!r}"):
        compile(lambda x: x, **wrong)
