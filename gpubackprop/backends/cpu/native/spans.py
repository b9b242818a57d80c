"""Runs of float32 numbers in memory: cleared, copied, added. Everything is an address, a number of
bytes or a count."""

from __future__ import annotations

from gpubackprop.backends.cpu.native.abi import floats, inline


@inline
def clear(count, target):
    """Zeros."""
    row = floats(target, count)
    for j in range(count):
        row[j] = 0


@inline
def copy_row(count, source, target):
    """`count` numbers from one place to another."""
    a, b = floats(source, count), floats(target, count)
    for j in range(count):
        b[j] = a[j]


@inline
def add_row(count, source, target):
    """`count` numbers, added to those at another place."""
    a, b = floats(source, count), floats(target, count)
    for j in range(count):
        b[j] += a[j]


@inline
def copy_rows(rows, count, source, step, target, pitch):
    """The first `count` numbers of rows that begin `step` bytes apart, to where rows begin `pitch`
    bytes apart."""
    for i in range(rows):
        copy_row(count, source + i * step, target + i * pitch)
