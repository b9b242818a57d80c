"""A report as tables, and as a chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpubackprop.backends.memory import words
from gpubackprop.bench.kernels import CASES
from gpubackprop.errors import ConfigError

Rows = Mapping[str, Any]
WIDE = 2.0
"""Slowest turn to quickest, beyond which a median is no measurement."""
CLOSE = 1.05
"""A share of a ceiling that rounding and luck explain."""


def text(report: Rows) -> str:
    """Every table of a report."""
    parts = [_machine(report)]
    if "kernels" in report:
        parts.append(_kernels(report))
    if "recipes" in report:
        parts.append(_recipes(report))
    if "determinism" in report:
        parts.append(_determinism(report))
    if unsteady := list(_unsteady(report)):
        parts.append(
            f"the slowest turn took over {WIDE:g} times the quickest, as when other programs use "
            f"the machine, so that these say little: {', '.join(unsteady)}"
        )
    return "\n\n".join(parts)


def _unsteady(report: Rows) -> Iterator[str]:
    """What was timed with a wide spread."""
    tables = dict(report.get("kernels", {}))
    tables |= {k: r.get("contenders", {}) for k, r in report.get("recipes", {}).items()}
    for name, rows in tables.items():
        for label, row in rows.items():
            if "lowest" in row and row["highest"] > WIDE * row["lowest"]:
                yield f"{name} ({label})"


def _machine(report: Rows) -> str:
    m = report["machine"]
    lines = [
        f"{m['processor']}, {m['cores']} cores; Python {m['python']}, NumPy {m['numpy']}, "
        f"gpubackprop {m['gpubackprop']}",
        *m["gpus"],
    ]
    lines += [f"{label}: {what}" for label, what in report.get("contenders", {}).items()]
    lines += [f"{name} is left out: {why}" for name, why in report["absent"].items()]
    return "\n".join(lines)


def _kernels(report: Rows) -> str:
    lines = []
    for device, ceilings in report["ceilings"].items():
        sizes = report["sizes"][device]
        said = ", ".join(f"{name} {_rate(name, rate)}" for name, rate in ceilings.items())
        lines.append(
            f"ceilings of {device}: {said}; kernels move {words(sizes['nbytes'])}, matrices are "
            f"{sizes['gemm']} wide"
        )
    width = max([len(label) for _, rows in report["kernels"].items() for label in rows] + [9])
    lines += [
        "",
        f"{'kernel':<31}{'contender':<{width + 2}}{'ms':>10}{'rate':>17}{'of ceiling':>12}  spread",
    ]
    for name, rows in report["kernels"].items():
        if why := _nobody(rows):
            lines.append(f"{name:<31}absent: {why}")
            continue
        for label, r in rows.items():
            head = f"{name:<31}{label:<{width + 2}}"
            if "absent" in r:
                lines.append(f"{head}absent: {r['absent']}")
                continue
            rate = _rate(name, r.get("bytes_per_s") or r["flops_per_s"])
            share = "-" if r["of_ceiling"] is None else f"{r['of_ceiling']:.0%}"
            lines.append(
                f"{head}{1e3 * r['seconds']:>10.3f}{rate:>17}{share:>12}  "
                f"{1e3 * r['lowest']:.3f} .. {1e3 * r['highest']:.3f}"
            )
    lines.append("ms and spread: median, least and most of a call; rate: of the fewest bytes or")
    lines.append("operations that the kernel needs")
    if any(
        (r.get("of_ceiling") or 0) > CLOSE for k in report["kernels"].values() for r in k.values()
    ):
        lines.append(
            "more than 100%: arrays that are written in place stay in a cache where a copy's do "
            "not, or another program slowed the copies down"
        )
    return "\n".join(lines)


def _nobody(rows: Rows) -> str:
    """Why no contender has a kernel, where the first says so and no other says better."""
    reasons = [r.get("absent") for r in rows.values()]
    return reasons[0] if all(reasons) and len(reasons) > 1 else ""


def _rate(name: str, rate: float) -> str:
    if CASES[name].ceiling == "copy":
        return f"{rate / 1e9:.1f} GB/s"
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _recipes(report: Rows) -> str:
    every = [r for r in report["recipes"].values() if "absent" not in r]
    width = max([len(label) for r in every for label in r["contenders"]] + [9])
    lines = [
        f"{'recipe':<18}{'contender':<{width + 2}}{'steps/s':>10}{'to ours':>9}{'samples/s':>12}"
        f"{'ms/step':>10}{'peak memory':>13}  spread in ms"
    ]
    for name, r in report["recipes"].items():
        if "absent" in r:
            lines.append(f"{name:<18}absent: {r['absent']}")
            continue
        for label, row in r["contenders"].items():
            head = f"{name:<18}{label:<{width + 2}}"
            if "absent" in row:
                lines.append(f"{head}absent: {row['absent']}")
                continue
            peak = row["memory"]["peak"]
            own = r["contenders"].get(label.split(" ")[-1], {}).get("steps_per_s")
            ratio = f"{row['steps_per_s'] / own:.2f}" if own else "-"
            lines.append(
                f"{head}{row['steps_per_s']:>10.1f}{ratio:>9}{row['samples_per_s']:>12.0f}"
                f"{1e3 * row['seconds']:>10.3f}{'-' if peak is None else words(peak):>13}  "
                f"{1e3 * row['lowest']:.3f} .. {1e3 * row['highest']:.3f}"
            )
    lines.append("to ours: steps per second, as a share of this project's on the same device")
    errors = [
        (row["gradient_error"], f"{label}, {name}")
        for name, r in report["recipes"].items()
        for label, row in r.get("contenders", {}).items()
        if "gradient_error" in row
    ]
    if errors:
        worst, at = max(errors)
        lines.append(
            "before timing, gradients agreed with this project's in float64 to "
            f"{worst:.0e} of their length ({at}) or better"
        )
    return "\n".join(lines)


def _determinism(report: Rows) -> str:
    lines = []
    for device, found in report["determinism"].items():
        for name, r in found["kernels"].items():
            if "absent" in r:
                lines.append(f"{device}: {name}: {r['absent']}")
                continue
            ms = {k: f"{1e3 * s:.3f} ms" for k, s in r["seconds"].items()}
            same = "same bits" if r["same_bits"]["deterministic"] else "NOT the same bits"
            lines.append(
                f"{device}: {name}: deterministic {ms['deterministic']} ({same}), native "
                f"{ms['native']}: {r['cost']:.2f} times the time"
            )
        for name, r in found["recipes"].items():
            said = r.get("absent") or (
                f"two runs of {r['steps']} steps gave "
                + ("the same bits" if r["same_bits"] else "OTHER bits")
            )
            lines.append(f"{device}: {name}: {said}")
    return "\n".join(lines)


def repeatable(report: Rows) -> bool:
    """Whether everything in the part on determinism gave the same bits twice."""
    for found in report.get("determinism", {}).values():
        kernels = [
            r["same_bits"]["deterministic"] for r in found["kernels"].values() if "cost" in r
        ]
        runs = [r["same_bits"] for r in found["recipes"].values() if "same_bits" in r]
        if not all(kernels + runs):
            return False
    return True


def chart(report: Rows, path: Path) -> None:
    """Draw steps per second of the recipes and the kernels' shares of their ceilings as a PNG.

    Raises
    ------
    ConfigError
        matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "--chart needs matplotlib, which is not installed (pip install 'gpubackprop[plot]')"
        ) from None
    panels = list(_panels(report))
    if not panels:
        raise ConfigError("--chart: nothing was measured that could be drawn")
    widest = max(len(bars) for _, bars, _ in panels)
    size = (2.5 + 0.9 * widest, 4.0 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    everyone = list(dict.fromkeys(k for _, bars, _ in panels for v in bars.values() for k in v))
    for number, (label, bars, log) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, number + 1)
        labels = list(dict.fromkeys(k for values in bars.values() for k in values))
        width = 0.85 / len(labels)
        for k, contender in enumerate(labels):
            points = [(i, v[contender]) for i, v in enumerate(bars.values()) if contender in v]
            shift = (k - (len(labels) - 1) / 2) * width
            heights = [height for _, (height, _, _) in points]
            below = [height - low for _, (height, low, _) in points]
            above = [high - height for _, (height, _, high) in points]
            axes.bar(
                [i + shift for i, _ in points],
                heights,
                width,
                yerr=[below, above],
                label=contender,
                color=f"C{everyone.index(contender)}",
                error_kw={"elinewidth": 0.8},
            )
        axes.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right", fontsize=8)
        axes.set_ylabel(label)
        if log:
            axes.set_yscale("log")
        else:
            axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        # Beside the picture, where it hides no bar.
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    m = report["machine"]
    figure.suptitle(", ".join([f"{m['processor']}, {m['cores']} cores", *m["gpus"]]), fontsize=9)
    figure.savefig(path, dpi=150)


def _panels(report: Rows) -> Iterator[tuple[str, dict[str, dict[str, Any]], bool]]:
    """(label of the axis, height, least and most by bar and contender, whether logarithmic)."""
    found = {
        name: {
            label: tuple(1 / row[k] for k in ("seconds", "highest", "lowest"))
            for label, row in r["contenders"].items()
            if "seconds" in row
        }
        for name, r in report.get("recipes", {}).items()
        if "absent" not in r
    }
    if any(found.values()):
        yield "steps per second", found, True
    shares = {
        name: {
            label: tuple(
                r["of_ceiling"] * r["seconds"] / r[k] for k in ("seconds", "highest", "lowest")
            )
            for label, r in rows.items()
            if r.get("of_ceiling")
        }
        for name, rows in report.get("kernels", {}).items()
    }
    if shares := {name: bars for name, bars in shares.items() if bars}:
        yield "share of the measured ceiling", shares, False
