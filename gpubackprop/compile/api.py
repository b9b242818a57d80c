"""``gb.compile``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gpubackprop.compile.compiled import Compiled


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    check: bool = True,
    fast: bool | None = None,
    cache: int = 8,
    strict: bool = True,
    device: Any = None,
    recompute: bool = False,
    graph: bool | None = None,
    rehearse: Callable[[], Callable[[], None]] | None = None,
) -> Any:
    """A function that is recorded below autograd and replayed, several times as fast.

    The first calls run `fn` as it is and record every kernel call: forward pass, backward pass,
    update. Once two calls in a row did the same, the step is planned (memory, fused loops), and
    further calls replay it.

    Parameters
    ----------
    fn : a function of tensors: a whole training step, a loss with ``grad``, an inference function,
        or a module. Left out, ``compile`` is a decorator.
    check : compare the first replay with the function itself.
    fast : use native kernels (the extra ``fast``); by default wherever they are installed. True
        makes their absence an error, False leaves the step to NumPy.
    cache : how many recordings are kept: one for each set of shapes, modes and options.
    strict : raise an error for a function that cannot be replayed. Otherwise it warns, and runs as
        it is.
    device : where a function without tensor arguments works; by default as for ``gb.tensor``.
    recompute : compute cheap values (activations, normalised rows) a second time where that lowers
        the most memory in use at once; ``explain()`` says from what to what.
    graph : replay a step as one launch of a graph that the device has captured, after a few replays
        call by call. By default where that is possible (``explain()`` says why where it is not);
        True makes it an error where it is not, False launches call by call.
    rehearse : saves the state that `fn` changes and gives a function that puts it back. With it the
        recordings and the comparison are made on the first arguments without effect, and every
        step, the first too, is a replay: a run that is interrupted and resumed has the same bits.

    Returns
    -------
    Compiled
        Call it like `fn`. Results have no history. ``explain()`` says what was compiled.

    Raises
    ------
    CompileError
        When called: `fn` looks at a number that it computes, uses an array or a Python number from
        outside that changes, or leaves tensors outside; the error says what to write instead.

    Notes
    -----
    What is followed from call to call: arguments; parameters, buffers and optimizer state; learning
    rates and other options, step counts, schedules that are stepped inside, places in random
    sequences. What is looked at before each replay, and recorded anew where it changed: shapes,
    dtypes, modes and settings of modules, which parameters have gradients, plain numbers in the
    function's closure. What a replay does not do: print, count in Python variables, append to
    lists.

    Examples
    --------
    >>> import gpubackprop as gb
    >>> double = gb.compile(lambda x: x + x)
    >>> for _ in range(4):
    ...     y = double(gb.tensor([1.0, 2.0]))
    >>> y.tolist()
    [2.0, 4.0]
    """
    options: dict[str, Any] = {
        "check": check,
        "fast": fast,
        "cache": cache,
        "strict": strict,
        "device": device,
        "recompute": recompute,
        "graph": graph,
        "rehearse": rehearse,
    }
    return functools.partial(compile, **options) if fn is None else Compiled(fn, **options)
