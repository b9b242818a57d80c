"""The table that ``Module.summary()`` prints."""

from __future__ import annotations

from typing import Any

from gpubackprop.autograd import Tensor, no_grad
from gpubackprop.backends import Shape, as_dtype, get_backend
from gpubackprop.nn.module import Module


def summarize(root: Module, input_shape: Shape | None, dtype: Any) -> str:
    """See :meth:`gpubackprop.nn.Module.summary`."""
    shapes = {} if input_shape is None else output_shapes(root, tuple(input_shape), dtype)
    header = ["path", "module", "output shape", "parameters"]
    rows, counted = [], set()
    for path, module in root.named_modules():
        count = 0
        for p in module.parameters(recurse=False):
            if id(p) not in counted:
                counted.add(id(p))
                count += p.size
        has_children = any(True for _ in module.children())
        shown = f"{count:,}" if count or not has_children else ""
        rows.append([path or "(root)", type(module).__name__, shapes.get(id(module), "-"), shown])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]

    def line(row: list[str]) -> str:
        cells = [cell.ljust(w) for cell, w in zip(row[:3], widths, strict=False)]
        return "  ".join([*cells, row[3].rjust(widths[3])]).rstrip()

    parameters = list(root.parameters())
    total = sum(p.size for p in parameters)
    trainable = sum(p.size for p in parameters if p.requires_grad)
    size = sum(p.size * p.dtype.itemsize for p in parameters)
    rule = "-" * (sum(widths) + 6)
    return "\n".join(
        [
            line(header),
            rule,
            *map(line, rows),
            rule,
            f"parameters: {total:,} ({trainable:,} trainable), {size:,} bytes",
        ]
    )


def output_shapes(root: Module, input_shape: Shape, dtype: Any) -> dict[int, str]:
    """Shape of each module's last result, by the module's ``id``, found by one run on zeros."""
    shapes: dict[int, str] = {}

    def watch(module: Module) -> None:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            shapes[id(module)] = describe(result)
            return result

        object.__setattr__(module, "forward", forward)

    modules = list(root.modules())
    modes = [m.training for m in modules]
    first = next(root.parameters(), None)
    backend = get_backend("cpu") if first is None else first.backend
    kept = [m.__dict__.get("forward") for m in modules]  # of a module that shadows its class
    try:
        root.eval()
        for module in modules:
            watch(module)
        with no_grad():
            root(Tensor(backend.zeros(input_shape, as_dtype(dtype)), backend))
    finally:
        for module, mode, own in zip(modules, modes, kept, strict=True):
            object.__setattr__(module, "training", mode)
            module.__dict__.pop("forward", None)
            if own is not None:
                object.__setattr__(module, "forward", own)
    return shapes


def describe(result: Any) -> str:
    """The shape of a result, or the shapes of several."""
    if isinstance(result, Tensor):
        return str(result.shape)
    if isinstance(result, (tuple, list)):
        return ", ".join(describe(r) for r in result)
    if isinstance(result, dict):
        return ", ".join(f"{k}: {describe(v)}" for k, v in result.items())
    return type(result).__name__
