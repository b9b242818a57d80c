"""Layer 7: looking inside a run. Traces of what every operation computed, and their comparison
across devices."""

from gpubackprop.inspect.compare import Comparer, Comparison, Distance, Divergence, StepReport
from gpubackprop.inspect.runs import TracedRun, compare_devices, compare_with_trace, record
from gpubackprop.inspect.trace import Record, Trace, Tracer

__all__ = [
    "Comparer",
    "Comparison",
    "Distance",
    "Divergence",
    "Record",
    "StepReport",
    "Trace",
    "TracedRun",
    "Tracer",
    "compare_devices",
    "compare_with_trace",
    "record",
]
