"""pytest that leaves its report where it is told to end: `timeout` sends SIGTERM, at which pytest
would die without a word about the tests that have run.

    python -m benchmarks.gpu.suite ARGUMENTS-OF-PYTEST
"""

from __future__ import annotations

import signal
import sys
from types import FrameType


def interrupt(number: int, frame: FrameType | None) -> None:
    """End as by Ctrl-C, at which pytest writes its report."""
    raise KeyboardInterrupt


def main() -> int:
    """Run pytest on this process's arguments."""
    try:
        import pytest
    except ImportError as error:
        print(f"the tests need pytest: {error} (benchmarks/gpu_wheels.sh fetches it)")
        return 1
    signal.signal(signal.SIGTERM, interrupt)
    return int(pytest.main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
