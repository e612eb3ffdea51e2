"""Sums over value rows: the two loops in which all the time should go.

Four rows at a time share the loads and stores of the row that they are added to. `offsets` are the places of
the value rows in flat memory. How terms are grouped depends on their order in the list alone.
"""

from __future__ import annotations

import numpy as np

from zeta_ops.backends.numba.compiling import compiled, compiled_fused, compiled_reduction

__all__ = ["add_weighted", "dot", "dots", "scaled_add", "total", "total_pull"]


@compiled_fused
def add_weighted(out, out_at, v, offsets, weights, count, dim):
    """Add `sum_e weights[e] * v[offsets[e] : offsets[e] + dim]` to `out[out_at : out_at + dim]`."""
    o, n, d = np.uint64(out_at), np.uint64(count), np.uint64(dim)
    e, four, one = np.uint64(0), np.uint64(4), np.uint64(1)
    while e + four <= n:
        a0, a1, a2, a3 = offsets[e], offsets[e + one], offsets[e + np.uint64(2)], offsets[e + np.uint64(3)]
        w0, w1, w2, w3 = weights[e], weights[e + one], weights[e + np.uint64(2)], weights[e + np.uint64(3)]
        for c in range(d):
            out[o + c] += (w0 * v[a0 + c] + w1 * v[a1 + c]) + (w2 * v[a2 + c] + w3 * v[a3 + c])
        e += four
    while e < n:
        a0, w0 = offsets[e], weights[e]
        for c in range(d):
            out[o + c] += w0 * v[a0 + c]
        e += one


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
    while e < n:
        results[e] = dot(g, g_at, v, offsets[e], dim)
        e += one


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
