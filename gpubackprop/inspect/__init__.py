"""Layer 7: looking inside a run. Traces of what every operation computed, and their comparison
across devices; the memory that a training step needs."""

from gpubackprop.inspect.compare import Comparer, Comparison, Distance, Divergence, StepReport
from gpubackprop.inspect.memory import MemoryReport, MemoryRow, memory
from gpubackprop.inspect.runs import TracedRun, compare_devices, compare_with_trace, record
from gpubackprop.inspect.trace import Record, Trace, Tracer

__all__ = [
    "Comparer",
    "Comparison",
    "Distance",
    "Divergence",
    "MemoryReport",
    "MemoryRow",
    "Record",
    "StepReport",
    "Trace",
    "TracedRun",
    "Tracer",
    "compare_devices",
    "compare_with_trace",
    "memory",
    "record",
]
