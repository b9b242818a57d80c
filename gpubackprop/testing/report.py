"""What is wrong with an operation, for its author: every check that failed, and what mends it."""

from __future__ import annotations

import re
from collections.abc import Callable

from gpubackprop.autograd import Operation
from gpubackprop.testing.closeness import CheckError

PROMISES = {
    "check_shape_rule": "infer foretells the shape and dtype of what forward gives",
    "check_forward": "forward changes nothing and does not depend on how memory is laid out",
    "check_rule": "backward gives one cotangent per input, changes nothing, reads only what is "
    "saved",
    "check_precision": "float32 and float16 differ from float64 by rounding alone",
    "check_gradient": "backward is the derivative of forward",
    "check_second_order": "backward can itself be differentiated",
    "check_parity": "a device gives what the CPU gives",
}
"""What each check holds an operation to."""

HINTS = (
    (
        r"Backend'? object has no attribute",
        "K has no such kernel; the class gpubackprop.backends.Backend states those that it has.",
    ),
    (
        r"missing \d+ required positional argument|takes \d+ positional arguments",
        "The rules are called as forward(K, *inputs, **params), infer(*specs, **params) and "
        "backward(K, call, dy, *saved, **params), where saved are the inputs, 'out' or extras that "
        "saves names, in its order.",
    ),
    (
        r"StandInArray|read on the host|host array|no loop matching|__array_ufunc__|"
        r"'Tensor' object|np\.asarray would drop|unsupported operand|no ufunc",
        "A rule may use nothing but the kernels K that it is handed: K.exp(x), not np.exp(x) or "
        "math.exp(x); K.multiply(x, y), not x * y; K.sum(x, axis=0), not x.sum(0). That is what "
        "lets it run on a GPU and be differentiated again.",
    ),
    (
        r"forward changed",
        "forward wrote into one of its arguments (x[...] = ..., x *= ..., out=x). Write only into "
        "arrays that the rule made itself.",
    ),
    (
        r"changed an array that is not its own",
        "backward wrote into dy or a saved value, which others read too. Make a new array: leave "
        "out= away.",
    ),
    (
        r"everything that is not saved was overwritten|of the same call twice",
        "backward uses something that is not saved (a global, a closure, an array kept by forward),"
        " or that changes from call to call. Name in saves every input, 'out' or extra that "
        "backward reads, and take them as its arguments.",
    ),
    (
        r"cotangents for \d+ inputs|not a tuple of cotangents",
        "backward returns a tuple with one entry per input of forward, None where there is no "
        "derivative; for a single input that is (dx,), with the comma.",
    ),
    (
        r"set broadcasts=True",
        "An input that was repeated over an axis receives the sum over that axis. "
        "Operation(..., broadcasts=True) does that sum for you; else K.sum_to(dx, x.shape).",
    ),
    (
        r"cotangent of input \d+ has shape",
        "The cotangent of an input has the input's shape: sum over the axes along which forward "
        "repeated it (K.sum_to), repeat along those it summed over.",
    ),
    (
        r"cotangent of input \d+ is float",
        "A constant or an array of another dtype widened the result. Python numbers do not: write "
        "2.0, and K.zeros(shape, x.dtype).",
    ),
    (
        r"infer promises|infer refuses|check_shape_rule",
        "infer(*specs, **params) returns Spec(shape, dtype) of the result: for an elementwise rule "
        "that is its argument x itself where one input decides, else np.broadcast_shapes and "
        "np.result_type of the specs; floats where integers go in, if forward makes floats.",
    ),
    (
        r"no derivative at this point",
        "At this sample the function has a kink or a jump. If that is right, give the sample "
        "differentiable=False and keep others at a distance from the kink.",
    ),
    (
        r"wrong derivative|derivatives? .*differ|chain rule gives",
        "Compare backward with the formula: the sign, a dropped factor, a missing dy, two "
        "cotangents in the wrong order, a None for an input that matters. By second derivatives: "
        "K.detach or a saved extra that depends on the inputs cuts the dependence "
        "(constant_extras=False, or save inputs in its place).",
    ),
)
"""(what the message looks like, what to do), the first that fits."""


def hint(message: str) -> str:
    """What mends a failure, as far as its message tells; empty where it does not."""
    return next((words for pattern, words in HINTS if re.search(pattern, message)), "")


class Failures:
    """Gathers the failed checks of an operation.

    Parameters
    ----------
    op : the operation.
    """

    def __init__(self, op: Operation) -> None:
        self.op = op
        self.messages: dict[str, list[str]] = {}

    def run(self, check: Callable[..., None], *arguments: object) -> None:
        """Run one check of one sample."""
        try:
            check(self.op, *arguments)
        except CheckError as error:
            self.messages.setdefault(check.__name__, []).append(str(error))

    def raise_any(self, samples: int) -> None:
        """Raise one error that tells of all, if there are any."""
        if not self.messages:
            return
        lines = [f"{self.op.name}: {len(self.messages)} of {len(PROMISES)} checks fail"]
        told: set[str] = set()
        for name, promise in PROMISES.items():
            found = self.messages.get(name)
            if not found:
                continue
            lines += ["", f"{name} ({promise})"]
            what = found[0].rpartition(f"{name}: ")[2]
            if what in told:
                lines.append("  fails in the same way")
                continue
            lines.append(f"  {found[0]}")
            if len(found) > 1:
                lines.append(f"  ... and {len(found) - 1} more, over {samples} samples")
            words = hint(found[0])
            if words and words not in told:
                lines.append(f"  To mend it: {words}")
            told |= {what, words}
        raise CheckError("\n".join(lines))
