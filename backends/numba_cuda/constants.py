"""Numbers that kernels share with what launches them: sizes of pieces, and columns of the table."""

from __future__ import annotations

MAX_LEVELS = 32
MOST_CURVES = 3
BLOCK = 32  # entries per value of the fine skip index
COARSE = BLOCK * BLOCK  # and of the coarse one
UNIT = 128  # sorted items of a unit of work where levels are made
UNITS_OF_BLOCK = 4
LEVEL_COUNTS = 2 * MAX_LEVELS  # of a unit: keys by level, then queries by level
COLUMNS = 8  # of a row of values that a thread holds: a panel. Of 16 bits they are 16 bytes, the most it reads at once
TILE = 16  # slots of a tile, whose ranges are known together
CHUNK = 32  # tokens of a chunk of the history token's sums
STRETCH = 1024  # sorted pairs that are summed apart where they name one key
NO_KEY = 2**31 - 1  # position of a padding entry: visible to nobody

# The table's numbers about the whole call.
(
    BATCH, Q_HEADS, KV_HEADS, GROUP, Q_LEN, K_LEN, VALUE_DIM, PACKED, SEQUENCES,
    ENTRIES, LOWER_ENTRIES, UPPER_ENTRIES, UNITS, CHUNKS, WIDTH, WINDOW, CURVES,
    CAUSAL, CHUNK_SIZE, INCLUDE_SELF, LOCAL_WINDOW, Q_OFFSET,
    BITS, LINEAR, ROW_SHIFT, NUMBER_BITS,
    Q_STRIDES, _, _, K_STRIDES, _, _, V_STRIDES, _, _, G_STRIDES, _, _,
    NUMBERS,
) = range(39)  # fmt: skip

# A line of the table, of one sequence.
START = 0  # along N
KEYS = 1
QUERIES = 2  # of one head
LEVELS = 3
FIRST_UNIT = 4
FIRST_LOWER = 5  # entries of level 0 of the sequences before
FIRST_UPPER = 6  # and those above it
FIRST_ENTRY = 7  # counted from the first of the batch item and head
LEVEL_ENTRY = 8  # first entry of each level, from FIRST_ENTRY; one more is the end
LINE = LEVEL_ENTRY + MAX_LEVELS + 1

# Numbers of a query's pull without coordinates: see `parts`.
PULL = 3

# Numbers of an extent: see `extents`.
LEFT, RIGHT, VISIBLE, MOST_RIGHT, LEAST_LEFT, EXTENT = range(6)
