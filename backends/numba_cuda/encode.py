"""Morton codes: alone, and of keys and queries in the form that the sort takes them. One thread a point.

An item is one word: row, code, and below them its number in its batch item and head, which is not sorted by. Where that
takes more than 64 bits, numbers stand beside the words, which hold row and code; where these take more too, items are
sorted twice, by code and then by row, and are found again by their numbers among all.
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
    K_STRIDES,
    KV_HEADS,
    LINEAR,
    NUMBER_BITS,
    Q_STRIDES,
    ROW_SHIFT,
    SEQUENCES,
)
from zeta_ops.backends.numba_cuda.layout import (
    head_and_token_of_item,
    items_of_head,
    key_offset,
    line_of_token,
    query_offset,
    sequence_of,
)

__all__ = ["encode_kernels"]

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


def spread(dims: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Say how the bits of a cell come to stand `dims` apart: by which shifts, and which bits each of them leaves.

    Groups of 2 n bits are torn into two of n, the upper ones shifted to their place.
    """
    groups = [n for n in (16, 8, 4, 2, 1) if n < 64 // dims or n == 1]
    masks = [sum((1 << n) - 1 << at for at in range(0, 64, n * dims)) & (2**64 - 1) for n in groups]
    return tuple(np.uint64(n * (dims - 1)) for n in groups), tuple(map(np.uint64, masks))


@cache
def encoder(dims: int) -> Any:
    """Make the function that encodes points of `dims` coordinates."""
    shifts, masks = spread(dims)
    steps = len(shifts)

    @device
    def encoded(points, at, bits, linear, curves, curve, lo, scale):
        """Code of `points[at : at + dims]`, the first coordinate's bits the most significant."""
        shift = 0 if curves == 1 else curve * scalars.CURVE_SHIFT
        drop = (27 if curves == 1 else 28) - bits
        code = np.uint64(0)
        for c in range(dims):
            cell = np.uint64((quantise(points[at + c], linear, lo, scale) + shift) >> drop)
            for n in range(steps):
                cell = (cell | (cell << shifts[n])) & masks[n]
            code = code | (cell << np.uint64(dims - 1 - c))
        return code

    return encoded


@cache
def encode_kernels(dims: int) -> dict[str, Kernel]:
    """Make the kernels for points of `dims` coordinates."""
    encoded = encoder(dims)

    @kernel
    def morton_encode_kernel(points, codes, count, bits, linear, curves, curve, lo, scale):
        n = cuda.grid(1)
        if n >= count:
            return
        codes[n] = encoded(points, n * dims, bits, linear, curves, curve, lo, scale)

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
    def encode_items_kernel(table, q, k, items, numbers, curve, lo, scale):
        n = cuda.grid(1)
        if n >= table[BATCH] * table[KV_HEADS] * items_of_head(table):
            return
        head_row = n // items_of_head(table)
        number = n - head_row * items_of_head(table)
        head, token = head_and_token_of_item(table, number)
        x = cuda.local.array(dims, np.float32)
        at = key_offset(table, K_STRIDES, head_row, token)
        if head >= 0:
            at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c] if head >= 0 else k[at + c]
        word = encoded(x, 0, table[BITS], table[LINEAR], table[CURVES], curve, lo, scale)
        twice = table[ROW_SHIFT] == 64 and table[BATCH] * table[KV_HEADS] * table[SEQUENCES] > 1
        if table[ROW_SHIFT] < 64:
            row = head_row * table[SEQUENCES] + sequence_of(line_of_token(table, token))
            word = word | (np.uint64(row) << np.uint64(table[ROW_SHIFT]))
        if table[NUMBER_BITS] > 0:
            items[n] = (word << np.uint64(table[NUMBER_BITS])) | np.uint64(number)
        else:
            items[n] = word
            numbers[n] = n if twice else number

    @kernel
    def sorted_rows_kernel(table, sorted_items, sorted_numbers):
        # Between two sorts: rows take the place of codes, which have served.
        place = cuda.grid(1)
        if place >= table[BATCH] * table[KV_HEADS] * items_of_head(table):
            return
        n = np.int64(sorted_numbers[place])
        head_row = n // items_of_head(table)
        _, token = head_and_token_of_item(table, n - head_row * items_of_head(table))
        sorted_items[place] = np.uint64(head_row * table[SEQUENCES] + sequence_of(line_of_token(table, token)))

    return _by_name(locals())


def _by_name(found: dict[str, Any]) -> dict[str, Kernel]:
    return {name: value for name, value in found.items() if isinstance(value, Kernel)}
