"""Kernels of normalisation over a batch and over groups of channels, channels last.

Sums over many rows are short float32 sums of neighbouring rows, added up in float64. For few
channels, neighbouring rows are taken as one (a *strip* of several copies of the channels), so that
inner loops are long enough.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends.cpu.native.abi import doubles, floats, inline_fast, kernel, number, share

f32 = np.float32
SHORT = 32
"""Rows of a float32 sum."""


@kernel
def moments(frame, part, parts):
    """Mean, and sum of squared deviations from it, of each column of a part's rows.

    Frame: x, rows, columns, memory for two float32 rows of each part, means and sums (parts,
    columns) float64. Every few rows have a mean and a sum of their own, which are joined with those
    of the rows before them (Chan, Golub & LeVeque 1983, equation 2.1).
    """
    rows, columns = frame[1], frame[2]
    start, stop = share(rows, part, parts, SHORT)
    base = frame[3] + 8 * part * columns
    some, squares = floats(base, columns), floats(base + 4 * columns, columns)
    mean = doubles(frame[4] + 8 * part * columns, columns)
    total = doubles(frame[5] + 8 * part * columns, columns)
    for j in range(columns):
        mean[j] = 0.0
        total[j] = 0.0
    for first in range(start, stop, SHORT):
        count = min(SHORT, stop - first)
        for j in range(columns):
            some[j] = 0
            squares[j] = 0
        for i in range(first, first + count):
            x = floats(frame[0] + 4 * i * columns, columns)
            for j in range(columns):
                some[j] += x[j]
        by = f32(1.0 / count)
        for j in range(columns):
            some[j] *= by
        for i in range(first, first + count):
            x = floats(frame[0] + 4 * i * columns, columns)
            for j in range(columns):
                d = x[j] - some[j]
                squares[j] += d * d
        # The float32 mean is off by a rounding; the join takes it as exact, which costs the sum of
        # squares no more than its own rounding.
        before = first - start
        weight = count / (before + count)
        for j in range(columns):
            d = some[j] - mean[j]
            mean[j] += d * weight
            total[j] += squares[j] + d * d * weight * before


@kernel
def join_moments(frame, part, parts):
    """Mean, variance and 1 / sqrt(variance + eps) of each channel, and strips of mean, scale and
    shift for ``affine``.

    Frame: means, sums (used, columns), used, rows, columns, channels, weight, bias (0 for none),
    eps, mean, var, rstd, strips (3, columns).
    """
    used, rows, columns, channels = frame[2], frame[3], frame[4], frame[5]
    means, sums = doubles(frame[0], used, columns), doubles(frame[1], used, columns)
    mean, var = floats(frame[9], channels), floats(frame[10], channels)
    rstd, strips = floats(frame[11], channels), floats(frame[12], 3, columns)
    weight = floats(frame[6] if frame[6] else frame[9], channels)
    bias = floats(frame[7] if frame[7] else frame[9], channels)
    eps = number(frame[8])
    for c in range(channels):
        n, centre, total = 0.0, 0.0, 0.0
        for p in range(used):
            start, stop = share(rows, p, used, SHORT)
            count = float(stop - start)
            if count == 0:
                continue
            for j in range(c, columns, channels):
                d = means[p, j] - centre
                centre += d * (count / (n + count))
                total += sums[p, j] + d * d * (n * count / (n + count))
                n += count
        variance = total / n
        r = 1.0 / math.sqrt(variance + eps)
        scale = f32(r * weight[c]) if frame[6] else f32(r)
        shift = bias[c] if frame[7] else f32(0)
        mean[c], var[c], rstd[c] = f32(centre), f32(variance), f32(r)
        for j in range(c, columns, channels):
            strips[0, j], strips[1, j], strips[2, j] = f32(centre), scale, shift


@kernel
def spread(frame, part, parts):
    """Strips for ``affine`` of x * scale + shift. Frame: scale, shift (0 for none), channels,
    columns, strips."""
    channels, columns = frame[2], frame[3]
    strips, scale = floats(frame[4], 3, columns), floats(frame[0], channels)
    shift = floats(frame[1] if frame[1] else frame[0], channels)
    for j in range(columns):
        strips[0, j], strips[1, j] = f32(0), scale[j % channels]
        strips[2, j] = shift[j % channels] if frame[1] else f32(0)


@inline_fast
def affine_row(x, y, centre, scale, shift):
    """y = (x - centre) * scale + shift."""
    for j in range(y.size):
        y[j] = (x[j] - centre[j]) * scale[j] + shift[j]


@inline_fast
def cotangent_row(dy, x, dx, centre, by, along, plus):
    """dx = dy * by + (x - centre) * along + plus."""
    for j in range(dx.size):
        dx[j] = dy[j] * by[j] + (x[j] - centre[j]) * along[j] + plus[j]


@kernel
def affine(frame, part, parts):
    """y = (x - centre) * scale + shift. Frame: x, y, rows, columns, strips (3, columns)."""
    columns = frame[3]
    strips = floats(frame[4], 3, columns)
    start, stop = share(frame[2], part, parts, 1)
    for i in range(start, stop):
        at = 4 * i * columns
        x, y = floats(frame[0] + at, columns), floats(frame[1] + at, columns)
        affine_row(x, y, strips[0], strips[1], strips[2])


@inline_fast
def add_products(dy, x, centre, rows, columns, some, product):
    """Sums over rows of dy and of dy * (x - centre), from addresses."""
    for j in range(columns):
        some[j] = 0
        product[j] = 0
    for i in range(rows):
        at = 4 * i * columns
        a, b = floats(dy + at, columns), floats(x + at, columns)
        for j in range(columns):
            some[j] += a[j]
            product[j] += a[j] * (b[j] - centre[j])


@kernel
def products(frame, part, parts):
    """Sums of dy and of dy * (x - mean) over a part's rows. Frame: dy, x, rows, columns, mean,
    channels, memory for three float32 rows of each part, sums (2, parts, columns) float64."""
    rows, columns = frame[2], frame[3]
    base = frame[6] + 12 * part * columns
    some, product = floats(base, columns), floats(base + 4 * columns, columns)
    centre = floats(base + 8 * columns, columns)
    offset = doubles(frame[7] + 8 * part * columns, columns)
    slope = doubles(frame[7] + 8 * (parts + part) * columns, columns)
    mean = floats(frame[4], frame[5])
    for j in range(columns):
        centre[j] = mean[j % frame[5]]
        offset[j] = 0.0
        slope[j] = 0.0
    start, stop = share(rows, part, parts, SHORT)
    for first in range(start, stop, SHORT):
        count, at = min(SHORT, stop - first), 4 * first * columns
        add_products(frame[0] + at, frame[1] + at, centre, count, columns, some, product)
        for j in range(columns):
            offset[j] += some[j]
            slope[j] += product[j]


@kernel
def join_products(frame, part, parts):
    """Cotangents of weight and bias, and strips of mean and the three factors of ``cotangents``.

    Frame: sums (2, used, columns), used, columns, channels, values of a channel, mean, rstd, weight
    (0 for none), dmean, dvar (0 for none), dweight, dbias, strips (4, columns).
    """
    used, columns, channels, n = frame[1], frame[2], frame[3], float(frame[4])
    sums, strips = doubles(frame[0], 2, used, columns), floats(frame[12], 4, columns)
    mean, rstd = floats(frame[5], channels), floats(frame[6], channels)
    weight = floats(frame[7] if frame[7] else frame[5], channels)
    dmean = floats(frame[8] if frame[8] else frame[5], channels)
    dvar = floats(frame[9] if frame[9] else frame[5], channels)
    dweight, dbias = floats(frame[10], channels), floats(frame[11], channels)
    for c in range(channels):
        offset, slope = 0.0, 0.0
        for p in range(used):
            for j in range(c, columns, channels):
                offset += sums[0, p, j]
                slope += sums[1, p, j]
        r = float(rstd[c])
        slope *= r
        dweight[c], dbias[c] = f32(slope), f32(offset)
        by = r * weight[c] if frame[7] else r
        along, plus = -slope / n * by * r, -offset / n * by
        if frame[9]:
            along += dvar[c] * (2.0 / n)
        if frame[8]:
            plus += dmean[c] / n
        for j in range(c, columns, channels):
            strips[0, j], strips[1, j] = mean[c], f32(by)
            strips[2, j], strips[3, j] = f32(along), f32(plus)


@kernel
def cotangents(frame, part, parts):
    """dx = dy * by + (x - mean) * along + plus. Frame: dy, x, dx, rows, columns, strips (4,
    columns)."""
    columns = frame[4]
    strips = floats(frame[5], 4, columns)
    start, stop = share(frame[3], part, parts, 1)
    for i in range(start, stop):
        at = 4 * i * columns
        dy, x = floats(frame[0] + at, columns), floats(frame[1] + at, columns)
        dx = floats(frame[2] + at, columns)
        cotangent_row(dy, x, dx, strips[0], strips[1], strips[2], strips[3])


@kernel
def group_norm(frame, part, parts):
    """Group normalisation, sample by sample.

    Frame: x, y, samples, places, channels, groups, weight, bias (0 for none), eps, mean, rstd
    (samples, groups), memory (parts, 4, channels) float32 and (parts, channels) float64.
    """
    places, channels, groups = frame[3], frame[4], frame[5]
    size, per = places * channels, channels // groups
    own = floats(frame[11] + 16 * part * channels, 4, channels)
    some, centre, scale, shift = own[0], own[1], own[2], own[3]
    total = doubles(frame[12] + 8 * part * channels, channels)
    weight = floats(frame[6] if frame[6] else frame[0], channels)
    bias = floats(frame[7] if frame[7] else frame[0], channels)
    start, stop = share(frame[2], part, parts, 1)
    for n in range(start, stop):
        x0, y0 = frame[0] + 4 * n * size, frame[1] + 4 * n * size
        mean = floats(frame[9] + 4 * n * groups, groups)
        rstd = floats(frame[10] + 4 * n * groups, groups)
        for c in range(channels):
            centre[c] = 0
        for squared in range(2):
            for c in range(channels):
                total[c] = 0.0
            for first in range(0, places, SHORT):
                for c in range(channels):
                    some[c] = 0
                for i in range(first, min(first + SHORT, places)):
                    x = floats(x0 + 4 * i * channels, channels)
                    if squared:
                        for c in range(channels):
                            d = x[c] - centre[c]
                            some[c] += d * d
                    else:
                        for c in range(channels):
                            some[c] += x[c]
                for c in range(channels):
                    total[c] += some[c]
            for g in range(groups):
                found = 0.0
                for c in range(g * per, (g + 1) * per):
                    found += total[c]
                found /= places * per
                if squared:
                    r = 1.0 / math.sqrt(found + number(frame[8]))
                    rstd[g] = f32(r)
                    for c in range(g * per, (g + 1) * per):
                        scale[c] = f32(r * weight[c]) if frame[6] else f32(r)
                        shift[c] = bias[c] if frame[7] else f32(0)
                else:
                    mean[g] = f32(found)
                    for c in range(g * per, (g + 1) * per):
                        centre[c] = f32(found)
        for i in range(places):
            x = floats(x0 + 4 * i * channels, channels)
            affine_row(x, floats(y0 + 4 * i * channels, channels), centre, scale, shift)


@kernel
def group_norm_backward(frame, part, parts):
    """Its cotangents. Frame: dy, x, dx, samples, places, channels, groups, weight (0 for none),
    mean, rstd (samples, groups), memory (parts, 6, channels) float32 and (parts, 2, channels)
    float64, and sums for weight and bias (2, parts, channels) float64."""
    places, channels, groups = frame[4], frame[5], frame[6]
    size, per = places * channels, channels // groups
    own = floats(frame[10] + 24 * part * channels, 6, channels)
    some, product, centre = own[0], own[1], own[2]
    by, along, plus = own[3], own[4], own[5]
    sums = doubles(frame[11] + 16 * part * channels, 2, channels)
    offset, slope = sums[0], sums[1]
    dbias = doubles(frame[12] + 8 * part * channels, channels)
    dweight = doubles(frame[12] + 8 * (parts + part) * channels, channels)
    weight = floats(frame[7] if frame[7] else frame[1], channels)
    for c in range(channels):
        dweight[c] = 0.0
        dbias[c] = 0.0
    start, stop = share(frame[3], part, parts, 1)
    for n in range(start, stop):
        dy0, x0 = frame[0] + 4 * n * size, frame[1] + 4 * n * size
        mean = floats(frame[8] + 4 * n * groups, groups)
        rstd = floats(frame[9] + 4 * n * groups, groups)
        for c in range(channels):
            centre[c] = mean[c // per]
            offset[c] = 0.0
            slope[c] = 0.0
        for first in range(0, places, SHORT):
            count, at = min(SHORT, places - first), 4 * first * channels
            add_products(dy0 + at, x0 + at, centre, count, channels, some, product)
            for c in range(channels):
                offset[c] += some[c]
                slope[c] += product[c]
        for g in range(groups):
            r = float(rstd[g])
            a, b = 0.0, 0.0
            for c in range(g * per, (g + 1) * per):
                slope[c] *= r
                w = float(weight[c]) if frame[7] else 1.0
                a += w * offset[c]
                b += w * slope[c]
                by[c] = f32(w * r)
                dbias[c] += offset[c]
                dweight[c] += slope[c]
            a /= places * per
            b /= places * per
            for c in range(g * per, (g + 1) * per):
                along[c], plus[c] = f32(-b * r * r), f32(-a * r)
        for i in range(places):
            at = 4 * i * channels
            dy, x = floats(dy0 + at, channels), floats(x0 + at, channels)
            dx = floats(frame[2] + 4 * n * size + at, channels)
            cotangent_row(dy, x, dx, centre, by, along, plus)


@kernel
def add_parts(frame, part, parts):
    """Two float32 rows, each the sum of the parts' rows. Frame: sums (2, used, columns) float64,
    used, columns, first row, second row."""
    used, columns = frame[1], frame[2]
    for k in range(2):
        out = floats(frame[3 + k], columns)
        sums = doubles(frame[0] + 8 * k * used * columns, used, columns)
        for j in range(columns):
            total = 0.0
            for p in range(used):
                total += sums[p, j]
            out[j] = f32(total)
