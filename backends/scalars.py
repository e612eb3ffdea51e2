"""Functions of single numbers, in plain Python: Numba kernels compile them, and launchers call them as they are."""

from __future__ import annotations

from typing import Any

__all__ = [
    "before_cut",
    "history_count",
    "interleave",
    "level_count",
    "level_length",
    "level_of",
    "quantise_linear",
    "quantise_loglinear",
    "visible_count",
]

CURVE_SHIFT = 44739242  # a third of the range of 2**27 cells
HALF = 1 << 26
U_MAX = (1 << 27) - 1
ONE_BITS = 0x3F800000  # float32 1.0


def quantise_loglinear(magnitude_bits: Any, negative: Any, is_nan: Any) -> Any:
    """Quantise x, given the bits of float32 `1 + 4|x|` as an integer, whether x < 0, and whether it is NaN."""
    if is_nan:
        return U_MAX
    m = min(magnitude_bits - ONE_BITS, HALF - 1)
    return HALF - 1 - m if negative else HALF + m


def quantise_linear(cell: Any) -> Any:
    """Quantise x, given float32 `floor((x - lo) * scale)`. Compared as floats, which cannot overflow."""
    if cell != cell or cell >= 134217728.0:
        return U_MAX
    if cell < 0.0:
        return 0
    return int(cell)


def interleave(cells: Any, start: Any, dims: Any, bits: Any) -> Any:
    """Interleave `bits` bits of each of `cells[start : start + dims]`, coordinate 0 most significant."""
    code = 0
    for b in range(bits - 1, -1, -1):
        for c in range(dims):
            code = (code << 1) | ((cells[start + c] >> b) & 1)
    return code


def level_length(num_keys: Any, level: Any) -> Any:
    """Keys of a dyadic level: it holds the positions below `ceil(num_keys / 2**level)`."""
    return (num_keys + (1 << level) - 1) >> level


def level_count(num_keys: Any, window: Any) -> Any:
    """Levels of a row: the last one still holds `window` keys."""
    level = 0
    # As level_length says, spelled out: what a compiled function calls would have to be compiled too.
    while (num_keys + (1 << level) - 1) >> level > 1 and (num_keys + (2 << level) - 1) >> (level + 1) >= window:
        level += 1
    return level + 1


def level_of(visible: Any, num_keys: Any, levels: Any) -> Any:
    """Find the smallest level that holds all of the first `visible` positions: at least half are visible."""
    level = 0
    while level + 1 < levels and (num_keys + (2 << level) - 1) >> (level + 1) >= visible:  # level_length(level + 1)
        level += 1
    return level


def visible_count(
    i: Any, num_keys: Any, causal: Any, q_offset: Any, chunk_size: Any, include_self: Any, local_window: Any
) -> Any:
    """Count t(i): how many keys query i of a sequence searches among; the first ones."""
    if not causal:
        return num_keys
    position = q_offset + i
    past = position + include_self
    return min(max(min(past - past % chunk_size, position + 1 - local_window), 0), num_keys)


def history_count(i: Any, num_keys: Any, causal: Any, q_offset: Any, include_self: Any) -> Any:
    """Count the keys in the history token of query i of a sequence; the first ones."""
    if not causal:
        return num_keys
    return min(max(q_offset + i + include_self, 0), num_keys)


def before_cut(distance: Any, position: Any, cut_distance: Any, cut_position: Any) -> Any:
    """Whether a candidate is among the nearest: smaller distance, or the same and at least as recent.

    NaN counts as infinitely far.
    """
    if distance != distance:
        distance = float("inf")
    return distance < cut_distance or (distance == cut_distance and position >= cut_position)
