"""Sums over value rows: the loops in which all the time should go.

`offsets` are the places of value rows in flat memory. How terms are grouped depends on their order in the list alone.
"""

from __future__ import annotations

import numpy as np

from zeta_ops.backends.numba.compiling import compiled, compiled_fused, compiled_reduction
from zeta_ops.backends.numba.vectors import COLUMNS, add_rows, add_to_rows, prefetch_row

__all__ = ["add_to_all", "add_weighted", "dot", "dots", "prefetch", "scaled_add", "total", "total_pull"]


@compiled_fused
def add_weighted(out, out_at, v, offsets, weights, count, dim):
    """Add `sum_e weights[e] * v[offsets[e] : offsets[e] + dim]` to `out[out_at : out_at + dim]`."""
    o, n, d = np.uint64(out_at), np.uint64(count), np.uint64(dim)
    whole = d // np.uint64(COLUMNS) * np.uint64(COLUMNS)
    c = np.uint64(0)
    while c < whole:
        add_rows(out, o + c, v, offsets, c, weights, n)
        c += np.uint64(COLUMNS)
    if whole < d:
        for e in range(n):
            place, weight = offsets[e], weights[e]
            for c in range(whole, d):
                out[o + c] += weight * v[place + c]


@compiled_fused
def add_to_all(sums, offsets, weights, count, x, x_at, dim):
    """Add `weights[e] * x[x_at : x_at + dim]` to `sums[offsets[e] : offsets[e] + dim]`, for each e."""
    i, n, d = np.uint64(x_at), np.uint64(count), np.uint64(dim)
    whole = d // np.uint64(COLUMNS) * np.uint64(COLUMNS)
    c = np.uint64(0)
    while c < whole:
        add_to_rows(sums, offsets, c, weights, n, x, i + c)
        c += np.uint64(COLUMNS)
    if whole < d:
        for e in range(n):
            place, weight = offsets[e], weights[e]
            for c in range(whole, d):
                sums[place + c] += weight * x[i + c]


@compiled
def prefetch(x, at, dim):
    """Ask for `x[at : at + dim]` to come near; a hint without effect on results."""
    i, d = np.uint64(at), np.uint64(dim)
    c = np.uint64(0)
    while c < d:
        prefetch_row(x, i + c, d - c)
        c += np.uint64(COLUMNS)


@compiled_reduction
def four_dots(g, g_at, v, a0, a1, a2, a3, dim):
    """Compute four products `sum_c g[g_at + c] * v[a + c]` at once, which share the loads of `g`."""
    o = np.uint64(g_at)
    s0 = s1 = s2 = s3 = g.dtype.type(0)
    for c in range(np.uint64(dim)):
        x = g[o + c]
        s0 += x * v[a0 + c]
        s1 += x * v[a1 + c]
        s2 += x * v[a2 + c]
        s3 += x * v[a3 + c]
    return s0, s1, s2, s3


@compiled
def dots(g, g_at, v, offsets, count, dim, results):
    """Write `sum_c g[g_at + c] * v[offsets[e] + c]` to `results[e]` for each e."""
    n = np.uint64(count)
    e, one, two, three, four = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    while e + four <= n:
        a0, a1, a2, a3 = offsets[e], offsets[e + one], offsets[e + two], offsets[e + three]
        s0, s1, s2, s3 = four_dots(g, g_at, v, a0, a1, a2, a3, dim)
        results[e] = s0
        results[e + one] = s1
        results[e + two] = s2
        results[e + three] = s3
        e += four
    if e < n:  # by fours too: a product's bits must not depend on its place, nor how many keys there are
        last = n - one
        a1, a2 = offsets[min(e + one, last)], offsets[min(e + two, last)]
        s0, s1, s2, _ = four_dots(g, g_at, v, offsets[e], a1, a2, a2, dim)
        results[e] = s0
        if e + one < n:
            results[e + one] = s1
        if e + two < n:
            results[e + two] = s2


@compiled_reduction
def total(x, count):
    """Compute `sum_e x[e]`."""
    result = x.dtype.type(0)
    for e in range(np.uint64(count)):
        result += x[e]
    return result


@compiled_reduction
def total_pull(slopes, x, k, keys_at, c, count):
    """Compute `sum_e slopes[e] * (x - k[keys_at[e] + c])`."""
    result = slopes.dtype.type(0)
    for e in range(np.uint64(count)):
        result += slopes[e] * (x - slopes.dtype.type(k[keys_at[e] + np.uint64(c)]))
    return result


@compiled_reduction
def dot(a, a_at, b, b_at, dim):
    """Compute `sum_c a[a_at + c] * b[b_at + c]`."""
    i, j = np.uint64(a_at), np.uint64(b_at)
    total = a.dtype.type(0)
    for c in range(np.uint64(dim)):
        total += a[i + c] * b[j + c]
    return total


@compiled_fused
def scaled_add(out, out_at, x, x_at, weight, dim):
    """Add `weight * x[x_at : x_at + dim]` to `out[out_at : out_at + dim]`."""
    i, j = np.uint64(out_at), np.uint64(x_at)
    for c in range(np.uint64(dim)):
        out[i + c] += weight * x[j + c]
