"""Numbers: operations that round for themselves, bits of floats, and values of 16 bits.

Each function is plain Python, which the simulator runs, and has a second body for the device where Python's operators
do not say what is meant there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zeta_ops.backends.numba_cuda.compiling import SIMULATED, device

__all__ = [
    "BFLOAT16",
    "COLUMNS",
    "FLOAT16",
    "PLAIN",
    "add_rounded",
    "comparable",
    "float_bits",
    "floor",
    "load_columns",
    "multiply_rounded",
    "narrowed",
    "reciprocal",
    "squared_distance",
    "store_columns",
    "store_value",
    "subtract_rounded",
    "value_kind",
    "widened",
]

# How a value is kept.
PLAIN = 0  # as a float32 or float64
BFLOAT16 = 1  # as its bits
FLOAT16 = 2

COLUMNS = 16  # of a row of values that a thread holds: a panel
WORD = 4  # values of 16 bits in a word of 64, in which rows are read and written where they are aligned


def value_kind(dtype: str) -> int:
    """Say how values of a dtype are kept."""
    return {"bfloat16": BFLOAT16, "float16": FLOAT16}.get(dtype, PLAIN)


def add_rounded(a: Any, b: Any) -> Any:
    """Add, and round."""
    return a + b


def subtract_rounded(a: Any, b: Any) -> Any:
    """Subtract, and round."""
    return a - b


def multiply_rounded(a: Any, b: Any) -> Any:
    """Multiply, and round."""
    return a * b


def reciprocal(x: Any) -> Any:
    """Invert, to the last bits: weights need no more, and IEEE division takes ten times as long."""
    return type(x)(1) / x


@device
def float_bits(x):
    """Bits of a float32, as an integer that can be negative."""
    return np.int64(np.float32(x).view(np.int32))


@device
def comparable(distance, infinity):
    """NaN counts as infinitely far."""
    return distance if distance == distance else infinity


@device
def squared_distance(x, points, at, dims):
    """Squared distance of `x (dims,)` and `points[at : at + dims]`: each operation rounded, first coordinate first."""
    difference = subtract_rounded(x[0], points[at])
    total = multiply_rounded(difference, difference)
    for c in range(1, dims):
        difference = subtract_rounded(x[c], points[at + c])
        total = add_rounded(total, multiply_rounded(difference, difference))
    return total


def floor(x: Any) -> Any:
    """Round down, as a float."""
    return np.floor(x)


def widened(x: Any, kind: Any) -> Any:
    """Value as a float in which sums are taken."""
    if kind == BFLOAT16:
        return _widened_bfloat16(x)
    return x.view(np.float16).astype(np.float32) if kind == FLOAT16 else x


def narrowed(x: Any, kind: Any) -> Any:
    """Value of 16 bits as it is kept: the nearest, ties to even."""
    return _narrowed_bfloat16(x) if kind == BFLOAT16 else np.float16(np.float32(x)).view(np.uint16)


@device
def _widened_bfloat16(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@device
def _narrowed_bfloat16(x):
    if x != x:
        return np.uint16(0x7FC0)
    bits = np.int64(np.float32(x).view(np.uint32))
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def load_columns(values: Any, row: Any, first: Any, dim: Any, kind: Any, columns: Any) -> None:
    """Load a panel of the row that begins at `values[row]`, from its column `first` on; columns beyond `dim` are 0."""
    if values.dtype == np.uint64:
        _load_words(values, row, first, dim, kind, columns)
    else:
        _load_elements(values, row, first, dim, kind, columns)


def store_columns(values: Any, row: Any, first: Any, dim: Any, kind: Any, columns: Any) -> None:
    """Store a panel, as `load_columns` loads it."""
    if values.dtype == np.uint64:
        _store_words(values, row, first, dim, kind, columns)
    elif values.dtype == np.uint16:
        _store_elements(values, row, first, dim, kind, columns)
    else:
        _store_floats(values, row, first, dim, kind, columns)


def store_value(values: Any, at: Any, x: Any, kind: Any) -> None:
    """Store one value."""
    values[at] = narrowed(x, kind) if values.dtype == np.uint16 else x


def _load_words(values, row, first, dim, kind, columns):
    start = (row + first) >> 2
    for n in range(COLUMNS // WORD):
        word = values[start + n]
        for c in range(WORD):
            columns[WORD * n + c] = widened(np.uint16((word >> np.uint64(16 * c)) & np.uint64(0xFFFF)), kind)


def _load_elements(values, row, first, dim, kind, columns):
    for c in range(COLUMNS):
        columns[c] = 0
        if first + c < dim:
            columns[c] = widened(values[row + first + c], kind)


def _store_words(values, row, first, dim, kind, columns):
    start = (row + first) >> 2
    for n in range(COLUMNS // WORD):
        word = np.uint64(0)
        for c in range(WORD):
            word = word | (np.uint64(narrowed(columns[WORD * n + c], kind)) << np.uint64(16 * c))
        values[start + n] = word


def _store_elements(values, row, first, dim, kind, columns):
    for c in range(COLUMNS):
        if first + c < dim:
            values[row + first + c] = narrowed(columns[c], kind)


def _store_floats(values, row, first, dim, kind, columns):
    for c in range(COLUMNS):
        if first + c < dim:
            values[row + first + c] = columns[c]


if not SIMULATED:
    from numba import types
    from numba.cuda import libdevice
    from numba.cuda.extending import overload

    # Numba inlines what an overload returns; which one it is depends on the types of the arguments.

    @overload(add_rounded, target="cuda")
    def _add_rounded(a, b):
        if a == types.float32:
            return lambda a, b: libdevice.fadd_rn(a, b)
        return lambda a, b: libdevice.dadd_rn(a, b)

    @overload(subtract_rounded, target="cuda")
    def _subtract_rounded(a, b):
        if a == types.float32:
            return lambda a, b: libdevice.fadd_rn(a, -b)
        return lambda a, b: libdevice.dadd_rn(a, -b)

    @overload(multiply_rounded, target="cuda")
    def _multiply_rounded(a, b):
        if a == types.float32:
            return lambda a, b: libdevice.fmul_rn(a, b)
        return lambda a, b: libdevice.dmul_rn(a, b)

    @overload(reciprocal, target="cuda")
    def _reciprocal(x):
        if x == types.float32:
            return lambda x: libdevice.fast_fdividef(np.float32(1), x)
        return lambda x: 1.0 / x

    @overload(floor, target="cuda")
    def _floor(x):
        return lambda x: libdevice.floorf(x)

    @overload(widened, target="cuda")
    def _widened(x, kind):
        if x != types.uint16:
            return lambda x, kind: x

        def of_bits(x, kind):
            return _widened_bfloat16(x) if kind == BFLOAT16 else libdevice.half2float(np.int16(x))

        return of_bits

    @overload(narrowed, target="cuda")
    def _narrowed(x, kind):
        def to_bits(x, kind):
            half = np.uint16(libdevice.float2half_rn(np.float32(x)))
            return _narrowed_bfloat16(x) if kind == BFLOAT16 else half

        return to_bits

    @overload(load_columns, target="cuda")
    def _load_columns(values, row, first, dim, kind, columns):
        return _load_words if values.dtype == types.uint64 else _load_elements

    @overload(store_columns, target="cuda")
    def _store_columns(values, row, first, dim, kind, columns):
        if values.dtype == types.uint64:
            return _store_words
        return _store_elements if values.dtype == types.uint16 else _store_floats

    @overload(store_value, target="cuda")
    def _store_value(values, at, x, kind):
        if values.dtype == types.uint16:

            def store(values, at, x, kind):
                values[at] = narrowed(x, kind)
        else:

            def store(values, at, x, kind):
                values[at] = x

        return store
