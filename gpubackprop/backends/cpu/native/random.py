"""Native random bits: Philox4x32-10, the words of ``backends/philox.py``, and what is drawn with
them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native.abi import floats, inline, kernel, number, octets, share, words
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

f32 = np.float32
LANES = 64
"""Blocks of four words that are made together."""


@inline
def fill_words(seed, stream, offset, first, out):
    """Words of blocks `first` to `first` + ``LANES`` - 1 behind `offset`, into `out` (256,)."""
    mask = np.uint64(0xFFFFFFFF)
    for lane in range(LANES):
        place = np.uint64(offset) + np.uint64(first + lane)
        a, b = place & mask, place >> np.uint64(32)
        c, d = np.uint64(stream) & mask, np.uint64(0)
        k0, k1 = np.uint64(seed) & mask, np.uint64(seed) >> np.uint64(32)
        for _ in range(10):
            p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
            a, c = (q >> np.uint64(32)) ^ b ^ k0, (p >> np.uint64(32)) ^ d ^ k1
            b, d = q & mask, p & mask
            k0 = (k0 + np.uint64(0x9E3779B9)) & mask
            k1 = (k1 + np.uint64(0xBB67AE85)) & mask
        out[4 * lane] = np.uint32(a)
        out[4 * lane + 1] = np.uint32(b)
        out[4 * lane + 2] = np.uint32(c)
        out[4 * lane + 3] = np.uint32(d)


@kernel
def draw(frame, part, parts):
    """Random words, or what is made of them.

    Frame: n, seed, stream, offset, threshold, scratch (parts, 256), factor, then arrays, 0 for
    those that are not wanted: words; the upper 24 bits of each word as a number in [0, 1); whether
    each word is below the threshold; x; x times the factor where it is, else 0.
    """
    n = frame[0]
    step = 4 * LANES
    chunks = (n + step - 1) // step
    start, stop = share(chunks, part, parts, 1)
    out = words(frame[5] + 4 * part * step, step)
    threshold, factor = np.uint64(frame[4]), f32(number(frame[6]))
    for chunk in range(start, stop):
        at = chunk * step
        count = min(step, n - at)
        fill_words(frame[1], frame[2], frame[3], chunk * LANES, out)
        if frame[7]:
            target = words(frame[7] + 4 * at, count)
            for i in range(count):
                target[i] = out[i]
        if frame[8]:
            unit = floats(frame[8] + 4 * at, count)
            for i in range(count):
                unit[i] = f32(np.int32(out[i] >> np.uint32(8))) * f32(2.0**-24)
        if frame[9]:
            kept = octets(frame[9] + at, count)
            for i in range(count):
                kept[i] = 1 if np.uint64(out[i]) < threshold else 0
        if frame[10]:
            x, y = floats(frame[10] + 4 * at, count), floats(frame[11] + 4 * at, count)
            for i in range(count):
                y[i] = x[i] * factor if np.uint64(out[i]) < threshold else f32(0)


SERIAL = 1 << 12
"""Words that are left to one thread."""


def _draw(
    site: Site, n: int, place: Any, arrays: list[Any], threshold: int = 0, factor: float = 1.0
) -> list[Instruction]:
    scratch = site.scratch((site.parts, 4 * LANES), np.uint32)
    slots = [n, *place, threshold, scratch, float(factor), *arrays]
    return [Instruction(draw, slots, parallel=n > SERIAL)]


def _threshold(p: float) -> int:
    """What words with a probability of `p` are below; every word, from 1 on."""
    return 2**32 if p >= 1.0 else min(round(p * 2**32), 2**32 - 1)


def _probability(p: Any) -> bool:
    """Whether it is a number from 0 to 1 that stays what it is."""
    return not hasattr(p, "live") and 0.0 <= p <= 1.0


def _filled(out: Any, dtype: Any) -> bool:
    return fit(out, dtype=dtype) and out.size > 0


@lowers("random_bits")
def lower_random_bits(
    site: Site, outs: Any, seed: Any, stream: Any, offset: Any, n: int
) -> list[Instruction] | None:
    """Words."""
    if not _filled(outs[0], np.uint32):
        return None
    return _draw(site, n, (seed, stream, offset), [outs[0], 0, 0, 0, 0])


@lowers("uniform")
def lower_uniform(
    site: Site, outs: Any, shape: Any, seed: Any, stream: Any, offset: Any
) -> list[Instruction] | None:
    """Numbers in [0, 1)."""
    if not _filled(outs[0], np.float32):
        return None
    return _draw(site, math.prod(shape), (seed, stream, offset), [0, outs[0], 0, 0, 0])


@lowers("bernoulli")
def lower_bernoulli(
    site: Site, outs: Any, shape: Any, p: float, seed: Any, stream: Any, offset: Any
) -> list[Instruction] | None:
    """Booleans."""
    if not _probability(p) or not _filled(outs[0], np.bool_):
        return None
    arrays = [0, 0, outs[0], 0, 0]
    return _draw(site, math.prod(shape), (seed, stream, offset), arrays, _threshold(p))


@lowers("dropout")
def lower_dropout(
    site: Site, outs: Any, x: Any, p: float, seed: Any, stream: Any, offset: Any
) -> list[Instruction] | None:
    """The same bits as the definition: kept where the word is below the threshold of 1 - p."""
    y, keep = outs
    if not _probability(p) or not fit(x, y) or not _filled(keep, np.bool_):
        return None
    factor = 0.0 if p >= 1.0 else 1.0 / (1.0 - p)
    arrays = [0, 0, keep, x, y]
    return _draw(site, x.size, (seed, stream, offset), arrays, _threshold(1.0 - p), factor)
