"""The ratios as bars."""

from __future__ import annotations

from typing import Any

from benchmarks.cpu.contenders import CONTENDERS


def draw(report: dict[str, Any], file: str) -> None:
    """Bars of each contender's ratio to PyTorch eager, workload by workload, the spread over the
    rounds as a line. Without matplotlib it says so and draws nothing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no chart: matplotlib is not installed (the extra 'plot')")
        return
    workloads = report["workloads"]
    timed = [
        name
        for name in CONTENDERS
        if any(found.get(name, {}).get("ratio_to_torch") for found in workloads.values())
    ]
    if not timed:
        print("no chart: nothing was timed beside PyTorch")
        return
    figure = Figure(figsize=(1.5 + 2.2 * len(workloads), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.85 / len(timed)
    for k, name in enumerate(timed):
        points = [
            (place + (k - (len(timed) - 1) / 2) * width, found[name])
            for place, found in enumerate(workloads.values())
            if found.get(name, {}).get("ratio_to_torch")
        ]
        heights = [r["ratio_to_torch"] for _, r in points]
        reach = [
            [max(0.0, r["ratio_to_torch"] - r["spread"][0]) for _, r in points],
            [max(0.0, r["spread"][1] - r["ratio_to_torch"]) for _, r in points],
        ]
        axes.bar(
            [x for x, _ in points],
            heights,
            width,
            yerr=reach,
            label=name,
            color=f"C{k}",
            error_kw={"elinewidth": 0.8},
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(workloads)), list(workloads))
    axes.set_ylabel("steps per second, ratio to PyTorch eager")
    axes.set_title(report["machine"]["processor"], fontsize=9)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(file, dpi=150)
