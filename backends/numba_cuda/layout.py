"""Where everything lies: the table that every kernel reads, rows, levels, slots.

A *row* is one key head of one sequence (of a batch item, or packed) with the queries of all heads that read it. All
batch items and heads have the same sequences, so that one table serves all rows: first the sizes and options of the
call, then a line for each sequence; without packing there is one. Kernels read it instead of taking thirty arguments.

A row's *items* are its keys, in order of position, and the queries of all heads of the group. They are numbered within
their batch item and key head: all its keys, then the queries. All are sorted together by (row, code), stably, so that
a query stands behind the keys whose codes are as great as its own.

A row's keys stand in *entries*, sorted by (code, position), level after level: level l holds the positions below
ceil(keys / 2**l). All levels come from one sort; together they have fewer than two entries a key. A query that sees t
keys uses the last level with at least t, where at least half the entries are visible to it, so that a window of visible
keys is a short stretch of entries whatever the length is. A level begins at a multiple of 32 entries.

A row's queries stand in *slots*, by level and then by code, so that neighbours read the same entries.
"""

from __future__ import annotations

from zeta_ops.backends import scalars
from zeta_ops.backends.numba_cuda.compiling import device
from zeta_ops.backends.numba_cuda.constants import (
    CAUSAL,
    CHUNK_SIZE,
    GROUP,
    INCLUDE_SELF,
    K_LEN,
    KEYS,
    KV_HEADS,
    LINE,
    LOCAL_WINDOW,
    NUMBERS,
    PACKED,
    Q_LEN,
    Q_OFFSET,
    QUERIES,
    SEQUENCES,
    START,
)

level_count = device(scalars.level_count)
level_length = device(scalars.level_length)
level_of = device(scalars.level_of)
visible_count = device(scalars.visible_count)
history_count = device(scalars.history_count)


@device
def find_line(table, column, value):
    """Place of the last sequence's line whose START, FIRST_ENTRY or FIRST_UNIT is not beyond `value`."""
    lo, hi = 0, table[SEQUENCES] - 1
    while lo < hi:
        middle = (lo + hi + 1) >> 1
        if table[NUMBERS + middle * LINE + column] <= value:
            lo = middle
        else:
            hi = middle - 1
    return NUMBERS + lo * LINE


@device
def line_of_token(table, token):
    """Place of the line of a token's sequence."""
    return find_line(table, START, token) if table[PACKED] else NUMBERS


@device
def sequence_of(line):
    """Find the number of the sequence with a line."""
    return (line - NUMBERS) // LINE


@device
def offset_of(table, strides, batch, head, token):
    """Find the element at which a row of an array with strides begins."""
    return batch * table[strides] + head * table[strides + 1] + token * table[strides + 2]


@device
def key_offset(table, strides, head_row, token):
    """Find it for a token of a key head, counted over all batch items."""
    batch = head_row // table[KV_HEADS]
    return offset_of(table, strides, batch, head_row - batch * table[KV_HEADS], token)


@device
def query_offset(table, strides, head_row, head, token):
    """Find it for a token of head `head` of the group that reads a key head."""
    batch = head_row // table[KV_HEADS]
    return offset_of(table, strides, batch, (head_row - batch * table[KV_HEADS]) * table[GROUP] + head, token)


@device
def first_slot(table, head_row, line):
    """First slot of a row: a sequence's queries of all heads of the group, one sequence after the other."""
    return (head_row * table[Q_LEN] + table[line + START]) * table[GROUP]


@device
def items_of_head(table):
    """Count the items of a batch item and key head."""
    return table[K_LEN] + table[Q_LEN] * table[GROUP]


@device
def items_in_row(table, line):
    """Count the items of a row."""
    return table[line + KEYS] + table[line + QUERIES] * table[GROUP]


@device
def head_and_token_of_item(table, number):
    """Head in the group, and token along N, of an item by its number; a key is of no head, -1."""
    if number < table[K_LEN]:
        return -1, number
    number -= table[K_LEN]
    head = 0 if number < table[Q_LEN] else number // table[Q_LEN]
    return head, number - head * table[Q_LEN]


@device
def head_and_token(table, line, number):
    """Head in the group, and token along N, of a row's query by its number `head * QUERIES + i`."""
    queries = table[line + QUERIES]
    head = 0 if number < queries else number // queries
    return head, table[line + START] + number - head * queries


@device
def row_of_slot(table, slot):
    """Key head over all batch items, and the line, of a slot counted over all rows."""
    of_head = table[Q_LEN] * table[GROUP]
    head_row = slot // of_head
    return head_row, line_of_token(table, (slot - head_row * of_head) // table[GROUP])


@device
def query_number(table, head_row, head, token):
    """Count a query among all (batch, q_heads, q_len)."""
    return (head_row * table[GROUP] + head) * table[Q_LEN] + token


@device
def seen_by(table, line, token):
    """t(i): how many keys of its sequence the query of a token sees."""
    return visible_count(
        token - table[line + START],
        table[line + KEYS],
        table[CAUSAL],
        table[Q_OFFSET],
        table[CHUNK_SIZE],
        table[INCLUDE_SELF],
        table[LOCAL_WINDOW],
    )
