"""The table of a call, written on the device by one block: lengths of packed sequences are known nowhere else."""

from __future__ import annotations

from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import kernel
from zeta_ops.backends.numba_cuda.constants import (
    BLOCK,
    FIRST_ENTRY,
    FIRST_LOWER,
    FIRST_UNIT,
    FIRST_UPPER,
    K_LEN,
    KEYS,
    LEVEL_ENTRY,
    LEVELS,
    LINE,
    MAX_LEVELS,
    NUMBERS,
    PACKED,
    Q_LEN,
    QUERIES,
    SEQUENCES,
    START,
    UNIT,
    WINDOW,
)
from zeta_ops.backends.numba_cuda.layout import items_in_row, level_count, level_length

__all__ = ["table_kernel"]


@kernel
def table_kernel(table, cu_seqlens, numbers):
    """Write the table: a thread takes a sequence, then the first one adds up what comes before each."""
    if cuda.threadIdx.x == 0:
        for n in range(NUMBERS):
            table[n] = numbers[n]
    for sequence in range(cuda.threadIdx.x, numbers[SEQUENCES], cuda.blockDim.x):
        line = NUMBERS + sequence * LINE
        start = 0
        keys = numbers[K_LEN]
        queries = numbers[Q_LEN]
        if numbers[PACKED]:
            start = cu_seqlens[sequence]
            keys = cu_seqlens[sequence + 1] - start
            queries = keys
        levels = level_count(keys, numbers[WINDOW])
        table[line + START] = start
        table[line + KEYS] = keys
        table[line + QUERIES] = queries
        table[line + LEVELS] = levels
        entries = 0
        for level in range(MAX_LEVELS):
            table[line + LEVEL_ENTRY + level] = entries
            if level < levels:
                entries += (level_length(keys, level) + BLOCK - 1) // BLOCK * BLOCK
        table[line + LEVEL_ENTRY + MAX_LEVELS] = entries
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        unit, lower, upper = 0, 0, 0
        for sequence in range(numbers[SEQUENCES]):
            line = NUMBERS + sequence * LINE
            table[line + FIRST_UNIT] = unit
            table[line + FIRST_LOWER] = lower
            table[line + FIRST_UPPER] = upper
            table[line + FIRST_ENTRY] = lower + upper
            unit += (items_in_row(table, line) + UNIT - 1) // UNIT
            lower += table[line + LEVEL_ENTRY + 1]
            upper += table[line + LEVEL_ENTRY + MAX_LEVELS] - table[line + LEVEL_ENTRY + 1]
