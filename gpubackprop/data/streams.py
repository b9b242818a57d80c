"""Streams of random bits that data uses, so that no two uses of one seed share a number.

A shuffled epoch uses the stream of its own number. Everything else counts down from the last
stream: if made-up points and the order of epoch 0 came from the same words, the shuffle would sort
the points by their place.
"""

from __future__ import annotations

SPLIT = 0xFFFFFFFF
"""Which samples are held out."""

PLACE = 0xFFFFFFFE
"""Where made-up points lie along their curve."""

NOISE = 0xFFFFFFFD
"""The noise on made-up points."""

LAST_EPOCH = 0xFFFFFFEF
"""The largest number of an epoch."""

AUGMENT = 1 << 63
"""The block of an epoch's stream where the random changes of pictures begin: sample number k has
block ``AUGMENT + k`` to itself. A shuffle uses the first blocks of the stream and cannot get there.
"""
