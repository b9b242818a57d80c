"""Native kernels over rows: the softmax family, its cross-entropy, and normalisation by layers.

A row is copied to a thread's own memory first, and stays in the cache for all its passes; so
results may lie in the memory of an argument. That memory is a whole number of vectors wide, and
what is beyond the row's end is set to what changes no sum: loops then have no remainder, which
would cost more than the rest where there are few classes.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native.abi import (
    floats,
    inline,
    inline_fast,
    kernel,
    longs,
    number,
    raise_status,
    share,
)
from gpubackprop.backends.cpu.native.mathematics import as_bits, as_float, exp, log
from gpubackprop.backends.cpu.native.vectors import whole

f32 = np.float32


# Pieces of kernels.
@inline
def fill(row, source, beyond):
    """Copy a row to the front of a wider one, and a number behind it."""
    for j in range(source.size):
        row[j] = source[j]
    for j in range(source.size, row.size):
        row[j] = beyond


@inline
def largest(row):
    """The largest number of a row, or NaN. Floats are compared by their bits, as integers, because
    only a maximum of integers becomes vector instructions where NaN counts."""
    top = np.int32(-(2**31))
    for j in range(row.size):
        bits = as_bits(row[j])
        key = np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        top = key if key > top else top
    return as_float(np.int32(top ^ ((top >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@inline
def exp_or_zero(x):
    """exp(x), and 0 where that is below the smallest normal number: what is made of others is slow
    in most processors, and beside the largest element, whose exponential is 1, it is nothing."""
    low = f32(-87.0)
    e = exp(low if x < low else x)
    return f32(0) if x < low else e


@inline_fast
def exponentials(row, top):
    """exp(row - top) in its place; gives their sum."""
    total = f32(0)
    for j in range(row.size):
        e = exp_or_zero(row[j] - top)
        row[j] = e
        total += e
    return total


@inline_fast
def normaliser(row, top):
    """sum(exp(row - top))."""
    total = f32(0)
    for j in range(row.size):
        total += exp_or_zero(row[j] - top)
    return total


@inline
def logarithm(x, top, rest):
    """The logarithm of a probability, x - top - rest. In this order: the two together would lose
    the digits of the smaller one."""
    return (x - top) - rest


# Softmax.
@kernel
def softmax(frame, part, parts):
    """Softmax of each row, or its logarithm.

    Frame: x, step, y, step, rows, n, scratch (parts, whole(n)), logarithm; steps in bytes.
    """
    rows, n = frame[4], frame[5]
    width = whole(n)
    row = floats(frame[6] + 4 * width * part, width)
    start, stop = share(rows, part, parts, 1)
    for i in range(start, stop):
        fill(row, floats(frame[0] + i * frame[1], n), f32(-np.inf))
        y = floats(frame[2] + i * frame[3], n)
        top = largest(row)
        if frame[7]:
            rest = log(normaliser(row, top))
            for j in range(n):
                y[j] = logarithm(row[j], top, rest)
        else:
            scale = f32(1) / exponentials(row, top)
            for j in range(n):
                y[j] = row[j] * scale


@kernel
def softmax_backward(frame, part, parts):
    """y * (dy - sum(dy * y)) of each row; of a logarithm dy - exp(y) * sum(dy).

    Frame: dy, step, y, step, dx, step, rows, n, scratch (parts, 2, whole(n)), logarithm.
    """
    rows, n = frame[6], frame[7]
    width = whole(n)
    given = floats(frame[8] + 8 * width * part, width)
    seen = floats(frame[8] + 8 * width * part + 4 * width, width)
    start, stop = share(rows, part, parts, 1)
    for i in range(start, stop):
        fill(given, floats(frame[0] + i * frame[1], n), f32(0))
        fill(seen, floats(frame[2] + i * frame[3], n), f32(0))
        dx = floats(frame[4] + i * frame[5], n)
        inner = f32(0)
        if frame[9]:
            for j in range(width):
                inner += given[j]
            for j in range(width):
                seen[j] = given[j] - exp(seen[j]) * inner
        else:
            for j in range(width):
                inner += given[j] * seen[j]
            for j in range(width):
                seen[j] = seen[j] * (given[j] - inner)
        for j in range(n):
            dx[j] = seen[j]


# Cross-entropy. With s the share of the target that is spread evenly over C classes, a class's
# target is w (off + (1 - s) [it is the row's class]) with off = s / C.
@kernel
def cross_entropy(frame, part, parts):
    """Cost of each row, its largest logit, and the sum of the exponentials beside that.

    Frame: x, step, loss, top, total, target, weight (0 for none), rows, n, scratch
    (parts, whole(n)), ignore_index, label_smoothing, status.
    """
    rows, n, ignored = frame[7], frame[8], frame[10]
    smoothing = number(frame[11])
    off, on = f32(smoothing / n), f32(1.0 - smoothing)
    width = whole(n)
    row = floats(frame[9] + 4 * width * part, width)
    weighted = frame[6] != 0
    weight = floats(frame[6] if weighted else frame[0], n)
    target, loss = longs(frame[5], rows), floats(frame[2], rows)
    tops, totals = floats(frame[3], rows), floats(frame[4], rows)
    start, stop = share(rows, part, parts, 1)
    for i in range(start, stop):
        fill(row, floats(frame[0] + i * frame[1], n), f32(-np.inf))
        top = largest(row)
        total = normaliser(row, top)
        tops[i], totals[i] = top, total
        label = target[i]
        if label == ignored:
            loss[i] = f32(0)
            continue
        if label < 0 or label >= n:
            loss[i] = f32(np.nan)
            raise_status(frame[12], 2)
            continue
        rest = log(total)
        own = on * weight[label] if weighted else on
        cost = own * logarithm(row[label], top, rest) if own != f32(0) else f32(0)
        if off != f32(0):
            spread = f32(0)
            if weighted:
                for j in range(n):
                    logp = logarithm(row[j], top, rest)
                    spread += weight[j] * logp if weight[j] != f32(0) else f32(0)
            else:
                for j in range(n):
                    spread += logarithm(row[j], top, rest)
            cost += off * spread
        loss[i] = -cost


@kernel
def cross_entropy_backward(frame, part, parts):
    """dy * (softmax(x) * sum(q) - q) of each row, q being the target; 0 for an ignored row.

    Frame: dy, step, x, step, top, total, dx, step, target, weight (0 for none), rows, n, scratch
    (parts, whole(n)), ignore_index, label_smoothing, status.
    """
    rows, n, ignored = frame[10], frame[11], frame[13]
    smoothing = number(frame[14])
    off, on = f32(smoothing / n), f32(1.0 - smoothing)
    width = whole(n)
    row = floats(frame[12] + 4 * width * part, width)
    weighted = frame[9] != 0
    weight = floats(frame[9] if weighted else frame[2], n)
    everyone = f32(n)
    if weighted:
        everyone = f32(0)
        for j in range(n):
            everyone += weight[j]
    target = longs(frame[8], rows)
    tops, totals = floats(frame[4], rows), floats(frame[5], rows)
    start, stop = share(rows, part, parts, 1)
    for i in range(start, stop):
        label = target[i]
        dx = floats(frame[6] + i * frame[7], n)
        if label == ignored:
            for j in range(n):
                dx[j] = f32(0)
            continue
        if label < 0 or label >= n:
            raise_status(frame[15], 2)
            continue
        slope = floats(frame[0] + i * frame[1], 1)[0]
        own = on * weight[label] if weighted else on
        top, scale = tops[i], (off * everyone + own) / totals[i]
        fill(row, floats(frame[2] + i * frame[3], n), f32(0))
        for j in range(width):
            row[j] = exp_or_zero(row[j] - top) * scale
        if off != f32(0):
            if weighted:
                for j in range(n):
                    row[j] -= off * weight[j]
            else:
                for j in range(n):
                    row[j] -= off
        row[label] -= own
        for j in range(n):
            dx[j] = slope * row[j]


# Normalisation.
@kernel
def layer_norm(frame, part, parts):
    """(x - mean) / sqrt(var + eps) * weight + bias of each row; without `centred` the mean counts
    as 0.

    Frame: x, step, y, step, mean (0 without `centred`), rstd, weight, bias (0 for none), rows, n,
    scratch (parts, whole(n)), eps.
    """
    rows, n = frame[8], frame[9]
    width = whole(n)
    row = floats(frame[10] + 4 * width * part, width)
    centred, scaled, shifted = frame[4] != 0, frame[6] != 0, frame[7] != 0
    weight = floats(frame[6] if scaled else frame[10], n)
    bias = floats(frame[7] if shifted else frame[10], n)
    count, eps = f32(n), f32(number(frame[11]))
    means, rstds = floats(frame[4] if centred else frame[5], rows), floats(frame[5], rows)
    start, stop = share(rows, part, parts, 1)
    for i in range(start, stop):
        x, y = floats(frame[0] + i * frame[1], n), floats(frame[2] + i * frame[3], n)
        if centred:
            total = f32(0)
            for j in range(n):
                total += x[j]
            mean = total / count
            means[i] = mean
            power = f32(0)
            for j in range(n):
                d = x[j] - mean
                row[j] = d
                power += d * d
        else:
            power = f32(0)
            for j in range(n):
                d = x[j]
                row[j] = d
                power += d * d
        rstd = f32(1) / np.sqrt(power / count + eps)
        rstds[i] = rstd
        if scaled and shifted:
            for j in range(n):
                y[j] = row[j] * rstd * weight[j] + bias[j]
        elif scaled:
            for j in range(n):
                y[j] = row[j] * rstd * weight[j]
        elif shifted:
            for j in range(n):
                y[j] = row[j] * rstd + bias[j]
        else:
            for j in range(n):
                y[j] = row[j] * rstd


@kernel
def layer_norm_backward(frame, part, parts):
    """rstd * (g - mean(g) - xhat * mean(g * xhat)) of each row, g = dy * weight; and, for each
    block of rows, the sum of dy * xhat, and of dy. The blocks are the same for any number of parts.

    Frame: dy, step, x, step, dx, step, mean (0 where it counts as 0), rstd, weight (0 for none),
    rows, n, scratch (parts, 2, whole(n)), sums of dy * xhat (blocks, n), blocks, sums of dy
    (blocks, n; 0 where nobody asks).
    """
    rows, n, blocks = frame[9], frame[10], frame[13]
    width = whole(n)
    own = frame[11] + 8 * width * part
    g, xhat = floats(own, width)[:n], floats(own + 4 * width, width)[:n]
    centred, scaled, plain = frame[6] != 0, frame[8] != 0, frame[14] != 0
    weight = floats(frame[8] if scaled else frame[11], n)
    means, rstds = floats(frame[6] if centred else frame[7], rows), floats(frame[7], rows)
    count = f32(n)
    first, last = share(blocks, part, parts, 1)
    for block in range(first, last):
        sums = floats(frame[12] + 4 * n * block, n)
        totals = floats((frame[14] if plain else frame[12]) + 4 * n * block, n)
        for j in range(n):
            sums[j] = f32(0)
            totals[j] = f32(0)
        for i in range(rows * block // blocks, rows * (block + 1) // blocks):
            dy, x = floats(frame[0] + i * frame[1], n), floats(frame[2] + i * frame[3], n)
            dx = floats(frame[4] + i * frame[5], n)
            rstd = rstds[i]
            mean = means[i] if centred else f32(0)
            for j in range(n):
                h = (x[j] - mean) * rstd
                xhat[j] = h
                sums[j] += dy[j] * h
            if plain:
                for j in range(n):
                    totals[j] += dy[j]
            if scaled:
                for j in range(n):
                    g[j] = dy[j] * weight[j]
            else:
                for j in range(n):
                    g[j] = dy[j]
            offset, slope = f32(0), f32(0)
            for j in range(n):
                offset += g[j]
                slope += g[j] * xhat[j]
            offset = offset / count if centred else f32(0)
            slope = slope / count
            for j in range(n):
                dx[j] = rstd * (g[j] - offset - xhat[j] * slope)


@kernel
def add_blocks(frame, part, parts):
    """The sum of rows, parts sharing the columns. Frame: rows, how many, n, result."""
    n = frame[2]
    start, stop = share(n, part, parts, 16)
    total = floats(frame[3], n)[start:stop]
    for j in range(total.size):
        total[j] = f32(0)
    for i in range(frame[1]):
        row = floats(frame[0] + 4 * n * i, n)[start:stop]
        for j in range(total.size):
            total[j] += row[j]
