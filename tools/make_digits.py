"""Make gpubackprop/data/files/digits.npz from scikit-learn's copy of the UCI digits.

Usage: python tools/make_digits.py   (needs scikit-learn; run in the project's root)

Running it again gives the same arrays: NumPy writes archives without the time of day.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parent.parent / "gpubackprop" / "data" / "files" / "digits.npz"


def main() -> None:
    """Write the file and say what is in it."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    if not (images == digits.images).all() or images.max() != 16 or images.shape != (1797, 8, 8):
        raise SystemExit("scikit-learn's digits are not the 1,797 images of levels 0 to 16")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(TARGET, images=images, labels=labels)
    print(f"{TARGET}: {len(images)} images, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
