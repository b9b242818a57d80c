"""Philox4x32-10, the counter-based generator behind every random number of the library.

A block of four 32-bit words is a pure function of a 64-bit key and a 128-bit counter (Salmon,
Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3). There is
no state to carry along, so any part of a sequence can be made anywhere: word i here, the same word
i in a CUDA thread.

The layout that the whole project shares, ``kernels/philox.cu`` included:

==============  ========================================
key             seed, low word first
counter         offset (low word, high word), stream, domain
domain          0 for random bits, 1 for derived seeds
==============  ========================================
"""

from __future__ import annotations

import numpy as np

from gpubackprop.errors import ConfigError

WORDS_PER_BLOCK = 4
SPLIT_DOMAIN = 1

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers, table 2 of the paper
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio, sqrt(3) - 1
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_HALF = np.uint64(32)
_LOW = np.uint64(_WORD)
_FACTOR0, _FACTOR1 = np.uint64(_M0), np.uint64(_M1)

# Counters per pass. A NumPy call costs about half a microsecond, and a pass makes 90 of them over
# six scratch rows: with fewer counters the calls weigh more than the arithmetic, with more the rows
# (768 KiB here) leave a core's L2 cache.
_CHUNK = 16384


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """One block of Philox4x32-10 in plain integers: the definition, and the way to single blocks.

    Parameters
    ----------
    counter : four 32-bit words.
    key : two 32-bit words.

    Returns
    -------
    tuple of four 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return c0, c1, c2, c3


def check_seed(seed: int) -> int:
    """`seed` as a Python integer.

    Raises
    ------
    ConfigError
        If it is negative or needs more than 64 bits.
    """
    seed = int(seed)
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed {seed} is out of range; allowed: 0 <= seed < 2**64")
    return seed


def random_bits(seed: int, stream: int, offset: int, n: int) -> np.ndarray:
    """`n` random 32-bit words, a pure function of the arguments.

    Word i is lane ``i % 4`` of the block with counter ``offset + i // 4``; so
    ``random_bits(s, t, k, n)`` equals ``random_bits(s, t, 0, 4 * k + n)[4 * k:]``.

    Parameters
    ----------
    seed : key of the generator, 0 <= seed < 2**64.
    stream : number of the sequence under this key, 0 <= stream < 2**32.
    offset : first block, in blocks of four words; taken modulo 2**64.
    n : number of words.

    Returns
    -------
    (n,) array of uint32.

    Raises
    ------
    ConfigError
        If `seed`, `stream` or `n` is out of range.
    """
    seed = check_seed(seed)
    stream, n = int(stream), int(n)
    if not 0 <= stream <= _WORD:
        raise ConfigError(f"stream {stream} is out of range; allowed: 0 <= stream < 2**32")
    if n < 0:
        raise ConfigError(f"cannot draw {n} random words; allowed: n >= 0")
    blocks = -(-n // WORDS_PER_BLOCK)
    # Each block as two little-endian 64-bit words: one store then writes two lanes at once, on any
    # host.
    lanes = np.empty((blocks, 2), dtype="<u8")
    keys = _round_keys(seed)
    chunk = min(blocks, _CHUNK)
    ramp, *scratch = np.empty((7, chunk), dtype=np.uint64)
    ramp[:] = np.arange(chunk)
    for start in range(0, blocks, _CHUNK):
        part = lanes[start : start + _CHUNK]
        first = np.uint64((int(offset) + start) & 0xFFFFFFFFFFFFFFFF)
        _fill(part, first, stream, keys, ramp[: len(part)], [s[: len(part)] for s in scratch])
    return lanes.view("<u4").reshape(-1)[:n].astype(np.uint32, copy=False)


def random_blocks(seed: int, stream: int, offsets: np.ndarray) -> np.ndarray:
    """The blocks of four random words at given places of a sequence.

    Parameters
    ----------
    seed, stream : as in :func:`random_bits`.
    offsets : (n,) unsigned 64-bit integers, each the counter of a block.

    Returns
    -------
    (n, 4) array of uint32.
        Row i is ``random_bits(seed, stream, offsets[i], 4)``.
    """
    lanes = np.empty((len(offsets), 2), dtype="<u8")
    keys = _round_keys(check_seed(seed))
    counters = np.ascontiguousarray(offsets, dtype=np.uint64)
    scratch = np.empty((6, min(len(offsets), _CHUNK)), dtype=np.uint64)
    for start in range(0, len(offsets), _CHUNK):
        part = lanes[start : start + _CHUNK]
        ramp = counters[start : start + _CHUNK]
        _fill(part, np.uint64(0), stream, keys, ramp, [s[: len(part)] for s in scratch])
    return lanes.view("<u4").reshape(-1, WORDS_PER_BLOCK).astype(np.uint32, copy=False)


def _round_keys(seed: int) -> list[tuple[np.uint64, np.uint64]]:
    k0, k1 = seed & _WORD, seed >> 32
    return [
        (np.uint64((k0 + r * _W0) & _WORD), np.uint64((k1 + r * _W1) & _WORD))
        for r in range(_ROUNDS)
    ]


def _fill(
    lanes: np.ndarray,
    first: np.uint64,
    stream: int,
    keys: list[tuple[np.uint64, np.uint64]],
    ramp: np.ndarray,
    scratch: list[np.ndarray],
) -> None:
    """Write the blocks with counters ``first + ramp`` to `lanes`.

    Every 32-bit word sits in a 64-bit cell, so that one multiplication gives the whole product.
    """
    c0, c1, c2, c3, p0, p1 = scratch
    np.add(ramp, first, out=p0)  # wraps modulo 2**64, as the counter does
    np.bitwise_and(p0, _LOW, out=c0)
    np.right_shift(p0, _HALF, out=c1)
    c2.fill(stream)
    c3.fill(0)
    for k0, k1 in keys:
        np.multiply(c0, _FACTOR0, out=p0)
        np.multiply(c2, _FACTOR1, out=p1)
        np.right_shift(p1, _HALF, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, k0, out=c0)
        np.right_shift(p0, _HALF, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, k1, out=c2)
        np.bitwise_and(p1, _LOW, out=c1)
        np.bitwise_and(p0, _LOW, out=c3)
    for lane, (low, high) in enumerate(((c0, c1), (c2, c3))):
        np.left_shift(high, _HALF, out=high)
        np.bitwise_or(low, high, out=lanes[:, lane])
