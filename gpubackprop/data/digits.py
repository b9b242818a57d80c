"""The handwritten digits that ship inside the package.

1,797 images of 8x8 pixels, each the count (0 to 16) of ink pixels in a 4x4 block of a 32x32
bitmap: the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak
(1998), UCI Machine Learning Repository, licence CC BY 4.0. ``files/ATTRIBUTION.md`` has the whole
attribution; ``tools/make_digits.py`` made the file.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np

from gpubackprop.data.npz import read_npz

DIGITS_LEVELS = 16
"""The largest value of a pixel."""


def load_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the 8x8 handwritten digits.

    Returns
    -------
    images : numpy.ndarray
        uint8, shape (1797, 8, 8), values 0 (background) to 16.
    labels : numpy.ndarray
        int64, shape (1797,), the digit 0 to 9.

    Raises
    ------
    DataError
        The file of the installed package is missing or damaged.

    Notes
    -----
    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    packaged = resources.files("gpubackprop.data") / "files" / "digits.npz"
    with resources.as_file(packaged) as path:
        arrays = read_npz(path, ("images", "labels"))
    return arrays["images"], arrays["labels"].astype(np.int64)
