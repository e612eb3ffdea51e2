"""Values: floats of 16 bits, which travel as their bits, and rows of values, of which threads take panels.

As in `arithmetic`, each function is plain Python with a second body for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zeta_ops.backends.numba_cuda.compiling import SIMULATED, device
from zeta_ops.backends.numba_cuda.constants import COLUMNS

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "PLAIN",
    "load_columns",
    "load_words",
    "narrowed",
    "store_columns",
    "store_value",
    "store_words",
    "value_kind",
    "widened",
]

# How a value is kept.
PLAIN = 0  # as a float32 or float64
BFLOAT16 = 1  # as its bits
FLOAT16 = 2

WORDS = COLUMNS // 2  # of 32 bits: panels of 16-bit values are read and written as such where all are aligned


def value_kind(dtype: str) -> int:
    """Say how values of a dtype are kept."""
    return {"bfloat16": BFLOAT16, "float16": FLOAT16}.get(dtype, PLAIN)


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


@device
def _packed(columns, first, kind):
    high = np.uint32(narrowed(columns[first + 1], kind))
    return np.uint32(np.uint32(narrowed(columns[first], kind)) | (high << np.uint32(16)))


def load_words(values: Any, row: Any, first: Any) -> Any:
    """Load the words of a panel of 16-bit values, from value `row + first` on, in one access."""
    at = row + first
    first, second = values[at >> 2], values[(at >> 2) + 1]
    halves = (first, first >> 32, second, second >> 32)
    return tuple(np.uint32(half & 0xFFFFFFFF) for half in halves)


def store_words(values: Any, at: Any, words: Any) -> None:
    """Store them."""
    for n in range(2):
        values[(at >> 2) + n] = np.uint64(words[2 * n]) | (np.uint64(words[2 * n + 1]) << np.uint64(32))


def _load_words(values, row, first, dim, kind, columns):
    words = load_words(values, row, first)
    for n in range(WORDS):
        columns[2 * n] = widened(np.uint16(words[n] & np.uint32(0xFFFF)), kind)
        columns[2 * n + 1] = widened(np.uint16(words[n] >> np.uint32(16)), kind)


def _load_elements(values, row, first, dim, kind, columns):
    for c in range(COLUMNS):
        columns[c] = 0
        if first + c < dim:
            columns[c] = widened(values[row + first + c], kind)


def _store_words(values, row, first, dim, kind, columns):
    words = _packed(columns, 0, kind), _packed(columns, 2, kind), _packed(columns, 4, kind), _packed(columns, 6, kind)
    store_words(values, row + first, words)


def _store_elements(values, row, first, dim, kind, columns):
    for c in range(COLUMNS):
        if first + c < dim:
            values[row + first + c] = narrowed(columns[c], kind)


def _store_floats(values, row, first, dim, kind, columns):
    for c in range(COLUMNS):
        if first + c < dim:
            values[row + first + c] = columns[c]


if not SIMULATED:
    from llvmlite import ir
    from numba import types
    from numba.cuda import libdevice
    from numba.cuda.extending import intrinsic, overload

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

    def _panel_at(builder, values, *offsets):
        """Point to the words of a panel."""
        element = builder.bitcast(values, ir.IntType(16).as_pointer())
        for offset in offsets:
            element = builder.gep(element, [offset])
        return builder.bitcast(element, ir.VectorType(ir.IntType(32), WORDS).as_pointer())

    @intrinsic
    def _load_vector(typing, values, row, first):
        signature = types.UniTuple(types.uint32, WORDS)(values, row, first)

        def generate(context, builder, signature, arguments):
            values, row, first = arguments
            loaded = builder.load(_panel_at(builder, values, first, row))  # what does not change in a loop first
            loaded.align = 16
            words = [builder.extract_element(loaded, ir.IntType(32)(n)) for n in range(WORDS)]
            return context.make_tuple(builder, signature.return_type, words)

        return signature, generate

    @intrinsic
    def _store_vector(typing, values, at, words):
        def generate(context, builder, signature, arguments):
            values, at, words = arguments
            vector = ir.VectorType(ir.IntType(32), WORDS)(ir.Undefined)
            for n in range(WORDS):
                vector = builder.insert_element(vector, builder.extract_value(words, n), ir.IntType(32)(n))
            builder.store(vector, _panel_at(builder, values, at)).align = 16
            return context.get_dummy_value()

        return types.void(values, at, words), generate

    @overload(load_words, target="cuda")
    def _load_words_here(values, row, first):
        return lambda values, row, first: _load_vector(values, row, first)

    @overload(store_words, target="cuda")
    def _store_words_here(values, at, words):
        return lambda values, at, words: _store_vector(values, at, words)

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
