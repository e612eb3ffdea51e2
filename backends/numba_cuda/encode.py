"""Morton codes: alone, and of keys and queries in the form that the sort takes. One thread a point.

Keys are sorted by (row, code): the sort is stable, so that equal codes stay in order of position. Queries are sorted by
(row, level, leading bits of the code), which is the order of slots; within a level it is for locality alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from zeta_ops.backends import scalars
from zeta_ops.backends.numba_cuda.arithmetic import add_rounded, float_bits, floor, multiply_rounded, subtract_rounded
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    BITS,
    CURVES,
    GROUP,
    K_LEN,
    K_STRIDES,
    KEYS,
    KV_HEADS,
    LEVEL_BITS,
    LEVEL_SHIFT,
    LEVELS,
    LINEAR,
    Q_HEADS,
    Q_LEN,
    Q_STRIDES,
    QUERIES,
    QUERY_SHIFT,
    ROW_SHIFT,
    SEQUENCES,
    START,
)
from zeta_ops.backends.numba_cuda.layout import (
    first_slot,
    key_offset,
    level_of,
    line_of_token,
    query_offset,
    seen_by,
    sequence_of,
)

__all__ = ["encode_kernels", "encoded"]

interleave = device(scalars.interleave)
quantise_linear = device(scalars.quantise_linear)
quantise_loglinear = device(scalars.quantise_loglinear)

ONE, FOUR = np.float32(1), np.float32(4)


@device
def quantise(x, linear, lo, scale):
    """Cell of a coordinate, of 2**27."""
    x = np.float32(x)
    if linear:
        return quantise_linear(floor(multiply_rounded(subtract_rounded(x, lo), scale)))
    magnitude = add_rounded(ONE, multiply_rounded(FOUR, abs(x)))
    return quantise_loglinear(float_bits(magnitude), x < 0, x != x)


@device
def encoded(points, at, dims, bits, linear, curves, curve, lo, scale, cells):
    """Code of `points[at : at + dims]`; `cells (dims,)` is scratch."""
    shift = 0 if curves == 1 else curve * scalars.CURVE_SHIFT
    drop = (27 if curves == 1 else 28) - bits
    for c in range(dims):
        cells[c] = (quantise(points[at + c], linear, lo, scale) + shift) >> drop
    return np.uint64(interleave(cells, 0, dims, bits))


@device
def with_row(table, code, row):
    """Put the row above a code, where there is room; codes of one row keep their order."""
    if table[ROW_SHIFT] < 64:
        return code | (np.uint64(row) << np.uint64(table[ROW_SHIFT]))
    return code


@cache
def encode_kernels(dims: int) -> dict[str, Kernel]:
    """Make the kernels for points of `dims` coordinates."""

    @kernel
    def morton_encode_kernel(points, codes, count, bits, linear, curves, curve, lo, scale):
        n = cuda.grid(1)
        if n >= count:
            return
        cells = cuda.local.array(dims, np.int64)
        codes[n] = encoded(points, n * dims, dims, bits, linear, curves, curve, lo, scale, cells)

    @kernel
    def morton_decode_kernel(codes, cells, count, bits):
        n = cuda.grid(1)
        if n >= count:
            return
        code = np.uint64(codes[n])
        for c in range(dims):  # bit b of coordinate c stands at bit b * dims + dims - 1 - c
            cell = np.uint64(0)
            for b in range(bits):
                bit = (code >> np.uint64(b * dims + dims - 1 - c)) & np.uint64(1)
                cell = cell | (bit << np.uint64(b))
            cells[n * dims + c] = cell

    @kernel
    def encode_keys_kernel(table, k, key_codes, key_places, curve, lo, scale):
        n = cuda.grid(1)
        if n >= table[BATCH] * table[KV_HEADS] * table[K_LEN]:
            return
        head_row = n // table[K_LEN]
        token = n - head_row * table[K_LEN]
        line = line_of_token(table, token)
        cells = cuda.local.array(dims, np.int64)
        at = key_offset(table, K_STRIDES, head_row, token)
        code = encoded(k, at, dims, table[BITS], table[LINEAR], table[CURVES], curve, lo, scale, cells)
        row = head_row * table[SEQUENCES] + sequence_of(line)
        key_codes[n] = with_row(table, code, row)
        # Without room for the row, keys are sorted twice and have to be found again: they carry their number instead.
        twice = table[ROW_SHIFT] == 64 and table[BATCH] * table[KV_HEADS] * table[SEQUENCES] > 1
        key_places[n] = n if twice else token - table[line + START]

    @kernel
    def sorted_rows_kernel(table, sorted_codes, sorted_places):
        # Between two sorts: rows take the place of codes, which have served.
        place = cuda.grid(1)
        if place >= table[BATCH] * table[KV_HEADS] * table[K_LEN]:
            return
        n = np.int64(sorted_places[place])
        head_row = n // table[K_LEN]
        line = line_of_token(table, n - head_row * table[K_LEN])
        sorted_codes[place] = np.uint64(head_row * table[SEQUENCES] + sequence_of(line))

    @kernel
    def sorted_codes_kernel(table, k, key_places, sorted_codes, sorted_places, curve, lo, scale):
        # After them, with the order in `key_places`: codes and positions.
        place = cuda.grid(1)
        if place >= table[BATCH] * table[KV_HEADS] * table[K_LEN]:
            return
        n = np.int64(key_places[place])
        head_row = n // table[K_LEN]
        token = n - head_row * table[K_LEN]
        cells = cuda.local.array(dims, np.int64)
        at = key_offset(table, K_STRIDES, head_row, token)
        code = encoded(k, at, dims, table[BITS], table[LINEAR], table[CURVES], curve, lo, scale, cells)
        sorted_codes[place] = code
        sorted_places[place] = token - table[line_of_token(table, token) + START]

    @kernel
    def encode_queries_kernel(table, q, query_codes, query_places, curve, lo, scale):
        n = cuda.grid(1)
        if n >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        all_heads = n // table[Q_LEN]
        token = n - all_heads * table[Q_LEN]
        head_row = all_heads // table[GROUP]
        head = all_heads - head_row * table[GROUP]
        line = line_of_token(table, token)
        cells = cuda.local.array(dims, np.int64)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        code = encoded(q, at, dims, table[BITS], table[LINEAR], table[CURVES], curve, lo, scale, cells)
        level = level_of(seen_by(table, line, token), table[line + KEYS], table[line + LEVELS])
        row = head_row * table[SEQUENCES] + sequence_of(line)
        above = level | (row << LEVEL_BITS)
        number = head * table[line + QUERIES] + token - table[line + START]
        place = first_slot(table, head_row, line) + number
        query_codes[place] = (code >> np.uint64(table[QUERY_SHIFT])) | (
            np.uint64(above) << np.uint64(table[LEVEL_SHIFT])
        )
        query_places[place] = number

    return _by_name(locals())


def _by_name(found: dict[str, Any]) -> dict[str, Kernel]:
    return {name: value for name, value in found.items() if isinstance(value, Kernel)}
