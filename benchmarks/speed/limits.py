"""What stands between a figure and its aim on a GPU, by the beginning of its name; `benchmarks/NOTES.md` says more."""

from __future__ import annotations

__all__ = ["limit_of"]

_LIMITS = {
    "faster dense / ZETA at": (
        "forward, the sort of 34 bits: five passes of a library, 0.145 of 0.50 ms, and levels and ranges, 0.12;"
        " backward, float32 rows of upper levels that are written and read again, 0.34 of 1.57 ms"
    ),
    "ZETA / window of 256": "the search is 0.29 of 0.50 ms: a sort of five passes (0.145), levels and ranges (0.12)",
    "faster dense, extrapolated": "as at 65 536 tokens, sort, levels and ranges are more than half of the time",
    "crossover": "the host takes 0.16 ms for a forward pass and 0.5 with backward, as long as dense attention at 4 096",
    "peak extra memory": "entries of all levels, and float32 rows of the upper ones",
    "largest time(2N)": (
        "at the keys, every block looks at the extents of all stretches of 1 024 slots of its row, 32 at a time: that"
        " shows from 524 288 tokens on"
    ),
    "clustered / random": (
        "keys of a cluster share the leading bits of their codes: tiles have longer slices, and select less of them"
    ),
    "drifting / random": (
        "slices hold fifteen entries for each that is selected, and all of them are looked at; ranges walk through the"
        " skip index"
    ),
    "three curves of": (
        "three searches one after another (0.94 ms); every query visits some 320 entries to choose among (1.24) and"
        " gathers its rows without sharing them (0.97 forward, 2.8 backward, and 0.6 to sort pairs)"
    ),
    "host time": (
        "the sort's call takes 50 us (14 launches of the library), six launches 25, allocations 15, look-ups the rest;"
        " the host is shared, and runs of the same code took 154 to 230 us"
    ),
    "numba_cuda / cupy": "no tensor cores: products of rows, one by one; the pass at the keys takes most of the time",
}


def limit_of(name: str, device: str) -> str | None:
    """Find what is in the way of a figure's aim; None where nothing is known to be."""
    if device != "cuda":
        return None
    return next((limit for beginning, limit in _LIMITS.items() if name.startswith(beginning)), None)
