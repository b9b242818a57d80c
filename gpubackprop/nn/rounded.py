"""A copy of an arena's values in half precision, for the products of mixed precision.

The parameters are the float32 masters. All of them are rounded in one pass, when the first of them
is asked for, and the copy serves until one of them changes: for a whole training step.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.changes import CHANGES
from gpubackprop.backends import Array, live

if TYPE_CHECKING:
    from gpubackprop.nn.arena import Section


class RoundedValues:
    """The values of a section's parameters in another dtype.

    Parameters
    ----------
    section : holds the masters.
    dtype : of the copy.

    Attributes
    ----------
    buffer : (size,), laid out like the section's values.
    """

    def __init__(self, section: Section, dtype: np.dtype) -> None:
        backend = section.backend
        self.section = section
        self.buffer = Tensor(backend.zeros((section.size,), dtype), backend)
        self.views = [section.view(self.buffer.array, i) for i in range(len(section.tensors))]
        # The tape's number when the copy was last found to be right, and the recording in which it
        # was made: a replay must make it anew.
        self._right_at = -1
        self._made_in: weakref.ref[Any] | None = None

    def forget(self) -> None:
        """The masters were written without a word to the tape."""
        self._right_at = -1

    def view(self, i: int) -> Array:
        """Parameter `i`, rounded, in its shape: a view of the copy."""
        if not self._is_right():
            self._make()
        return self.views[i]

    def _is_right(self) -> bool:
        recorder = live.STATE.recorder
        made_in = None if self._made_in is None else self._made_in()
        if (self._made_in is None) is not (recorder is None) or made_in is not recorder:
            return False
        latest = CHANGES.latest
        if latest == self._right_at:
            return True
        if self._right_at < 0 or any(t.changed_at > self._right_at for t in self.section.tensors):
            return False
        self._right_at = latest  # something else was written
        return True

    def _make(self) -> None:
        section, recorder = self.section, live.STATE.recorder
        section.backend.copyto(self.buffer.array, section.values)

        def noted() -> live.Numbers:
            self.buffer.mark_changed()  # derivatives of earlier calls may have lost what they saved
            return ()

        live.call(noted)
        self._right_at = CHANGES.latest
        self._made_in = None if recorder is None else weakref.ref(recorder)
